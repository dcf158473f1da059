"""The way to a GPU where there is none: refused in one line, planned, and the CPU works all the same.

Runs with a program built with CUDA, too: it must start without a driver.
"""

import json
import pathlib
import unittest

from harness import EndToEndTest, checkpoint_steps, metrics

USAGE = 2
CUDA = "runtime.device=cuda"


class NoGpuTest(EndToEndTest):

    def setUp(self):
        super().setUp()
        self.has_cuda = "CUDA" in self.run_program("--version")
        if self.has_cuda and pathlib.Path("/dev/nvidiactl").exists():
            self.skipTest("here is a GPU")
        self.reason = "no NVIDIA" if self.has_cuda else "built without CUDA"

    def assert_refused(self, output):
        lines = [line for line in output.splitlines() if "error: " in line]
        self.assertEqual(len(lines), 1, output)
        self.assertIn(self.reason, lines[0])
        self.assertIn("choose device cpu", lines[0])
        self.assertNotIn("MPI_ABORT", output)

    def test_training_is_refused_once(self):
        config, run = self.config(runtime__dtype="auto")
        for ranks in (0, 2):
            self.assert_refused(self.train(config, CUDA, ranks=ranks, code=USAGE))
        self.assertFalse(run.exists())

    def test_other_commands_are_refused(self):
        model = self.folder / "model"
        evaluate = ("eval", "--model", model, "--data", self.folder / "valid")
        heads = ("--heads", 2, "--head-size", 16)
        for words in (("doctor",), evaluate, ("generate", "--model", model),
                      ("bench", "attention", *heads), ("bench", "linear", *heads)):
            self.assert_refused(self.run_program(*words, "--device", "cuda", code=USAGE))
        for words in (("doctor",), evaluate):
            self.assert_refused(self.run_program(*words, "--device", "cuda", ranks=2, code=USAGE))
        output = self.run_program("doctor", "--device", "gpu", code=USAGE)
        self.assertIn("--device", output)
        self.assertIn("cuda", output)
        output = self.run_program(*evaluate, "--device", "cuda", "--float64", code=USAGE)
        self.assertIn("--float64", output)
        output = self.run_program("bench", "attention", "--heads", 2, "--head-size", 20, "--device",
                                  "cuda", code=USAGE)
        self.assertIn("head size 20: kernels for cuda take multiples of 8", output)

    def test_doctor_tells_why_there_is_no_gpu(self):
        expected = r"GPUs +none here \(CUDA [\d.]+, no NVIDIA driver\)" if self.has_cuda else \
            r"GPUs +built without CUDA"
        self.assertRegex(self.run_program("doctor"), expected)
        if self.has_cuda:
            self.assertRegex(self.run_program("--version"), r"CUDA \d+\.[\d.]+, NCCL \d+\.[\d.]+")

    def test_the_cpu_works_all_the_same(self):
        config, run = self.config(train__steps=6, runtime__dtype="float32")
        self.assertIn("done: step 6", self.train(config, "runtime.device=cpu"))
        self.assertEqual(len(metrics(run, "train")), 6)
        self.assertEqual(checkpoint_steps(run), [6])
        self.assertIn("perplexity", self.run_program("eval", "-m", run, "-d", self.folder / "valid",
                                                     "--device", "cpu"))


class DeviceConfigTest(EndToEndTest):

    def test_precision_follows_the_device(self):
        for device, dtype, words in (("cuda", "float32", "cuda computes in bfloat16"),
                                     ("cuda", "float64", "cuda computes in bfloat16"),
                                     ("cpu", "bfloat16", "bfloat16 takes device: cuda")):
            config, run = self.config(runtime__dtype=dtype, runtime__device=device)
            line = config.read_text().splitlines().index(f"  dtype: {dtype}") + 1
            output = self.train(config, code=USAGE)
            self.assertIn(f"{config.name}:{line}", output)
            self.assertRegex(output, f"runtime.dtype: .*{words}")
            self.assertEqual(output.count("runtime.dtype"), 1, "one rank tells")
            self.assertFalse(run.exists())
        config, _ = self.config(runtime__dtype="auto")
        output = self.train(config, CUDA, "runtime.dtype=float32", ranks=0, code=USAGE)
        self.assertIn("--set runtime.dtype=float32", output)
        self.assertIn("runtime.device", self.train(config, "runtime.device=gpu", ranks=0,
                                                   code=USAGE))

    def test_plan_for_a_gpu(self):
        config, _ = self.config(runtime__dtype="auto")
        plans = {device: json.loads(self.run_program(
            "plan", "--config", config, "--ranks", 2, "--json", "--set", f"runtime.device={device}"))
            for device in ("cpu", "cuda")}
        self.assertEqual([(p["device"], p["dtype"]) for p in plans.values()],
                         [("cpu", "float32"), ("cuda", "bfloat16")])
        cpu, cuda = (plan["memory_per_rank"] for plan in plans.values())
        self.assertEqual(2 * cuda["weights"], 3 * cpu["weights"])
        for name in ("gradients", "optimizer"):
            self.assertEqual(cuda[name], cpu[name])
        self.assertLess(cuda["activations"], cpu["activations"])
        self.assertEqual(plans["cpu"]["flops_per_token"], plans["cuda"]["flops_per_token"])
        text = self.run_program("plan", "--config", config, "--set", CUDA)
        self.assertIn("on cuda in bfloat16", text)


if __name__ == "__main__":
    unittest.main()
