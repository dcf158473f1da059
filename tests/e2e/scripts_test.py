"""The project's own scripts: the checker of layers, and the launch scripts' way with arguments."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "cmake"))
from check_layers import check_file  # noqa: E402


class LayersTest(unittest.TestCase):

    def test_order_of_folders(self):
        for name, line in [("models/a.h", "attention/b.h"), ("attention/a.cc", "runtime/c/b.h"),
                           ("tests/unit/a.cc", "launch/b.h"), ("runtime/a.cc", "nearby.h"),
                           ("benchmarks/a.cc", "models/b.h"), ("launch/a.cc", "launch/b.h")]:
            self.assertEqual(check_file(name, f'#include "{line}"\n'), [], name)
        for name, line in [("runtime/a.h", "parallel/b.h"), ("scheduler/a.h", "attention/b.h"),
                           ("attention/a.cc", "models/b.h"), ("models/a.cc", "tests/support/b.h"),
                           ("elsewhere/a.cc", "runtime/b.h"), ("a.cc", "runtime/b.h"),
                           ("runtime/a.cc", "../parallel/b.h")]:
            self.assertNotEqual(check_file(name, f'#  include "{line}"\n'), [], name)
        self.assertNotEqual(check_file("launch/a.cc", "#include <runtime/b.h>"), [])

    def test_libraries_with_a_home(self):
        for name, line in [("runtime/comm/a.cc", "<mpi.h>"), ("tests/mpi/a.cc", "<mpi.h>"),
                           ("runtime/comm/a.h", "<nccl.h>"), ("runtime/a.cc", "<mpirun.h>"),
                           ("runtime/config/a.cc", "<yaml-cpp/yaml.h>"),
                           ("attention/a.cu", "<cuda_runtime.h>")]:
            self.assertEqual(check_file(name, f"#include {line}\n"), [], (name, line))
        for name, line in [("runtime/ops/a.cc", "<mpi.h>"), ("launch/a.cc", '"mpi.h"'),
                           ("attention/a.cc", "<nccl.h>"), ("launch/a.cc", "<yaml-cpp/yaml.h>"),
                           ("attention/a.cu", '"absl/status/status.h"'),
                           ("attention/a.cuh", '"absl/types/span.h"')]:
            self.assertNotEqual(check_file(name, f"\n#include {line}\n"), [], (name, line))


class LaunchScriptsTest(unittest.TestCase):

    def run_script(self, name, *arguments, path=None):
        environment = dict(os.environ)
        if path is not None:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        return subprocess.run([REPOSITORY / "launch" / name, *arguments], text=True, timeout=30,
                              capture_output=True, stdin=subprocess.DEVNULL, env=environment)

    def test_help_and_mistakes(self):
        for name in ("setup.sh", "quickstart.sh", "test.sh"):
            result = self.run_script(name, "--help")
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertTrue(result.stdout.startswith(f"Usage: launch/{name}"))
            result = self.run_script(name, "--nonsense")
            self.assertEqual(result.returncode, 2)
            self.assertIn("--nonsense", result.stderr)

    def test_missing_packages_are_named(self):
        with tempfile.TemporaryDirectory() as folder:
            # A machine on which no package is installed.
            fake = pathlib.Path(folder) / "dpkg-query"
            fake.write_text("#!/bin/sh\nexit 1\n")
            fake.chmod(0o755)
            for name in ("setup.sh", "quickstart.sh", "test.sh"):
                result = self.run_script(name, "--no-install", path=folder)
                self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
                self.assertIn("apt-get install", result.stdout)
                self.assertIn("libopenmpi-dev", result.stdout)


if __name__ == "__main__":
    unittest.main()
