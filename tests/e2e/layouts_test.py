"""What is trained does not depend on how a run is spread over its ranks: the same losses under every
layout, also where it changes from one start to the next; and what goes wrong is told as ever."""

import os
import signal
import time
import unittest

from harness import EndToEndTest, checkpoint_folder, checkpoint_steps, children_of, metrics

STEPS = 12
TIMEOUT_S = 3
USAGE, TIMED_OUT, PREEMPTED = 2, 6, 75

# Each axis alone and mixtures; every stage of ZeRO, every exchange.
LAYOUTS = (
    ("tp=2", "zero=1"),
    ("tp=4",),
    ("pp=2", "virtual_stages=2", "zero=3"),
    ("pp=4",),
    ("pp=2", "tp=2"),
    ("cp=4", "attention=ring", "linear_attention=scan"),
    ("cp=2", "attention=ulysses", "zero=2"),
    ("cp=2", "tp=2", "split=contiguous"),
    ("dp=4", "zero=3"),
)


def overrides(layout):
    return [f"parallel.{setting}" for setting in layout]


class ParallelTest(EndToEndTest):
    """A model that four ranks can share on any axis."""

    def config(self, run="run", **changes):
        settings = {"model__layer_pattern": ["lightning", "softmax"], "model__num_layers": 4,
                    "model__num_heads": 4, "model__num_kv_heads": 2, "model__hidden_size": 24,
                    "model__intermediate_size": 22, "train__steps": STEPS,
                    "train__global_batch_size": 5, "train__micro_batch_size": 2,
                    "train__warmup_steps": 2, "train__eval_every": 4}
        return super().config(run, **settings | changes)


class LayoutsTest(ParallelTest):

    def reference(self, **changes):
        config, run = self.config("reference", **changes)
        self.train(config, ranks=1)
        return run

    def assert_same_losses(self, run, reference, layout):
        rows, others = metrics(run, "train"), metrics(reference, "train")
        self.assertEqual([row["step"] for row in rows], list(range(1, STEPS + 1)), layout)
        for row, other in zip(rows, others):
            self.assertEqual(row["valid_tokens"], other["valid_tokens"])
            for key in ("loss", "grad_norm"):
                self.assertAlmostEqual(row[key], other[key], delta=1e-9 * abs(other[key]),
                                       msg=f"{key} of step {row['step']} under {layout}")
        rows, others = metrics(run, "eval"), metrics(reference, "eval")
        self.assertEqual([row["step"] for row in rows], [row["step"] for row in others], layout)
        for row, other in zip(rows, others):
            self.assertAlmostEqual(row["loss"], other["loss"], delta=1e-9 * other["loss"],
                                   msg=f"evaluation of step {row['step']} under {layout}")

    def test_losses_are_those_of_one_rank(self):
        reference = self.reference()
        rows = metrics(reference, "train")
        self.assertLess(rows[-1]["loss"], 0.95 * rows[0]["loss"])
        self.assertEqual([row["step"] for row in metrics(reference, "eval")], [0, 4, 8, 12])
        for layout in LAYOUTS:
            config, run = self.config("-".join(layout).replace("=", ""))
            self.train(config, *overrides(layout), ranks=4)
            self.assert_same_losses(run, reference, layout)

    def test_tied_embeddings_and_three_ranks(self):
        # One lightning layer is short of a stage of its own: 3 stages hold 1, 2 and 1 layers.
        changes = {"model__layer_pattern": ["lightning"], "model__num_kv_heads": 0,
                   "model__tie_embeddings": "true", "data__sequence_length": 33}
        reference = self.reference(**changes)
        for layout in (("pp=3", "layers_per_stage=[1, 2, 1]"), ("cp=3", "zero=1")):
            config, run = self.config("-".join(layout)[:5].replace("=", ""), **changes)
            self.train(config, *overrides(layout), ranks=3)
            self.assert_same_losses(run, reference, layout)

    def test_saved_under_one_layout_and_resumed_under_another(self):
        reference = self.reference(train__eval_every=0)  # a step that stops does not evaluate
        config, run = self.config("run", train__eval_every=0)
        stop = "train.max_minutes=1e-9"  # after a step
        starts = ((("tp=2", "zero=3"), 4), (("pp=4",), 4), (("cp=2", "zero=2", "tp=2"), 4),
                  (("pp=2", "virtual_stages=2"), 2), ((), 1), (("dp=3", "zero=1"), 3))
        for i, (layout, ranks) in enumerate(starts):
            output = self.train(config, stop, *overrides(layout), ranks=ranks, code=PREEMPTED)
            self.assertEqual(checkpoint_steps(run)[-1], i + 1)
            if i > 0:
                self.assertIn(f"resumed at step {i}:", output)
        self.train(config, *overrides(LAYOUTS[4]), ranks=4)
        self.assert_same_losses(run, reference, "many layouts in turn")

    def test_the_same_layout_gives_the_same_bits(self):
        for layout in (("pp=2", "tp=2"), ("cp=2", "zero=3", "attention=ring")):
            name = layout[0].replace("=", "")
            changes = {"runtime__dtype": "float32"}
            config, reference = self.config(f"{name}-reference", **changes)
            self.train(config, *overrides(layout), ranks=4)
            config, run = self.config(f"{name}-run", **changes)
            for _ in range(2):
                self.train(config, *overrides(layout), "train.max_minutes=1e-9", ranks=4,
                           code=PREEMPTED)
            self.train(config, *overrides(layout), ranks=4)
            self.assert_same_run(run, reference, STEPS)

    def test_the_checkpoint_does_not_tell_the_layout(self):
        # One step from the same weights, with gradients summed in another order: nothing but the
        # last bits of the numbers differ, not the names, shapes or places of any tensor.
        sizes = set()
        for layout in ((), ("tp=4",), ("pp=2", "zero=3", "virtual_stages=2")):
            config, run = self.config("-".join(("sizes",) + layout).replace("=", ""),
                                      train__steps=2)
            self.train(config, *overrides(layout), ranks=4)
            folder = checkpoint_folder(run, 2)
            headers = []
            for name in ("model.safetensors", "optimizer.safetensors"):
                data = (folder / name).read_bytes()
                length = int.from_bytes(data[:8], "little")
                headers.append((len(data), data[:8 + length]))
            sizes.add(tuple(headers))
        self.assertEqual(len(sizes), 1)


class DegreesTest(ParallelTest):
    """Degrees that do not go together: one message, exit code 2, nothing left behind."""

    def refuse(self, *settings, ranks, words):
        config, run = self.config()
        output = self.train(config, *overrides(settings), ranks=ranks, code=USAGE)
        for word in words:
            self.assertIn(word, output)
        self.assertEqual(output.count("error:"), 1, output)
        self.assertFalse(run.exists())

    def test_degrees_that_do_not_multiply_to_the_ranks(self):
        self.refuse("tp=2", "dp=3", ranks=4, words=("tp 2", "dp 3", "4"))
        self.refuse("pp=3", ranks=4, words=("pp 3",))

    def test_degrees_that_the_model_does_not_allow(self):
        self.refuse("tp=3", ranks=3, words=("tp 3", "heads"))
        self.refuse("pp=3", "virtual_stages=2", ranks=3, words=("virtual_stages 2", "layers"))
        self.refuse("virtual_stages=2", ranks=2, words=("pp > 1",))
        self.refuse("cp=3", "attention=ulysses", ranks=3, words=("cp 3", "heads"))
        self.refuse("tp=4", "dp=2", "zero=1", ranks=8,
                    words=("dp 2", "tp 4 does not divide the intermediate size 22", "tp 2, or zero 0"))
        self.refuse("pp=2", "layers_per_stage=[1, 2]", ranks=2, words=("[1, 2]", "add up to 3"))

    def test_values_that_are_none(self):
        self.refuse("zero=4", ranks=2, words=("zero",))
        self.refuse("tp=0", ranks=2, words=("tp",))
        self.refuse("layers_per_stage=[two, 2]", ranks=2, words=("'two'",))


class LostRankTest(ParallelTest):

    def lose(self, layout, signal_number, victim):
        """Starts four ranks, sends one of them a signal; returns what waits for the end."""
        config, run = self.config("-".join(layout).replace("=", "") + str(int(signal_number)),
                                  train__steps=100000, train__eval_every=0,
                                  runtime__timeout_s=TIMEOUT_S)
        process = self.start("train", "--config", config, *(word for setting in overrides(layout)
                                                            for word in ("--set", setting)),
                             ranks=4)
        self.wait_for_step(run, 3, process)
        ranks = children_of(process.pid)
        self.assertEqual(len(ranks), 4)
        os.kill(ranks[victim], signal_number)
        return process, ranks[victim]

    def test_a_killed_rank_ends_the_job(self):
        for layout, victim in ((("tp=4",), 1), (("pp=2", "tp=2"), 3), (("pp=4",), 0)):
            process, _ = self.lose(layout, signal.SIGKILL, victim)
            begin = time.monotonic()
            output, _ = process.communicate(timeout=TIMEOUT_S + 20)
            self.assertLess(time.monotonic() - begin, TIMEOUT_S + 10)
            self.assertNotEqual(process.returncode, 0)
            self.assertRegex(output, "signal 9|Killed")  # mpirun says it

    def test_a_stopped_rank_is_named(self):
        for layout, victim in ((("tp=2",), 1), (("pp=4",), 2), (("cp=2", "pp=2"), 3)):
            process, pid = self.lose(layout, signal.SIGSTOP, victim)
            begin = time.monotonic()
            output = self.finish(process, TIMED_OUT)
            self.assertLess(time.monotonic() - begin, TIMEOUT_S + 10)
            self.assertRegex(output, f"pid {pid} is stopped", layout)
            self.assertRegex(output, r"step \d+")


if __name__ == "__main__":
    unittest.main()
