"""What goes wrong ends with the documented exit code and a message that names the cause."""

import os
import shutil
import signal
import subprocess
import unittest

from harness import (EVENKEEL, MPIEXEC, REPOSITORY, EndToEndTest, checkpoint_folder, checkpoint_steps,
                     environment, flip_bit, metrics, random_documents, write_dataset)

USAGE, DATA, CHECKPOINT, DIVERGED = 2, 3, 4, 5


class LaunchTest(EndToEndTest):

    def test_one_run_a_folder(self):
        config, run = self.config(train__steps=100000)
        process = self.start_training(config)
        self.wait_for_step(run, 3, process)
        output = self.train(config, code=USAGE)
        self.assertIn(str(run), output)
        self.assertRegex(output, r"process \d+")
        self.assertIsNone(process.poll(), "the first run ended")
        reached = metrics(run, "train")[-1]["step"]
        self.wait_for_step(run, reached + 3, process)
        process.send_signal(signal.SIGUSR1)
        self.finish(process, 75)

    def test_no_copies_without_mpirun(self):
        config, run = self.config()
        for variable in ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "PMI_SIZE", "WORLD_SIZE"):
            output = self.train(config, ranks=0, code=USAGE, env={variable: "4"})
            self.assertIn(f"{variable} is 4", output)
            self.assertIn("mpirun", output)
            self.assertFalse(run.exists())
        # What is meant for one process is not refused.
        self.run_program("config", "check", config, env={"SLURM_NTASKS": "4"})

    def test_ranks_with_different_configs(self):
        config, run = self.config()
        train = [EVENKEEL, "train", "--config", str(config)]
        result = subprocess.run(
            [MPIEXEC, "--oversubscribe", "-np", "1", *train, ":", "-np", "1", *train, "--set",
             "train.lr=0.02"], env=environment(), capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, USAGE, result.stderr)
        self.assertIn("config", result.stderr)
        self.assertFalse(run.exists())

    def test_one_rank_without_its_config(self):
        config, run = self.config()
        train = [EVENKEEL, "train", "--config"]
        result = subprocess.run(
            [MPIEXEC, "--oversubscribe", "-np", "1", *train, str(config), ":", "-np", "1", *train,
             str(self.folder / "absent.yaml")],
            env=environment(), capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, USAGE, result.stderr)
        self.assertIn("[rank 1] error: ", result.stderr)
        self.assertIn("absent.yaml", result.stderr)
        self.assertFalse(run.exists())


class ConfigTest(EndToEndTest):

    def test_every_error_with_its_line(self):
        path, run = self.config(train__lr=-1, model__hidden_sise=12, data__sequence_length="many",
                                checkpoint__every="'3'")
        text = path.read_text() + "train:\n  steps: 3\n"
        path.write_text(text)
        lines = text.splitlines()
        def place(needle):
            return next(i for i, line in enumerate(lines, 1) if needle in line)
        output = self.train(path, code=USAGE)
        for needle in ("lr: -1", "hidden_sise", "sequence_length: many", "every: '3'"):
            self.assertIn(f"{path.name}:{place(needle)}", output)
        again = lines.index("train:", lines.index("train:") + 1) + 1
        self.assertIn(f"{path.name}:{again}:1: train: duplicate key", output)
        self.assertIn("hidden_size", output)  # what was meant
        self.assertEqual(output.count("hidden_sise"), 1, "one rank tells, not every one")
        self.assertFalse(run.exists())
        self.assertIn("hidden_sise", self.run_program("config", "check", path, code=USAGE))

    def test_overrides(self):
        config, _ = self.config()
        self.assertIn("train.step", self.train(config, "train.step=3", code=USAGE))
        self.train(config, "train.steps=0", ranks=0, code=USAGE)
        self.train(config, "nonsense", ranks=0, code=USAGE)
        self.train(self.folder / "absent.yaml", ranks=0, code=USAGE)

    def test_keys_without_effect(self):
        config, run = self.config(parallel__attention="ring", parallel__attention_shard=8,
                                  train__steps=2, train__warmup_steps=0)
        output = self.train(config, "parallel.ping_pong=off", code=USAGE)
        line = config.read_text().splitlines().index("  attention_shard: 8") + 1
        for place in (f"{config.name}:{line}:3: parallel.attention_shard: has no effect",
                      "--set parallel.ping_pong=off: parallel.ping_pong: has no effect"):
            self.assertIn(place, output)
        self.assertIn("set parallel.attention: disaggregated", output)
        self.assertFalse(run.exists())
        self.train(config, "parallel.attention_shard=128")
        # What the run folder holds of the config has every key, and trains on.
        self.train(run / "resolved.yaml", "train.steps=3")
        self.train(run / "resolved.yaml", "train.steps=4", "parallel.attention=disaggregated",
                   "parallel.attention_shard=8", "parallel.ping_pong=off")

    def test_malformed_files(self):
        path = self.folder / "bad.yaml"
        for text in (b"", b"[" * 5000, b"\x00\xff\xfe" * 100, b"model: {a: 1", b"\tfolder: x",
                     b"folder: &a [*a]\n", b"- 1\n- 2\n", b"just text"):
            path.write_bytes(text)
            output = self.run_program("config", "check", path, code=USAGE)
            self.assertIn("bad.yaml", output, text[:20])


class DataTest(EndToEndTest):

    def test_missing_and_damaged_data(self):
        config, _ = self.config()
        for key in ("data.train", "data.validation"):
            output = self.train(config, f"{key}={self.folder}/nowhere", code=DATA)
            self.assertIn(f"{key}: {self.folder}/nowhere.idx", output)
        index = (self.folder / "train.idx").read_bytes()
        tokens = (self.folder / "train.bin").read_bytes()
        for name, data in (("train.idx", index[:-5]), ("train.idx", b""),
                           ("train.idx", b"x" + index[1:]), ("train.bin", tokens[:-2]),
                           ("train.idx", index[:18] + b"\xff" * 7 + index[25:])):
            (self.folder / name).write_bytes(data)
            output = self.train(config, ranks=0, code=DATA)
            self.assertIn("/train.", output)
            self.run_program("data", "stat", self.folder / "train", code=DATA)
            (self.folder / "train.idx").write_bytes(index)
            (self.folder / "train.bin").write_bytes(tokens)
        self.train(config)

    def test_a_token_outside_the_vocabulary(self):
        documents = random_documents(1, [50] * 10)
        documents[7][20] = 4000
        write_dataset(self.folder / "train", documents)
        config, _ = self.config()
        output = self.train(config, ranks=4, code=DATA)
        self.assertIn("train.bin: document 7, position 20", output)

    def test_a_data_set_described_for_another_model(self):
        text, built = self.folder / "a.txt", self.folder / "built"
        text.write_text("even keel\n" * 50)
        self.run_program("data", "build", text, "-o", built)
        config, run = self.config(data__train=built, model__vocab_size=200)
        # No byte of the text is that large, but the end of each document is.
        output = self.train(config, "data.validation=", ranks=0, code=DATA)
        self.assertIn("built.dataset.json: the vocabulary of tokenizer bytes is 257", output)
        self.assertIn("model.vocab_size", output)
        self.assertFalse(run.exists())
        (self.folder / "built.dataset.json").write_text("{")
        for words in (("train", "-c", config), ("data", "stat", built)):
            self.assertIn("built.dataset.json", self.run_program(*words, code=DATA))

    def test_lists_of_lengths(self):
        lengths = self.folder / "lengths.json"
        words = ("simulate", "-m", "configs/llama3_8b.yaml", "--cluster",
                 "configs/clusters/h100.yaml", "--lengths", lengths, "-n", 16, "--max-doc-len",
                 4096, "--batch", 8)
        words = [REPOSITORY / w if str(w).startswith("configs/") else w for w in words]
        for text in (None, "[1, 2", "[]", "[0]", "{}"):
            if text is not None:
                lengths.write_text(text)
            self.assertIn("lengths.json", self.run_program(*words, code=DATA))

    def test_building_from_nothing(self):
        out = self.folder / "built"
        self.run_program("data", "build", self.folder / "*.txt", "-o", out, code=DATA)
        (self.folder / "a.jsonl").write_text('{"text": "fine"}\n{"txt": "no"}\n')
        output = self.run_program("data", "build", self.folder / "a.jsonl", "-o", out, code=DATA)
        self.assertIn("a.jsonl:2", output)
        self.assertEqual(list(self.folder.glob("built*")), [])
        self.run_program("data", "build", self.folder / "a.jsonl", "-o", out, "--skip-bad", 1)


class CheckpointTest(EndToEndTest):

    def trained(self):
        config, run = self.config(checkpoint__every=5, checkpoint__keep_last=3)
        self.train(config)
        self.assertEqual(checkpoint_steps(run), [10, 15, 20])
        return config, run

    def test_damage_is_named_and_the_one_before_used(self):
        config, reference = self.trained()
        damages = [
            ("model.safetensors", lambda path: flip_bit(path, -100)),
            ("optimizer.safetensors", lambda path: flip_bit(path, 3)),
            ("manifest.json", lambda path: flip_bit(path, 40)),
            ("model.safetensors", lambda path: os.truncate(path, path.stat().st_size - 1)),
            ("optimizer.safetensors", lambda path: path.unlink()),
            ("config.json", lambda path: flip_bit(path, 10)),
        ]
        whole = self.folder / "whole"
        shutil.copytree(reference, whole)
        config, run = self.config(checkpoint__every=5, checkpoint__keep_last=3)
        for name, damage in damages:
            shutil.rmtree(run)
            shutil.copytree(whole, run)
            damage(checkpoint_folder(run, 20) / name)
            self.assertIn(name, self.run_program("checkpoint", "list", run, code=CHECKPOINT))
            output = self.train(config, "checkpoint.fallback=false", ranks=0, code=CHECKPOINT)
            self.assertIn(name, output)
            self.assertIn("step-00000015", output)  # what could be used
            output = self.train(config)
            self.assertIn(name, output)
            self.assertIn("resumed at step 15", output)
            self.assert_same_run(run, whole, 20)

    def test_all_damaged(self):
        config, run = self.trained()
        for step in (10, 15, 20):
            flip_bit(checkpoint_folder(run, step) / "model.safetensors", -1)
        self.assertIn("model.safetensors", self.train(config, code=CHECKPOINT))
        self.run_program("eval", "-m", run, "-d", self.folder / "valid", code=CHECKPOINT)
        self.assertEqual(checkpoint_steps(run), [10, 15, 20])

    def test_another_model_or_seed_or_data(self):
        config, _ = self.trained()
        for change, words in (("seed=2", "seed 1"), ("model.hidden_size=8", "model"),
                              ("data.sequence_length=32", "sequence_length 64"),
                              (f"data.train={self.folder}/valid", "data")):
            output = self.train(config, change, "train.steps=25", ranks=0, code=CHECKPOINT)
            self.assertIn(words, output)
        self.train(config, "checkpoint.resume=never", code=USAGE)
        self.train(config, "train.steps=25")


class FaultTest(EndToEndTest):

    def test_a_full_disk(self):
        disk = self.folder / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            self.skipTest("only root may mount the small disk")
        self.addCleanup(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
        # A checkpoint takes about 2 MiB: the disk is full after three.
        config, run = self.config("disk/run", model__hidden_size=64, checkpoint__every=3,
                                  checkpoint__keep_last=100)
        config = shutil.move(config, self.folder / "config.yaml")
        output = self.train(config, code=CHECKPOINT)  # the last one is what the run is for
        self.assertIn("training goes on", output)
        self.assertEqual(metrics(run, "train")[-1]["step"], 20)
        kept = checkpoint_steps(run)
        self.assertTrue(kept and kept[0] == 3 and kept[-1] < 18, kept)
        self.run_program("checkpoint", "list", run)
        self.train(config, "checkpoint.on_error=stop", code=CHECKPOINT)
        self.assertEqual(checkpoint_steps(run), kept)

        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        self.assertIn(f"resumed at step {kept[-1]}", self.train(config))
        self.assertEqual(checkpoint_steps(run)[-1], 20)

    def test_divergence(self):
        # Each step multiplies the matrices by 1 - lr * weight_decay.
        config, run = self.config(train__steps=200, train__lr=1000, train__min_lr=1000,
                                  train__weight_decay=10, train__warmup_steps=0,
                                  runtime__dtype="float32", checkpoint__every=1)
        output = self.train(config, code=DIVERGED)
        self.assertIn("not finite", output)
        last = checkpoint_steps(run)[-1]
        self.assertEqual(last, metrics(run, "train")[-1]["step"])
        self.run_program("checkpoint", "list", run)
        skipping, run = self.config("skip", train__steps=60, train__lr=1000, train__min_lr=1000,
                                    train__weight_decay=10, train__warmup_steps=0,
                                    runtime__dtype="float32", train__on_nonfinite="skip")
        self.train(skipping)
        self.assertTrue(any("not finite" in row["what"] for row in metrics(run, "fault")))


if __name__ == "__main__":
    unittest.main()
