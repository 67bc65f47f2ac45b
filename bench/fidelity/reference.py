"""An f32 forward pass of three architectures in numpy, written for clarity and used as the reference of the fidelity goldens.

Weights are dequantised by the `gguf` package (nothing of Tessera's is used) and every product is a float32 one. Nothing is cached and
nothing is rounded: all positions go through each layer together, attention included. Architectures: `llama`, `qwen2`, `gemma3`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Weights:
    """Metadata and tensors of one GGUF file; each tensor is dequantised when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.reader = GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self.arch = str(self.meta("general.architecture"))

    def meta(self, key: str, default: object = None) -> object:
        """A metadata value, `default` where the file has none."""
        field = self.reader.get_field(key)
        return default if field is None else field.contents()

    def number(self, key: str, default: float | None = None) -> float:
        """A numeric value of the architecture's own section, by its short key."""
        value = self.meta(f"{self.arch}.{key}", default)
        if value is None:
            raise SystemExit(f"the file has no {self.arch}.{key}")
        return float(value)  # type: ignore[arg-type]

    def get(self, name: str) -> F32 | None:
        """The tensor as float32, `[rows, columns]` for a matrix; None where the file has no such tensor."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        return np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)

    def need(self, name: str) -> F32:
        """The tensor as float32; stops where the file has none."""
        found = self.get(name)
        if found is None:
            raise SystemExit(f"the file has no tensor {name}")
        return found

    def rows(self, name: str, indices: NDArray[np.int64]) -> F32:
        """Some rows of a matrix, dequantised alone."""
        tensor = self.tensors[name]
        return np.ascontiguousarray(dequantize(tensor.data[indices], tensor.tensor_type), dtype=np.float32)


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Root-mean-square norm over the last axis."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return (x / np.sqrt(mean + np.float32(eps))) * weight


def rope(x: F32, base: float, interleaved: bool) -> F32:
    """Rotates `[positions, heads, size]` by its position; pairs are neighbours (`interleaved`) or the two halves of a head."""
    count, _, size = x.shape
    frequency = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angle = np.arange(count, dtype=np.float64)[:, None] * frequency
    cos, sin = (np.asarray(part, dtype=np.float32)[:, None, :] for part in (np.cos(angle), np.sin(angle)))
    out = np.empty_like(x)
    a, b = (np.s_[..., 0::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., : size // 2], np.s_[..., size // 2 :])
    out[a] = x[a] * cos - x[b] * sin
    out[b] = x[a] * sin + x[b] * cos
    return out


def attention(q: F32, k: F32, v: F32, window: int | None) -> F32:
    """Causal softmax attention; query `i` sees keys `j` with `0 <= i - j < window`. Heads share keys in groups."""
    count, heads, size = q.shape
    group = heads // k.shape[1]
    distance = np.arange(count)[:, None] - np.arange(count)[None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    out = np.empty_like(q)
    for head in range(heads):
        scores = (q[:, head] @ k[:, head // group].T) * np.float32(size**-0.5)
        scores[hidden] = -np.inf
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        out[:, head] = scores @ v[:, head // group]
    return out


def silu(x: F32) -> F32:
    """x * sigmoid(x)."""
    return x / (np.float32(1) + np.exp(-x))


def gelu(x: F32) -> F32:
    """The tanh form of GELU."""
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x * x * x)))


class Reference:
    """Final hidden states of a token sequence, and the logits of any of its rows."""

    def __init__(self, path: Path, tokens: list[int]) -> None:
        self.weights = Weights(path)
        if self.weights.arch not in ("llama", "qwen2", "gemma3"):
            raise SystemExit(f"no reference for the architecture {self.weights.arch}")
        self.hidden = self._forward(np.asarray(tokens, dtype=np.int64))
        head = "output.weight" if "output.weight" in self.weights.tensors else "token_embd.weight"
        self.head = self.weights.need(head)
        self.vocabulary = self.head.shape[0]

    def _forward(self, tokens: NDArray[np.int64]) -> F32:
        w = self.weights
        gemma = w.arch == "gemma3"
        width = int(w.number("embedding_length"))
        heads = int(w.number("attention.head_count"))
        kv_heads = int(w.number("attention.head_count_kv"))
        size = int(w.number("attention.key_length", width / heads))
        eps = w.number("attention.layer_norm_rms_epsilon")
        base = w.number("rope.freq_base", 10_000.0)
        window = int(w.number("attention.sliding_window")) if gemma else None
        x = w.rows("token_embd.weight", tokens)
        if gemma:
            x *= np.float32(width**0.5)
        for layer in range(int(w.number("block_count"))):
            name = f"blk.{layer}."
            local = gemma and layer % 6 != 5

            def project(h: F32, part: str, name: str = name) -> F32:
                bias = w.get(f"{name}{part}.bias")
                out = h @ w.need(f"{name}{part}.weight").T
                return out if bias is None else out + bias

            h = rms_norm(x, w.need(name + "attn_norm.weight"), eps)
            q = project(h, "attn_q").reshape(-1, heads, size)
            k = project(h, "attn_k").reshape(-1, kv_heads, size)
            v = project(h, "attn_v").reshape(-1, kv_heads, size)
            if gemma:
                q = rms_norm(q, w.need(name + "attn_q_norm.weight"), eps)
                k = rms_norm(k, w.need(name + "attn_k_norm.weight"), eps)
            layer_base = 10_000.0 if local else base
            interleaved = w.arch == "llama"
            mixed = attention(rope(q, layer_base, interleaved), rope(k, layer_base, interleaved), v, window if local else None)
            out = project(mixed.reshape(-1, heads * size), "attn_output")
            if gemma:
                out = rms_norm(out, w.need(name + "post_attention_norm.weight"), eps)
            x = x + out
            h = rms_norm(x, w.need(name + "ffn_norm.weight"), eps)
            gate = project(h, "ffn_gate")
            out = project((gelu(gate) if gemma else silu(gate)) * project(h, "ffn_up"), "ffn_down")
            if gemma:
                out = rms_norm(out, w.need(name + "post_ffw_norm.weight"), eps)
            x = x + out
        return rms_norm(x, w.need("output_norm.weight"), eps)

    def log_probs(self, start: int, stop: int) -> F32:
        """Log-probabilities of the rows `start..stop`, `[rows, vocabulary]`; the normaliser is summed in f64."""
        return log_softmax(self.hidden[start:stop] @ self.head.T)

    def slices(self, rows: int = 50) -> Iterator[tuple[int, F32]]:
        """All rows in order, some at a time, each with the index of its first row."""
        for start in range(0, len(self.hidden), rows):
            yield start, self.log_probs(start, min(start + rows, len(self.hidden)))


def log_softmax(logits: F32) -> F32:
    """Logits to log-probabilities along the last axis, in place; the sum is taken in f64."""
    logits -= logits.max(axis=-1, keepdims=True)
    total = np.exp(logits).sum(axis=-1, keepdims=True, dtype=np.float64)
    logits -= np.log(total).astype(np.float32)
    return logits
