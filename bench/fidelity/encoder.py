"""Embeddings of all-MiniLM-L6-v2 by plain numpy in float64: what Tessera's encoder is compared with.

    pip install numpy tokenizers safetensors
    tessera pull all-minilm
    python3 bench/fidelity/encoder.py ~/.cache/tessera/models/all-minilm.zip > crates/model/tests/goldens/all-minilm.json

Written from the description of BERT (Devlin et al. 2018), independent of the engine; the tokenizer is the library's.
"""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile

import numpy as np
from safetensors.numpy import load
from tokenizers import Tokenizer

TEXTS = [
    "The cat sits on the mat.",
    "A small cat is sitting on a rug.",
    "Interest rates were raised by half a percent.",
    "def add(a, b):\n    return a + b",
    "Größe, naïve café — 東京 🙂",
    "word " * 200,
]


def members(path: str) -> tuple[dict, Tokenizer, dict]:
    """Configuration, tokenizer and weights."""
    archive = zipfile.ZipFile(path)
    begin = next(name for name in archive.namelist() if name.endswith("model.safetensors")).removesuffix("model.safetensors")
    read = lambda name: archive.read(begin + name)  # noqa: E731
    tokenizer = Tokenizer.from_str(read("tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = {name: np.asarray(value, np.float64) for name, value in load(io.BytesIO(read("model.safetensors")).read()).items()}
    return json.loads(read("config.json")), tokenizer, weights


def embed(config: dict, weights: dict, tokens: list[int]) -> np.ndarray:
    """The mean of the last rows, of length 1."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    heads = config["num_attention_heads"]
    n = len(tokens)
    x = weights["embeddings.word_embeddings.weight"][tokens] + weights["embeddings.position_embeddings.weight"][:n]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        cut = lambda y: y.reshape(n, heads, -1).transpose(1, 0, 2)  # noqa: E731
        q, k, v = (cut(linear(x, f"{at}attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        read = (scores @ v).transpose(1, 0, 2).reshape(n, -1)
        x = norm(x + linear(read, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        wide = linear(x, f"{at}intermediate.dense")
        wide = 0.5 * wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        x = norm(x + linear(wide, f"{at}output.dense"), f"{at}output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def main() -> None:
    """Command line entry."""
    config, tokenizer, weights = members(sys.argv[1])
    made = []
    for text in TEXTS:
        tokens = tokenizer.encode(text).ids
        embedding = embed(config, weights, tokens)
        made.append({"text": text, "tokens": tokens, "embedding": [round(float(x), 8) for x in embedding]})
    json.dump(made, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    main()
