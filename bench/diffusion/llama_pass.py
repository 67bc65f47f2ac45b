"""llama.cpp's pass over a whole canvas, as its diffusion example makes one in every step: logits and time.

    python llama_pass.py FILE TOKENS OUT --threads N --repeat N     (in the environment of bench/side_by_side)

TOKENS and OUT are as `canvas_pass` of crates/model has them. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path

import llama_cpp as lc
import numpy as np

QUIET = lc.llama_log_callback(lambda level, text, data: None)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--flash-attention", type=int, default=0)
    arguments = parser.parse_args()
    tokens = [int(word) for word in arguments.tokens.read_text().split()]
    lc.llama_log_set(QUIET, ctypes.c_void_p(0))
    lc.llama_backend_init()
    params = lc.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lc.llama_model_load_from_file(arguments.file.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {arguments.file}")
    settings = lc.llama_context_default_params()
    # Rows that read one another must share a batch.
    settings.n_ctx = settings.n_batch = settings.n_ubatch = len(tokens)
    settings.n_threads = settings.n_threads_batch = arguments.threads
    settings.flash_attn_type = arguments.flash_attention
    settings.no_perf = True
    context = lc.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit("llama.cpp cannot make a context")
    lc.llama_set_causal_attn(context, False)
    batch = lc.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for row, token in enumerate(tokens):
        batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, row, 1
        batch.seq_id[row][0], batch.logits[row] = 0, 1
    times = []
    for _ in range(arguments.repeat):
        start = time.perf_counter()
        if lc.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        lc.llama_synchronize(context)
        times.append((time.perf_counter() - start) * 1e3)
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(lc.llama_get_logits(context), shape=(len(tokens), vocab))
    arguments.out.write_bytes(logits.astype(np.float32).tobytes())
    shift = ctypes.create_string_buffer(8)
    known = lc.llama_model_meta_val_str(model, b"diffusion.shift_logits", shift, 8) >= 0
    shifted = shift.value == b"true" if known else True
    print(json.dumps({"version": lc.__version__, "shift": shifted, "milliseconds": times}))


if __name__ == "__main__":
    main()
