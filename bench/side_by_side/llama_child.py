"""llama.cpp as a child of `run.py`: the low-level bindings behind the JSON lines that README.md describes."""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as lc

QUIET = lc.llama_log_callback(lambda level, text, data: None)
FLASH = {"on": 1, "off": 0}


class Child:
    """One model, one context, and the token stream the requests read from."""

    def __init__(self, path: str, threads: int, flash: str) -> None:
        self.path, self.threads, self.flash = path, threads, flash
        self.model: Any = None
        self.ctx: Any = None
        self.memory: Any = None
        self.stream: list[int] = []
        self.held = 0
        self.batch = lc.llama_batch_init(512, 0, 1)

    def load(self, context: int) -> dict[str, Any]:
        start = time.perf_counter()
        params = lc.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lc.llama_model_load_from_file(self.path.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {self.path}")
        settings = lc.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, 512, 512
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.flash_attn_type = FLASH[self.flash]
        settings.swa_full = False
        settings.no_perf = True
        self.ctx = lc.llama_init_from_model(self.model, settings)
        if not self.ctx:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = lc.llama_get_memory(self.ctx)
        vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        used = [part.strip() for part in lc.llama_print_system_info().decode().split("|") if part.strip().endswith("= 1")]
        return {
            "ms": (time.perf_counter() - start) * 1e3,
            "vocab": vocab,
            "engine": f"llama-cpp-python {lc.__version__}",
            "detail": f"flash attention {self.flash}; " + ", ".join(used),
        }

    def tokens(self, ids: list[int]) -> dict[str, Any]:
        self.stream = ids
        self.clear()
        return {"count": len(ids)}

    def clear(self) -> None:
        lc.llama_memory_clear(self.memory, True)
        self.held = 0

    def run(self, start: int, stop: int, all_rows: bool) -> None:
        """One pass over `stream[start..stop]` (at most 512 rows), logits at every row or at the last one."""
        if stop > len(self.stream):
            raise ValueError(f"the stream has {len(self.stream)} tokens, {stop} are needed")
        batch = self.batch
        batch.n_tokens = stop - start
        for row, position in enumerate(range(start, stop)):
            batch.token[row] = self.stream[position]
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = all_rows or position + 1 == stop
        code = lc.llama_decode(self.ctx, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        lc.llama_synchronize(self.ctx)
        if not lc.llama_get_logits(self.ctx):
            raise RuntimeError("no logits")
        self.held = stop

    def hold(self, context: int) -> None:
        """Makes the cache hold exactly the first `context` tokens of the stream."""
        if self.held > context and not lc.llama_memory_seq_rm(self.memory, 0, context, -1):
            self.clear()
        self.held = min(self.held, context)
        while self.held < context:
            self.run(self.held, min(self.held + 512, context), all_rows=False)

    def prefill(self, count: int) -> dict[str, Any]:
        self.clear()
        start = time.perf_counter()
        for begin in range(0, count, 512):
            self.run(begin, min(begin + 512, count), all_rows=False)
        return {"ms": (time.perf_counter() - start) * 1e3}

    def decode(self, context: int, count: int) -> dict[str, Any]:
        self.hold(context)
        start = time.perf_counter()
        for position in range(context, context + count):
            self.run(position, position + 1, all_rows=True)
        return {"ms": (time.perf_counter() - start) * 1e3}

    def rows(self, context: int, count: int) -> dict[str, Any]:
        self.hold(context)
        start = time.perf_counter()
        self.run(context, context + count, all_rows=True)
        return {"ms": (time.perf_counter() - start) * 1e3}


def main() -> None:
    """Answers requests until `quit` or the end of the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flash-attention", choices=sorted(FLASH), default="on")
    arguments = parser.parse_args()
    lc.llama_log_set(QUIET, ctypes.c_void_p(0))
    lc.llama_backend_init()
    child = Child(arguments.model, arguments.threads, arguments.flash_attention)
    operations = {name: getattr(child, name) for name in ("load", "tokens", "prefill", "decode", "rows")}
    for line in sys.stdin:
        try:
            request = json.loads(line)
            name = request.pop("op")
            if name == "quit":
                break
            if name not in operations:
                raise ValueError(f"unknown op {name}")
            reply = operations[name](**request)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
