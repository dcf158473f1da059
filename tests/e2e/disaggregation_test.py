"""Training with disaggregated attention: whoever computes it, the losses are those of one rank;
runs resume to the bit, under other layouts, too; and what it costs is in metrics.jsonl."""

import json
import math
import unittest

from harness import EndToEndTest, checkpoint_steps, metrics

STEPS = 6
USAGE, PREEMPTED = 2, 75

LAYOUTS = (
    (("dp=2",), 2),
    (("dp=2", "cp=2"), 4),
    (("pp=2", "dp=2"), 4),
    (("pp=2", "virtual_stages=2"), 2),
    (("tp=2", "dp=2"), 4),
    (("dp=2", "attention_servers=1"), 3),
)
METRICS = ("attention_planned_imbalance", "attention_imbalance", "exposed_comm_share",
           "most_sent_bytes", "planning_ms", "planning_wait_ms")


def overrides(layout):
    # Samples are short: documents are cut finely, so that there is something to move.
    return ["parallel.attention=disaggregated", "parallel.attention_shard=8",
            *(f"parallel.{setting}" for setting in layout)]


class DisaggregationTest(EndToEndTest):

    def config(self, run="run", **changes):
        settings = {"model__layer_pattern": ["lightning", "softmax"], "model__num_layers": 4,
                    "model__num_heads": 4, "model__num_kv_heads": 2, "model__hidden_size": 24,
                    "model__intermediate_size": 32, "train__steps": STEPS,
                    "train__global_batch_size": 5, "train__micro_batch_size": 1,
                    "train__warmup_steps": 2, "runtime__dtype": "float32"}
        return super().config(run, **settings | changes)

    def reference(self, **changes):
        config, run = self.config("reference", **changes)
        self.train(config, ranks=1)
        return run

    def assert_same_losses(self, run, reference, layout, tolerance):
        rows, others = metrics(run, "train"), metrics(reference, "train")
        self.assertEqual([row["step"] for row in rows], list(range(1, STEPS + 1)), layout)
        for row, other in zip(rows, others):
            self.assertEqual(row["valid_tokens"], other["valid_tokens"])
            for key in ("loss", "grad_norm"):
                self.assertAlmostEqual(row[key], other[key], delta=tolerance * abs(other[key]),
                                       msg=f"{key} of step {row['step']} under {layout}")
        rows, others = metrics(run, "eval"), metrics(reference, "eval")
        self.assertEqual([row["step"] for row in rows], [STEPS], layout)
        self.assertAlmostEqual(rows[0]["loss"], others[0]["loss"],
                               delta=tolerance * others[0]["loss"], msg=f"evaluation, {layout}")

    def assert_measured(self, run, layout):
        for row in metrics(run, "train"):
            for key in METRICS:
                self.assertIn(key, row, layout)
                self.assertTrue(math.isfinite(row[key]), f"{key} is {row[key]} under {layout}")
            for key in ("attention_planned_imbalance", "attention_imbalance"):
                self.assertGreaterEqual(row[key], 1, f"{key} under {layout}")
            self.assertGreater(row["most_sent_bytes"], 0, layout)
            # Of any rank, this one among them.
            self.assertGreaterEqual(row["most_sent_bytes"], row["sent_bytes"], layout)
            self.assertGreater(row["exposed_comm_share"], 0, layout)
            self.assertLess(row["exposed_comm_share"], 1, layout)
            self.assertLess(row["least_exposed_share"], row["exposed_comm_share"], layout)
            self.assertLess(row["exposed_comm_share"], row["most_exposed_share"], layout)
            self.assertLess(row["most_exposed_share"], 1, layout)
            self.assertGreater(row["planning_ms"], 0, layout)
            self.assertGreaterEqual(row["planning_wait_ms"], 0, layout)

    def test_losses_are_those_of_one_rank(self):
        reference = self.reference()
        rows = metrics(reference, "train")
        self.assertLess(rows[-1]["loss"], 0.98 * rows[0]["loss"])
        for key in METRICS:
            if key != "exposed_comm_share":  # which every run has
                self.assertNotIn(key, rows[0], "one rank without disaggregated attention")
        for layout, ranks in LAYOUTS:
            config, run = self.config("-".join(layout).replace("=", ""))
            output = self.train(config, *overrides(layout), ranks=ranks)
            servers = ("1 dedicated server" if "attention_servers=1" in layout else
                       "2 servers" if "tp=2" in layout else f"{ranks} servers")
            self.assertIn(f"attention: disaggregated over {servers}", output)
            self.assert_same_losses(run, reference, layout, 2e-5)
            self.assert_measured(run, layout)

    def test_every_mode_in_float64(self):
        reference = self.reference(runtime__dtype="float64")
        for layout, ranks in ((("dp=2", "cp=2"), 4), (("dp=2", "cp=2", "ping_pong=on", "zero=3"), 4),
                              (("dp=2", "cp=2", "attention_speeds=measured"), 4),
                              (("pp=2", "tp=2", "attention_servers=1"), 6),
                              (("pp=2", "virtual_stages=2", "zero=1", "attention_servers=1"), 3)):
            config, run = self.config("-".join(layout).replace("=", ""), runtime__dtype="float64")
            self.train(config, *overrides(layout), ranks=ranks)
            self.assert_same_losses(run, reference, layout, 1e-9)

    def test_the_same_run_resumed_gives_the_same_bits(self):
        for layout, ranks in (LAYOUTS[0], LAYOUTS[2]):
            name = "".join(layout).replace("=", "")
            config, reference = self.config(f"{name}-whole")
            self.train(config, *overrides(layout), ranks=ranks)
            config, run = self.config(f"{name}-parts")
            for _ in range(2):
                self.train(config, *overrides(layout), "train.max_minutes=1e-9", ranks=ranks,
                           code=PREEMPTED)
            self.train(config, *overrides(layout), ranks=ranks)
            self.assert_same_run(run, reference, STEPS)

    def test_saved_disaggregated_and_resumed_under_another_layout(self):
        reference = self.reference()
        config, run = self.config()
        stop = "train.max_minutes=1e-9"  # after a step
        self.train(config, stop, *overrides(("pp=2", "dp=2")), ranks=4, code=PREEMPTED)
        output = self.train(config, stop, "parallel.cp=2", "parallel.attention=ring", ranks=2,
                            code=PREEMPTED)
        self.assertIn("resumed at step 1:", output)
        output = self.train(config, stop, *overrides(("dp=2", "zero=2")), ranks=2, code=PREEMPTED)
        self.assertIn("resumed at step 2:", output)
        self.train(config, stop, ranks=1, code=PREEMPTED)
        self.assertEqual(checkpoint_steps(run)[-1], 4)
        self.train(config, *overrides(("tp=2",)), ranks=2)
        self.assert_same_losses(run, reference, "several layouts in turn", 2e-5)

    def test_a_timeline_is_of_steps_not_of_evaluations(self):
        config, run = self.config(train__eval_every=1)
        self.train(config, *overrides(("pp=2", "dp=2")), "trace.steps=2", "trace.first_step=2",
                   ranks=4)
        self.assertEqual(len(metrics(run, "eval")), STEPS + 1)
        for rank in range(4):
            events = json.loads((run / f"trace/rank-{rank}.json").read_text())
            spans = [event for event in events if event["ph"] == "X"]
            steps = [span for span in spans if span["name"].startswith("step ")]
            self.assertEqual([span["name"] for span in steps], ["step 2", "step 3"])
            self.assertTrue(any(span["name"].startswith("attend") for span in spans))
            for span in spans:
                self.assertTrue(
                    any(step["ts"] <= span["ts"] and
                        span["ts"] + span["dur"] <= step["ts"] + step["dur"] + 1 for step in steps),
                    f"{span} is in no step")

    def refuse(self, *settings, ranks, words):
        config, run = self.config()
        output = self.train(config, *overrides(settings), ranks=ranks, code=USAGE)
        for word in words:
            self.assertIn(word, output)
        self.assertEqual(output.count("error:"), 1, output)
        self.assertFalse(run.exists())

    def test_what_does_not_go_together(self):
        self.refuse("cp=2", "split=zigzag", ranks=2,
                    words=("parallel.attention: disaggregated", "leave parallel.split at auto"))


if __name__ == "__main__":
    unittest.main()
