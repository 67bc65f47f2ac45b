"""Runs one GGUF file through llama.cpp and through Tessera in turns and prints the ratios; README.md says what is measured and how.

python3 bench/side_by_side/run.py --model smollm2 [--threads 2] [--quick]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_setup

ROOT = Path(__file__).resolve().parents[2]
ROWS = (1, 2, 4, 8, 16, 32, 64)
CELLS = ["prefill512", "decode0", *(f"rows{n}@256" for n in ROWS), "decode1024", "decode4096"]
QUICK = ["prefill512", "decode0", "rows1@256", "rows16@256", "decode1024"]


class Failed(Exception):
    """A child that died or answered with an error."""


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    name: str
    op: str
    context: int
    count: int

    @staticmethod
    def parse(name: str, decode_tokens: int) -> Cell:
        """`prefill512`, `decode1024` or `rows16@256`."""
        try:
            if name.startswith("prefill"):
                return Cell(name, "prefill", 0, int(name.removeprefix("prefill")))
            if name.startswith("decode"):
                return Cell(name, "decode", int(name.removeprefix("decode")), decode_tokens)
            if name.startswith("rows"):
                count, context = name.removeprefix("rows").split("@")
                return Cell(name, "rows", int(context), int(count))
        except ValueError:
            pass
        raise SystemExit(f"run.py: {name!r} is no cell; they look like prefill512, decode1024, rows16@256")

    @property
    def unit(self) -> str:
        """Passes of several rows are times; everything else is a speed."""
        return "ms" if self.op == "rows" else "tok/s"

    @property
    def tokens(self) -> int:
        """How much of the stream the cell reads."""
        return self.context + self.count

    def request(self) -> dict[str, Any]:
        """The line sent to a child."""
        request: dict[str, Any] = {"op": self.op, "count": self.count}
        return request if self.op == "prefill" else request | {"context": self.context}

    def value(self, ms: float) -> float:
        """Milliseconds to the cell's unit."""
        return ms if self.op == "rows" else self.count / (ms / 1e3)


@dataclass
class Engine:
    """A child process that answers requests; stopped whenever it is not its turn."""

    name: str
    command: Sequence[str | Path]
    log: Path
    loaded: dict[str, Any] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        pipe = subprocess.PIPE
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([str(part) for part in self.command], stdin=pipe, stdout=pipe, stderr=log, text=True)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wakes the child, sends one request, waits for the reply, stops the child again."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            reply = json.loads(line) if line else {"error": "the child ended"}
        except (BrokenPipeError, ValueError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
        if "error" in reply:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            raise Failed(f"{self.name}: {reply['error']}" + "".join(f"\n    {text}" for text in tail))
        return reply

    def memory(self) -> dict[str, int]:
        """Peak and present resident memory in bytes; empty where the system has no such file."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return {}
        wanted = {"VmHWM:": "peak", "RssAnon:": "anonymous", "RssFile:": "file"}
        parts = (line.split() for line in lines)
        return {wanted[part[0]]: int(part[1]) * 1024 for part in parts if part and part[0] in wanted}

    def stop(self) -> None:
        """Lets the child end by itself, and ends it where it does not."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.communicate('{"op":"quit"}\n', timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.communicate()


def model_path(name: str, tessera: Path) -> Path:
    """A file as given; else a catalogue name's file in `TESSERA_TEST_MODELS` or the store; else what `tessera show NAME --json` says."""
    if Path(name).is_file():
        return Path(name)
    file = name.lower().replace(":", "-") + ".gguf"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera"
    for folder in (os.environ.get("TESSERA_TEST_MODELS"), Path(os.environ.get("TESSERA_HOME") or cache) / "models"):
        if folder and (Path(folder) / file).is_file():
            return Path(folder) / file
    try:
        shown = subprocess.run([str(tessera), "show", name, "--json"], capture_output=True, text=True, check=True)
        return Path(json.loads(shown.stdout)["path"])
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError):
        raise SystemExit(f"run.py: {name} is neither a file nor a model of the store; `tessera pull {name}` fetches it") from None


def processor() -> dict[str, Any]:
    """CPU model, the vector extensions that matter here, cores."""
    model, flags = platform.processor(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    known = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"]
    return {"model": model, "features": [name for name in known if name in flags], "cores": os.cpu_count()}


def others_busy(own: int) -> float:
    """Cores' worth of work that processes other than ours did in the last half second (Linux; 0 elsewhere)."""

    def busy() -> float:
        values = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")

    try:
        before = busy()
        time.sleep(0.5)
        return max(0.0, (busy() - before) / 0.5 - own)
    except (OSError, ValueError, IndexError):
        return 0.0


def measure(engines: list[Engine], cells: list[Cell], repeat: int) -> list[float]:
    """Every cell in turns over the engines; the first turn warms up and is dropped. Returns the load seen between cells."""
    load = []
    for cell in cells:
        load.append(others_busy(0))
        for turn in range(repeat + 1):
            for engine in engines[turn % len(engines) :] + engines[: turn % len(engines)]:
                if cell.name in engine.failures:
                    continue
                try:
                    ms = float(engine.ask(cell.request())["ms"])
                except Failed as failed:
                    engine.failures[cell.name] = str(failed)
                    print(f"  {cell.name}: {failed}", file=sys.stderr)
                    continue
                if turn:
                    engine.values.setdefault(cell.name, []).append(cell.value(ms))
        shown = "  ".join(f"{e.name} {statistics.median(e.values[cell.name]):.1f}" for e in engines if cell.name in e.values)
        print(f"  {cell.name:<12} {shown} {cell.unit}", file=sys.stderr)
    return load


def summary(values: list[float]) -> dict[str, Any]:
    """Median, lowest and highest, and every value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "values": values}


def compare(engines: list[Engine], cells: list[Cell]) -> list[dict[str, Any]]:
    """One record per cell: each engine's summary, the better llama.cpp setting, and Tessera's ratio to it (above 1: Tessera wins)."""
    table = []
    for cell in cells:
        found = {engine.name: summary(engine.values[cell.name]) for engine in engines if cell.name in engine.values}
        peers = [name for name in found if name != "tessera"]
        pick = min if cell.op == "rows" else max
        best = pick(peers, key=lambda name: found[name]["median"]) if peers else None
        ratio = None
        if best and "tessera" in found:
            ratio = found["tessera"]["median"] / found[best]["median"]
            ratio = 1 / ratio if cell.op == "rows" else ratio
        table.append({"cell": cell.name, "unit": cell.unit, "count": cell.count, "engines": found, "best": best, "ratio": ratio})
    return table


def show(record: dict[str, Any]) -> str:
    """The table as Markdown."""

    def text(row: dict[str, Any], name: str) -> str:
        found = row["engines"].get(name)
        return "-" if found is None else f"{found['median']:.1f} ({found['low']:.1f}-{found['high']:.1f})"

    names = list(record["engines"])
    lines = [
        f"{record['model']['file']}, {record['threads']} threads, {record['cpu']['model']}, {record['date']}",
        "",
        "| cell | unit | " + " | ".join(names) + " | ratio |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for row in record["cells"]:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        lines.append(f"| {row['cell']} | {row['unit']} | " + " | ".join(text(row, name) for name in names) + f" | {ratio} |")
    memory = [f"{engine['memory'].get('peak', 0) / 2**20:.0f}" for engine in record["engines"].values()]
    lines.append("| peak memory | MiB | " + " | ".join(memory) + " | |")
    lines.append("| load | ms | " + " | ".join(f"{engine['loaded'].get('ms', 0):.0f}" for engine in record["engines"].values()) + " | |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--model", default="smollm2", help="a GGUF file or a name of the store (default smollm2)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=None, help="turns per cell (default 7, quick 3)")
    parser.add_argument("--only", default=None, help="cells, separated by commas: prefill512,decode1024,rows16@256")
    parser.add_argument("--decode-tokens", type=int, default=None, help="tokens per decode cell (default 64, quick 16)")
    parser.add_argument("--quick", action="store_true", help="fewer cells, turns and tokens")
    parser.add_argument("--tessera", type=Path, default=ROOT / "target" / "release" / "tessera")
    parser.add_argument("--without-tessera", action="store_true", help="llama.cpp alone")
    parser.add_argument(
        "--json", type=Path, default=None, help="where the record goes (default: beside the build, named by model and time)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the random tokens")
    return parser.parse_args()


def main() -> int:
    """Builds, measures, prints; 0 when every cell was measured on every engine."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the children are ended too
    model = model_path(given.model, given.tessera)
    if not given.without_tessera and not given.tessera.exists():
        raise SystemExit(f"run.py: there is no {given.tessera}: `cargo build --release` makes it; `--without-tessera` does without")
    names = given.only.split(",") if given.only else QUICK if given.quick else CELLS
    cells = [Cell.parse(name, given.decode_tokens or (16 if given.quick else 64)) for name in names]
    repeat = given.repeat or (3 if given.quick else 7)
    directory = llama_setup.default_dir()
    python = llama_setup.ensure(directory, os.cpu_count() or 2)
    child = Path(__file__).with_name("llama_child.py")
    engines = [
        Engine(
            f"llama.cpp fa {flash}",
            [python, child, "--model", model, "--threads", str(given.threads), "--flash-attention", flash],
            directory / f"child-fa-{flash}.log",
        )
        for flash in ("on", "off")
    ]
    if not given.without_tessera:
        command = [given.tessera, "bench", "--serve-stdio", "-m", model, "-t", str(given.threads)]
        engines.insert(0, Engine("tessera", command, directory / "child-tessera.log"))
    context = max(cell.tokens for cell in cells)
    context = -(-(context + 1) // 256) * 256
    started = datetime.datetime.now(datetime.UTC)
    quiet = others_busy(0)
    failed = ""
    try:
        for engine in engines:
            engine.start()
            engine.loaded = engine.ask({"op": "load", "context": context})
        vocab = min(int(engine.loaded["vocab"]) for engine in engines)
        draw = random.Random(given.seed)
        ids = [draw.randrange(min(1000, vocab // 2), vocab - vocab // 20) for _ in range(context)]
        for engine in engines:
            engine.ask({"op": "tokens", "ids": ids})
        load = [quiet, *measure(engines, cells, repeat)]
        memory = {engine.name: engine.memory() for engine in engines}
    except Failed as error:
        failed = str(error)
    finally:
        for engine in engines:
            if hasattr(engine, "process"):
                engine.stop()
    if failed:
        raise SystemExit(f"run.py: {failed}")
    record = {
        "date": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["python3", "bench/side_by_side/run.py", *(Path(part).name if "/" in part else part for part in sys.argv[1:])]),
        "model": {"file": model.name, "bytes": model.stat().st_size},
        "threads": given.threads,
        "repeat": repeat,
        "cpu": processor(),
        "others_busy_cores": load,
        "engines": {e.name: {"loaded": e.loaded, "memory": memory[e.name], "failures": e.failures} for e in engines},
        "cells": compare(engines, cells),
    }
    path = given.json or directory / "records" / f"{model.stem}-{started:%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(show(record))
    if max(load) > 0.3:
        print(f"\nwarning: other programs used up to {max(load):.1f} cores between the cells; take these figures as ratios at best")
    print(f"\nrecord: {path}")
    return 1 if any(engine.failures for engine in engines) else 0


if __name__ == "__main__":
    sys.exit(main())
