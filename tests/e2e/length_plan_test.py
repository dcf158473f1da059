"""plan --lengths: what it prints is counted again from what it lists."""

import json
import random
import re
import unittest
import xml.etree.ElementTree

from harness import REPOSITORY, EndToEndTest

USAGE, DATA = 2, 3
MODEL = REPOSITORY / "configs" / "llama3_8b.yaml"


def random_lengths(seed, tokens):
    draw = random.Random(seed)
    lengths = []
    while tokens > 0:
        lengths.append(min(tokens, draw.choice((1, 50, 700, 3000, 20000, 60000)) + draw.randrange(90)))
        tokens -= lengths[-1]
    return lengths


class LengthPlanTest(EndToEndTest):

    def plan(self, lengths, servers, tokens, *more, model=MODEL, code=0):
        path = self.folder / "lengths.json"
        path.write_text(lengths if isinstance(lengths, str) else json.dumps(lengths))
        return self.run_program("plan", "--lengths", path, "--servers", servers,
                                "--tokens-per-server", tokens, "--model", model, *more, code=code)

    def recount(self, plan):
        """Checks pieces and coverage; returns bytes that servers send and receive, and their pairs."""
        servers = plan["servers"]
        held = [0] * servers
        for document in plan["documents"]:
            position = 0
            for piece in document["pieces"]:
                self.assertEqual(piece["begin"], position)
                position += piece["length"]
                held[piece["owner"]] += piece["length"]
            self.assertEqual(position, document["length"])
        self.assertEqual(held, [plan["tokens_per_server"]] * servers)
        send, recv, pairs = [0] * servers, [0] * servers, [0] * servers
        q, kv = plan["token_bytes"]["q"], plan["token_bytes"]["kv"]
        reach, ranges = {}, [[] for _ in plan["documents"]]

        def carry(owner, server, size):
            if owner != server:
                send[owner] += size
                recv[server] += size

        for task in plan["tasks"]:
            begin, end = task["q_begin"], task["q_begin"] + task["q_len"]
            ranges[task["document"]].append((begin, end))
            server = task["server"]
            pairs[server] += sum(range(begin + 1, end + 1))
            key = server, task["document"]
            reach[key] = max(reach.get(key, 0), end)
            for piece in plan["documents"][task["document"]]["pieces"]:
                first, last = piece["begin"], piece["begin"] + piece["length"]
                carry(piece["owner"], server, q * max(0, min(end, last) - max(begin, first)))
        for (server, document), end in reach.items():
            for piece in plan["documents"][document]["pieces"]:
                last = min(end, piece["begin"] + piece["length"])
                carry(piece["owner"], server, kv * max(0, last - piece["begin"]))
        for document, found in zip(plan["documents"], ranges):
            position = 0
            for begin, end in sorted(found):
                self.assertEqual(begin, position)
                self.assertEqual(begin % 128, 0)
                position = end
            self.assertEqual(position, document["length"])
        return send, recv, pairs

    def test_counts(self):
        for seed, servers, tokens, tp, placement in ((1, 8, 16384, 8, "in-order"),
                                                     (2, 5, 20000, 4, "head-tail"),
                                                     (3, 16, 8192, 1, "in-order")):
            lengths = random_lengths(seed, servers * tokens)
            plan = json.loads(self.plan(lengths, servers, tokens, "--json", "--tolerance", 0.02, "--set",
                                        f"parallel.tp={tp}", "--placement", placement))
            self.assertEqual([document["length"] for document in plan["documents"]], lengths)
            self.assertEqual(plan["token_bytes"]["q"], 32 // tp * 128 * 2)
            self.assertEqual(plan["token_bytes"]["kv"], 8 // tp * 256 * 2)
            send, recv, pairs = self.recount(plan)
            self.assertEqual(plan["send_bytes"], send)
            self.assertEqual(plan["recv_bytes"], recv)
            flops = [4 * 128 * 32 // tp * each for each in pairs]
            for load, expected in zip(plan["load"], flops):
                self.assertAlmostEqual(load / expected, 1, delta=1e-12)
            mean = sum(flops) / servers
            self.assertLessEqual(max(flops), 1.02 * mean)
            self.assertGreaterEqual(min(flops), mean / 1.02)
            self.assertGreater(max(plan["load_in_place"]), 1.02 * mean)
            self.assertGreater(plan["planning_ms"], 0)
            # Results are as large as queries (but for the statistics), and go the other way.
            lse = plan["token_bytes"]["lse"]
            self.assertEqual(sum(plan["forward"]["send_bytes"]), sum(plan["forward"]["recv_bytes"]))
            back = sum(plan["forward"]["send_bytes"]) - sum(send)
            self.assertEqual(back % (plan["token_bytes"]["out"] + lse), 0)
            both = plan["forward_and_backward"]
            for side in ("send_bytes", "recv_bytes"):
                for more, less in zip(both[side], plan["forward"][side]):
                    self.assertGreaterEqual(more, less)

    def test_text_and_picture(self):
        lengths = random_lengths(4, 8 * 16384)
        text = self.plan(lengths, 8, 16384, "--svg", "plots/loads.svg", "--tolerance", 0.02)
        before, after = (float(re.search(name + r" +\S+ +(\S+)", text)[1])
                         for name in ("where the tokens are", "disaggregated"))
        self.assertGreater(before, 1.1)
        self.assertLessEqual(after, 1.02)
        for word in ("most sent", "most received", "and results back", "backward", "rounds", " ms"):
            self.assertIn(word, text)
        picture = xml.etree.ElementTree.parse(self.folder / "plots" / "loads.svg").getroot()
        bars = [each for each in picture.iter() if each.tag.endswith("rect")]
        self.assertGreater(len(bars), 16)  # two of each server at least

    def test_mistakes(self):
        output = self.plan([5000, 3000], 2, 4096, code=USAGE)
        self.assertIn("lengths.json", output)
        self.assertIn("8000", output)
        self.assertIn("8192", output)
        for bad in ("[8192, 0]", "[8192.5]", '{"lengths": [8192]}', "[8192", "[[8192]]",
                    "[99999999999999999999]"):
            self.assertIn("lengths.json", self.plan(bad, 2, 4096, code=DATA), bad)
        self.assertIn("no such file", self.run_program(
            "plan", "--lengths", "absent.json", "--servers", 1, "--tokens-per-server", 1, "--model",
            MODEL, code=DATA).lower())
        self.assertIn("cannot make folder", self.plan([8192], 2, 4096, "--svg",
                                                      "lengths.json/loads.svg", code=USAGE))
        self.assertIn("--servers", self.run_program("plan", "--lengths", "x", code=USAGE))
        self.assertIn("--lengths", self.run_program("plan", "-c", MODEL, "--servers", 3, code=USAGE))
        self.assertIn("--lengths", self.run_program("plan", code=USAGE))
        linear = REPOSITORY / "configs" / "transnormerllm_1b.yaml"
        self.assertIn("softmax", self.plan([8192], 2, 4096, model=linear, code=USAGE))


if __name__ == "__main__":
    unittest.main()
