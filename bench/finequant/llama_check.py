"""Loads a GGUF file that `tessera quantize` wrote in llama.cpp and compares the most probable next tokens with Tessera's.

    PY=$(python3 bench/side_by_side/llama_setup.py)          # the interpreter with llama.cpp's bindings
    $PY bench/finequant/llama_check.py FILE.gguf [--prompts 40]

Both see the same beginnings of a text (no greedy run, where one near-tie would part the rest). `--refused` checks instead that llama.cpp
refuses the file, as it must refuse the compact form. Exits 1 when the check fails: the file does not load (or loads), or fewer than
`--least` of the tokens agree (activations are rounded differently, so a near-tie may go either way).
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
from pathlib import Path

import llama_cpp as lc

QUIET = lc.llama_log_callback(lambda level, text, data: None)


def first_tokens(path: str, prompts: list[str]) -> list[str] | None:
    """The text of llama.cpp's most probable token after each prompt; None where it cannot load the file."""
    params = lc.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lc.llama_model_load_from_file(path.encode(), params)
    if not model:
        return None
    vocab = lc.llama_model_get_vocab(model)
    settings = lc.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch, settings.no_perf = 512, 2, 2, True
    ctx = lc.llama_init_from_model(model, settings)
    size, found = lc.llama_vocab_n_tokens(vocab), []
    for prompt in prompts:
        raw = prompt.encode()
        ids = (lc.llama_token * 512)()
        n = lc.llama_tokenize(vocab, raw, len(raw), ids, len(ids), True, False)
        lc.llama_memory_clear(lc.llama_get_memory(ctx), True)
        if lc.llama_decode(ctx, lc.llama_batch_get_one(ids, n)) != 0:
            raise RuntimeError("llama_decode failed")
        logits = lc.llama_get_logits_ith(ctx, -1)
        best = max(range(size), key=lambda i: logits[i])
        buffer = ctypes.create_string_buffer(256)
        length = lc.llama_token_to_piece(vocab, best, buffer, 256, 0, False)
        found.append(buffer.raw[:length].decode(errors="replace"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--least", type=float, default=0.9, help="share of the tokens that must agree")
    parser.add_argument("--text", type=Path, default=Path(__file__).parents[1] / "fidelity" / "prose.txt")
    parser.add_argument("--refused", action="store_true")
    parser.add_argument("--tessera", default="target/release/tessera")
    a = parser.parse_args()
    lc.llama_log_set(QUIET, ctypes.c_void_p(0))
    lc.llama_backend_init()
    words = a.text.read_text(encoding="utf-8").split()
    prompts = [" ".join(words[10 * i : 10 * i + 10 + i]) for i in range(a.prompts)]
    theirs = first_tokens(a.file, prompts)
    if a.refused:
        print("refused by llama.cpp" if theirs is None else "llama.cpp loaded it")
        sys.exit(theirs is not None)
    if theirs is None:
        sys.exit("llama.cpp cannot load the file")
    same = 0
    for prompt, their in zip(prompts, theirs):
        command = [a.tessera, "run", a.file, prompt, "--raw", "--temperature", "0", "-n", "1", "-q"]
        ours = subprocess.run(command, capture_output=True, text=True, check=True).stdout.removesuffix("\n")
        same += ours.strip() == their.strip()
    print(f"{same} of {len(prompts)} most probable tokens equal")
    sys.exit(same < a.least * len(prompts))


if __name__ == "__main__":
    main()
