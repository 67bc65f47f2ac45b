//! Tiny models in GGUF files, and raw bytes for files that no writer would make.
#![allow(dead_code)] // each test binary uses its own part

use std::path::PathBuf;

use tessera_kernels::WeightType;
use tessera_model::Architecture;
use tessera_model::gguf::{GgufWriter, MetaValue, Shape};

/// A seeded generator (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

pub const LAYERS: usize = 2;
pub const HIDDEN: usize = 32;
pub const FFN: usize = 64;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 8;
pub const VOCAB: usize = 20;

/// A whole model of two layers, with a vocabulary, in the tensor types such files mix.
pub fn model(arch: Architecture) -> GgufWriter {
    let mut w = GgufWriter::new();
    let gemma = arch == Architecture::Gemma3;
    w.set("general.architecture", arch.name());
    w.set("general.name", "Tiny");
    w.set("general.license", "apache-2.0");
    let mut hyper = |key: &str, value: MetaValue| {
        w.set(&format!("{arch}.{key}"), value);
    };
    hyper("block_count", MetaValue::U32(LAYERS as u32));
    hyper("context_length", MetaValue::U32(128));
    hyper("embedding_length", MetaValue::U32(HIDDEN as u32));
    hyper("feed_forward_length", MetaValue::U32(FFN as u32));
    hyper("attention.head_count", MetaValue::U32(HEADS as u32));
    hyper("attention.head_count_kv", MetaValue::U32(KV_HEADS as u32));
    hyper("attention.layer_norm_rms_epsilon", MetaValue::F32(1e-5));
    hyper("rope.freq_base", MetaValue::F32(1e5));
    if gemma {
        hyper("attention.key_length", MetaValue::U32(HEAD_DIM as u32));
        hyper("attention.sliding_window", MetaValue::U32(16));
        hyper("attention.sliding_window_pattern", MetaValue::U32(2));
    }
    w.set("tokenizer.ggml.model", "gpt2");
    w.set("tokenizer.ggml.tokens", MetaValue::Strs((0..VOCAB).map(|i| format!("t{i}")).collect()));
    w.set("tokenizer.ggml.scores", MetaValue::F32s(vec![-1.5; VOCAB]));
    w.set("tokenizer.ggml.token_type", MetaValue::I32s(vec![1; VOCAB]));
    w.set("tokenizer.ggml.add_bos_token", MetaValue::Bool(true));
    w.set("tokenizer.chat_template", "{{ messages }}");
    if arch.fills_masks() {
        w.set("tokenizer.ggml.mask_token_id", VOCAB as u32 - 1);
        w.set("diffusion.shift_logits", MetaValue::Bool(arch == Architecture::Dream));
    }

    let mut rng = Rng(arch as u64);
    let mut add = |name: &str, ty: WeightType, dims: &[usize]| {
        let shape = Shape::new(dims).unwrap();
        w.tensor(name, ty, shape, data(ty, shape, &mut rng));
    };
    use WeightType as T;
    add("token_embd.weight", T::Q8_0, &[VOCAB, HIDDEN]);
    if matches!(arch, Architecture::Llama | Architecture::Llada) {
        add("output.weight", T::Q5_0, &[VOCAB, HIDDEN]);
    }
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    for i in 0..LAYERS {
        let mut layer = |name: &str, ty, dims: &[usize]| add(&format!("blk.{i}.{name}"), ty, dims);
        layer("attn_norm.weight", T::F32, &[HIDDEN]);
        layer("attn_q.weight", T::Q4_1, &[q, HIDDEN]);
        layer("attn_k.weight", T::Q4_0, &[kv, HIDDEN]);
        layer("attn_v.weight", T::F16, &[kv, HIDDEN]);
        layer("attn_output.weight", T::BF16, &[HIDDEN, q]);
        if matches!(arch, Architecture::Qwen2 | Architecture::Dream) {
            layer("attn_q.bias", T::F32, &[q]);
            layer("attn_k.bias", T::F32, &[kv]);
            layer("attn_v.bias", T::F32, &[kv]);
        }
        if gemma {
            layer("attn_q_norm.weight", T::F32, &[HEAD_DIM]);
            layer("attn_k_norm.weight", T::F32, &[HEAD_DIM]);
            layer("post_attention_norm.weight", T::F32, &[HIDDEN]);
            layer("post_ffw_norm.weight", T::F32, &[HIDDEN]);
        }
        layer("ffn_norm.weight", T::F32, &[HIDDEN]);
        layer("ffn_gate.weight", T::Q5_1, &[FFN, HIDDEN]);
        layer("ffn_up.weight", T::F32, &[FFN, HIDDEN]);
        layer("ffn_down.weight", T::Q8_0, &[HIDDEN, FFN]);
    }
    add("output_norm.weight", T::F32, &[HIDDEN]);
    w
}

/// Seeded bytes of a tensor; floats lie between 0.5 and 1.5, so that taking one away and adding
/// it again is exact, and the scales of blocks are such halves too.
fn data(ty: WeightType, shape: Shape, rng: &mut Rng) -> Vec<u8> {
    let len = ty.matrix_bytes(shape.rows(), shape.cols()).unwrap();
    let float = |rng: &mut Rng| 0.5 + (rng.next() >> 40) as f32 / (1 << 24) as f32;
    match ty {
        WeightType::F32 => (0..len / 4).flat_map(|_| float(rng).to_le_bytes()).collect(),
        WeightType::F16 => {
            (0..len / 2).flat_map(|_| half::f16::from_f32(float(rng)).to_le_bytes()).collect()
        }
        WeightType::BF16 => {
            (0..len / 2).flat_map(|_| half::bf16::from_f32(float(rng)).to_le_bytes()).collect()
        }
        _ => {
            let mut out: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
            for block in out.chunks_exact_mut(ty.block_bytes()) {
                block[..2].copy_from_slice(&half::f16::from_f32(float(rng)).to_le_bytes());
                if matches!(ty, WeightType::Q4_1 | WeightType::Q5_1) {
                    block[2..4].copy_from_slice(&half::f16::from_f32(-float(rng)).to_le_bytes());
                }
            }
            out
        }
    }
}

/// A GGUF file put together by hand: magic, version 3, counts, then whatever is appended.
pub struct Raw(pub Vec<u8>);

impl Raw {
    pub fn new(tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    pub fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn bytes(mut self, v: &[u8]) -> Self {
        self.0.extend(v);
        self
    }

    pub fn text(self, v: &str) -> Self {
        self.u64(v.len() as u64).bytes(v.as_bytes())
    }

    /// A tensor entry; dimensions as in a file, fastest first.
    pub fn entry(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let mut raw = self.text(name).u32(dims.len() as u32);
        for dim in dims {
            raw = raw.u64(*dim);
        }
        raw.u32(ty).u64(offset)
    }

    /// Pads to 32 bytes and appends `n` bytes of data.
    pub fn data(mut self, n: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 7);
        self.0
    }
}

/// An empty directory for one test, removed when dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tessera-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
