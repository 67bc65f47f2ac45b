//! A safetensors header and a configuration may hold anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_model::SafetensorsDir;

fuzz_target!(|data: &[u8]| {
    let _ = SafetensorsDir::check_header(data.to_vec(), "fuzz.safetensors");
    let _ = SafetensorsDir::check_config(data, "config.json");
});
