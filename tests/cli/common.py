"""Runs the tightloop binary in a folder of its own; what the command-line tests share."""
import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

BINARY = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else None

# A small parity case.
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tiny-nanochat-2026-07"

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


class LabCase(Case):
    STEPS = ["--num-iterations", "40", "--eval-every", "5"]
    NO_PROFILE = ["--profile-rounds", "0"]   # the roofline of made_lab() is enough
    RUN_G = ["run", "G", "--save-every", "4", *NO_PROFILE]
    made = None   # the finished lab of template G that tests copy

    def setUp(self):
        super().setUp()
        self.env = dict(os.environ, TL_HOME=str(self.home / "tl"), OMP_WAIT_POLICY="passive")

    def lab(self, *args, env=None, cwd=None, **more):
        return subprocess.run([BINARY, "lab", *map(str, args)], cwd=cwd or self.dir, text=True,
                              env=env or self.env, timeout=600, capture_output=True,
                              errors="replace", **more)

    def base(self):
        return ["--data", self.data, *TINY, "--threads", "1", *self.STEPS]

    def lock(self, *args, floor_offset="4.2", **more):
        done = self.lab("lock", *self.base(), "--floor-offset", floor_offset, *args, **more)
        self.assertEqual(done.returncode, 0, done.stderr)

    def made_lab(self):
        """Copies a finished lab of RUN_G to lab/main; returns the result that its run printed."""
        if LabCase.made is None:
            self.lock(cwd=self.home)
            done = self.lab("run", "G", "--save-every", "4", *self.base(), "--json", cwd=self.home)
            self.assertEqual(done.returncode, 0, done.stderr)
            LabCase.made = json.loads(done.stdout)
        shutil.copytree(self.home / "lab/main", self.dir / "lab/main")
        return LabCase.made

    def rows(self, folder="lab/main"):
        with open(self.dir / folder / "results.csv", newline="") as f:
            return list(csv.DictReader(f))

    def ok_runs(self, folder="lab/main"):
        """cell -> run folder of its row that is ok; every cell exactly once."""
        ok = [row for row in self.rows(folder) if row["status"] == "ok"]
        runs = {row["experiment_name"]: self.dir / folder / "runs" / row["run_id"] for row in ok}
        self.assertEqual(len(ok), len(runs))
        return runs

    def bits(self, folder="lab/main"):
        return {cell: (losses(run), weights(run, 40), evaluations(run))
                for cell, run in self.ok_runs(folder).items()}


def evaluations(run):
    with open(run / "evals.csv", newline="") as f:
        return [(row["step"], row["val_loss"]) for row in csv.DictReader(f)]


def weights(run, step):
    folder = run / "checkpoints" / f"step_{step:06d}"
    return (folder / "model.safetensors").read_bytes(), (folder / "optimizer.safetensors").read_bytes()


def losses(run):
    """(step, loss bits) of every record of steps.bin."""
    raw = (run / "steps.bin").read_bytes()
    return [(int.from_bytes(raw[i:i + 8], "little"), raw[i + 16:i + 24])
            for i in range(0, len(raw), 64)]
