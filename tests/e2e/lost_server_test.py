"""A dedicated attention server dies, or stops answering, in the middle of a step or an evaluation: the
others take its tasks over, the pass is computed again, and losses are those of a run without failure. With too few
left the run saves and leaves with exit code 7. A rank that has weights ends the run.

    EVENKEEL=build/cuda/launch/evenkeel EVENKEEL_DEVICE=cuda python3 tests/e2e/lost_server_test.py
"""

import os
import pathlib
import random
import signal
import subprocess
import time
import unittest

from harness import (REPOSITORY, EndToEndTest, checkpoint_steps, children_of, command, environment,
                     is_running, metrics, random_documents, write_dataset)

DEVICE = os.environ.get("EVENKEEL_DEVICE", "cpu")
# Ranks that share a GPU take turns: a step takes a second or two. On a CPU it takes milliseconds, and enough have to be
# left when a machine that does other work too gets round to ending a rank.
STEPS = {"cpu": 120, "cuda": 16}[DEVICE]
PEERS_LOST = 7
TRAINERS = 2  # ranks 0 and 1; servers follow
# A healthy rank has to be heard within it, on a machine that does other work too.
LOST_AFTER_S = 3
# In bf16 sums that are cut otherwise round otherwise, and each step amplifies that.
TOLERANCE = {"cpu": 1e-9, "cuda": 0.02}[DEVICE]
SETTINGS = ["parallel.attention=disaggregated", "parallel.attention_shard=8"]


def rank_pids(pid):
    """The ranks below a process, by number."""
    pids, todo = {}, children_of(pid)
    while todo:
        child = todo.pop()
        todo += children_of(child)
        try:
            variables = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(b"OMPI_COMM_WORLD_RANK="):
                pids[int(variable.split(b"=")[1])] = child
    return pids


class LostServerTest(EndToEndTest):
    patience_s = {"cpu": 60, "cuda": 120}[DEVICE]

    def config(self, run="run", **changes):
        settings = {"model__layer_pattern": ["softmax"], "model__num_layers": 3,
                    "model__num_heads": 4, "model__hidden_size": 32, "data__sequence_length": 256,
                    "train__steps": STEPS, "train__global_batch_size": 4,
                    "train__micro_batch_size": 1, "train__eval_every": STEPS // 2, "train__eval_samples": 0,
                    # Small enough that the loss does not leap, which in bf16 no two layouts do alike.
                    "train__lr": 0.003}
        if DEVICE == "cuda":
            settings |= {"runtime__device": DEVICE, "runtime__dtype": "auto", "runtime__ranks_per_gpu": 8,
                         "model__hidden_size": 64, "model__intermediate_size": 128,
                         "model__vocab_size": 264}
        return super().config(run, **settings | changes)

    def start_resilient(self, config, servers, *overrides, tp=1, env=None):
        sets = [f"parallel.attention_servers={servers}", f"parallel.tp={tp}",
                f"runtime.lost_after_s={LOST_AFTER_S}", *SETTINGS, *overrides]
        arguments = ["train", "--config", config, *(w for s in sets for w in ("--set", s))]
        ranks = (TRAINERS + servers) * tp
        mpirun, *rest = command(arguments, ranks)
        process = subprocess.Popen([REPOSITORY / "launch/resilient.sh", *rest],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace",
                                   cwd=self.folder, env=environment(MPIRUN=mpirun, **env or {}),
                                   start_new_session=True)
        self.processes.append(process)
        return process

    def lose(self, run, process, rank, step, how, delay):
        """Waits for a step and a moment more, then ends a rank. Returns its pid."""
        # Before the step, as it takes a while, and again and again: the kernel's list of children may leave some out
        # while others come and go.
        pids = {}
        self.wait_until(lambda: pids.update(rank_pids(process.pid)) or rank in pids, process)
        self.wait_for_step(run, step, process)
        time.sleep(delay)
        os.kill(pids[rank], how)
        return pids[rank]

    def assert_same_losses(self, run, reference):
        rows, others = metrics(run, "train"), metrics(reference, "train")
        self.assertEqual([row["step"] for row in rows], list(range(1, STEPS + 1)))
        for row, other in zip(rows, others):
            for key in ("loss", "grad_norm") if DEVICE == "cpu" else ("loss",):
                self.assertAlmostEqual(row[key], other[key], delta=TOLERANCE * abs(other[key]),
                                       msg=f"{key} of step {row['step']}")

    def reference(self):
        config, run = self.config("reference")
        self.train(config, ranks=1)
        return run

    def test_servers_are_lost_at_any_moment(self):
        reference = self.reference()
        draw = random.Random(3)
        for round_number, how in enumerate((signal.SIGKILL, signal.SIGSTOP)):
            config, run = self.config(f"run{round_number}")
            process = self.start_resilient(config, servers=3)
            # First one, then another.
            lost = [self.lose(run, process, rank, step, how, draw.random() * 0.05)
                    for rank, step in ((3, STEPS // 8), (2, STEPS // 2))]
            output = self.finish(process)
            faults = [row["what"] for row in metrics(run, "fault")]
            self.assertEqual(len(faults), 2, output)
            for pid, rank, left, fault in zip(lost, (3, 2), (2, 1), faults):
                self.assertRegex(fault, rf"rank {rank} \(host .*, pid {pid}\); {left} left")
                self.assertFalse(is_running(pid))
            self.assert_same_losses(run, reference)

    def test_a_server_of_a_tensor_parallel_pair_is_lost(self):
        reference = self.reference()
        config, run = self.config()
        process = self.start_resilient(config, 2, tp=2)
        self.lose(run, process, 5, STEPS // 8, signal.SIGKILL, 0.01)
        output = self.finish(process)
        self.assertRegex(output, "1 left, the step is computed again")
        self.assert_same_losses(run, reference)

    def test_with_too_few_left_the_run_saves(self):
        reference = self.reference()
        config, run = self.config()
        process = self.start_resilient(config, 2, "parallel.attention_servers_min=2")
        self.lose(run, process, 3, STEPS // 4, signal.SIGKILL, 0.02)
        output = self.finish(process, PEERS_LOST)
        self.assertRegex(output, "1 are left, fewer than 2 .*saved")
        step = metrics(run, "train")[-1]["step"]
        self.assertEqual(checkpoint_steps(run), [step])
        self.assertLess(step, STEPS)
        # The same command goes on.
        self.finish(self.start_resilient(config, 2, "parallel.attention_servers_min=2"))
        self.assert_same_losses(run, reference)

    def test_interrupt_from_the_keyboard(self):
        """mpirun gives its ranks a second, kills them in another, and would end with 1."""
        config, run = self.config(train__steps=100000, train__eval_every=0)
        process = self.start_resilient(config, 1)
        self.wait_for_step(run, 2, process)
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        self.assertGreater(time.monotonic() - begin, 1)
        was_in_time = "saved; the same command goes on" in output
        self.assertEqual(process.returncode, 75 if was_in_time else 1, output)
        self.assertEqual(bool(checkpoint_steps(run)), was_in_time)

    def assert_same_evaluations(self, run, reference):
        rows, others = metrics(run, "eval"), metrics(reference, "eval")
        self.assertEqual([row["step"] for row in rows], [row["step"] for row in others])
        for row, other in zip(rows, others):
            self.assertEqual(row["tokens"], other["tokens"])
            self.assertAlmostEqual(row["loss"], other["loss"], delta=TOLERANCE * other["loss"],
                                   msg=f"evaluation of step {row['step']}")

    def hold_out_much(self):
        """An evaluation takes a while, so that it is what a loss after its step meets."""
        draw = random.Random(5)
        count = {"cpu": 1600, "cuda": 100}[DEVICE]
        lengths = [draw.randrange(100, 250) for _ in range(count)]
        write_dataset(self.folder / "valid", random_documents(2, lengths))

    def test_a_server_is_lost_during_an_evaluation(self):
        self.hold_out_much()
        reference = self.reference()
        for round_number, how in enumerate((signal.SIGKILL, signal.SIGSTOP)):
            config, run = self.config(f"run{round_number}")
            process = self.start_resilient(config, servers=2)
            self.lose(run, process, 2, STEPS // 2, how, 0.05)
            output = self.finish(process)
            faults = metrics(run, "fault")
            self.assertEqual(len(faults), 1, output)
            self.assertEqual(faults[0]["step"], STEPS // 2)
            self.assertIn("1 left, a part of the evaluation is computed again", faults[0]["what"])
            self.assert_same_losses(run, reference)
            self.assert_same_evaluations(run, reference)

    def test_with_too_few_left_during_an_evaluation_the_run_saves(self):
        self.hold_out_much()
        reference = self.reference()
        config, run = self.config()
        process = self.start_resilient(config, 2, "parallel.attention_servers_min=2")
        self.lose(run, process, 3, STEPS // 2, signal.SIGKILL, 0.05)
        output = self.finish(process, PEERS_LOST)
        self.assertRegex(output, f"stopped at step {STEPS // 2}, saved")
        self.assertEqual(checkpoint_steps(run), [STEPS // 2])
        self.assertEqual(metrics(run, "train")[-1]["step"], STEPS // 2)
        self.assertEqual([row["step"] for row in metrics(run, "eval")], [0])
        # The same command does that evaluation and goes on.
        self.finish(self.start_resilient(config, 2, "parallel.attention_servers_min=2"))
        self.assert_same_losses(run, reference)
        self.assertEqual([row["step"] for row in metrics(run, "eval")][-2:], [STEPS // 2, STEPS])

    def test_a_rank_with_weights_ends_the_run(self):
        config, run = self.config(train__steps=100000)
        process = self.start_resilient(config, 1)
        pids = rank_pids(process.pid)
        self.wait_for_step(run, 5, process)
        begin = time.monotonic()
        self.lose(run, process, 1, 5, signal.SIGKILL, 0)
        output = self.finish(process, PEERS_LOST)
        self.assertLess(time.monotonic() - begin, 10)
        self.assertRegex(output, r"rank 1 \(host .*\) is gone, and its part of the model")
        self.assertFalse(any(is_running(pid) for pid in pids.values()))


if __name__ == "__main__":
    unittest.main()
