"""Checks the reference itself: llama.cpp on a copy of the file with every weight stored as float32 must agree with it closely.

    python3 bench/fidelity/check_reference.py MODEL.gguf [--text prose] [--positions 600]

On float32 weights llama.cpp quantises nothing, and with a float32 cache it rounds nothing, so what remains is the order of sums: the
mean KL must be below 1e-6 nat and no position above 1e-4; quantised activations cost 1e-3. Needs the environment of
`bench/side_by_side`, and room for the copy (4 bytes a weight) in the temporary directory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import make
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
from reference import Reference, log_softmax

LIMIT = 1e-6
SKIPPED = {"general.architecture", "general.quantization_version", "general.file_type"}


def float_copy(source: Path, target: Path) -> None:
    """The same metadata and tensors, all weights as float32."""
    reader = GGUFReader(source)
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = GGUFWriter(target, architecture.contents(), use_temp_file=False)
    writer.add_file_type(0)
    for field in reader.fields.values():
        if field.name in SKIPPED or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        part = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, part)
    for tensor in reader.tensors:
        data = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        writer.add_tensor(tensor.name, data.reshape(tuple(reversed(tensor.shape.tolist()))), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Command line entry; 0 when the two agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", choices=["prose", "code"], default="prose")
    parser.add_argument("--positions", type=int, default=600, help="enough to leave a window of 512")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "f32.gguf"
        float_copy(given.model, copy)
        llama = make.Llama(copy)
        tokens = llama.tokenize((make.HERE / f"{given.text}.txt").read_text())[: given.positions]
        reference = Reference(given.model, tokens)
        kl = np.empty(len(tokens))
        for base, logits in llama.positions(tokens, flash=False, float_cache=True):
            for offset in range(0, len(logits), make.SLICE):
                q = log_softmax(np.array(logits[offset : offset + make.SLICE]))
                start = base + offset
                p = reference.log_probs(start, start + len(q))
                kl[start : start + len(q)] = np.einsum("ij,ij->i", np.exp(p), p - q, dtype=np.float64)
    good = bool(abs(kl.mean()) < LIMIT and kl.max() < 100 * LIMIT)
    print(f"{given.model.name}: {len(kl)} positions, mean KL {kl.mean():.2e}, largest {kl.max():.2e}: {'agrees' if good else 'DIFFERS'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
