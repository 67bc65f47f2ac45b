"""Decodes the built-in prompts with Tessera's tuned recipe and with llama-server's speculative settings, in turns; README.md says how.

tessera tune -m smollm2
python3 bench/side_by_side/speculation.py --model smollm2 [--category code-edit] [--count 2] [--repeat 1]
python3 bench/side_by_side/speculation.py --show RECORD.json [RECORD.json ...]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llama_setup
from run import ROOT, Failed, model_path, others_busy, processor

CATEGORIES = ["chat", "summarise", "code-edit", "code-completion", "repetition", "translation"]
"""The built-in workload, in the order of crates/measure/src/workload.rs."""

PLAIN, TUNED = "tessera plain", "tessera tuned"
SPECULATIVE = {"ngram-simple": ["--spec-type", "ngram-simple"], "ngram-mod": ["--spec-type", "ngram-mod"]}
DRAFT_TOKENS = 6


@dataclass(frozen=True)
class Item:
    """A prompt: a message of the user, or a text to go on with (`raw`)."""

    category: str
    name: str
    text: str
    raw: bool


@dataclass(frozen=True)
class Run:
    """One answer: decoding only, the first token (it comes with the prompt) left out of tokens and seconds."""

    prompt_tokens: int
    tokens: int
    seconds: float
    drafted: int
    accepted: int
    passes: int | None = None

    @property
    def rate(self) -> float:
        """Decoded tokens per second; 0 for an answer of one token."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def workload(folder: Path, categories: list[str], count: int | None) -> list[Item]:
    """The first `count` prompts of each category, with the text that `tessera check` gives the model."""
    items = []
    for category in categories:
        prompts = tomllib.loads((folder / f"{category}.toml").read_text())["prompt"][:count]
        for number, prompt in enumerate(prompts, 1):
            items.append(Item(category, f"{category}-{number}", prompt["text"].rstrip("\n"), prompt.get("raw", False)))
    return items


class Tessera:
    """Answers with a fresh `tessera run` each time, so that no drafter remembers an earlier prompt."""

    def __init__(self, binary: Path, model: str, threads: int, method: str | None) -> None:
        plain = [] if method is None else ["--method", method]
        self.command = [str(binary), "run", model, "-", "--offline", "--json", "-q", "--temperature", "0", "-t", str(threads), *plain]
        self.methods: Any = None

    def fresh(self) -> None:
        """Every run is."""

    def ask(self, item: Item, tokens: int) -> Run:
        command = self.command + ["-n", str(tokens)] + (["--raw"] if item.raw else [])
        done = subprocess.run(command, input=item.text + "\n", capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"tessera: {done.stderr.strip()}")
        return self.read(done.stdout.splitlines())

    def read(self, lines: list[str]) -> Run:
        """The figures of the events of one run."""
        events = {event["event"]: event for event in map(json.loads, lines)}
        self.methods = events["started"]["methods"]
        stats = events["done"]["stats"]
        names = ("prompt_tokens", "decode_tokens", "decode_seconds", "drafted_tokens", "accepted_tokens")
        # The prompt is one pass of those counted.
        return Run(*(stats[name] for name in names), passes=sum(json.loads(line)["event"] == "step" for line in lines))

    def stop(self) -> None:
        """Nothing runs between two answers."""


class Server:
    """A llama-server of one slot; stopped (SIGSTOP) whenever it is not its turn."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[bytes] | None = None

    def fresh(self) -> None:
        """Starts it anew: what its n-gram memory learnt from earlier answers is gone."""
        self.stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*self.command, "--port", str(self.port)], stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while True:
            try:
                if self.post("health", None).get("status") == "ok":
                    break
            except (OSError, ValueError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    tail = "\n    ".join(self.log.read_text(errors="replace").splitlines()[-5:])
                    raise Failed(f"llama-server did not start: {' '.join(self.command)}\n    {tail}") from None
                time.sleep(0.05)
        self.process.send_signal(signal.SIGSTOP)

    def post(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.loads(reply.read())

    def ask(self, item: Item, tokens: int) -> Run:
        assert self.process
        self.process.send_signal(signal.SIGCONT)
        try:
            prompt = item.text
            if not item.raw:
                prompt = self.post("apply-template", {"messages": [{"role": "user", "content": prompt}]})["prompt"]
            greedy = {"temperature": 0.0, "top_k": 1, "samplers": ["top_k"], "cache_prompt": False}
            reply = self.post("completion", {"prompt": prompt, "n_predict": tokens, **greedy})
        except (OSError, ValueError, KeyError) as error:
            raise Failed(f"llama-server: {type(error).__name__}: {error}") from None
        finally:
            self.process.send_signal(signal.SIGSTOP)
        return self.read(reply["timings"])

    @staticmethod
    def read(timings: dict[str, Any]) -> Run:
        """Its own timings: `predicted_ms` runs from the first token to the last."""
        tokens, seconds = max(0, timings["predicted_n"] - 1), timings["predicted_ms"] / 1e3
        return Run(timings["prompt_n"], tokens, seconds, timings.get("draft_n", 0), timings.get("draft_n_accepted", 0))

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def settings(draft_model: Path | None, flash: dict[str, list[str]], speculative_flash: str) -> dict[str, list[str]]:
    """llama-server's settings by name: plain with each flash attention asked for, speculative ones with `speculative_flash`."""
    found = {f"plain, fa {name}": flags for name, flags in flash.items()}
    extra = dict(SPECULATIVE)
    if draft_model:
        spec = ["--spec-type", "draft-simple", "--spec-draft-n-max", str(DRAFT_TOKENS), "--model-draft", str(draft_model)]
        extra["draft model"] = spec
    return found | {f"{name}, fa {speculative_flash}": flags + flash[speculative_flash] for name, flags in extra.items()}


def measure(engines: dict[str, Any], items: list[Item], tokens: int, repeat: int, said: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every prompt in turns over the engines. At each further turn of the prompts everything is started anew."""
    rows: list[dict[str, Any]] = [{"category": i.category, "name": i.name, "runs": {name: [] for name in engines}} for i in items]
    names = list(engines)
    for turn in range(repeat):
        for engine in engines.values():
            engine.fresh()
        for at, (item, row) in enumerate(zip(items, rows)):
            first = (turn + at) % len(names)
            for name in names[first:] + names[:first]:
                row["runs"][name].append(asdict(engines[name].ask(item, tokens)))
            said(f"{item.name:<18} " + "  ".join(f"{name} {Run(**row['runs'][name][-1]).rate:.1f}" for name in names))
    return rows


def rate(row: dict[str, Any], engine: str) -> float | None:
    """Decoding speed of a prompt: the geometric mean of its turns; None where nothing was decoded."""
    values = [Run(**run).rate for run in row["runs"][engine]]
    return statistics.geometric_mean(values) if values and min(values) > 0 else None


def ratios(rows: list[dict[str, Any]], of: str, over: str) -> list[float]:
    """Speed of one engine over another's, prompt by prompt."""
    pairs = [(rate(row, of), rate(row, over)) for row in rows]
    return [a / b for a, b in pairs if a and b]


def best(rows: list[dict[str, Any]], names: list[str]) -> str:
    """The engine with the highest median speed over the prompts."""
    return max(names, key=lambda name: statistics.median([rate(row, name) or 0.0 for row in rows]))


def spread(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.2f}x ({min(values):.2f}-{max(values):.2f})" if values else "-"


def summary(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The prompts overall, and by category."""
    yield "overall", rows
    for category in dict.fromkeys(row["category"] for row in rows):
        yield category, [row for row in rows if row["category"] == category]


def counts(rows: list[dict[str, Any]], engine: str) -> str:
    """What of the guesses became text, of each prompt's first run; tokens a pass where they are known."""
    runs = [Run(**row["runs"][engine][0]) for row in rows]
    drafted, accepted = sum(run.drafted for run in runs), sum(run.accepted for run in runs)
    text = f"{accepted} of {drafted}"
    passes = [run.passes for run in runs if run.passes]
    return text + (f", {sum(run.tokens for run in runs) / sum(passes):.2f} a pass" if passes else "")


def show(record: dict[str, Any]) -> str:
    """The two tables as Markdown: speeds with their ratios, and how many guesses became text."""
    rows, names = record["rows"], list(record["engines"])
    plain = [name for name in names if name.startswith("plain")]
    speculative = [name for name in names if name not in (PLAIN, TUNED, *plain)]
    head = f"{record['model']}, {record['threads']} threads, {record['cpu']['model']}, {record['date']}, tuned recipe {record['recipe']}"
    columns = ["tok/s", "Tessera plain", "tuned", "llama.cpp plain", "its best speculative setting",
               "tuned / llama.cpp plain", "tuned / its best", "tuned / Tessera plain"]  # fmt: skip
    lines = [head, "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for title, part in summary(rows):
        speed = {name: statistics.median([rate(row, name) or 0.0 for row in part]) for name in names}
        peer, guess = best(part, plain), best(part, speculative)
        lines.append(
            f"| {title} | {speed[PLAIN]:.0f} | {speed[TUNED]:.0f} | {speed[peer]:.0f} ({peer.removeprefix('plain, ')})"
            f" | {speed[guess]:.0f} ({guess}) | {spread(ratios(part, TUNED, peer))} | {spread(ratios(part, TUNED, guess))}"
            f" | {spread(ratios(part, TUNED, PLAIN))} |"
        )
    lines += ["", "| guesses that became text | tuned | " + " | ".join(speculative) + " |", "|---|---|" + "---|" * len(speculative)]
    for title, part in summary(rows):
        lines.append(f"| {title} | {counts(part, TUNED)} | " + " | ".join(counts(part, name) for name in speculative) + " |")
    return "\n".join(lines)


def joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Records of the same model, recipe, engines and processor as one; refuses others. Runs of one prompt become its turns."""
    first = records[0]
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        for key in ("model", "recipe", "threads", "tokens", "engines", "cpu"):
            if record[key] != first[key]:
                raise SystemExit(f"speculation.py: the records differ in {key}: {first[key]} and {record[key]}; they cannot be joined")
        for row in record["rows"]:
            kept = rows.setdefault(row["name"], row | {"runs": {}})
            kept["runs"] = {name: kept["runs"].get(name, []) + runs for name, runs in row["runs"].items()}
    order = sorted(rows.values(), key=lambda row: CATEGORIES.index(row["category"]))
    return first | {"rows": order}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--model", default="smollm2", help="a name of the store, tuned with `tessera tune` (default smollm2)")
    parser.add_argument("--draft-model", default=None, help="another name: llama-server drafts with it, too (six tokens)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-n", "--tokens", type=int, default=128, help="most tokens of an answer (default 128, as `tessera check`)")
    parser.add_argument("--category", action="append", choices=CATEGORIES, help="only this one; may be given several times")
    parser.add_argument("--count", type=int, default=None, help="prompts of each category (default: all)")
    parser.add_argument("--repeat", type=int, default=1, help="turns; engines are started anew at each (default 1)")
    parser.add_argument("--flash-attention", choices=["on", "off", "both"], default="both", help="llama-server's plain run (default both)")
    parser.add_argument("--speculative-flash", choices=["on", "off"], default="off", help="of its speculative settings (default off)")
    parser.add_argument("--tessera", type=Path, default=ROOT / "target" / "release" / "tessera")
    parser.add_argument("--json", type=Path, default=None, help="where the record goes (default: beside the build)")
    parser.add_argument("--show", type=Path, nargs="+", metavar="RECORD", help="print these records' tables; measure nothing")
    return parser.parse_args()


def main() -> int:
    """Builds, measures, prints."""
    given = arguments()
    if given.show:
        print(show(joined([json.loads(path.read_text()) for path in given.show])))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended too
    directory = llama_setup.default_dir()
    server = llama_setup.ensure_server(directory, os.cpu_count() or 2)
    draft = model_path(given.draft_model, given.tessera) if given.draft_model else None
    both = ["on", "off"] if given.flash_attention == "both" else [given.flash_attention]
    flash = {name: ["-fa", name] for name in dict.fromkeys([*both, given.speculative_flash])}
    common = [str(server), "-m", str(model_path(given.model, given.tessera)), "-t", str(given.threads), "-c", "4096", "-np", "1",
              "--host", "127.0.0.1", "--cache-ram", "0", "--no-webui"]  # fmt: skip
    peers = settings(draft, flash, given.speculative_flash)
    engines: dict[str, Any] = {
        PLAIN: Tessera(given.tessera, given.model, given.threads, "none"),
        TUNED: Tessera(given.tessera, given.model, given.threads, None),
    }
    engines |= {name: Server(common + flags, directory / f"server-{at}.log") for at, (name, flags) in enumerate(peers.items())}
    items = workload(ROOT / "crates" / "measure" / "workloads", given.category or CATEGORIES, given.count)
    started = datetime.datetime.now(datetime.UTC)
    busy = others_busy(0)
    with contextlib.ExitStack() as stack:
        for engine in engines.values():
            stack.callback(engine.stop)
        try:
            rows = measure(engines, items, given.tokens, given.repeat, lambda text: print(f"  {text}", file=sys.stderr))
        except Failed as failed:
            raise SystemExit(f"speculation.py: {failed}") from None
    record = {
        "date": started.strftime("%Y-%m-%d"),
        "command": " ".join(["python3", "bench/side_by_side/speculation.py", *sys.argv[1:]]),
        "model": given.model,
        "recipe": json.dumps(engines[TUNED].methods),
        "threads": given.threads,
        "tokens": given.tokens,
        "cpu": processor(),
        "others_busy_cores": busy,
        "engines": {name: [part for part in flags if "/" not in part] for name, flags in ({PLAIN: [], TUNED: []} | peers).items()},
        "rows": rows,
    }
    path = given.json or directory / "records" / f"speculation-{given.model.replace(':', '-')}-{started:%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(show(record))
    print(f"\nrecord: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
