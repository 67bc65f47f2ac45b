"""Fills the same canvas with llama.cpp's diffusion example and with Tessera, in turns.

    python3 bench/diffusion/loop.py [--model NAME_OR_FILE] [--masks 128] [--steps 128,32] [--rounds 5] [--threads 2]

Both read one file and fill `--masks` masks behind a prompt in `--steps` steps, always the surest masks first and the most probable token
for each, over the whole canvas: llama.cpp by its confidence algorithm with the schedule of times, Tessera by its plain run (as many steps as masks)
or `confidence:steps=N`. The times are those that each program gives for its loop, by the step, choosing included, loading left out. The medians of the
rounds are printed with the median of their ratios, and as JSON with `--json`. Texts are not compared: the engines round differently, and a
canvas that differs in one token goes on differently.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "side_by_side"))

import llama_setup  # noqa: E402

PROMPT = "Once upon a time there was a little girl named Mia. She lived in a small house near the woods."
TIME = re.compile(r"total time: ([0-9.]+)ms")


def tessera(arguments: argparse.Namespace, steps: int) -> tuple[float, int]:
    """Milliseconds of a step and the tokens of the prompt. A text may be done before its canvas is full."""
    command = [arguments.tessera, "run", arguments.model, PROMPT, "-n", str(arguments.masks), "-t", str(arguments.threads), "--raw", "--json",
               "--temperature", "0", "--offline"]  # fmt: skip
    if steps != arguments.masks:
        command += ["--method", f"confidence:steps={steps}"]
    out = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    last = json.loads(out.strip().splitlines()[-1])
    stats = last.get("stats", last)
    return stats["decode_seconds"] * 1e3 / stats["passes"], stats["prompt_tokens"]


def llama(arguments: argparse.Namespace, program: Path, path: str, steps: int, length: int, flash: str) -> float:
    """Milliseconds of a step of the example, with a canvas of `length` tokens."""
    command = [program, "-m", path, "-p", PROMPT, "-t", arguments.threads, "-tb", arguments.threads, "-fa", flash, "-c", 256,
               "-b", length, "-ub", length, "--temp", 0, "--diffusion-steps", steps, "--diffusion-algorithm", 4,
               "--diffusion-eps", 0.001]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    found = TIME.search(done.stdout + done.stderr)
    if found is None:
        raise SystemExit(f"{program.name} printed no time:\n{(done.stdout + done.stderr)[-2000:]}")
    return float(found.group(1)) / steps


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tessera-mdlm")
    parser.add_argument("--masks", type=int, default=128)
    parser.add_argument("--steps", default="128,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tessera", type=Path, default=ROOT / "target" / "release" / "tessera")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    program = llama_setup.ensure_diffusion(llama_setup.default_dir())
    shown = subprocess.run([arguments.tessera, "show", arguments.model, "--json"], check=True, capture_output=True, text=True).stdout
    path = json.loads(shown)["path"]
    rows = []
    for steps in map(int, arguments.steps.split(",")):
        _, prompt = tessera(arguments, steps)
        length = prompt + arguments.masks
        own: list[float] = []
        theirs: dict[str, list[float]] = {"on": [], "off": []}
        for _ in range(arguments.rounds):
            own.append(tessera(arguments, steps)[0])
            for flash, times in theirs.items():
                times.append(llama(arguments, program, path, steps, length, flash))
        flash = min(theirs, key=lambda name: statistics.median(theirs[name]))
        ratio = statistics.median(b / a for a, b in zip(own, theirs[flash]))
        rows.append({"steps": steps, "canvas": length, "tessera_ms": statistics.median(own), "llama_ms": statistics.median(theirs[flash]),
                     "flash_attention": flash, "ratio": ratio})  # fmt: skip
    print("| steps | canvas | Tessera, ms a step | llama.cpp, ms a step | ratio |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['steps']} | {row['canvas']} | {row['tessera_ms']:.2f} | {row['llama_ms']:.2f} (fa {row['flash_attention']}) "
              f"| {row['ratio']:.2f} |")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
