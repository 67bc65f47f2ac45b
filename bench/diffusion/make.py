"""Random-weight GGUF files of the LLaDA and Dream architectures, for comparing engines: they say nothing sensible.

    python3 bench/diffusion/make.py ARCH SIZE OUT

ARCH is `llada` or `dream`, SIZE `tiny` (32-bit weights, for logits) or `small` (8-bit blocks, for time). Needs `gguf` and `numpy`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

SIZES = {
    "tiny": {"layers": 2, "hidden": 64, "ffn": 96, "heads": 4, "kv": {"llada": 4, "dream": 2}, "vocab": 320},
    "small": {"layers": 12, "hidden": 576, "ffn": 1536, "heads": 9, "kv": {"llada": 9, "dream": 3}, "vocab": 4096},
}
"""Shapes; LLaDA has as many key heads as query heads, Dream fewer."""


def spelling(byte: int) -> str:
    """How byte-level vocabularies spell a byte."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    return chr(byte) if byte in printable else chr(256 + [b for b in range(256) if b not in printable].index(byte))


def make(arch: str, size: str, path: Path, seed: int = 1) -> None:
    """Writes one file. The last token is the mask, the one before it ends a text."""
    shape = SIZES[size]
    hidden, ffn, vocab = shape["hidden"], shape["ffn"], shape["vocab"]
    width = hidden // shape["heads"]
    kv = shape["kv"][arch] * width
    rng = np.random.default_rng(seed)
    out = gguf.GGUFWriter(path, arch)
    out.add_name(f"random {arch}")
    out.add_block_count(shape["layers"])
    out.add_context_length(1024)
    out.add_embedding_length(hidden)
    out.add_feed_forward_length(ffn)
    out.add_head_count(shape["heads"])
    out.add_head_count_kv(shape["kv"][arch])
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(width)
    out.add_vocab_size(vocab)
    out.add_causal_attention(False)
    out.add_bool("diffusion.shift_logits", arch == "dream")
    tokens = [spelling(b) for b in range(256)] + ["ab"]
    tokens += [f"<w{i}>" for i in range(vocab - len(tokens) - 2)] + ["<end>", "<mask>"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    out.add_token_types([1] * (vocab - 2) + [3, 3])
    out.add_token_merges(["a b"])
    out.add_eos_token_id(vocab - 2)
    out.add_bos_token_id(vocab - 2)
    out.add_add_bos_token(False)
    out.add_mask_token_id(vocab - 1)

    def matrix(name: str, rows: int, cols: int, scale: float) -> None:
        values = (rng.standard_normal((rows, cols)) * scale / np.sqrt(cols)).astype(np.float32)
        if size == "tiny":
            out.add_tensor(name, values)
        else:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            out.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def vector(name: str, n: int, around: float, scale: float) -> None:
        out.add_tensor(name, (around + scale * rng.standard_normal(n)).astype(np.float32))

    matrix("token_embd.weight", vocab, hidden, 2.0)
    matrix("output.weight", vocab, hidden, 2.0)
    vector("output_norm.weight", hidden, 1.0, 0.1)
    for layer in range(shape["layers"]):
        name = f"blk.{layer}."
        vector(name + "attn_norm.weight", hidden, 1.0, 0.1)
        matrix(name + "attn_q.weight", hidden, hidden, 1.5)
        matrix(name + "attn_k.weight", kv, hidden, 1.5)
        matrix(name + "attn_v.weight", kv, hidden, 1.0)
        matrix(name + "attn_output.weight", hidden, hidden, 1.0)
        if arch == "dream":
            vector(name + "attn_q.bias", hidden, 0.0, 0.5)
            vector(name + "attn_k.bias", kv, 0.0, 0.5)
            vector(name + "attn_v.bias", kv, 0.0, 0.5)
        vector(name + "ffn_norm.weight", hidden, 1.0, 0.1)
        matrix(name + "ffn_gate.weight", ffn, hidden, 1.0)
        matrix(name + "ffn_up.weight", ffn, hidden, 1.0)
        matrix(name + "ffn_down.weight", hidden, ffn, 1.0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arch", choices=["llada", "dream"])
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    make(arguments.arch, arguments.size, arguments.out)


if __name__ == "__main__":
    main()
