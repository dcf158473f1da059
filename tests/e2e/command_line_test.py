"""The ten minutes of a new user: help, completion, data, evaluation, generation, export."""

import json
import re
import shutil
import subprocess
import unittest

from harness import EndToEndTest, checkpoint_folder, metrics

USAGE = 2


class CommandLineTest(EndToEndTest):

    def subcommands(self, path=()):
        """Yields the words of every subcommand, found in the program's own help."""
        text = self.run_program(*path, "--help")
        found = re.search(r"^Subcommands:\n((?:  .*\n?)+)", text, re.MULTILINE)
        for line in found[1].splitlines() if found else []:
            if re.match(r"  \S", line):
                command = (*path, line.split()[0])
                yield command
                yield from self.subcommands(command)

    def test_help_of_every_subcommand(self):
        commands = list(self.subcommands())
        for command in (("train",), ("data", "build"), ("checkpoint", "export"), ("doctor",)):
            self.assertIn(command, commands)
        self.assertIn("Exit codes", self.run_program("--help"))
        for command in commands:
            text = self.run_program(*command, "--help")
            if not list(self.subcommands(command)):
                self.assertIn("Examples:\n  ", text, command)
        self.assertRegex(self.run_program("--version"), r"^evenkeel \d+\.\d+\.\d+")

    def test_mistakes(self):
        self.assertIn("did you mean 'train'", self.run_program("trian", code=USAGE))
        self.assertIn("did you mean 'build'", self.run_program("data", "biuld", code=USAGE))
        for words in ((), ("data",), ("train",), ("train", "--config"), ("eval", "--nonsense"),
                      ("generate", "-m", "x", "-n", "-3"), ("plan", "--ranks", "0")):
            output = self.run_program(*words, code=USAGE)
            self.assertIn("error: ", output, words)
        self.assertIn("did you mean '--config'", self.run_program("train", "--confg", "x",
                                                                  code=USAGE))
        self.assertIn("'x.yaml' is not an argument of 'train'",
                      self.run_program("train", "x.yaml", code=USAGE))
        output = self.run_program("checkpoint", "export", "a", "b", "--dtype", "fp16", code=USAGE)
        self.assertIn("fp16 not in {float32,bfloat16,float16,float64}", output)
        output = self.run_program("simulate", "--preset", "paper", code=USAGE)
        self.assertIn("{paper-3d,paper-4d,", output)

    def test_completion(self):
        script = self.run_program("completion", "bash")
        ask = 'COMP_WORDS=(evenkeel "$@"); COMP_CWORD=$#; _evenkeel; echo "${COMPREPLY[*]}"'
        def complete(*words):
            return subprocess.run(["bash", "-c", script + ask, "bash", *words], check=True,
                                  capture_output=True, text=True).stdout.split()
        self.assertEqual(complete("tr"), ["train"])
        self.assertEqual(sorted(complete("data", "")), ["build", "stat"])
        self.assertIn("--set", complete("train", "-c", "some.yaml", "--"))
        self.assertEqual(complete("generate", "--top-"), ["--top-k", "--top-p"])
        for command in ("doctor", "eval", "generate"):
            self.assertEqual(complete(command, "--dev"), ["--device"])
        self.assertEqual(sorted(complete("bench", "")), ["attention", "comm", "linear", "step"])
        self.assertEqual(complete("bench", "attention", "--max"), ["--max-kv"])
        self.assertIn("bashcompinit", self.run_program("completion", "zsh"))
        for shell in ("zsh", "fish"):
            if shutil.which(shell):
                subprocess.run([shell, "-n"], input=self.run_program("completion", shell),
                               check=True, text=True)
        self.run_program("completion", "tcsh", code=USAGE)

    def test_doctor_and_plan(self):
        config, run = self.config()
        self.assertRegex(self.run_program("doctor", ranks=2), r"all-reduce of 16 MiB +[\d.]+ ms")
        plan = json.loads(self.run_program("plan", "--config", config, "--ranks", 3, "--json"))
        self.assertEqual(plan["ranks"], 3)
        self.assertEqual(plan["micro_batches"], {"per_replica": 2, "empty": 2, "short": 0})
        self.run_program("plan", "--config", config)
        self.assertIn("train.lr", self.run_program("config", "keys"))
        printed = self.folder / "printed.yaml"
        printed.write_text(self.run_program("config", "check", config, "--print"))
        self.run_program("config", "check", printed)
        # A layout that no number of ranks makes good.
        output = self.run_program("config", "check", config, "--set", "parallel.pp=2", "--set",
                                  "parallel.layers_per_stage=[1, 4]", code=USAGE)
        self.assertIn("parallel.layers_per_stage", output)
        servers = ("--set", "parallel.attention=disaggregated", "--set",
                   "parallel.attention_servers=2")
        self.run_program("config", "check", config, *servers)
        self.assertIn("Mesh of 1 rank", self.run_program("plan", "--config", config, *servers))
        self.assertFalse(run.exists())

    def test_plan_of_a_layout(self):
        config, run = self.config(model__num_layers=4)
        def plan(*words, code=0, **degrees):
            sets = [word for key, value in degrees.items()
                    for word in ("--set", f"parallel.{key}={value}")]
            return self.run_program("plan", "--config", config, *sets, *words, code=code)
        def kinds(**degrees):
            return json.loads(plan("--json", **degrees))["kinds"]

        # Without --ranks, as many as the degrees multiply to.
        report = json.loads(plan("--json", pp=2, virtual_stages=2, tp=2, cp=2, dp=2, zero=1))
        self.assertEqual(report["ranks"], 16)
        self.assertEqual(report["mesh"], {"pp": 2, "virtual_stages": 2, "dp": 2, "cp": 2, "tp": 2,
                                          "zero": 1})
        self.assertEqual(report["micro_batches"], {"per_replica": 2, "empty": 0, "short": 0})
        self.assertEqual(sum(kind["ranks"] for kind in report["kinds"]), 16)
        totals = [kind["memory"]["total"] for kind in report["kinds"]]
        self.assertEqual(totals, sorted(totals, reverse=True))
        self.assertEqual(report["memory_per_rank"]["total"], totals[0])
        for kind in report["kinds"]:
            self.assertEqual(kind["layers_of_chunks"], [1, 1])
            self.assertEqual({layer["heads"] for layer in kind["layers"]}, {1})
            self.assertLess(kind["owned_parameters"], kind["parameters"])
            self.assertEqual(sum(bytes for axis in kind["sent_bytes"].values()
                                 for bytes in axis.values()), kind["sent_bytes_total"])
            self.assertIn("reduce-scatter", kind["sent_bytes"]["data"])
        self.assertGreater(report["timetable"]["idle_share"], 0)

        # Parameters of all stages and slices are those of the model; gradients go round a ring.
        whole = kinds()[0]
        self.assertEqual(whole["sent_bytes"], {})
        self.assertEqual(sum(kind["parameters"] for kind in kinds(pp=4)), whole["parameters"])
        self.assertAlmostEqual(kinds(dp=4)[0]["sent_bytes"]["data"]["all-reduce"],
                               1.5 * whole["memory"]["gradients"])
        self.assertLess(kinds(dp=4, zero=3)[0]["memory"]["optimizer"],
                        whole["memory"]["optimizer"] / 3)
        self.assertLess(kinds(cp=4)[0]["memory"]["activations"],
                        whole["memory"]["activations"] / 2)

        # Dedicated servers are ranks beside the mesh that hold nothing but what travels.
        pool = {"dp": 2, "tp": 2, "attention": "disaggregated", "attention_servers": 2}
        *mesh, server = sorted(kinds(**pool), key=lambda kind: kind["is_attention_server"])
        self.assertEqual(sum(kind["ranks"] for kind in mesh), 4)
        self.assertEqual((server["name"], server["ranks"], server["parameters"]), ("server", 4, 0))
        self.assertEqual(server["memory"]["attention"], server["memory"]["total"])
        self.assertGreater(server["memory"]["total"], 0)
        self.assertGreater(min(kind["memory"]["attention"] for kind in mesh), 0)
        self.assertEqual(whole["memory"]["attention"], 0)
        text = plan(**pool)
        self.assertIn("tp 2, ZeRO 0, and 4 attention servers\n", text)
        self.assertRegex(text, r"server +4 +0 +")
        self.assertIn("Memory of each of 8 ranks", text)
        self.assertRegex(text, r"attention buffers +[\d.]+ \w+ +[\d.]+ \w+")

        picture = self.folder / "plots" / "schedule.svg"
        text = plan("--ranks", 4, "--svg", picture, pp=4)
        self.assertIn("Mesh of 4 ranks: pp 4, dp 1, cp 1, tp 1\n", text)
        self.assertRegex(text, r"stage 3 +1 +1 +2 +2 +24 +\d+")
        self.assertRegex(text, r"pp forward +send ")
        self.assertRegex(text, r"(?m)^rank 3 .*%\n.*% idle; 0-9 forward")
        self.assertIn("</svg>", picture.read_text())
        self.assertIn("3 in all, of which 1 is short, so 17 % of the replicas' time is idle.",
                      plan("--ranks", 3, "--set", "train.micro_batch_size=2",
                           "--set", "train.global_batch_size=5"))
        self.assertIn("6 in all, of which 2 are empty, so 33 %", plan("--ranks", 3))
        self.assertIn("Some replicas have no work: raise train.global_batch_size to 5 or more",
                      plan("--ranks", 5))

        # One message, as train gives it.
        for words, degrees in ((("--ranks", 6), {"tp": 4}), (("--ranks", 3), {"tp": 3}),
                               ((), {"pp": 5})):
            output = plan(*words, code=USAGE, **degrees)
            self.assertEqual(output.count("error: "), 1, output)
            self.assertIn("mesh pp ", output)
        self.assertIn("parallel.pp is 1", plan("--svg", picture, code=USAGE))
        output = plan("--svg", config / "schedule.svg", code=USAGE, pp=4)
        self.assertIn(f"{config}: cannot make folder", output)
        self.assertNotIn("Mesh of", output)
        self.assertFalse(run.exists())

    def test_from_text_to_text(self):
        pattern = "the ship sails on an even keel. "
        for i in range(12):
            (self.folder / f"{i}.txt").write_text(pattern * (3 + i))
        (self.folder / "held.jsonl").write_text(json.dumps({"body": pattern * 4}) + "\n")
        text, held = self.folder / "text", self.folder / "held"
        self.run_program("data", "build", self.folder / "*.txt", "-o", text)
        self.run_program("data", "build", self.folder / "held.jsonl", "--json-key", "body",
                         "-o", held)
        self.assertIn("documents  12", self.run_program("data", "stat", text, "--check"))
        config, run = self.config(data__train=text, data__validation=held, train__steps=150,
                                  train__lr=0.02, runtime__dtype="float32")
        self.assertIn("done: step 150, loss ", self.train(config))
        output = self.train(config)
        self.assertIn("nothing to train: train.steps is 150", output)
        self.assertIn("done: step 150, in ", output)
        step = checkpoint_folder(run, 150)
        exported = self.folder / "exported"
        self.run_program("checkpoint", "export", run, exported)
        self.assertEqual(sorted(p.name for p in exported.iterdir()),
                         ["config.json", "model.safetensors"])

        scores, texts = [], []
        for model in (run, step, exported):
            evaluate = ("eval", "-m", model, "-d", held, "--sequence-length", 64, "--json")
            scores += [json.loads(self.run_program(*evaluate, ranks=n)) for n in (0, 2, 3)]
            generate = ("generate", "-m", model, "-p", "the ship", "-n", 50, "--quiet")
            texts += [self.run_program(*generate, "-t", 0) for _ in range(2)]
        for score in scores:
            self.assertEqual(score, scores[0])
        self.assertEqual(metrics(run, "eval")[-1]["perplexity"], scores[0]["perplexity"])
        self.assertLess(scores[0]["perplexity"], 2)
        self.assertIn("on an even", self.run_program(
            "eval", "-m", run, "-d", held) + texts[0])
        for sample in texts:
            self.assertEqual(sample, texts[0])
            self.assertTrue(sample.startswith("the ship sails on an even keel"), sample)
        generate = ("generate", "-m", run, "-n", 80, "-t", 1.5, "--quiet", "--seed")
        self.assertEqual(self.run_program(*generate, 1), self.run_program(*generate, 1))
        self.assertNotEqual(self.run_program(*generate, 1), self.run_program(*generate, 2))
        prompt = self.folder / "prompt"
        prompt.write_text("the ship")
        self.assertEqual(self.run_program("generate", "-m", run, "--prompt-file", prompt, "-n", 50,
                                          "-t", 0, "-q"), texts[0])
        for path, what in ((self.folder, "is a folder"), (prompt / "x", "cannot be read")):
            self.assertIn(f"{path}: {what}", self.run_program("generate", "-m", run, "--prompt-file",
                                                              path, code=3))
        self.run_program("generate", "-m", self.folder / "absent", code=4)
        self.assertIn("no run folder", self.run_program("checkpoint", "list", exported, code=4))

        # Weights to start from may be named as for the commands above.
        config, _ = self.config("again", data__train=text, data__validation=held, train__steps=1,
                                train__warmup_steps=0, runtime__dtype="float32")
        self.assertIn("done: step 1", self.train(config, f"train.init_from={run}"))
        self.assertLess(metrics(self.folder / "again", "train")[0]["loss"], 1)
        config, _ = self.config("wrong", data__train=text)
        self.assertIn("train.init_from: ", self.train(
            config, f"train.init_from={self.folder}/absent", ranks=0, code=4))


if __name__ == "__main__":
    unittest.main()
