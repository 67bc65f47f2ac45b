"""Tests of what speculation.py computes: `python3 -m unittest discover bench/side_by_side`."""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import llama_setup
import speculation
from speculation import PLAIN, TUNED, Item, Run


class Scripted:
    """An engine that decodes at a given speed and remembers what it was asked."""

    def __init__(self, rate: float) -> None:
        self.rate, self.asked = rate, []
        self.started = 0

    def fresh(self) -> None:
        self.started += 1

    def ask(self, item: Item, tokens: int) -> Run:
        self.asked.append(item.name)
        return Run(10, tokens, tokens / self.rate, drafted=8, accepted=4, passes=tokens // 2)


def record(speeds: dict[str, float], **other: Any) -> dict[str, Any]:
    """A record of two categories with these speeds."""
    items = [Item("chat", "chat-1", "x", False), Item("code-edit", "code-edit-1", "y", False)]
    engines = {name: Scripted(speed) for name, speed in speeds.items()}
    rows = speculation.measure(engines, items, 64, 2, lambda _: None)
    names = {name: [] for name in engines}
    base = {"date": "2026-01-01", "model": "m", "recipe": "[]", "threads": 2, "tokens": 64, "cpu": {"model": "cpu"}}
    return base | {"engines": names, "rows": rows} | other


SPEEDS = {PLAIN: 100.0, TUNED: 200.0, "plain, fa on": 40.0, "plain, fa off": 50.0, "ngram-simple, fa off": 80.0, "ngram-mod, fa off": 60.0}


class Figures(unittest.TestCase):
    """Prompts, turns, ratios, tables, records."""

    def test_the_built_in_prompts_are_read_as_the_program_reads_them(self) -> None:
        folder = speculation.ROOT / "crates" / "measure" / "workloads"
        items = speculation.workload(folder, speculation.CATEGORIES, 2)
        self.assertEqual(len(items), 12)
        self.assertEqual(items[0].name, "chat-1")
        self.assertTrue(all(item.raw == (item.category == "code-completion") for item in items))
        self.assertFalse(any(item.text.endswith("\n") for item in items))

    def test_every_turn_starts_everything_anew_and_asks_each_prompt_once(self) -> None:
        engines = {"a": Scripted(1.0), "b": Scripted(2.0)}
        items = [Item("chat", f"chat-{n}", "x", False) for n in (1, 2, 3)]
        rows = speculation.measure(engines, items, 8, 2, lambda _: None)
        self.assertEqual([engine.started for engine in engines.values()], [2, 2])
        self.assertEqual(engines["a"].asked, ["chat-1", "chat-2", "chat-3"] * 2)
        self.assertEqual([len(row["runs"]["b"]) for row in rows], [2, 2, 2])

    def test_ratios_are_paired_and_take_the_best_peer(self) -> None:
        text = speculation.show(record(SPEEDS))
        overall = next(line for line in text.splitlines() if line.startswith("| overall"))
        self.assertIn("| 50 (fa off) | 80 (ngram-simple, fa off) | 4.00x (4.00-4.00) | 2.50x (2.50-2.50) | 2.00x", overall)
        self.assertIn("8 of 16, 2.00 a pass", text)

    def test_an_answer_of_one_token_is_in_no_ratio(self) -> None:
        empty = {"runs": {"a": [{"prompt_tokens": 1, "tokens": 0, "seconds": 0.0, "drafted": 0, "accepted": 0, "passes": 0}]}}
        self.assertIsNone(speculation.rate(empty, "a"))
        self.assertEqual(speculation.ratios([empty], "a", "a"), [])
        self.assertEqual(speculation.spread([]), "-")

    def test_records_are_joined_by_prompt_and_others_refused(self) -> None:
        one, two = record(SPEEDS), record(SPEEDS)
        two["rows"] = two["rows"][:1]
        rows = speculation.joined([two, one])["rows"]
        self.assertEqual([(row["name"], len(row["runs"][PLAIN])) for row in rows], [("chat-1", 4), ("code-edit-1", 2)])
        with self.assertRaisesRegex(SystemExit, "differ in recipe"):
            speculation.joined([one, record(SPEEDS, recipe="[1]")])

    def test_the_first_token_is_in_no_speed(self) -> None:
        timings = {"prompt_n": 30, "predicted_n": 65, "predicted_ms": 640.0, "draft_n": 9, "draft_n_accepted": 3}
        run = speculation.Server.read(timings)
        self.assertEqual((run.tokens, run.rate, run.accepted), (64, 100.0, 3))
        stats = {"prompt_tokens": 30, "decode_tokens": 4, "decode_seconds": 0.02, "drafted_tokens": 3, "accepted_tokens": 2}
        events = [{"event": "started", "methods": ["m"]}, {"event": "step"}, {"event": "step"}, {"event": "done", "stats": stats}]
        tessera = speculation.Tessera(Path("tessera"), "m", 2, None)
        run = tessera.read([json.dumps(event) for event in events])
        self.assertEqual((run.rate, run.passes, tessera.methods), (200.0, 2, ["m"]))

    def test_speculative_settings_run_with_the_flash_attention_asked_for(self) -> None:
        flash = {"on": ["-fa", "on"], "off": ["-fa", "off"]}
        found = speculation.settings(Path("/x/draft.gguf"), flash, "off")
        guessing = [f"{name}, fa off" for name in ("ngram-simple", "ngram-mod", "draft model")]
        self.assertEqual(list(found), ["plain, fa on", "plain, fa off", *guessing])
        self.assertEqual(found["draft model, fa off"][-2:], ["-fa", "off"])
        self.assertNotIn("draft model, fa off", speculation.settings(None, flash, "off"))

    def test_a_build_with_other_flags_is_no_build(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            product, stamp = Path(folder) / "llama-server", Path(folder) / "stamp"
            self.assertFalse(llama_setup.is_built(stamp, [], product))
            product.write_bytes(b"")
            stamp.write_text(json.dumps(llama_setup.wanted(["-DA=ON"])))
            self.assertTrue(llama_setup.is_built(stamp, ["-DA=ON"], product))
            self.assertFalse(llama_setup.is_built(stamp, ["-DA=OFF"], product))


if __name__ == "__main__":
    unittest.main()
