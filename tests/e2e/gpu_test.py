"""The program on a GPU: resuming, several ranks, evaluation and generation. Skips itself without one.

    EVENKEEL=build/cuda/launch/evenkeel MPIEXEC=mpirun python3 tests/e2e/gpu_test.py

With EVENKEEL_DEVICE=cpu the same tests run on the CPU, which tests the tests.
"""

import json
import os
import signal
import unittest

from harness import EndToEndTest, children_of, metrics

DEVICE = os.environ.get("EVENKEEL_DEVICE", "cuda")
PREEMPTED = 75


class GpuTest(EndToEndTest):

    def setUp(self):
        super().setUp()
        self.settings = {"runtime__device": DEVICE, "runtime__dtype": "auto", "runtime__ranks_per_gpu": 4,
                         "train__steps": 30, "train__eval_every": 10}
        if DEVICE == "cuda":
            facts = self.run_program("doctor")
            if "none here" in facts or "built without CUDA" in facts:
                self.skipTest("no GPU")

    def test_resuming_gives_the_same_bits(self):
        for name, changes in (("keep", {}), ("again", {"runtime__recompute": "layer"}),
                              ("kept", {"runtime__recompute": "all_but_attention"})):
            settings = self.settings | changes
            config, reference = self.config(f"{name}_reference", **settings)
            self.train(config, ranks=0)
            config, run = self.config(name, **settings)
            for _ in range(2):
                self.train(config, "train.max_minutes=1e-9", ranks=0, code=PREEMPTED)
            self.assertIn("resumed at step 2:", self.train(config, ranks=0))
            self.assert_same_run(run, reference, 30)
        # What is kept and what is computed again are the same numbers.
        rows = [[(row["loss"], row["grad_norm"]) for row in metrics(self.folder / name, "train")]
                for name in ("keep", "again", "kept")]
        self.assertEqual(rows[0], rows[1])
        self.assertEqual(rows[0], rows[2])

    def test_fp8_resumes_with_its_scales(self):
        if DEVICE != "cuda":
            self.skipTest("FP8 takes a GPU")
        # Slow enough that what rounds otherwise does not go another way.
        settings = self.settings | {"runtime__fp8": True, "model__hidden_size": 64,
                                    "model__intermediate_size": 96, "train__lr": 0.001}
        config, reference = self.config("reference", **settings)
        output, _ = self.start_training(config, ranks=0).communicate(timeout=self.patience_s)
        if "8.9 or later" in output:
            self.skipTest("no FP8")
        config, run = self.config("run", **settings)
        for _ in range(2):
            self.train(config, "train.max_minutes=1e-9", ranks=0, code=PREEMPTED)
        self.assertIn("resumed at step 2:", self.train(config, ranks=0))
        self.assert_same_run(run, reference, 30)
        # Near the run in bf16, and not the same.
        config, wide = self.config("wide", **settings | {"runtime__fp8": False})
        self.train(config, ranks=0)
        losses = [[row["loss"] for row in metrics(folder, "train")] for folder in (reference, wide)]
        for have, want in zip(*losses):
            self.assertAlmostEqual(have, want, delta=0.02 * want)
        self.assertNotEqual(losses[0], losses[1])
        # A run may go on in FP8 that began without, and the other way round.
        for name, fp8 in (("wide", True), ("reference", False)):
            config, _ = self.config(name, **settings | {"runtime__fp8": fp8, "train__steps": 33})
            self.assertIn("resumed at step 30:", self.train(config, ranks=0))

    def test_bench(self):
        cost = self.folder / "cost.json"
        self.run_program("bench", "attention", "--heads", 4, "--kv-heads", 2, "--head-size", 64,
                         "--q-lens", 128, "--kv-lens", "256,1024", "--runs", 2, "--device", DEVICE,
                         "--json", cost)
        cost = json.loads(cost.read_text())
        self.assertEqual(cost["dtype"], "bfloat16" if DEVICE == "cuda" else "float32")
        self.assertEqual([(p["q_len"], p["kv_len"]) for p in cost["points"]],
                         [(128, 256), (128, 1024), (256, 256), (256, 1024), (1024, 1024)])
        for point in cost["points"]:
            rate = 4 * 4 * 64 / point["forward_s_per_pair"]
            self.assertTrue(0.001 < rate / cost["matrix_product_flops"] < 10, point)
        output = self.run_program("bench", "linear", "--heads", 4, "--head-size", 64, "--lengths",
                                  "256,1024", "--runs", 2, "--device", DEVICE)
        self.assertRegex(output, r"(?m)^ +1024 +\d+ +\d+ ")

    def test_more_ranks_train_the_same_model(self):
        losses = {}
        for ranks in (0, 2, 4):
            config, run = self.config(f"ranks_{ranks}", **self.settings | {
                "train__steps": 12, "trace": {"steps": 2, "first_step": 5}})
            self.train(config, ranks=ranks)
            losses[ranks] = [row["loss"] for row in metrics(run, "train")]
            names = [row["name"] for row in json.loads((run / "trace" / "rank-0.json").read_text())
                     if row["ph"] == "X"]
            self.assertIn("step 5", names)
            self.assertIn("layer 0 forward", names)
            if DEVICE == "cuda" and ranks > 1:
                self.assertTrue(any("gradient bucket" in name for name in names), names[:40])
        if DEVICE == "cuda":
            # Every layout scales alike: from the second step on by the largest values of all ranks.
            losses["fp8"] = {}
            for name, parallel in (("dp", {}), ("tp", {"tp": 2}), ("pp", {"pp": 2})):
                config, run = self.config(f"fp8_{name}", **self.settings | {
                    "train__steps": 12, "runtime__fp8": True, "model__hidden_size": 64,
                    "model__intermediate_size": 96, "train__lr": 0.001, "parallel": parallel})
                self.train(config, ranks=2)
                losses["fp8"][name] = [row["loss"] for row in metrics(run, "train")]
            for name in ("tp", "pp"):
                for have, want in zip(losses["fp8"][name], losses["fp8"]["dp"]):
                    self.assertAlmostEqual(have, want, delta=0.02 * want)
        for ranks in (2, 4):
            # Sums of gradients round otherwise, and each step amplifies that.
            for step, (have, want) in enumerate(zip(losses[ranks], losses[0])):
                self.assertAlmostEqual(have, want, delta=(1e-6 if step == 0 else 0.02) * want)

    def test_a_killed_rank_ends_the_job(self):
        config, run = self.config(**self.settings | {"train__steps": 1000000, "train__eval_every": 0,
                                                     "runtime__timeout_s": 5})
        process = self.start_training(config, ranks=2)
        self.wait_for_step(run, 3, process)
        os.kill(children_of(process.pid)[-1], signal.SIGKILL)
        process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)

    def test_evaluates_and_generates_as_the_cpu_does(self):
        config, run = self.config(**self.settings)
        self.train(config, ranks=0)
        losses = []
        for device in (DEVICE, "cpu"):
            output = self.run_program("eval", "--device", device, "--model", run, "--data",
                                      self.folder / "valid", "--sequence-length", 64, "--json")
            losses.append(json.loads(output.splitlines()[-1])["loss"])
        self.assertAlmostEqual(losses[0], losses[1], delta=0.005 * losses[1])


if __name__ == "__main__":
    unittest.main()
