"""Loads a GGUF file that `tessera quantize` wrote in llama.cpp and compares the most probable tokens with Tessera's.

    PY=$(python3 bench/side_by_side/llama_setup.py)          # the interpreter with llama.cpp's bindings
    $PY bench/finequant/llama_check.py FILE.gguf [--tokens 64]

Both continue the same prompt greedily. Equal text is printed as such; otherwise the first position at which they part, which rounding
of activations can cause where two tokens are almost equally probable. `--refused` checks instead that llama.cpp refuses the file, as it
must refuse the compact form. Exits 1 when the check fails: the file does not load (or loads), or fewer than `--least` tokens agree.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys

import llama_cpp as lc

QUIET = lc.llama_log_callback(lambda level, text, data: None)


def continuation(path: str, prompt: str, count: int) -> str | None:
    """Greedy continuation by llama.cpp; None where it cannot load the file."""
    params = lc.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lc.llama_model_load_from_file(path.encode(), params)
    if not model:
        return None
    vocab = lc.llama_model_get_vocab(model)
    raw = prompt.encode()
    ids = (lc.llama_token * (len(raw) + 8))()
    n = lc.llama_tokenize(vocab, raw, len(raw), ids, len(ids), True, False)
    tokens = list(ids[:n])
    settings = lc.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch, settings.no_perf = n + count + 8, 2, 2, True
    ctx = lc.llama_init_from_model(model, settings)
    size = lc.llama_vocab_n_tokens(vocab)
    out = b""
    batch_ids = tokens
    for _ in range(count):
        array = (lc.llama_token * len(batch_ids))(*batch_ids)
        if lc.llama_decode(ctx, lc.llama_batch_get_one(array, len(batch_ids))) != 0:
            raise RuntimeError("llama_decode failed")
        logits = lc.llama_get_logits_ith(ctx, -1)
        best = max(range(size), key=lambda i: logits[i])
        if lc.llama_vocab_is_eog(vocab, best):
            break
        buffer = ctypes.create_string_buffer(256)
        out += buffer.raw[: lc.llama_token_to_piece(vocab, best, buffer, 256, 0, False)]
        batch_ids = [best]
    return out.decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--least", type=int, default=20, help="characters that must agree")
    parser.add_argument("--prompt", default="And it came to pass in those days, that")
    parser.add_argument("--refused", action="store_true")
    parser.add_argument("--tessera", default="target/release/tessera")
    a = parser.parse_args()
    lc.llama_log_set(QUIET, ctypes.c_void_p(0))
    lc.llama_backend_init()
    theirs = continuation(a.file, a.prompt, a.tokens)
    if a.refused:
        print("refused by llama.cpp" if theirs is None else "llama.cpp loaded it")
        sys.exit(theirs is not None)
    if theirs is None:
        sys.exit("llama.cpp cannot load the file")
    command = [a.tessera, "run", a.file, a.prompt, "--raw", "--temperature", "0", "-n", str(a.tokens), "-q"]
    ours = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours, theirs = ours.removeprefix(a.prompt).rstrip("\n"), theirs.rstrip("\n")
    same = next((i for i, (x, y) in enumerate(zip(ours, theirs)) if x != y), min(len(ours), len(theirs)))
    whole = same == len(ours) == len(theirs)
    print(f"{'equal' if whole else f'equal up to character {same}'}: {theirs!r}")
    sys.exit(not whole and same < a.least)


if __name__ == "__main__":
    main()
