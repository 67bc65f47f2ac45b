"""Tessera and llama.cpp on the same random-weight files of both diffusion architectures: logits, then time.

    python3 bench/diffusion/run.py [--threads N] [--rounds N] [--length N] [--logits-only]

Builds llama.cpp once (bench/side_by_side/llama_setup.py) and `canvas_pass` of crates/model. Fails if logits differ by more than the
tolerance. Both engines make what a step of llama.cpp's diffusion example makes: one pass over the whole canvas, logits of every row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "side_by_side"))
import llama_setup  # noqa: E402

TOLERANCE = 2e-2
"""Largest difference of a logit, in standard deviations of all logits. Keys and values are rounded to 16 bits here."""


def call(command: list[object]) -> dict:
    """Runs a command and reads the JSON of its last line."""
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def canvas(path: Path, length: int, vocab: int) -> None:
    """A canvas as a run meets it: some text, then masks among written tokens."""
    mask = vocab - 1
    tokens = [(7 * i + 3) % 256 if i < length // 3 or i % 3 == 0 else mask for i in range(length)]
    path.write_text(" ".join(map(str, tokens)))


def compare(mine: Path, theirs: Path, vocab: int) -> tuple[float, float, int, int]:
    """Largest and mean difference in standard deviations, rows whose largest logit is another, rows."""
    from array import array

    a, b = array("f", mine.read_bytes()), array("f", theirs.read_bytes())
    if len(a) != len(b):
        raise SystemExit(f"{len(a)} logits here, {len(b)} there")
    spread = statistics.pstdev(b)
    apart = [abs(x - y) / spread for x, y in zip(a, b)]
    rows = len(a) // vocab
    best = lambda values, row: max(range(vocab), key=lambda i: values[row * vocab + i])  # noqa: E731
    other = sum(best(a, row) != best(b, row) for row in range(rows))
    return max(apart), sum(apart) / len(apart), other, rows


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs of each engine")
    parser.add_argument("--length", type=int, default=256, help="tokens of the timed canvas")
    parser.add_argument("--logits-only", action="store_true")
    arguments = parser.parse_args()
    python = llama_setup.ensure(llama_setup.default_dir())
    subprocess.run(["cargo", "build", "-q", "--release", "-p", "tessera-model", "--example", "canvas_pass"], cwd=ROOT, check=True)
    ours = ROOT / "target" / "release" / "examples" / "canvas_pass"
    here = Path(__file__).parent
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        tokens, mine, theirs = (Path(scratch) / name for name in ("tokens", "mine", "theirs"))
        for arch in ("llada", "dream"):
            file = Path(scratch) / f"{arch}.gguf"
            for size, vocab, length in (("tiny", 320, 48), ("small", 4096, arguments.length)):
                subprocess.run([python, here / "make.py", arch, size, file], check=True)
                canvas(tokens, length, vocab)
                exact = ["--f32"] if size == "tiny" else []
                a = call([ours, file, tokens, mine, *exact])
                b = call([python, here / "llama_pass.py", file, tokens, theirs])
                if a["filling"]["shift"] != b["shift"] or a["filling"]["mask"] != vocab - 1:
                    raise SystemExit(f"{arch}: {a['filling']} here, shift {b['shift']} there")
                if size == "tiny":
                    most, mean, other, rows = compare(mine, theirs, vocab)
                    good = most <= TOLERANCE
                    failed |= not good
                    print(f"{arch} {size}: logits differ by {most:.2e} at most, {mean:.2e} in the mean (standard deviations; "
                          f"tolerance {TOLERANCE}); {other} of {rows} rows prefer another token: {'ok' if good else 'FAILED'}")
                elif not arguments.logits_only:
                    times: dict[str, list[float]] = {"tessera": [], "llama.cpp": []}
                    for _ in range(arguments.rounds):
                        common = ["--threads", arguments.threads, "--repeat", 6]
                        times["tessera"] += call([ours, file, tokens, mine, *common])["milliseconds"][1:]
                        times["llama.cpp"] += call([python, here / "llama_pass.py", file, tokens, theirs, *common])["milliseconds"][1:]
                    mid = {name: statistics.median(list_) for name, list_ in times.items()}
                    least = {name: min(list_) for name, list_ in times.items()}
                    print(f"{arch} {size}: a pass over {length} rows, {arguments.threads} threads: tessera {mid['tessera']:.1f} ms "
                          f"(least {least['tessera']:.1f}), llama.cpp {b['version']} {mid['llama.cpp']:.1f} ms (least "
                          f"{least['llama.cpp']:.1f}); {mid['llama.cpp'] / mid['tessera']:.2f} x faster")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
