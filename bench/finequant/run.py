"""Quantises one model under several schemes and prints bits per weight, size, perplexity and, if asked, speed.

    python3 bench/finequant/run.py target/finequant/model --text target/finequant/valid.txt
    python3 bench/finequant/run.py smollm2 --speed --json record.json

The source is anything `tessera quantize` takes. FineQuant files are written in the compact form, so that their size is what the
arithmetic says (int4: 4 + 16/G bits); their values are those of the standard form. "d ppl" is the increase over the f32 row;
"of column" is that increase as a share of the one of int4 with one scale a row.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

FIXED = ["--guard", "0", "--error-budget", "0", "--bits", "4"]
SCHEMES: list[tuple[str, list[str]]] = [
    ("f32", ["--scheme", "f32"]),
    ("q8_0", ["--scheme", "q8_0"]),
    ("int8 column", ["--alpha", "0", "--guard", "0", "--error-budget", "0", "--bits", "8", "--compact"]),
    ("int4 column", ["--alpha", "0", *FIXED, "--compact"]),
    ("int4 G=128", ["--alpha", "1", "--min-group", "128", *FIXED, "--compact"]),
    ("int4 G=64", ["--alpha", "1", "--min-group", "64", *FIXED, "--compact"]),
    ("int4 G=32", ["--alpha", "1", "--min-group", "32", *FIXED, "--compact"]),
    ("finequant int4", ["--bits", "4", "--compact"]),
    ("finequant mixed", ["--bits", "mixed", "--compact"]),
    ("q4_0", ["--scheme", "q4_0"]),
    ("q4_1", ["--scheme", "q4_1"]),
    ("q4_k", ["--scheme", "q4_k"]),
]
SWEEP = [
    (f"alpha {a}", ["--alpha", str(a), "--guard", "0", "--error-budget", "0", "--bits", "4", "--compact"]) for a in (0.85, 0.9, 0.925, 0.95)
] + [(f"budget {b}", ["--alpha", "0", "--guard", "0", "--error-budget", str(b), "--bits", "4", "--compact"]) for b in (1.05, 1.1, 1.2)]
ROWS = [1, 2, 4, 8, 16, 32, 64]


def call(command: list[str]) -> Any:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def measure(a: argparse.Namespace, name: str, flags: list[str], directory: str) -> dict[str, Any]:
    file = str(Path(directory) / "model.gguf")
    made = call([a.tessera, "quantize", a.source, file, "--force", "--json", "--tables", a.tables, *flags])
    text = [a.text] if a.text else []
    context = ["-c", str(a.context)]
    read = call([a.tessera, "perplexity", "-m", file, *text, *context, "--json"])
    groups = sorted({m["group"] for m in made["matrices"] if m["group"] and m["name"].startswith("blk.")}, reverse=True)
    row = {
        "scheme": name, "flags": flags, "groups": groups, "requantised": made["requantised"], "bits": made["bits_per_layer_weight"],
        "bits_with_tables": made["bits_per_weight"], "bytes": made["bytes_after"], "perplexity": read["perplexity"], "error": read["error"],
        "predicted": read["predicted"],
    }  # fmt: skip
    if a.speed:
        cells = ",".join(f"rows{n}@256" for n in ROWS)
        bench = call([a.tessera, "bench", "-m", file, "-t", str(a.threads), "--only", cells, "--repeat", "5", "--json"])
        row["ms"] = {str(n): cell["median"] for n, cell in zip(ROWS, bench["tables"][0]["cells"])}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    base = rows[0]["perplexity"]
    column = next((r["perplexity"] - base for r in rows if r["scheme"] == "int4 column"), None)
    speed = "".join(f"{n:>8}" for n in ROWS) if "ms" in rows[0] else ""
    lines = [f"{'scheme':<16}{'bits/layer w.':>14}{'bits/w.':>9}{'MB':>8}{'perplexity':>12}{'d ppl':>9}{'of column':>11}{speed}  groups"]
    for r in rows:
        more = r["perplexity"] - base
        share = f"{more / column:10.0%}" if column else ""
        ms = "".join(f"{r['ms'][str(n)]:8.2f}" for n in ROWS) if "ms" in r else ""
        groups = ",".join(map(str, r["groups"])) or "-"
        lines.append(
            f"{r['scheme']:<16}{r['bits']:14.3f}{r['bits_with_tables']:9.3f}{r['bytes'] / 1e6:8.2f}"
            f"{r['perplexity']:12.4f}{more:9.4f}{share:>11}{ms}  {groups}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--text", help="default: the text that comes with `tessera perplexity`")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--tables", default="f16", help="of embedding and head, the same for all rows (f16: they add no error)")
    parser.add_argument("--tessera", default="target/release/tessera")
    parser.add_argument("--sweep", action="store_true", help="adds values of alpha and of the error budget")
    parser.add_argument("--speed", action="store_true", help="adds milliseconds of a pass of 1 to 64 rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="writes the record")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = [measure(a, name, flags, directory) for name, flags in SCHEMES + (SWEEP if a.sweep else [])]
    kind = "requantisation" if rows[0]["requantised"] else "full-precision weights"
    print(f"{a.source} ({kind}), {rows[0]['predicted']} tokens predicted, {datetime.date.today()}")
    print(table(rows))
    if a.json:
        cpu = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "?")
        record = {"date": str(datetime.date.today()), "cpu": cpu, "source": a.source, "kind": kind, "rows": rows}
        a.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
