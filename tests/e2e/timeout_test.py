"""A rank that stops answering is named by the others, and the job ends in time."""

import os
import signal
import time
import unittest

from harness import EndToEndTest, children_of

TIMEOUT_S = 2
TIMED_OUT = 6


class TimeoutTest(EndToEndTest):

    def test_a_stopped_rank_is_named(self):
        config, run = self.config(train__steps=100000, runtime__timeout_s=TIMEOUT_S)
        process = self.start_training(config, ranks=3)
        self.wait_for_step(run, 3, process)
        ranks = children_of(process.pid)
        self.assertEqual(len(ranks), 3)
        victim = ranks[1]
        with open(f"/proc/{victim}/environ", encoding="utf-8") as file:
            variables = dict(word.split("=", 1) for word in file.read().split("\0") if "=" in word)
        number = variables["OMPI_COMM_WORLD_RANK"]
        begin = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        output = self.finish(process, TIMED_OUT)
        self.assertLess(time.monotonic() - begin, TIMEOUT_S + 10)
        self.assertRegex(output, f"rank {number}\\b.*pid {victim} is stopped")
        self.assertRegex(output, r"step \d+")


if __name__ == "__main__":
    unittest.main()
