"""Tests of the driver with a scripted child in place of an engine: `python3 -m unittest discover bench/side_by_side`."""

from __future__ import annotations

import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
import llama_setup
import run

CHILD = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    op = request["op"]
    if op == "quit":
        break
    if op == "rows" and request["count"] == 3:
        reply = {"error": "no three rows"}
    else:
        reply = {"ms": SPEED * request.get("count", 1), "vocab": 5000, "engine": "scripted"}
    print(json.dumps(reply), flush=True)
"""


class Driver(unittest.TestCase):
    """Cells, turns, failures, ratios."""

    def engine(self, name: str, ms: float) -> run.Engine:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        command = [sys.executable, "-c", CHILD.replace("SPEED", str(ms))]
        engine = run.Engine(name, command, Path(folder.name) / "log")
        engine.start()
        self.addCleanup(engine.stop)
        return engine

    def test_cells_are_parsed_and_others_refused(self) -> None:
        cell = run.Cell.parse("rows16@256", 64)
        self.assertEqual(cell.request(), {"op": "rows", "count": 16, "context": 256})
        self.assertEqual(cell.tokens, 272)
        self.assertEqual(run.Cell.parse("prefill512", 64).request(), {"op": "prefill", "count": 512})
        self.assertEqual(run.Cell.parse("decode4096", 64).tokens, 4160)
        for wrong in ("rows16", "decode", "prefillx", "load"):
            with self.assertRaises(SystemExit):
                run.Cell.parse(wrong, 64)

    def test_ratios_are_above_one_where_tessera_wins_and_take_the_better_setting(self) -> None:
        engines = [self.engine("tessera", 1.0), self.engine("on", 4.0), self.engine("off", 2.0)]
        cells = [run.Cell.parse("prefill512", 8), run.Cell.parse("rows2@256", 8)]
        run.measure(engines, cells, 2)
        for row in run.compare(engines, cells):
            self.assertEqual(row["best"], "off")
            self.assertAlmostEqual(row["ratio"], 2.0)
            self.assertEqual(len(row["engines"]["tessera"]["values"]), 2)

    def test_a_failed_cell_is_kept_apart_and_the_next_one_runs(self) -> None:
        engines = [self.engine("tessera", 1.0), self.engine("on", 4.0)]
        cells = [run.Cell.parse("rows3@256", 8), run.Cell.parse("rows4@256", 8)]
        run.measure(engines, cells, 1)
        first, second = run.compare(engines, cells)
        self.assertIsNone(first["ratio"])
        self.assertIn("no three rows", engines[0].failures["rows3@256"])
        self.assertAlmostEqual(second["ratio"], 4.0)

    def test_a_catalogue_name_is_found_in_the_models_directory(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "qwen2.5-coder-0.5b.gguf"
            file.write_bytes(b"")
            with mock.patch.dict(os.environ, {"TESSERA_TEST_MODELS": folder}):
                self.assertEqual(run.model_path("qwen2.5-coder:0.5b", Path("none")), file)
                with self.assertRaises(SystemExit):
                    run.model_path("qwen2.5-coder:9b", Path("none"))

    def test_the_tile_fix_is_applied_once_and_only_to_the_file_it_knows(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / llama_setup.AMX_FILE
            path.parent.mkdir(parents=True)
            path.write_text("{\n" + llama_setup.AMX_CALL + "}\n")
            self.assertTrue(llama_setup.patch_amx(Path(folder)))
            self.assertIn("memory", path.read_text())
            self.assertFalse(llama_setup.patch_amx(Path(folder)))
            path.write_text("nothing like it")
            with self.assertRaises(SystemExit):
                llama_setup.patch_amx(Path(folder))


if __name__ == "__main__":
    unittest.main()
