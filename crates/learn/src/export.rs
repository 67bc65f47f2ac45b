//! Trained weights as a GGUF file: `llama` for models that read backwards only, `llada` for those
//! that fill masks, with the keys that llama.cpp's diffusion example reads.

use std::path::Path;

use tessera_kernels::WeightType;
use tessera_model::gguf::{GgufWriter, MetaValue, Shape as Extents};
use tessera_model::{ANY_SUBSET_KEY, PROMPT_END_KEY};

use crate::network::{EPSILON, ROPE_BASE, Shape};
use crate::vocabulary::Vocabulary;
use crate::{Error, Result};

/// Values of a block of `q8_0`.
const BLOCK: usize = 32;

/// How matrices are stored; norms are always in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As they are.
    F32,
    /// In 8 bits, a scale for every 32.
    Q8,
}

/// What a file says about its model.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Its name.
    pub name: &'a str,
    /// One line.
    pub about: &'a str,
    /// Whether it reads in both directions and predicts masks.
    pub is_bidirectional: bool,
    /// Whether the row before a masked token predicts it.
    pub is_shifted: bool,
    /// Whether it is causal in the order of writing.
    pub is_any_subset: bool,
    /// The character that ends every prompt, if there is one.
    pub prompt_end: Option<char>,
}

/// A row in `q8_0`.
fn eight_bits(row: &[f32], out: &mut Vec<u8>) {
    for block in row.chunks(BLOCK) {
        let most = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = half::f16::from_f32(most / 127.0);
        out.extend(scale.to_le_bytes());
        let by = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        out.extend(block.iter().map(|x| (x * by).round().clamp(-127.0, 127.0) as i8 as u8));
    }
}

/// Writes the file.
///
/// # Errors
/// What the disk reports.
pub fn write(
    path: &Path,
    about: About<'_>,
    shape: &Shape,
    vocabulary: &Vocabulary,
    weights: &[f32],
    stored: Stored,
) -> Result<()> {
    let mut out = GgufWriter::new();
    let arch = if about.is_bidirectional { "llada" } else { "llama" };
    out.set("general.architecture", arch);
    out.set("general.name", about.name);
    out.set("general.description", about.about);
    out.set("general.license", "MIT OR Apache-2.0");
    for (key, value) in [
        ("block_count", shape.layers),
        ("context_length", shape.context),
        ("embedding_length", shape.hidden),
        ("feed_forward_length", shape.ffn),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.heads),
        ("rope.dimension_count", shape.head_dim()),
        ("vocab_size", shape.vocab),
    ] {
        out.set(&format!("{arch}.{key}"), value as u32);
    }
    out.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), EPSILON);
    out.set(&format!("{arch}.rope.freq_base"), ROPE_BASE);
    if about.is_bidirectional {
        out.set(&format!("{arch}.attention.causal"), MetaValue::Bool(false));
        out.set("diffusion.shift_logits", MetaValue::Bool(about.is_shifted));
        if about.is_any_subset {
            out.set(ANY_SUBSET_KEY, MetaValue::Bool(true));
        }
        if let Some(end) = about.prompt_end {
            out.set(PROMPT_END_KEY, &*end.to_string());
        }
    }
    vocabulary.write(&mut out);
    for tensor in shape.tensors() {
        let values = &weights[tensor.range()];
        let (dims, vector) = (vec![tensor.rows, tensor.cols], vec![tensor.cols]);
        let dims = if tensor.is_vector() { vector } else { dims };
        let extents = Extents::new(&dims)
            .ok_or_else(|| Error::setting(format!("{}: no such shape", tensor.name)))?;
        let mut data = Vec::new();
        let ty = if tensor.is_vector() || stored == Stored::F32 {
            values.iter().for_each(|value| data.extend(value.to_le_bytes()));
            WeightType::F32
        } else {
            values.chunks(tensor.cols).for_each(|row| eight_bits(row, &mut data));
            WeightType::Q8_0
        };
        out.tensor(&tensor.name, ty, extents, data);
    }
    Ok(out.write(path, |_, _| Ok(()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let row: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) / 7.0).collect();
        let mut bytes = Vec::new();
        eight_bits(&row, &mut bytes);
        assert_eq!(bytes.len(), 2 * 34);
        for (block, values) in bytes.chunks(34).zip(row.chunks(32)) {
            let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (code, value) in block[2..].iter().zip(values) {
                assert!((f32::from(*code as i8) * scale - value).abs() <= 0.51 * scale);
            }
        }
        eight_bits(&[0.0; 32], &mut bytes);
        assert!(bytes[68..].iter().all(|&b| b == 0));
    }
}
