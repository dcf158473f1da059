"""evenkeel bench: tables, the cost file, and what it refuses."""

import json
import re
import unittest

from harness import EndToEndTest, REPOSITORY

USAGE = 2
HEADS = ("--heads", 2, "--head-size", 16)


def rows(output):
    """The numbers of the table's rows."""
    return [[float(word) for word in line.split()]
            for line in output.splitlines() if line and not line.startswith("#")]


class BenchTest(EndToEndTest):

    def bench(self, *words, code=0):
        return self.run_program("bench", *words, "--threads", 1, "--runs", 1, code=code)

    def test_attention(self):
        file = self.folder / "new" / "folder" / "cost.json"
        output = self.bench("attention", *HEADS, "--kv-heads", 1, "--q-lens", "128,200",
                            "--kv-lens", "512,256", "--json", file)
        self.assertRegex(output, r"(?m)^# .+, 1 thread, float32, 2 heads of 16, 1 of keys$")
        self.assertIn("10 D backward", output)
        cost = json.loads(file.read_text())
        self.assertEqual(cost["format"], "evenkeel attention cost 1")
        self.assertRegex(cost["date"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.assertRegex(cost["program"], r"^evenkeel \d")
        self.assertTrue(cost["device"])
        expected = {"threads": 1, "dtype": "float32", "heads": 2, "kv_heads": 1, "head_size": 16,
                    "runs": 1}
        self.assertEqual({key: cost[key] for key in expected}, expected)

        # Every causal pair of lengths, whole documents among them, in the table and in the file.
        shapes = [(128, 256), (128, 512), (200, 256), (200, 512), (256, 256), (256, 512), (512, 512)]
        self.assertEqual([(p["q_len"], p["kv_len"]) for p in cost["points"]], shapes)
        table = rows(output)
        self.assertEqual(len(table), len(shapes))
        for row, point in zip(table, cost["points"]):
            q_len, kv_len, tasks = point["q_len"], point["kv_len"], point["tasks"]
            self.assertEqual(row[:3], [q_len, kv_len, tasks])
            self.assertGreater(tasks, 1)
            pairs = tasks * (q_len * kv_len - q_len * (q_len - 1) // 2)
            for i, (name, flops) in enumerate((("forward", 4), ("backward", 10), ("both", 14))):
                seconds = point[f"{name}_s_per_pair"] * pairs
                milliseconds, gflops, percent = row[3 + 3 * i:6 + 3 * i]
                self.assertAlmostEqual(milliseconds, seconds * 1e3, delta=1e-3)
                rate = flops * 2 * 16 * pairs / seconds
                self.assertAlmostEqual(gflops, rate * 1e-9, delta=0.06)
                self.assertAlmostEqual(percent, 100 * rate / cost["matrix_product_flops"],
                                       delta=0.06)
                self.assertTrue(0.5 < percent < 1000, row)
            # One after the other takes about as long as both; this machine may be busy.
            apart = point["forward_s_per_pair"] + point["backward_s_per_pair"]
            self.assertLess(apart / 5, point["both_s_per_pair"])
            self.assertLess(point["both_s_per_pair"], apart * 5)

    def test_heads_of_a_model(self):
        model = REPOSITORY / "configs" / "llama3_8b.yaml"
        output = self.bench("attention", "--model", model, "--set", "parallel.tp=16", "--q-lens",
                            128, "--kv-lens", 128)
        self.assertIn(", 2 heads of 128, 1 of keys\n", output)
        self.assertEqual(len(rows(output)), 1)
        output = self.bench("attention", "--model", model, "--heads", 3, "--head-size", 8,
                            "--q-lens", 16, "--max-kv", 200)
        self.assertIn(", 3 heads of 8\n", output)
        self.assertEqual([row[:2] for row in rows(output)], [[16, 128], [128, 128]])
        output = self.bench("attention", *HEADS, "--max-kv", 40)
        self.assertEqual([row[:2] for row in rows(output)], [[40, 40]])

    def test_step(self):
        file = self.folder / "step.json"
        model = REPOSITORY / "configs" / "tiny_llama.yaml"
        output = self.bench("step", "--model", model, "--lengths", "300,64", "--tokens", 256,
                            "--set", "runtime.recompute=mlp", "--profile", "--json", file)
        self.assertIn(", 1 thread, float32, recompute mlp\n", output)
        steps = json.loads(file.read_text())
        self.assertEqual([(p["length"], p["documents"]) for p in steps["points"]], [(64, 4), (300, 1)])
        table = rows(output)
        self.assertEqual(len(table), 2)
        for row, point in zip(table, steps["points"]):
            seconds, tokens = point["step_s"], point["length"] * point["documents"]
            self.assertEqual(row[:2], [point["length"], point["documents"]])
            self.assertAlmostEqual(row[2], point["gradients_s"] * 1e3, delta=0.01)
            self.assertAlmostEqual(row[3], seconds * 1e3, delta=0.01)
            self.assertAlmostEqual(row[4], tokens / seconds, delta=1)
            self.assertAlmostEqual(row[5], point["model_flops"] / seconds * 1e-9, delta=0.06)
            self.assertTrue(0.1 < row[6] < 1000, row)
            # Weights, gradients and two moments, and the step's own.
            self.assertTrue(16 * 1e5 < point["peak_bytes"] < 2e9, point)
            self.assertTrue(1 < point["loss"] < 10, point)
            spans = {span["name"]: span for span in point["profile"]}
            self.assertEqual(spans["layer forward"]["calls"], spans["layer backward"]["calls"])
            self.assertIn("optimizer", spans)
            self.assertGreater(sum(span["seconds"] for span in spans.values()), 0)
            for name, span in spans.items():
                self.assertRegex(output, rf"(?m)^#   {name} +{span['calls']} x")
        # The model's, by hand: 6 a parameter of products and token, 12 a pair and head of D.
        plan = json.loads(self.run_program("plan", "--config", model, "--json"))
        per_token = plan["flops_per_token"]["matmul"]
        for point, pairs in zip(steps["points"], (4 * 64 * 65 / 2, 300 * 301 / 2)):
            products = per_token * point["length"] * point["documents"]
            attention = point["model_flops"] - products
            layers_times_width = attention / (12 * pairs)
            self.assertAlmostEqual(layers_times_width, round(layers_times_width), delta=1e-6)
            self.assertGreater(layers_times_width, 0)
        message = self.bench("step", "--model", REPOSITORY / "configs" / "llama_34b.yaml", code=8)
        self.assertIn("GiB, and the host has", message)
        self.assertNotIn("#", message)
        self.assertIn("--model is required", self.bench("step", code=USAGE))

    def test_linear(self):
        file = self.folder / "linear.json"
        model = REPOSITORY / "configs" / "tiny_transnormerllm.yaml"
        output = self.bench("linear", "--model", model, "--lengths", "64,300", "--sequences", "3,40",
                            "--json", file)
        self.assertIn(", 4 heads of 32\n", output)
        times = json.loads(file.read_text())
        self.assertEqual([p["length"] for p in times["points"]], [64, 300])
        table = rows(output)
        self.assertEqual(len(table), 4)
        for row, point in zip(table, times["points"]):
            self.assertEqual(row[:2], [point["length"], point["documents"]])
            tokens = point["length"] * point["documents"]
            self.assertLessEqual(2000, tokens)
            self.assertAlmostEqual(row[2], 1e-3 / point["both_s_per_token"], delta=1)
            flops = 4 * 4 * 32 * 32
            self.assertAlmostEqual(row[4], 1e-9 * flops / point["forward_s_per_token"], delta=0.06)
            self.assertAlmostEqual(row[7], 3e-9 * flops / point["backward_s_per_token"], delta=0.06)
        self.assertEqual([p["sequences"] for p in times["decode"]], [3, 40])
        for row, step in zip(table[2:], times["decode"]):
            seconds = step["step_s"]
            self.assertEqual(row[0], step["sequences"])
            self.assertAlmostEqual(row[1], 1e3 * seconds, delta=1e-4)
            state_bytes = row[0] * 4 * 32 * 32 * 4
            self.assertAlmostEqual(row[2], 2e-9 * state_bytes / seconds, delta=0.06)
            self.assertAlmostEqual(row[3], 1e-3 * row[0] / seconds, delta=0.06)

    def test_comm(self):
        for ranks in (2, 3):
            file = self.folder / "comm.json"
            output = self.run_program("bench", "comm", "--min-bytes", 1000, "--max-bytes", "600KB",
                                      "--factor", 8, "--runs", 1, "--json", file, ranks=ranks)
            self.assertRegex(output, rf"(?m)^# {ranks} ranks, .+, MPI; time of the slowest rank")
            measured = json.loads(file.read_text())
            self.assertEqual((measured["ranks"], measured["library"]), (ranks, "MPI"))
            points = measured["points"]
            factors = {"all-reduce": 2 * (ranks - 1) / ranks, "send-recv": 1, "copy": 1}
            ops = ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "all-to-all-rounds",
                   "send-recv", "copy"]
            calls = {"all-to-all-rounds": ranks - 1, "copy": 0}
            sizes = [1000, 8000, 64000, 512000]
            self.assertEqual([point["op"] for point in points],
                             [op for op in ops for _ in sizes])
            table = [line.split() for line in output.splitlines() if re.match(r" +\d", line)]
            self.assertEqual(len(table), len(points))
            for row, point, size in zip(table, points, sizes * len(ops)):
                op = point["op"]
                parts = 1 if op in ("all-reduce", "send-recv", "copy") else ranks
                # Whole rows of four elements for each rank.
                self.assertEqual(point["elements"], size // parts // 16 * 4, op)
                self.assertEqual(point["bytes"], 4 * parts * point["elements"])
                self.assertEqual(point["calls"], calls.get(op, 1))
                self.assertEqual(point["wrong"], 0)
                rate = point["bytes"] / point["seconds"] * 1e-9
                self.assertAlmostEqual(point["algbw_gb_s"], rate, delta=1e-6 * rate)
                bus = rate * factors.get(op, (ranks - 1) / ranks)
                self.assertAlmostEqual(point["busbw_gb_s"], bus, delta=1e-6 * bus)
                self.assertEqual([int(row[0]), int(row[1]), row[2], int(row[7])],
                                 [point["bytes"], point["elements"], "float", 0])
                self.assertEqual(row[3], "sum" if "reduce" in op else "none")
                self.assertAlmostEqual(float(row[4]), 1e6 * point["seconds"], delta=0.01)
                self.assertAlmostEqual(float(row[6]), bus, delta=0.01)
        output = self.run_program("bench", "comm", "--ops", "send-recv,all-gather", "--max-bytes",
                                  100, "--runs", 1, ranks=2)
        self.assertEqual(re.findall(r"(?m)^# (\S+), (?:in|out)", output), ["send-recv", "all-gather"])

    def test_comm_refusals(self):
        bench = ("bench", "comm")
        self.assertIn("mpirun -np N", self.run_program(*bench, code=USAGE))
        self.assertIn("lower --max-bytes",
                      self.run_program(*bench, "--max-bytes", "900GB", ranks=2, code=USAGE))
        self.assertIn("--ops", self.run_program(*bench, "--ops", "gossip", code=USAGE))
        output = self.run_program(*bench, "--json", self.folder, ranks=2, code=USAGE)
        self.assertIn("cannot be written", output)
        self.assertEqual(output.count("error: "), 1, output)
        self.assertNotIn("all-reduce", output)  # nothing was measured

    def test_links_of_a_cluster(self):
        """Messages and copies together tell what a cluster's description says of them."""
        file = self.folder / "links.json"
        output = self.run_program("bench", "comm", "--ops", "copy,send-recv", "--runs", 3, "--json",
                                  file, ranks=2)
        measured = json.loads(file.read_text())
        messages, copies = ([point for point in measured["points"] if point["op"] == op]
                            for op in ("send-recv", "copy"))
        sizes = [1024 * 4**i for i in range(8)]
        self.assertEqual([point["bytes"] for point in messages], sizes)
        self.assertEqual([point["bytes"] for point in copies], sizes)
        # The line goes through both ends, or where that falls, a message has no latency.
        for end in (0, -1):
            seconds = 1e-6 * measured["latency_us"] + sizes[end] * 1e-9 / measured["gb_s"]
            self.assertLessEqual(messages[end]["seconds"], 1.001 * seconds)
            if measured["latency_us"] > 0:
                self.assertAlmostEqual(messages[end]["seconds"], seconds, delta=1e-3 * seconds)
        self.assertAlmostEqual(measured["copy_gb_s"], copies[-1]["algbw_gb_s"])
        self.assertIn(f"latency {measured['latency_us']:.2f} us, {measured['gb_s']:.2f} GB/s; "
                      f"copies {measured['copy_gb_s']:.2f} GB/s\n", output)
        output = self.run_program("bench", "comm", "--ops", "send-recv", "--max-bytes", 100, "--runs",
                                  1, ranks=2)
        self.assertNotIn("latency", output)

    def test_refusals(self):
        softmax = REPOSITORY / "configs" / "llama3_8b.yaml"
        linear = REPOSITORY / "configs" / "tiny_transnormerllm.yaml"
        for words, message in (
                (("attention",), "which heads? Give --model"),
                (("attention", *HEADS, "--set", "parallel.tp=2"), "--set requires --model"),
                (("attention", "--model", linear), "no layer is of the kind `softmax`"),
                (("linear", "--model", softmax), "no layer is of the kind `lightning`"),
                (("attention", "--model", softmax, "--set", "parallel.tp=5"),
                 "parallel.tp 5 does not divide the 32 heads"),
                (("attention", *HEADS, "--kv-heads", 3), "2 heads are no multiple of 3"),
                (("attention", *HEADS, "--q-lens", 1024, "--kv-lens", 512), "1024 queries need"),
                (("attention", *HEADS, "--kv-lens", 512, "--max-kv", 512), "excludes"),
                (("attention", *HEADS, "--kv-lens", "512,x"), "--kv-lens"),
                (("attention", *HEADS, "--json", self.folder / "train.idx" / "x.json"),
                 "train.idx: cannot make folder"),
                (("linear", *HEADS, "--json", self.folder), "cannot be written")):
            self.assertIn(message, self.bench(*words, code=USAGE))
        output = self.bench("attention", "--heads", 4096, "--head-size", 4096, "--kv-lens",
                            1 << 24, "--q-lens", 1, code=8)
        self.assertIn("lower --max-kv", output)
        output = self.bench("linear", *HEADS, "--sequences", f"1,{1 << 30}", code=8)
        self.assertIn("the states of 1073741824 sequences with 2 heads of 16 take 2199.0 GB", output)
        self.assertIn("lower --sequences", output)
        self.assertNotIn("# lightning attention", output)  # refused before anything is measured


if __name__ == "__main__":
    unittest.main()
