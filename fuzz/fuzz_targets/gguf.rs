//! A GGUF file may hold anything: reading it ends in a model or in an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_model::gguf::Gguf;
use tessera_model::{FileSummary, GgufWeights};

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Gguf::from_bytes(data.to_vec(), "fuzz.gguf") else { return };
    let _ = FileSummary::of_gguf(&file);
    let meta = file.metadata();
    for (key, ..) in meta.keys() {
        let _ = meta.get_str(key);
        let _ = (meta.get_u32(key), meta.get_u64(key), meta.get_f32(key), meta.get_bool(key));
        let _ = meta.get_arr_str(key).map(|array| array.map(|array| array.iter().count()));
        let _ = (meta.get_arr_i32(key), meta.get_arr_u32(key));
        let _ = (meta.get_arr_f32(key), meta.get_arr_bool(key));
    }
    let mut bytes = Vec::new();
    for tensor in file.tensors() {
        let info = file.read_tensor(&tensor.name, &mut bytes).expect("checked when opened");
        assert_eq!(info.bytes(), bytes.len() as u64);
    }
    let _ = GgufWeights::new(file);
});
