"""What is trained does not depend on how many ranks compute it."""

import random
import unittest

from harness import EndToEndTest, metrics, random_documents, write_dataset


class RanksTest(EndToEndTest):

    def losses(self, name, ranks, **changes):
        config, run = self.config(name, train__eval_every=10, **changes)
        self.train(config, ranks=ranks)
        rows = metrics(run, "train")
        self.assertEqual([row["step"] for row in rows], list(range(1, 21)))
        evaluations = metrics(run, "eval")
        self.assertEqual([row["step"] for row in evaluations], [0, 10, 20])
        return rows, evaluations

    def assert_independent_of_ranks(self, **changes):
        rows, evaluations = self.losses("ranks1", 1, **changes)
        for ranks in (2, 3, 4):
            other_rows, other_evaluations = self.losses(f"ranks{ranks}", ranks, **changes)
            for row, other in zip(rows, other_rows):
                self.assertEqual(row["valid_tokens"], other["valid_tokens"])
                for key in ("loss", "grad_norm"):
                    self.assertAlmostEqual(other[key], row[key], delta=1e-10 * abs(row[key]),
                                           msg=f"{key} of step {row['step']} on {ranks} ranks")
            for row, other in zip(evaluations, other_evaluations):
                self.assertAlmostEqual(other["loss"], row["loss"], delta=1e-10 * row["loss"])
        return rows

    def test_uneven_shares(self):
        # Three micro-batches, of 2, 2 and 1 samples: a fourth rank holds none.
        rows = self.assert_independent_of_ranks(train__global_batch_size=5,
                                                train__micro_batch_size=2)
        self.assertLess(rows[-1]["loss"], 0.8 * rows[0]["loss"])

    def test_documents_without_targets(self):
        # Most documents are one token, which has no next one: whole samples have nothing to learn.
        draw = random.Random(3)
        lengths = [draw.choice((2, 5)) if draw.random() < 0.1 else 1 for _ in range(300)]
        write_dataset(self.folder / "train", random_documents(4, lengths))
        rows = self.assert_independent_of_ranks(data__sequence_length=6)
        valid = [row["valid_tokens"] for row in rows]
        self.assertLess(sum(valid), 20 * 24 / 4)
        self.assertTrue(any(0 < count < 4 for count in valid),
                        f"no step left a rank without targets: {valid}")

    def test_steps_without_any_target(self):
        # No sample with a target at all: steps are skipped, weights stay, nothing divides by zero.
        write_dataset(self.folder / "train", random_documents(5, [1] * 50))
        rows, evaluations = self.losses("none", 2, data__sequence_length=8)
        self.assertEqual({row["valid_tokens"] for row in rows}, {0})
        self.assertEqual(evaluations[0]["loss"], evaluations[-1]["loss"])


if __name__ == "__main__":
    unittest.main()
