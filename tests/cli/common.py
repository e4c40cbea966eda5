"""Runs the tightloop binary in a folder of its own; what the command-line tests share."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

BINARY = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else None

# A model that trains in about a second.
TINY = ["--depth", "1", "--aspect-ratio", "32", "--head-dim", "16", "--max-seq-len", "64",
        "--window-pattern", "L", "--device-batch-size", "4", "--total-batch-size", "512",
        "--warmup-steps", "2", "--eval-tokens", "1024", "--threads", "2"]


class Case(unittest.TestCase):
    home = None

    @classmethod
    def setUpClass(cls):
        cls.home = pathlib.Path(tempfile.mkdtemp(prefix="tightloop-home-"))
        cls.data = cls.home / "stories"
        made = cls.tool("data", "synth", str(cls.data), "--train-tokens", "60000",
                        "--val-tokens", "8000")
        assert made.returncode == 0, made.stderr

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.home)

    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="tightloop-test-"))

    def tearDown(self):
        shutil.rmtree(self.dir)

    @classmethod
    def tool(cls, *args, cwd=None, timeout=300):
        env = dict(os.environ, TL_HOME=str(cls.home / "tl"))
        return subprocess.run([BINARY, *map(str, args)], cwd=cwd, env=env, timeout=timeout,
                              capture_output=True, text=True, errors="replace")

    def run_tool(self, *args):
        return self.tool(*args, cwd=self.dir)

    def train(self, *args):
        return self.run_tool("train", "--data", self.data, *TINY, *args)

    def only_run(self):
        runs = [p for p in (self.dir / "runs").iterdir() if p.is_dir()]
        self.assertEqual(len(runs), 1)
        return runs[0]

    def summary(self, run):
        return json.loads((run / "summary.json").read_text())


def weights(run, step):
    folder = run / "checkpoints" / f"step_{step:06d}"
    return (folder / "model.safetensors").read_bytes(), (folder / "optimizer.safetensors").read_bytes()


def losses(run):
    """(step, loss bits) of every record of steps.bin."""
    raw = (run / "steps.bin").read_bytes()
    return [(int.from_bytes(raw[i:i + 8], "little"), raw[i + 16:i + 24])
            for i in range(0, len(raw), 64)]
