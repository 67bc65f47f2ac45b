"""Makes the fidelity goldens: an f32 reference and llama.cpp on the same tokens of natural text, position by position.

    python3 bench/fidelity/make.py MODEL.gguf --name smollm2 --text prose       writes crates/model/tests/goldens/fidelity/smollm2.json
    python3 bench/fidelity/make.py MODEL.gguf --name smollm2 --full OUT         the reference's whole distributions, for .ci/long

The first form tokenises `prose.txt` or `code.txt` with llama.cpp, runs 1,000 positions through the reference of `reference.py` and
through llama.cpp (two passes of 512 and 488 rows, f16 cache, flash attention on and off) and stores what README.md lists. It needs the
environment of `bench/side_by_side` and builds it when it is not there. The second form reads the tokens from the golden and needs numpy
and gguf only.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(variable, "2")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLDENS = ROOT / "crates" / "model" / "tests" / "goldens" / "fidelity"
POSITIONS = 1000
TOP = 8
MAGIC = b"TSRALP01"
RESAMPLES = 2000
SLICE = 50


def sha256(path: Path) -> str:
    """Digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_full(path: Path, tokens: list[int], out: Path) -> None:
    """The reference's log-probabilities: magic, u32 rows, u32 vocabulary, then rows x vocabulary f32, all little endian."""
    from reference import Reference

    reference = Reference(path, tokens[:POSITIONS])
    with out.open("wb") as file:
        file.write(MAGIC + struct.pack("<II", POSITIONS, reference.vocabulary))
        for _, rows in reference.slices():
            file.write(rows.astype("<f4").tobytes())


class Llama:
    """llama.cpp over one model: tokens of a text, and logits of every position."""

    def __init__(self, path: Path) -> None:
        import llama_cpp as lc

        self.lc = lc
        self.quiet = lc.llama_log_callback(lambda level, text, data: None)
        lc.llama_log_set(self.quiet, ctypes.c_void_p(0))
        lc.llama_backend_init()
        params = lc.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.vocabulary = lc.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text with the special ones that the file asks for at the start."""
        data = text.encode()
        buffer = (self.lc.llama_token * (len(data) + 8))()
        count = self.lc.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), True, False)
        return list(buffer[:count])

    def positions(self, tokens: list[int], flash: bool, float_cache: bool = False) -> Any:
        """Yields `(first row, logits [rows, vocabulary])` in order, at most 512 rows at a time."""
        import numpy as np

        lc = self.lc
        settings = lc.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = 1024, 512, 512
        settings.n_threads = settings.n_threads_batch = 2
        settings.flash_attn_type = int(flash)
        settings.swa_full = False
        if float_cache:
            settings.type_k = settings.type_v = 0
        ctx = lc.llama_init_from_model(self.model, settings)
        batch = lc.llama_batch_init(512, 0, 1)
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            batch.n_tokens = len(part)
            for row, token in enumerate(part):
                batch.token[row], batch.pos[row], batch.logits[row] = token, start + row, 1
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = 0
            code = lc.llama_decode(ctx, batch)
            if code != 0:
                raise SystemExit(f"llama_decode returned {code}")
            logits = np.ctypeslib.as_array(lc.llama_get_logits(ctx), shape=(len(part) * self.vocabulary,))
            yield start, logits.reshape(len(part), self.vocabulary)
        lc.llama_batch_free(batch)
        lc.llama_free(ctx)


def interval(values: Any) -> list[float]:
    """Bootstrap 95 % interval of the mean, positions drawn with replacement, fixed seed."""
    import numpy as np

    draw = np.random.default_rng(1)
    means = np.asarray(values)[draw.integers(0, len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    return [float(f"{bound:.4g}") for bound in np.percentile(means, [2.5, 97.5])]


def coarse_kl(p_log: Any, q_log: Any) -> Any:
    """KL in nats per row between distributions coarsened to some tokens, given by log-probability, and one bucket for all others."""
    import numpy as np

    p, q = np.exp(p_log.astype(np.float64)), np.exp(q_log.astype(np.float64))
    rest_p, rest_q = np.maximum(1 - p.sum(axis=1), 1e-9), np.maximum(1 - q.sum(axis=1), 1e-9)
    return (p * (p_log - q_log)).sum(axis=1) + rest_p * np.log(rest_p / rest_q)


def measure(path: Path, text: str, repo_text: str) -> dict[str, Any]:
    """The whole golden of one model."""
    import llama_cpp
    import numpy as np
    from reference import Reference, log_softmax

    llama = Llama(path)
    tokens = llama.tokenize(text)[: POSITIONS + 1]
    if len(tokens) != POSITIONS + 1:
        raise SystemExit(f"the text gives {len(tokens)} tokens, {POSITIONS + 1} are needed")
    reference = Reference(path, tokens[:POSITIONS])
    if reference.vocabulary != llama.vocabulary:
        raise SystemExit(f"the head has {reference.vocabulary} rows, llama.cpp says {llama.vocabulary} tokens")
    following = np.asarray(tokens[1:])
    next_reference = np.empty(POSITIONS, dtype=np.float64)
    top_ids = np.empty((POSITIONS, TOP), dtype=np.int64)
    top_logs = np.empty((POSITIONS, TOP), dtype=np.float64)
    for start, rows in reference.slices(SLICE):
        stop = start + len(rows)
        next_reference[start:stop] = rows[np.arange(len(rows)), following[start:stop]]
        some = np.argpartition(-rows, TOP, axis=1)[:, :TOP]
        order = np.argsort(-np.take_along_axis(rows, some, axis=1), axis=1, kind="stable")
        top_ids[start:stop] = np.take_along_axis(some, order, axis=1)
        top_logs[start:stop] = np.take_along_axis(rows, top_ids[start:stop], axis=1)
    runs = []
    for flash in (True, False):
        kl, coarse = np.empty(POSITIONS), np.empty(POSITIONS)
        next_llama, agree = np.empty(POSITIONS), np.empty(POSITIONS, dtype=bool)
        for base, logits in llama.positions(tokens[:POSITIONS], flash):
            for offset in range(0, len(logits), SLICE):
                q = log_softmax(np.array(logits[offset : offset + SLICE]))
                start = base + offset
                stop = start + len(q)
                p = reference.log_probs(start, stop)
                kl[start:stop] = np.einsum("ij,ij->i", np.exp(p), p - q, dtype=np.float64)
                coarse[start:stop] = coarse_kl(top_logs[start:stop], np.take_along_axis(q, top_ids[start:stop], axis=1))
                next_llama[start:stop] = q[np.arange(len(q)), following[start:stop]]
                agree[start:stop] = q.argmax(axis=1) == top_ids[start:stop, 0]
        runs.append(
            {
                "flash_attention": flash,
                "mean_kl": float(f"{kl.mean():.5g}"),
                "mean_kl_95": interval(kl),
                "median_kl": float(f"{np.median(kl):.5g}"),
                "max_kl": float(f"{kl.max():.5g}"),
                "mean_top_kl": float(f"{coarse.mean():.5g}"),
                "mean_top_kl_95": interval(coarse),
                "perplexity": round(float(np.exp(-next_llama.mean())), 6),
                "top1_agreement": round(float(agree.mean()), 4),
                "kl": [float(f"{value:.4g}") for value in kl],
            }
        )
    return {
        "made_by": "bench/fidelity/make.py",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {
            "llama_cpp_python": llama_cpp.__version__,
            "gguf": __import__("importlib.metadata").metadata.version("gguf"),
            "numpy": np.__version__,
        },
        "file": {"bytes": path.stat().st_size, "sha256": sha256(path)},
        "architecture": reference.weights.arch,
        "vocabulary": reference.vocabulary,
        "text": repo_text,
        "positions": POSITIONS,
        "tokens": tokens,
        "reference": {
            "perplexity": round(float(np.exp(-next_reference.mean())), 6),
            "next_log_prob": [round(float(value), 5) for value in next_reference],
            "top_ids": top_ids.tolist(),
            "top_log_probs": [[round(float(value), 5) for value in row] for row in top_logs],
        },
        "llama_cpp": runs,
    }


def encode(golden: dict[str, Any]) -> str:
    """JSON with one key a line and lists packed, so that the file is small and a change is readable."""

    def packed(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"))

    def block(value: dict[str, Any], indent: str) -> str:
        inner = ",\n".join(
            f'{indent} "{key}": ' + (block(part, indent + " ") if isinstance(part, dict) else packed(part)) for key, part in value.items()
        )
        return "{\n" + inner + "\n" + indent + "}"

    parts = {key: value for key, value in golden.items() if key != "llama_cpp"}
    runs = ",\n".join("  " + block(run, "  ") for run in golden["llama_cpp"])
    return block(parts, "")[:-2] + ',\n "llama_cpp": [\n' + runs + "\n ]\n}\n"


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("--name", required=True, help="name of the golden, without .json")
    parser.add_argument("--text", choices=["prose", "code"], default="prose", help="which text of this directory")
    parser.add_argument("--full", type=Path, default=None, help="only write the reference's whole distributions to this file")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE))
    golden = GOLDENS / f"{given.name}.json"
    if given.full is not None:
        stored = json.loads(golden.read_text())
        if stored["file"]["sha256"] != sha256(given.model):
            raise SystemExit(f"{given.model} is not the file that {golden.name} was made from")
        write_full(given.model, stored["tokens"], given.full)
        return
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        sys.path.insert(0, str(HERE.parent / "side_by_side"))
        import llama_setup

        python = llama_setup.ensure(llama_setup.default_dir(), os.cpu_count() or 2)
        os.execv(python, [str(python), str(Path(__file__).resolve()), *sys.argv[1:]])
    text = HERE / f"{given.text}.txt"
    result = measure(given.model, text.read_text(), f"bench/fidelity/{text.name}")
    GOLDENS.mkdir(parents=True, exist_ok=True)
    golden.write_text(encode(result))
    for run in result["llama_cpp"]:
        print(given.name, {key: value for key, value in run.items() if key != "kl"}, result["reference"]["perplexity"])


if __name__ == "__main__":
    main()
