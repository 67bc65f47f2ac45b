//! Model directories as the Hugging Face hub has them: `config.json`, and the weights in
//! `model.safetensors` or in shards listed by `model.safetensors.index.json`.
//!
//! Tensors answer to their GGUF names and hold what a GGUF file would hold (see
//! [`WeightSource::read_rows`]), so nothing above knows which kind of file it runs on. Norms and
//! biases come as F32, whatever their type in the file, as they do in GGUF files.

mod config;
mod export;
mod shard;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use ::safetensors::tensor::Dtype;
use serde_json::Value;
use tessera_kernels::WeightType;

pub use export::{ExportType, export_safetensors};

use crate::file_error::{Fault, FileError, printable, quoted};
use crate::gguf::{Shape, Source};
use crate::hyper::HyperParams;
use crate::summary::{FileSummary, shares};
use crate::tensor_layout::{Fix, Slot, slots};
use crate::weights::{WeightInfo, WeightSource, check_tensors, floats, missing_tensor};
use shard::Shard;

/// Longest `config.json` read; real ones have a few KB.
const MAX_CONFIG: u64 = 1 << 20;
/// Longest index read; one of 700 tensors has 60 KB.
const MAX_INDEX: u64 = 4 << 20;
/// More shards than any model has.
const MAX_SHARDS: usize = 1024;
const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An opened and checked model directory.
#[derive(Debug)]
pub struct SafetensorsDir {
    path: PathBuf,
    params: HyperParams,
    shards: Vec<Shard>,
    tensors: HashMap<String, Placed>,
    config: Value,
}

/// Where a tensor of the architecture lies.
#[derive(Debug)]
struct Placed {
    shard: usize,
    slot: Slot,
    /// How the file stores it.
    stored: WeightType,
    info: WeightInfo,
}

impl SafetensorsDir {
    /// Opens a directory and checks its configuration, every shard's header, and that the model
    /// is whole.
    ///
    /// # Errors
    /// Names the file and the first field or tensor that is wrong, and what to do.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let root = Root::new(path)?;
        let config_path = root.file(CONFIG)?;
        let config = json(&config_path, MAX_CONFIG)?;
        let params = config::hyper_params(&config).map_err(|fault| fault.at(&config_path))?;
        let shards = open_shards(&root)?;

        let mut homes: HashMap<String, usize> = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.names() {
                if let Some(other) = homes.insert(name.clone(), i) {
                    let found =
                        format!("there twice, here and in {}", shards[other].path().display());
                    let field = format!("tensor {}", quoted(&name));
                    return Err(Fault::malformed(field, found, "each tensor once").at(shard.path()));
                }
            }
        }
        let mut tensors = HashMap::new();
        for slot in slots(&params) {
            let Some(home) = homes.remove(&slot.hf) else {
                return Err(missing_tensor(path, &slot.hf));
            };
            let placed = place(slot, home, &shards[home])?;
            tensors.insert(placed.slot.name.clone(), placed);
        }
        let get = |name: &str| tensors.get(name).map(|placed| placed.info);
        check_tensors(&params, &get).map_err(|fault| fault.at(path))?;
        refuse_strangers(&params, &homes, &shards)?;
        Ok(Self { path: path.to_path_buf(), params, shards, tensors, config })
    }

    /// Checks the header of one safetensors file that is already in memory, and returns the number
    /// of its tensors; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`SafetensorsDir::open`].
    pub fn check_header(bytes: Vec<u8>, name: &str) -> Result<usize, FileError> {
        Ok(Shard::parse(Source::Memory(bytes), Path::new(name))?.names().len())
    }

    /// Reads hyper-parameters from the bytes of a `config.json`; `name` stands for the path in
    /// errors.
    ///
    /// # Errors
    /// Names the setting that is missing, senseless or unsupported.
    pub fn check_config(bytes: &[u8], name: &str) -> Result<HyperParams, FileError> {
        let fail = |fault: Fault| fault.at(Path::new(name));
        config::hyper_params(&parse_json(bytes).map_err(fail)?).map_err(fail)
    }

    /// The parsed `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    fn placed(&self, name: &str) -> Result<&Placed, FileError> {
        self.tensors.get(name).ok_or_else(|| missing_tensor(&self.path, name))
    }

    /// A norm or bias as the bytes of the f32 values a GGUF file would hold.
    fn vector(&self, placed: &Placed, out: &mut Vec<u8>) -> Result<(), FileError> {
        let shard = &self.shards[placed.shard];
        let (hf, len) = (&placed.slot.hf, placed.info.shape.elements());
        let mut bytes = vec![0; len * placed.stored.block_bytes()];
        shard.read(hf, 0, &mut bytes)?;
        let values = floats(hf, placed.stored, &bytes).map_err(|fault| fault.at(shard.path()))?;
        out.clear();
        for i in 0..len {
            let value = values[placed.slot.fix.hf_row(i, len)];
            let value = if placed.slot.fix == Fix::PlusOne { value + 1.0 } else { value };
            out.extend(value.to_le_bytes());
        }
        Ok(())
    }
}

impl WeightSource for SafetensorsDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn hyper_params(&self) -> &HyperParams {
        &self.params
    }

    fn find(&self, name: &str) -> Option<WeightInfo> {
        self.tensors.get(name).map(|placed| placed.info)
    }

    fn read_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<WeightInfo, FileError> {
        let placed = self.placed(name)?;
        let shard = &self.shards[placed.shard];
        let (hf, all) = (&placed.slot.hf, placed.info.shape.rows());
        if rows.start > rows.end || rows.end > all {
            let field = format!("tensor {}: data", quoted(name));
            let found = format_args!("asked for rows {rows:?}");
            return Err(
                Fault::malformed(field, found, format!("rows within 0..{all}")).at(shard.path())
            );
        }
        shard.check_length(hf)?;
        if placed.slot.shape.len() == 1 {
            self.vector(placed, out)?;
            if rows.is_empty() {
                out.clear();
            }
            return Ok(placed.info);
        }
        // The data's length was checked against the file: these products cannot wrap.
        let row = placed.info.shape.cols() * placed.stored.block_bytes();
        out.resize(rows.len() * row, 0);
        if placed.slot.fix == Fix::Same {
            shard.read(hf, rows.start * row, out)?;
        } else if row > 0 {
            for (to, i) in out.chunks_exact_mut(row).zip(rows) {
                shard.read(hf, placed.slot.fix.hf_row(i, all) * row, to)?;
            }
        }
        Ok(placed.info)
    }

    fn summary(&self) -> FileSummary {
        let infos = || {
            let all = self.shards.iter().flat_map(|s| s.names().into_iter().map(move |n| (s, n)));
            all.filter_map(|(shard, name)| shard.info(&name))
        };
        let text = |key: &str| self.config.get(key).and_then(Value::as_str).map(str::to_owned);
        let tokenizer = self.path.join("tokenizer.json").is_file();
        let template = self.path.join("chat_template.jinja").is_file()
            || json(&self.path.join("tokenizer_config.json"), MAX_INDEX)
                .is_ok_and(|value| value.get("chat_template").is_some());
        FileSummary {
            format: "safetensors".into(),
            architecture: Some(self.params.arch.name().into()),
            name: text("_name_or_path").filter(|name| !name.is_empty()),
            parameters: infos().map(|i| i.shape.iter().product::<usize>() as u64).sum(),
            bytes: self.shards.iter().map(Shard::bytes).sum(),
            tensors: infos().count(),
            types: shares(infos().map(|i| {
                (dtype_name(i.dtype), {
                    let (begin, end) = i.data_offsets;
                    (end - begin) as u64
                })
            })),
            layers: Some(self.params.layers as u64),
            context: Some(self.params.context as u64),
            vocabulary: Some(self.params.vocab as u64),
            tokenizer: tokenizer.then(|| "tokenizer.json".into()),
            license: None,
            chat_template: template,
        }
    }
}

/// The directory, and the places its files may lie in.
pub(crate) struct Root {
    path: PathBuf,
    allowed: Vec<PathBuf>,
}

impl Root {
    pub(crate) fn new(path: &Path) -> Result<Self, FileError> {
        let real = path.canonicalize().map_err(|source| {
            let next = "check the path, or pull the model first";
            Fault::Io { field: "model directory".into(), source, next }.at(path)
        })?;
        let mut allowed = vec![real.clone()];
        // The hub's cache keeps a model's files in `blobs` and links to them from
        // `snapshots/<revision>`: links to that one directory are how models lie there.
        if let Some(snapshots) = real.parent().filter(|dir| dir.ends_with("snapshots"))
            && let Some(model) = snapshots.parent()
        {
            allowed.push(model.join("blobs"));
        }
        Ok(Self { path: path.to_path_buf(), allowed })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something of this name is there, be it a link that leads nowhere.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.path.join(name).symlink_metadata().is_ok()
    }

    /// The bytes of a file of at most so many.
    pub(crate) fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, FileError> {
        small_file(&self.file(name)?, most)
    }

    /// The path of a file that must lie in the directory, links resolved and checked.
    fn file(&self, name: &str) -> Result<PathBuf, FileError> {
        let path = self.path.join(name);
        let real = path.canonicalize().map_err(|source| {
            let next = "a model directory has config.json, tokenizer.json and model.safetensors: \
                        fetch it again";
            Fault::Io { field: format!("file {}", quoted(name)), source, next }.at(&self.path)
        })?;
        if !real.parent().is_some_and(|dir| self.allowed.iter().any(|allowed| dir == allowed)) {
            let field = format!("file {}", quoted(name));
            let found = format!("a link to {}", real.display());
            return Err(Fault::malformed(field, found, "a file of this directory").at(&self.path));
        }
        Ok(path)
    }
}

fn open_shards(root: &Root) -> Result<Vec<Shard>, FileError> {
    if root.path.join(SINGLE).exists() || !root.path.join(INDEX).exists() {
        return Ok(vec![Shard::open(&root.file(SINGLE)?)?]);
    }
    let index_path = root.file(INDEX)?;
    let index = json(&index_path, MAX_INDEX)?;
    let fail = |fault: Fault| fault.at(&index_path);
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        let next = "the index must map tensors to files: fetch it again";
        return Err(fail(Fault::missing("object \"weight_map\"", next)));
    };
    let mut names: Vec<&str> = Vec::new();
    for (tensor, file) in map {
        let field = || format!("\"weight_map\", tensor {}", quoted(tensor));
        let expected = "the plain name of a .safetensors file in the same directory";
        let Some(file) = file.as_str().filter(|file| is_plain_name(file)) else {
            let found = file.as_str().map_or_else(|| "not a string".into(), quoted);
            return Err(fail(Fault::malformed(field(), found, expected)));
        };
        if !names.contains(&file) {
            names.push(file);
        }
        if names.len() > MAX_SHARDS {
            let found = format_args!("in more than {MAX_SHARDS} files");
            return Err(fail(Fault::malformed("\"weight_map\"", found, "fewer files")));
        }
    }
    names.sort_unstable();
    let shards: Vec<Shard> =
        names.iter().map(|name| Shard::open(&root.file(name)?)).collect::<Result<_, _>>()?;
    for (tensor, file) in map {
        let home = names.iter().position(|name| Some(*name) == file.as_str());
        if home.is_none_or(|home| shards[home].info(tensor).is_none()) {
            let field = format!("\"weight_map\", tensor {}", quoted(tensor));
            let found = format!("said to be in {file}, which lacks it");
            return Err(fail(Fault::malformed(field, found, "the file that holds it")));
        }
    }
    Ok(shards)
}

/// A name that, joined to a directory, stays in it: no separators of any system, no dots alone.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    plain
        && name.ends_with(".safetensors")
        && !name.contains(|c: char| c.is_control() || matches!(c, '/' | '\\' | ':'))
}

/// Reads a small JSON file.
fn json(path: &Path, most: u64) -> Result<Value, FileError> {
    parse_json(&small_file(path, most)?).map_err(|fault| fault.at(path))
}

fn small_file(path: &Path, most: u64) -> Result<Vec<u8>, FileError> {
    let source = Source::open(path)?;
    let fail = |fault: Fault| fault.at(path);
    if source.len() > most {
        let found = format_args!("{} bytes long", source.len());
        return Err(fail(Fault::malformed("file", found, format!("at most {most} bytes"))));
    }
    let mut bytes = vec![0; source.len() as usize];
    source.read_exact_at(&mut bytes, 0).map_err(|source| {
        fail(Fault::Io { field: "file".into(), source, next: "check the disk and try again" })
    })?;
    Ok(bytes)
}

fn parse_json(bytes: &[u8]) -> Result<Value, Fault> {
    serde_json::from_slice(bytes).map_err(|error| {
        let error = printable(&error.to_string(), 200);
        Fault::malformed("file", format_args!("not JSON ({error})"), "a JSON document")
    })
}

/// Finds a tensor's type and shape in the shard that has it.
fn place(slot: Slot, home: usize, shard: &Shard) -> Result<Placed, FileError> {
    let Some(tensor) = shard.info(&slot.hf) else {
        return Err(missing_tensor(shard.path(), &slot.hf));
    };
    let field = |part: &str| format!("tensor {}: {part}", quoted(&slot.hf));
    let stored = match tensor.dtype {
        Dtype::F32 => WeightType::F32,
        Dtype::F16 => WeightType::F16,
        Dtype::BF16 => WeightType::BF16,
        other => {
            let found = format!("{other:?}");
            let fault = Fault::unsupported(field("dtype"), found, "F32, F16, BF16");
            return Err(fault.at(shard.path()));
        }
    };
    // Compared here and not only by the common check, so that the error has the file's own name.
    let shape = Shape::new(&tensor.shape).filter(|shape| shape.dims() == slot.shape);
    let Some(shape) = shape else {
        let found = format_args!("{:?}", tensor.shape);
        let expected = format!("{:?} by config.json", slot.shape);
        return Err(Fault::malformed(field("shape"), found, expected).at(shard.path()));
    };
    let ty = if slot.shape.len() == 1 { WeightType::F32 } else { stored };
    Ok(Placed { shard: home, stored, info: WeightInfo { ty, shape }, slot })
}

/// Tensors nobody would read mean a model whose answers would be wrong, but for two known kinds.
fn refuse_strangers(
    params: &HyperParams,
    left: &HashMap<String, usize>,
    shards: &[Shard],
) -> Result<(), FileError> {
    let mut left: Vec<_> = left.iter().collect();
    left.sort_unstable();
    for (name, home) in left {
        let tied_copy = params.tied && name == "lm_head.weight";
        if tied_copy || name.ends_with(".rotary_emb.inv_freq") {
            continue;
        }
        let field = format!("tensor {}", quoted(name));
        let supported = format!("the tensors of a plain {} model", params.arch);
        let fault = Fault::unsupported(field, "there", supported);
        return Err(fault.at(shards[*home].path()));
    }
    Ok(())
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::BF16 => "BF16",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_stay_in_the_directory_are_plain() {
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
        for bad in [
            "",
            ".",
            "..",
            "../model.safetensors",
            "/etc/model.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "c:model.safetensors",
            "./model.safetensors",
            "model.bin",
            "x\0.safetensors",
            "x\u{1b}[2J.safetensors",
        ] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
    }
}
