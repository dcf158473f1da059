"""Killed at any moment, a run goes on from a good checkpoint to the weights of an undisturbed one."""

import os
import random
import signal
import time
import unittest

from harness import EndToEndTest, checkpoint_steps, children_of, is_running, metrics

STEPS = 400


class KillTest(EndToEndTest):

    def test_killed_at_random_moments(self):
        # A save at every step, so that most kills come in the middle of one.
        settings = {"train__steps": STEPS, "checkpoint__every": 1}
        config, reference = self.config("reference", **settings | {"checkpoint__every": 0})
        self.train(config)
        config, run = self.config("run", **settings)
        draw = random.Random(11)
        reached = 0
        for attempt in range(10):
            process = self.start_training(config)
            self.wait_for_step(run, reached + 1, process)
            time.sleep(draw.uniform(0, 0.1))
            ranks = children_of(process.pid)
            self.assertEqual(len(ranks), 2)
            victim = draw.choice([process.pid, *ranks]) if attempt > 2 else \
                [process.pid, *ranks][attempt]
            os.kill(victim, signal.SIGKILL)
            process.communicate(timeout=30)
            self.assertNotEqual(process.returncode, 0)
            self.wait_until(lambda: not any(map(is_running, ranks)))
            steps = checkpoint_steps(run)
            self.assertTrue(steps)
            reached = metrics(run, "train")[-1]["step"]
            # What is lost is the step whose checkpoint was being written.
            self.assertGreaterEqual(steps[-1], reached - 1)
            self.run_program("checkpoint", "list", run)  # every hash is right
        self.assertLess(reached, STEPS)
        self.train(config)
        self.assert_same_run(run, reference, STEPS)
        leftovers = [p.name for p in (run / "checkpoints").iterdir() if ".tmp-" in p.name]
        self.assertEqual(leftovers, [])

    def test_interrupt_from_the_keyboard(self):
        config, reference = self.config("reference", train__steps=STEPS)
        self.train(config)
        config, run = self.config("run", train__steps=STEPS, checkpoint__every=10)
        process = self.start_training(config)
        self.wait_for_step(run, 12, process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        self.assertNotEqual(process.returncode, 0)
        self.train(config)
        self.assert_same_run(run, reference, STEPS)


if __name__ == "__main__":
    unittest.main()
