"""A run that was stopped and started again is the run that was never stopped, bit by bit."""

import json
import os
import signal
import subprocess
import unittest

from harness import (EVENKEEL, REPOSITORY, EndToEndTest, checkpoint_steps, environment, metrics)

STEPS = 150
PREEMPTED = 75


class ResumeTest(EndToEndTest):

    def setUp(self):
        super().setUp()
        self.settings = {"train__steps": STEPS, "train__eval_every": 50}

    def undisturbed(self, **changes):
        config, run = self.config("reference", **self.settings | changes)
        self.train(config)
        return run

    def stopped_step(self, run):
        """The step at which a run stopped; there is a checkpoint of it."""
        step = metrics(run, "train")[-1]["step"]
        self.assertLess(step, STEPS)
        self.assertEqual(checkpoint_steps(run)[-1], step)
        return step

    def test_stop_file_and_signal_and_time_limit(self):
        reference = self.undisturbed()
        config, run = self.config("run", **self.settings)

        process = self.start_training(config)
        self.wait_for_step(run, 5, process)
        (run / "STOP").touch()
        self.assertIn("the same command goes on", self.finish(process, PREEMPTED))
        first = self.stopped_step(run)

        process = self.start_training(config)
        self.wait_for_step(run, first + 5, process)
        process.send_signal(signal.SIGUSR1)  # to mpirun, which hands it on to every rank
        output = self.finish(process, PREEMPTED)
        self.assertIn(f"resumed at step {first}:", output)
        second = self.stopped_step(run)
        self.assertGreater(second, first)

        self.train(config, "train.max_minutes=1e-9", code=PREEMPTED)
        third = self.stopped_step(run)
        self.assertEqual(third, second + 1)

        self.train(config)
        self.assert_same_run(run, reference, STEPS)
        def evaluations(folder):
            return [(row["step"], row["perplexity"]) for row in metrics(folder, "eval")]
        self.assertEqual(evaluations(run), evaluations(reference))
        self.assertEqual([step for step, _ in evaluations(run)], [0, 50, 100, 150])
        self.assertTrue((run / "loss.svg").read_text().startswith("<svg"))

        self.assertIn("resumed at step 150", self.train(config))  # nothing left to do
        self.assert_same_run(run, reference, STEPS)

    def test_an_evaluation_that_was_due_when_the_run_stopped(self):
        settings = {"train__steps": 4, "train__eval_every": 2, "train__warmup_steps": 0,
                    "checkpoint__every": 2}
        config, reference = self.config("reference", **settings)
        self.train(config)
        def evaluations(folder):
            """Of all lines, superseded ones too."""
            rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            return [(row["step"], row["loss"]) for row in rows if row["event"] == "eval"]
        expected = evaluations(reference)
        self.assertEqual([step for step, _ in expected], [0, 2, 4])

        config, run = self.config("run", **settings)
        for step in (1, 2):
            self.train(config, "train.max_minutes=1e-9", code=PREEMPTED)
            self.assertEqual(checkpoint_steps(run)[-1], step)
        self.assertEqual(evaluations(run), expected[:1], "a stop does not wait for an evaluation")
        self.train(config, "train.max_minutes=1e-9", code=PREEMPTED)
        self.assertEqual(evaluations(run), expected[:2])
        # The last step is evaluated before the run ends, asked to stop or not.
        self.train(config, "train.max_minutes=1e-9")
        self.assertEqual(evaluations(run), expected)
        # What is there already is not evaluated again: at the end, at a checkpoint, by other ranks.
        self.train(config)
        self.train(config, "train.steps=5", "train.max_minutes=1e-9", ranks=3)
        self.assertEqual(evaluations(run)[:3], expected)
        self.assertEqual([step for step, _ in evaluations(run)], [0, 2, 4, 5])

    def test_float32_with_recomputation_and_threads(self):
        changes = {"runtime__dtype": "float32", "runtime__recompute": "layer",
                   "runtime__threads": 2, "train__steps": 40, "train__eval_every": 0,
                   "train__schedule": "constant_then_decay", "train__decay_steps": 30}
        reference = self.undisturbed(**changes)
        config, run = self.config("run", **self.settings | changes)
        self.train(config, "train.max_minutes=1e-9", code=PREEMPTED)
        self.assertEqual(self.stopped_step(run), 1)
        self.train(config, "checkpoint.every=13")
        self.assert_same_run(run, reference, 40)

    def test_another_number_of_ranks(self):
        reference = self.undisturbed(train__steps=30)
        config, run = self.config("run", **self.settings | {"train__steps": 30})
        for ranks in (3, 1, 4):
            self.train(config, "train.max_minutes=1e-9", ranks=ranks, code=PREEMPTED)
        self.train(config, ranks=0)  # without mpirun
        rows = metrics(run, "train")
        self.assertEqual([row["step"] for row in rows], list(range(1, 31)))
        for row, other in zip(rows, metrics(reference, "train")):
            self.assertAlmostEqual(row["loss"], other["loss"], delta=1e-10 * other["loss"])

    def test_batch_job_is_requeued(self):
        config, reference = self.config("reference", train__steps=STEPS)
        self.train(config)
        config, run = self.config(train__steps=STEPS)
        scontrol = self.folder / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >>{self.folder}/requests\n')
        scontrol.chmod(0o755)
        changes = {"PATH": f"{self.folder}:{os.environ['PATH']}", "EVENKEEL": EVENKEEL,
                   "SLURM_JOB_ID": "17", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
        job = ["bash", str(REPOSITORY / "launch" / "slurm.sbatch"), str(config)]
        first = subprocess.Popen(job, env=environment(**changes), stdout=subprocess.PIPE, text=True,
                                 stderr=subprocess.STDOUT)
        self.processes.append(first)
        self.wait_for_step(run, 5, first)
        first.send_signal(signal.SIGUSR1)
        self.assertIn("saving", self.finish(first))
        self.stopped_step(run)
        self.assertEqual((self.folder / "requests").read_text(), "requeue 17\n")
        second = subprocess.run(job, env=environment(**changes, SLURM_RESTART_COUNT="1"), text=True,
                                timeout=60, capture_output=True, check=True)
        self.assertIn("start 2", second.stdout)
        self.assertEqual((self.folder / "requests").read_text(), "requeue 17\n")
        rows, others = metrics(run, "train"), metrics(reference, "train")
        self.assertEqual(len(rows), STEPS)
        self.assertAlmostEqual(rows[-1]["loss"], others[-1]["loss"], delta=1e-10)


if __name__ == "__main__":
    unittest.main()
