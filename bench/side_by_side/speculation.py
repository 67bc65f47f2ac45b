"""llama.cpp's server with each of its own ways to guess ahead, on the prompts that `tessera check` uses.

    python3 bench/side_by_side/speculation.py --model smollm2 [--count 2] [--tokens 128]

Every prompt is asked with a greedy chat request, in turns over the settings, each setting in a server process of its own that is
stopped while others run. Prints decoding tokens per second and the ratio over llama.cpp's plain run by category, medians; a second
line per setting for the same prompts again, since its n-gram memory outlives a request. Tessera's side is
`tessera check cascade --paced` (or what `tessera tune` chose): ratios over its own plain run on the same prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import llama_setup
from run import model_path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "plain": [],
    "ngram-simple": ["--spec-type", "ngram-simple"],
    "ngram-mod": ["--spec-type", "ngram-mod"],
}


def prompts(count: int) -> list[tuple[str, str]]:
    """The first `count` prompts of each category that are no raw text."""
    found = []
    for path in sorted((ROOT / "crates" / "measure" / "workloads").glob("*.toml")):
        items = [p for p in tomllib.loads(path.read_text())["prompt"] if not p.get("raw")]
        found += [(path.stem, p["text"].rstrip("\n")) for p in items[:count]]
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One llama-server process."""

    def __init__(self, program: Path, model: Path, flags: list[str], threads: int) -> None:
        self.port = free_port()
        command = [program, "-m", model, "-t", threads, "-c", 4096, "-np", 1, "--port", self.port, "--no-webui", *flags]
        self.log = open(os.devnull, "wb")
        self.process = subprocess.Popen([str(c) for c in command], stdout=self.log, stderr=self.log)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).read()
                break
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"llama-server {' '.join(map(str, flags))}: ended with {self.process.returncode}")
                time.sleep(0.2)
        self.stop()

    def stop(self) -> None:
        """Keeps its threads from spinning while others are measured."""
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, text: str, tokens: int) -> float:
        """Decoding speed of one greedy answer, tokens per second."""
        self.process.send_signal(signal.SIGCONT)
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": tokens, "cache_prompt": False}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})  # fmt: skip
        reply = json.loads(urllib.request.urlopen(request, timeout=600).read())
        self.stop()
        return reply["timings"]["predicted_per_second"]

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or a catalogue name whose file is in the store")
    parser.add_argument("--count", type=int, default=2, help="prompts of each category (default 2)")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer (default 128)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tessera", type=Path, default=ROOT / "target" / "release" / "tessera", help="the binary that knows where models are")
    parser.add_argument("--json", type=Path, help="where the record goes")
    given = parser.parse_args()
    program = llama_setup.ensure_server(llama_setup.default_dir())
    model = model_path(given.model, given.tessera)
    servers = {name: Server(program, model, flags, given.threads) for name, flags in SETTINGS.items()}
    speeds: dict[str, dict[str, list[float]]] = {}
    try:
        for category, text in prompts(given.count):
            for turn in ("", " again"):
                for name, server in servers.items():
                    speed = server.ask(text, given.tokens)
                    speeds.setdefault(name + turn, {}).setdefault(category, []).append(speed)
            print(".", end="", file=sys.stderr, flush=True)
    finally:
        print(file=sys.stderr)
        for server in servers.values():
            server.close()
    categories = sorted(speeds["plain"])
    print(f"llama.cpp (llama-cpp-python {llama_setup.VERSION}), {given.model}, {given.threads} threads, tokens/s (ratio over plain)")
    print(f"{'':<20}" + "".join(f"{c:>18}" for c in [*categories, "median of ratios"]))
    for name, by_category in speeds.items():
        base = speeds["plain again" if name.endswith("again") else "plain"]
        ratios = {c: statistics.median(a / b for a, b in zip(by_category[c], base[c])) for c in categories}
        cells = "".join(f"{f'{statistics.median(by_category[c]):.0f} ({ratios[c]:.2f}x)':>18}" for c in categories)
        print(f"{name:<20}{cells}{statistics.median(ratios.values()):>17.2f}x")
    if given.json:
        given.json.write_text(json.dumps({"model": given.model, "speeds": speeds}, indent=1))


if __name__ == "__main__":
    main()
