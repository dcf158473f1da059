"""benchmarks/multi_gpu.sh on CPU ranks: its parts, lines and tables, and what becomes of failures."""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

from harness import EVENKEEL, MPIEXEC, REPOSITORY, environment

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import datasets  # noqa: E402


class MultiGpuTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="evenkeel_multi_gpu_")
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name)

    def script(self, *arguments, code=0, **variables):
        variables = {"DEVICE": "cpu", "RANKS": "2", "OUT": str(self.out), "MPIEXEC": MPIEXEC,
                     "BIN_DIR": os.path.dirname(EVENKEEL), **variables}
        result = subprocess.run([REPOSITORY / "benchmarks" / "multi_gpu.sh", *arguments],
                                capture_output=True, text=True, timeout=150,
                                stdin=subprocess.DEVNULL, env=environment(**variables))
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def lines(self, part):
        return [json.loads(line) for line in (self.out / f"{part}.jsonl").read_text().splitlines()]

    def test_help_and_mistakes(self):
        self.assertTrue(self.script("--help").startswith("Usage: benchmarks/multi_gpu.sh"))
        self.assertIn("--nonsense", self.script("--nonsense", code=2))
        self.assertIn("2, 4 or 8 ranks", self.script("comm", code=2, RANKS="1"))

    def test_quick_run(self):
        parts = ("comm", "layouts", "disaggregation", "linear")
        output = self.script(*parts, QUICK="1")
        for part in parts:
            lines = self.lines(part)
            self.assertTrue(lines, part)
            for line in lines:
                self.assertEqual((line["part"], line.get("error"), line.get("left_out")),
                                 (part, None, None), line)
        layouts = {line["case"]: line for line in self.lines("layouts")}
        self.assertEqual(layouts["tiny 128 x 8, dp 2"]["ranks"], 2)
        self.assertAlmostEqual(layouts["tiny 128 x 8, dp 2"]["first_loss"],
                               layouts["tiny 128 x 8, 1 GPU"]["first_loss"], delta=1e-5)
        for line in self.lines("disaggregation"):
            self.assertGreater(line["predicted_ms"], 0)
            self.assertLessEqual(line["least_exposed_share"], line["most_exposed_share"])
        for title in ("Communicators, 2 ranks", "Strong scaling", "Weak scaling",
                      "Disaggregated attention", "TransNormerLLM over"):
            self.assertIn(f"\n{title}", output)
        everything = json.loads((self.out / "multi_gpu.json").read_text())
        self.assertEqual(set(everything), {"machine", *parts})
        self.assertIn("| tiny 128 x 8, dp 2 |", (self.out / "tables.md").read_text())

        # What is there is kept, what is missing is done; a run that ends badly is told.
        again = self.script("layouts", RESUME="1", CASES="dp 2", QUICK="1")
        self.assertIn("| tiny 128 x 8, dp 2 |", (self.out / "tables.md").read_text())
        self.assertNotIn("tokens/s a rank", again.split("\n\n")[0])
        output = self.script("linear", code=1, CASES="cp 2, scan", SET="train.no_such_key=1", QUICK="1")
        self.assertIn("no_such_key", output)
        self.assertIn("FAILED: linear", output)
        output = self.script("linear", TIME_LIMIT="1", QUICK="1")
        self.assertIn("no time left: 256 x 2, 1 GPU", output)

    def test_killed_rank(self):
        self.script("failures", CASES="^killed$")
        line, = self.lines("failures")
        self.assertEqual((line["victim"], line["ended"], line["processes_left"]), (1, True, False))

    def test_samples_of_real_mixes(self):
        for mix in ("pretrain", "prolong"):
            for context in (1024, 65536):
                samples = datasets.mixed_samples("", mix, context, 6)
                self.assertEqual([sum(sample) for sample in samples], [context] * 6)
                self.assertGreater(min(min(sample) for sample in samples), 0)
        # A data set's documents are those of its samples.
        draw = random.Random(3)
        samples = [[draw.randrange(1, 30) for _ in range(3)] for _ in range(7)]
        self.assertEqual(sorted(datasets.document_order(samples)), sorted(sum(samples, [])))


if __name__ == "__main__":
    unittest.main()
