"""Trains a small llama-architecture model in full precision, for judging quantisation schemes.

    python3 -m venv VENV && VENV/bin/pip install -r bench/finequant/requirements.txt
    apt-get install bible-kjv                 # the King James Bible (public domain), as the `bible` command
    VENV/bin/python bench/finequant/train.py --out target/finequant

writes `target/finequant/model/` (`config.json`, `model.safetensors` in f32, `tokenizer.json`: a directory that Tessera opens),
`valid.txt` (text that was not trained on), and, unless `--planted 1`, `planted/`: the same function with outlier channels (see `plant`).
Equal seeds on one machine give equal files. The text may be another: `--text FILE`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EPS, BASE = 1e-5, 10_000.0
Params = dict[str, Any]


def the_text(path: str | None) -> str:
    """The verses of the King James Bible, chapter and verse numbers taken off; or a file."""
    if path:
        return Path(path).read_text(encoding="utf-8")
    verses = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], check=True, capture_output=True, text=True).stdout
    return "\n".join(line.split(" ", 1)[1].strip() for line in verses.splitlines() if " " in line) + "\n"


def split(text: str, piece: int = 8192, every: int = 24) -> tuple[str, str]:
    """Holds out one piece of `every`, cut at line ends."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", min(start + piece, len(text) - 1)) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    held = pieces[every // 2 :: every]
    kept = [p for i, p in enumerate(pieces) if i % every != every // 2]
    return "".join(kept), "".join(held)


def make_tokenizer(text: str, vocab: int) -> Tokenizer:
    """Byte-level BPE whose words are cut as SmolLM's are: a rule that both engines know by name."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def names(layers: int) -> list[str]:
    """The matrices of each layer, by their Hugging Face names."""
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in parts]


def initial(a: argparse.Namespace, vocab: int) -> Params:
    """Normal weights of deviation 0.02, smaller where a block writes to the residual stream."""
    rng = np.random.default_rng(a.seed)
    shape = {"q": (a.hidden, a.hidden), "k": (a.hidden, a.hidden), "v": (a.hidden, a.hidden), "o": (a.hidden, a.hidden)}
    shape |= {"gate": (a.ffn, a.hidden), "up": (a.ffn, a.hidden), "down": (a.hidden, a.ffn)}
    params = {"model.embed_tokens.weight": rng.normal(0, 0.02, (vocab, a.hidden))}
    for name in names(a.layers):
        part = name.split(".")[-2].removesuffix("_proj")
        scale = 0.02 / (2 * a.layers) ** 0.5 if part in ("o", "down") else 0.02
        params[name] = rng.normal(0, scale, shape[part])
    for layer in range(a.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            params[f"model.layers.{layer}.{norm}.weight"] = np.ones(a.hidden)
    params["model.norm.weight"] = np.ones(a.hidden)
    return {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}


def norm(x: jax.Array, w: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * w


def rotate(x: jax.Array) -> jax.Array:
    """Rotary encoding of halves, as Hugging Face checkpoints have it: x is (batch, time, heads, width)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / BASE ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def forward(p: Params, tokens: jax.Array, layers: int, heads: int) -> jax.Array:
    """Logits of every position."""
    embedding = p["model.embed_tokens.weight"]
    x = embedding[tokens]
    batch, time_, hidden = x.shape
    causal = jnp.tril(jnp.ones((time_, time_), bool))
    for layer in range(layers):
        w = lambda part: p[f"model.layers.{layer}.{part}.weight"]  # noqa: B023, E731
        h = norm(x, w("input_layernorm"))
        split_heads = lambda y: y.reshape(batch, time_, heads, hidden // heads)  # noqa: E731
        q, k = rotate(split_heads(h @ w("self_attn.q_proj").T)), rotate(split_heads(h @ w("self_attn.k_proj").T))
        v = split_heads(h @ w("self_attn.v_proj").T)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (hidden // heads) ** 0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), -1)
        x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, time_, hidden) @ w("self_attn.o_proj").T
        h = norm(x, w("post_attention_layernorm"))
        x = x + (jax.nn.silu(h @ w("mlp.gate_proj").T) * (h @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
    return norm(x, p["model.norm.weight"]) @ embedding.T


def train(a: argparse.Namespace, params: Params, ids: np.ndarray, held: np.ndarray) -> tuple[Params, dict[str, float]]:
    """AdamW with warm-up and a linear decay to zero."""

    def loss(p: Params, batch: jax.Array) -> jax.Array:
        logits = forward(p, batch[:, :-1], a.layers, a.heads)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[:, 1:, None], -1)
        return -picked.mean()

    @jax.jit
    def step(p: Params, m: Params, v: Params, batch: jax.Array, rate: jax.Array, t: jax.Array) -> tuple[Params, Params, Params, jax.Array]:
        value, grads = jax.value_and_grad(loss)(p, batch)
        size = jnp.sqrt(sum(jnp.sum(g * g) for g in grads.values()))
        grads = {k: g * jnp.minimum(1.0, 1.0 / size) for k, g in grads.items()}
        m = {k: 0.9 * m[k] + 0.1 * g for k, g in grads.items()}
        v = {k: 0.98 * v[k] + 0.02 * g * g for k, g in grads.items()}
        new = {}
        for k, w in p.items():
            update = (m[k] / (1 - 0.9**t)) / (jnp.sqrt(v[k] / (1 - 0.98**t)) + 1e-8)
            new[k] = w - rate * (update + (0.1 * w if w.ndim == 2 else 0.0))
        return new, m, v, value

    rng = np.random.default_rng(a.seed + 1)
    zeros = {k: jnp.zeros_like(w) for k, w in params.items()}
    m, v, start = zeros, zeros, time.monotonic()
    for t in range(a.steps):
        warm, left = min(1.0, (t + 1) / 100), 1.0 - t / a.steps
        at = rng.integers(0, len(ids) - a.length - 1, a.batch)
        batch = jnp.asarray(np.stack([ids[i : i + a.length + 1] for i in at]))
        params, m, v, value = step(params, m, v, batch, jnp.float32(a.rate * warm * left), jnp.float32(t + 1))
        if t % 100 == 0 or t + 1 == a.steps:
            print(f"step {t:5} of {a.steps}  loss {float(value):.4f}  {time.monotonic() - start:6.0f} s", flush=True)
    evaluate = jax.jit(loss)
    windows = [held[i : i + a.length + 1] for i in range(0, len(held) - a.length - 1, a.length)]
    mean = float(np.mean([float(evaluate(params, jnp.asarray(w[None]))) for w in windows]))
    return params, {"loss": float(value), "valid_loss": mean, "valid_perplexity": float(np.exp(mean)), "seconds": time.monotonic() - start}


def plant(p: Params, a: argparse.Namespace) -> Params:
    """The same function with outlier channels: an input column of `down_proj` times `--planted` and the row of `up_proj` that makes
    it divided by that (the gate is left alone, so the product is unchanged); likewise `o_proj` and `v_proj`. One channel of 64."""
    out = {k: np.array(w) for k, w in p.items()}
    for layer in range(a.layers):
        base = f"model.layers.{layer}."
        for writer, reader in (("mlp.up_proj", "mlp.down_proj"), ("self_attn.v_proj", "self_attn.o_proj")):
            channels = np.arange(layer, out[f"{base}{writer}.weight"].shape[0], 64)
            out[f"{base}{writer}.weight"][channels] /= a.planted
            out[f"{base}{reader}.weight"][:, channels] *= a.planted
    return out


def write(directory: Path, p: Params, a: argparse.Namespace, tokenizer: Tokenizer) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": a.hidden,
        "intermediate_size": a.ffn, "num_hidden_layers": a.layers, "num_attention_heads": a.heads, "num_key_value_heads": a.heads,
        "max_position_embeddings": a.context, "rms_norm_eps": EPS, "rope_theta": BASE, "vocab_size": tokenizer.get_vocab_size(),
        "tie_word_embeddings": True, "torch_dtype": "float32",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: np.ascontiguousarray(w, np.float32) for k, w in p.items()}, directory / "model.safetensors", {"format": "pt"})
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "add_bos_token": False}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text")
    parser.add_argument("--seed", type=int, default=1)
    for name, default in [("vocab", 2048), ("hidden", 256), ("ffn", 768), ("layers", 4), ("heads", 4), ("length", 128), ("batch", 8)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--planted", type=float, default=30.0, help="factor of the planted channels; 1 leaves them out")
    a = parser.parse_args()
    kept, held = split(the_text(a.text))
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "valid.txt").write_text(held, encoding="utf-8")
    tokenizer = make_tokenizer(kept, a.vocab)
    ids, valid = (np.array(tokenizer.encode(t).ids, np.int32) for t in (kept, held))
    params = initial(a, tokenizer.get_vocab_size())
    count = sum(w.size for w in params.values())
    print(f"{count / 1e6:.2f} M parameters, {len(ids)} tokens to train on, {len(valid)} held out", flush=True)
    params, record = train(a, params, ids, valid)
    settings = {k: v for k, v in vars(a).items() if k not in ("out", "text")}
    record = {"parameters": count, "tokens": a.steps * a.batch * a.length, **record, "settings": settings}
    write(a.out / "model", params, a, tokenizer)
    if a.planted != 1.0:
        write(a.out / "planted", plant(params, a), a, tokenizer)
    (a.out / "train.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
