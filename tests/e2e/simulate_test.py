"""`evenkeel simulate` from the command line: one case, presets, pictures, refusals."""

import json
import random
import re
import unittest

from harness import REPOSITORY, EndToEndTest

USAGE, DATA = 2, 3

CLUSTER = """
name: small
gpus_per_node: 4
memory_gb: 1000
nvlink: {gb_s: 100, latency_us: 1}
network: {gb_s: 10, latency_us: 5}
products: {tflops: 10, copy_gb_s: 500}
attention: {forward_tflops: 5, backward_tflops: 5}
"""


class SimulateTest(EndToEndTest):

    def setUp(self):
        super().setUp()
        self.model, _ = self.config(model__layer_pattern=["softmax"], model__hidden_size=512,
                                    model__num_heads=4, model__intermediate_size=1024,
                                    model__num_layers=4)
        self.cluster = self.folder / "cluster.yaml"
        self.cluster.write_text(CLUSTER)
        draw = random.Random(3)
        self.lengths = self.folder / "lengths.json"
        self.lengths.write_text(json.dumps(
            [draw.choice([draw.randrange(1, 300), draw.randrange(4000, 9000)])
             for _ in range(300)]))

    def simulate(self, *words, code=0):
        return self.run_program("simulate", *words, code=code)

    def case(self, *words, code=0, gpus=16):
        return self.simulate("-m", self.model, "--cluster", self.cluster, "--lengths", self.lengths,
                             "-n", gpus, "--tp", 4, "--max-doc-len", 8192, "--batch", 8,
                             "--batches", 4, *words, code=code)

    def report(self, *words, **options):
        return json.loads(self.case("--json", *words, **options))

    def test_one_case(self):
        report = self.report("--ablations", "--tolerances", "0.02,0.5")
        systems = report["systems"]
        self.assertEqual(set(systems), {"disaggregated", "balanced dp x cp", "balanced, hidden",
                                        "plain dp"})
        ours = systems["disaggregated"]
        for name, system in systems.items():
            self.assertEqual(system["pools"] * system["pp"] * system["dp"] * system["cp"], 4)
            self.assertEqual(len(system["step_seconds"]), 4)
            self.assertAlmostEqual(sum(system["step_seconds"]) / 4, system["seconds"])
            self.assertTrue(0 <= system["idle_share"] < 1)
            if name != "disaggregated":
                self.assertAlmostEqual(report["speed_up"][name],
                                       system["seconds"] / ours["seconds"])
        # Nothing computes faster than the rates of the cluster.
        self.assertLess(ours["model_flops_per_gpu"], 10e12)
        variants = report["variants"]
        self.assertGreaterEqual(variants["one stream"]["seconds"], ours["seconds"])
        self.assertLessEqual(variants["signal"]["seconds"], ours["seconds"])
        self.assertGreater(variants["not balanced"]["seconds"], ours["seconds"])
        self.assertLessEqual(report["tolerances"]["0.02"]["heaviest_over_mean"], 1.03)
        self.assertLessEqual(report["tolerances"]["0.5"]["mean_receive_bytes"],
                             report["tolerances"]["0.02"]["mean_receive_bytes"])
        # The same in text, and again the same.
        text = self.case()
        self.assertRegex(text, r"disaggregated +[\d.]+ m?s +1\.000")
        self.assertIn(report["verdict"], text)
        self.assertEqual(self.report("--threads", 1)["systems"]["disaggregated"]["step_seconds"],
                         ours["step_seconds"])

    def test_options_matter(self):
        def seconds(*words, **options):
            return self.report(*words, **options)["systems"]["disaggregated"]["seconds"]
        base = seconds()
        self.assertGreater(base, seconds("--messages", "signal"))
        self.assertLess(base, seconds("--messages", "one-stream"))
        self.assertLess(base, seconds("--set", "products.tflops=5"))
        self.assertLess(base, seconds("--recompute", "layer"))
        # Attention is computed again where it is not pooled alone.
        kept, again = (self.report("--recompute", mode)["systems"] for mode in ("all_but_attention", "layer"))
        for name, is_slower in (("disaggregated", False), ("plain dp", True), ("balanced dp x cp", True)):
            self.assertEqual(again[name]["seconds"] > kept[name]["seconds"], is_slower, name)
        self.assertGreater(base, seconds(gpus=32))
        self.assertLess(seconds("--servers", 1, gpus=20), base)
        self.assertGreater(seconds("--servers", 1, "--owners-serve-not", gpus=20), base)
        layout = self.report("--pp", "2", "--micro-batches", 4)["systems"]["disaggregated"]
        self.assertEqual((layout["pp"], layout["micro_batches"]), (2, 4))
        few = ("--pp", "2", "--micro-batches", 2)
        halved = self.report(*few, "--virtual-stages", "1,2")["systems"]
        for name, system in self.report(*few)["systems"].items():
            self.assertEqual(system["virtual_stages"], 1)
            # The bubble is halved; a shorter stage sends as much as a longer one.
            self.assertEqual(halved[name]["virtual_stages"], 2, name)
            self.assertLess(halved[name]["seconds"], system["seconds"])
        self.assertIn("x 2, virtual stages 2", self.case(*few, "--virtual-stages", 2))
        layout = self.report("--cp", 1)["systems"]["disaggregated"]
        self.assertEqual((layout["dp"], layout["cp"]), (4, 1))
        layout = self.report("--pools", 2)["systems"]["disaggregated"]
        self.assertEqual((layout["pools"], layout["cp"]), (2, 2))

    def test_when_it_does_not_pay(self):
        """Over a slow network it is better to choose who holds what than to move what was dealt."""
        text = self.case("--set", "network.gb_s=0.05", "--tolerance", 0)
        self.assertRegex(text, r"does not pay here: the balanced baseline is [\d.]+ times as fast")

    def test_measured_grid(self):
        """A grid that says the same as a rate gives the same step, for fewer heads too."""
        lengths = (128, 1024)
        (self.folder / "grid.json").write_text(json.dumps({
            "format": "evenkeel attention cost 1", "program": "x", "date": "2026-11-27T00:00:00Z",
            "device": "some device", "threads": 0, "dtype": "bfloat16", "heads": 4, "kv_heads": 4,
            "head_size": 128, "runs": 1, "matrix_product_flops": 1e12,
            "points": [{"q_len": q, "kv_len": kv, "tasks": 8, "forward_s_per_pair": 1e-9,
                        "backward_s_per_pair": 2e-9, "both_s_per_pair": 3e-9}
                       for q in lengths for kv in lengths if q <= kv]}))
        # 4 D FLOPs a pair and head forward, 10 D backward.
        rates = ("--set", "attention.tile=1", "--set", f"attention.forward_tflops={4 * 512 / 1e3}",
                 "--set", f"attention.backward_tflops={10 * 512 / 2e3}")
        by_rate = self.report(*rates)["systems"]
        by_grid = self.report("--set", "attention.grid=grid.json")["systems"]
        for name in ("balanced dp x cp", "plain dp"):
            self.assertAlmostEqual(by_grid[name]["seconds"], by_rate[name]["seconds"])
        self.assertLess(abs(by_grid["disaggregated"]["seconds"] /
                            by_rate["disaggregated"]["seconds"] - 1), 0.05)
        self.case("--set", "attention.grid=absent.json", code=USAGE)

    def test_measured_ranks(self):
        """One rank: the sum of what was measured."""
        rates = {"pre_forward_s": 1e-6, "post_forward_s": 2e-6, "pre_backward_s": 3e-6,
                 "post_backward_s": 4e-6, "head_forward_s": 5e-6, "head_backward_s": 6e-6,
                 "attention_forward_s": 1e-9, "attention_backward_s": 2e-9, "step_s": 0.25}
        self.lengths.write_text(json.dumps([1000, 3096]))
        report = json.loads(self.simulate(
            "-m", self.model, "--cluster", self.cluster, "--lengths", self.lengths, "-n", 1,
            "--tp", 1, "--max-doc-len", 4096, "--batch", 1, "--batches", 1, "--json",
            "--set", "attention.tile=1", "--set", "products.copy_gb_s=1e9",
            *[word for key, value in rates.items() for word in ("--set", f"measured.{key}={value}")]))
        pairs = 1000 * 1001 / 2 + 3096 * 3097 / 2
        expected = 4096 * (4 * 10e-6 + 11e-6) + 4 * pairs * 3e-9 + 0.25
        for name in ("disaggregated", "plain dp"):
            self.assertAlmostEqual(report["systems"][name]["seconds"], expected, 9)

    def test_as_configured(self):
        """The batches and the layout of a run: what it prints adds up, and more ranks share it."""
        rates = {"pre_forward_s": 1e-6, "post_forward_s": 2e-6, "pre_backward_s": 3e-6,
                 "post_backward_s": 4e-6, "attention_forward_s": 1e-8, "attention_backward_s": 2e-8,
                 "parameter_s": 1e-9}

        def steps(ranks, *settings, code=0):
            output = self.simulate(
                "--as-configured", "-m", self.model, "--cluster", self.cluster, "-n", ranks,
                "--steps", 2, "--json",
                *[word for key, value in rates.items()
                  for word in ("--set", f"measured.{key}={value}")],
                *[word for setting in settings for word in ("--model-set", setting)], code=code)
            return json.loads(output) if code == 0 else output

        one = steps(1)
        self.assertEqual(one["layout"], "pp 1 dp 1 cp 1 tp 1")
        self.assertEqual(len(one["steps"]), 2)
        for step in one["steps"]:
            rank, = step["ranks"]
            self.assertAlmostEqual(step["seconds"], rank["linear_s"] + rank["attention_s"] +
                                   one["update_seconds"])
        two = steps(2, "parallel.dp=2", "parallel.attention=disaggregated", "parallel.ping_pong=off")
        self.assertEqual(two["layout"], "pp 1 dp 2 cp 1 tp 1, disaggregated")
        for alone, shared in zip(one["steps"], two["steps"]):
            attention = [rank["attention_s"] for rank in shared["ranks"]]
            self.assertAlmostEqual(sum(attention), alone["ranks"][0]["attention_s"])
            self.assertLess(max(attention), 1.1 * sum(attention) / 2)
            self.assertLess(shared["seconds"], alone["seconds"])
        stages = ("parallel.pp=2", "parallel.virtual_stages=2")
        for settings in (stages, (*stages, "parallel.attention=disaggregated",
                                  "parallel.ping_pong=off")):
            pipeline = steps(2, *settings)
            self.assertEqual(pipeline["layout"], "pp 2 dp 1 cp 1 tp 1, virtual stages 2" +
                             (", disaggregated" if settings != stages else ""))
            for alone, shared in zip(one["steps"], pipeline["steps"]):
                for kind in ("linear_s", "attention_s"):
                    self.assertAlmostEqual(sum(rank[kind] for rank in shared["ranks"]),
                                           alone["ranks"][0][kind])
        self.assertLess(steps(2, "parallel.dp=2", "parallel.zero=1")["update_seconds"],
                        one["update_seconds"])
        self.assertIn("parallel.zero", steps(2, "parallel.dp=2", "parallel.zero=2", code=USAGE))
        self.assertIn("--gpus", self.simulate("--as-configured", "-m", self.model, code=USAGE))

    def test_pictures_and_presets(self):
        long = self.folder / "long.json"
        draw = random.Random(4)
        long.write_text(json.dumps([draw.choice([draw.randrange(500, 9000),
                                                 draw.randrange(66000, 120000)])
                                    for _ in range(400)]))
        configs = self.folder / "configs"
        (configs / "clusters").mkdir(parents=True)
        for name in ("llama3_8b", "llama_34b"):
            (configs / f"{name}.yaml").write_text(self.model.read_text().replace(
                "num_heads: 4", "num_heads: 16"))
        for name in ("h200_fa2", "h100"):
            (configs / "clusters" / f"{name}.yaml").write_text(CLUSTER)
        preset = ("--configs", configs, "--pretrain", long, "--batches", 1, "--most-gpus", 64)
        table = self.simulate("--preset", "paper-3d", *preset, "--svg", self.folder / "plots")
        rows = re.findall(r"^Llama (8B|34B) +pretrain +(\d+K) +64 .* 1\.07-1\.20 ", table, re.M)
        self.assertEqual(len(rows), 6, table)
        for model in ("8b", "34b"):
            self.assertIn("</svg>", (self.folder / "plots" / f"speed_up_{model}.svg").read_text())
        cases = json.loads(self.simulate("--preset", "paper-ablations", *preset, "--json", "--svg",
                                         self.folder / "plots"))
        self.assertEqual(len(cases), 2)
        self.assertIn("signal", cases[0]["variants"])
        for name in ("tolerance", "variants"):
            self.assertIn("</svg>", (self.folder / "plots" / f"{name}.svg").read_text())

    def test_refusals(self):
        self.assertIn("--model FILE is needed", self.simulate(code=USAGE))
        self.assertIn("--lengths FILE is needed", self.simulate(
            "-m", self.model, "--cluster", self.cluster, code=USAGE))
        self.assertIn("tp 4 does not divide 6 GPUs", self.case(code=USAGE, gpus=6))
        self.assertIn("network.gbs", self.case("--set", "network.gbs=1", code=USAGE))
        self.assertIn("--servers N", self.case("--owners-serve-not", code=USAGE))
        self.assertIn("--pretrain FILE", self.simulate("--preset", "paper-3d", code=USAGE))
        self.assertIn("absent/llama3_8b.yaml", self.simulate(
            "--preset", "paper-3d", "--pretrain", self.lengths, "--configs", "absent", code=USAGE))
        self.case("--virtual-stages", 0, code=USAGE)
        # Four layers are not those of two ranks with three stages each.
        self.assertIn("no layout of 16 GPUs", self.case("--pp", 2, "--virtual-stages", 3, code=USAGE))
        self.lengths.write_text("[1, -5]")
        self.assertIn("entry 1 is -5", self.case(code=DATA))
        self.case("--messages", "loud", code=USAGE)

    def test_a_folder_that_cannot_be_drawn_into(self):
        for words in ((), ("--json",)):
            output = self.case("--svg", self.lengths, *words, code=USAGE)
            self.assertIn("lengths.json: cannot make folder", output)
            self.assertNotIn("disaggregated", output)  # nothing was simulated
        output = self.simulate("--preset", "paper-3d", "--pretrain", self.lengths, "--configs",
                               REPOSITORY / "configs", "--svg", self.lengths, code=USAGE)
        self.assertIn("lengths.json: cannot make folder", output)
        self.assertIn("--as-configured", self.simulate(
            "--as-configured", "-m", self.model, "--cluster", self.cluster, "-n", 1, "--svg",
            "plots", code=USAGE))


if __name__ == "__main__":
    unittest.main()
