//! Writes a small random model as a directory that other programs load: `config.json`,
//! `model.safetensors` and `tokenizer.json`.
//!
//! `cargo run --release -p tessera-runtime --example toy_directory -- DIRECTORY [SEED]`

use std::error::Error;
use std::path::PathBuf;

use tessera_model::gguf::Gguf;
use tessera_model::open_weights;
use tessera_model::tokenizer::HuggingFace;
use tessera_model::toy::{Flavour, gguf};
use tessera_model::{ExportType, export_safetensors};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("name a directory to write into")?);
    let seed = arguments.next().map_or(Ok(5), |n| n.parse::<u64>())?;
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("toy.gguf");
    std::fs::write(&file, gguf(Flavour::Llama, seed))?;
    export_safetensors(&*open_weights(&file)?, &directory, ExportType::F32)?;
    HuggingFace::from_gguf(Gguf::open(&file)?.metadata())?.write_into(&directory)?;
    Ok(())
}
