"""Full disks: the run ends with a message, what was complete stays usable, and once there is room the
run goes on to the same bits."""
import itertools
import os
import re
import resource
import shutil
import subprocess
import time
import unittest

import common
from common import Case, TINY, losses, weights

STEPS = 60
RUN = ["--num-iterations", str(STEPS), "--eval-every", "10", "--save-every", "5"]

# A disk that fills up at write $ROOM of the process: half of that one fits, of later ones nothing.
# Nothing is synced, which would take most of the time.
FILLS_UP = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
ssize_t write(int fd, const void* data, size_t bytes) {
  static long calls;
  const char* room = getenv("ROOM");
  struct stat info;
  if (room && fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) {
    const long call = __sync_fetch_and_add(&calls, 1);
    if (call == atol(room)) bytes /= 2;
    if (call > atol(room)) {
      errno = ENOSPC;
      return -1;
    }
  }
  return syscall(SYS_write, fd, data, bytes);
}
int fsync(int fd) {
  (void)fd;
  return 0;
}
"""


class Disk(Case):
    def setUp(self):
        super().setUp()
        self.mounts = []

    def tearDown(self):
        for folder in self.mounts:
            subprocess.run(["umount", folder], check=True)
        super().tearDown()

    def start(self, *args, cwd):
        env = dict(os.environ, TL_HOME=str(self.home / "tl"))
        return subprocess.Popen([common.BINARY, "train", "--data", str(self.data), *TINY, *RUN,
                                 *args], cwd=cwd, env=env, stderr=subprocess.PIPE, text=True)

    def wait_for(self, process, ready):
        deadline = time.time() + 120
        while not ready():
            self.assertIsNone(process.poll(), "the run ended too early")
            self.assertLess(time.time(), deadline)
            time.sleep(0.005)

    def checkpoints(self, folder):
        return sorted(path.name for path in folder.glob("runs/*/checkpoints/step_??????"))

    def expected(self):
        """Losses and final weights of the same run on a disk with room."""
        done = self.train(*RUN)
        self.assertEqual(done.returncode, 0, done.stderr)
        run = self.only_run()
        bits = losses(run), weights(run, STEPS)
        shutil.rmtree(self.dir / "runs")
        return bits

    def check_recovery(self, folder, expected, stderr):
        """After the failure: no litter, a usable checkpoint, and a resumed run with the same bits."""
        run, = [path for path in (folder / "runs").iterdir() if path.is_dir()]
        names = self.checkpoints(folder)
        self.assertTrue(names)
        self.assertEqual(sorted(path.name for path in (run / "checkpoints").iterdir()), names)
        self.assertFalse((run / "summary.json").exists())
        self.assertIn(f"continue from {names[-1]}", stderr)
        self.assertIn("--resume", stderr)
        self.assertEqual((run / "steps.bin").stat().st_size % 64, 0)
        made = self.tool("generate", run, "--max-tokens", "3", cwd=folder)
        self.assertEqual(made.returncode, 0, made.stderr)
        again = self.tool("train", "--resume", run, cwd=folder)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(expected, (losses(run), weights(run, STEPS)))
        rows = (folder / "runs" / "results.csv").read_text().splitlines()
        # The failure is a row too, where the disk had room for one.
        self.assertIn([row.rsplit(",", 1)[1] for row in rows[1:]], [["ok"], ["io_error", "ok"]])

    def limited(self, limit, *patterns):
        """Files of a running process may no longer grow beyond `limit` bytes."""
        expected = self.expected()
        process = self.start(cwd=self.dir)
        self.wait_for(process, lambda: self.checkpoints(self.dir))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        _, stderr = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 3, stderr)
        self.assertIn("error: training stopped at step", stderr)
        for pattern in patterns:
            self.assertRegex(stderr, pattern)
        self.check_recovery(self.dir, expected, stderr)

    def test_the_records_cannot_grow(self):
        self.limited(100, r"steps\.bin|evals\.csv", "File too large", "hint: ")

    def test_a_checkpoint_cannot_be_written(self):
        self.limited(20000, r"model\.safetensors", "File too large", "ulimit -f")
        self.assertIn(",io_error\n", (self.dir / "runs/results.csv").read_text())

    def test_a_disk_that_fills_up_at_any_write(self):
        compiler = shutil.which("cc")
        if compiler is None:
            self.skipTest("no C compiler")
        shim = self.dir / "shim.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-o", shim, "-"], text=True,
                       input=FILLS_UP, check=True)

        def train(*args, **room):
            env = dict(os.environ, LD_PRELOAD=str(shim), TL_HOME=str(self.home / "tl"), **room)
            return subprocess.run([common.BINARY, "train", *args], cwd=self.dir, env=env,
                                  timeout=300, capture_output=True, text=True)

        # One step after the first checkpoint: steps that wait together would be one write or two.
        begun = train("--data", self.data, *TINY, "--threads", "1", "--num-iterations", "3",
                      "--eval-every", "2", "--save-every", "2")
        self.assertEqual(begun.returncode, 0, begun.stderr)
        run = self.only_run()
        bits = lambda: (losses(run), common.evaluations(run), weights(run, 2), weights(run, 3))
        expected = bits()
        last = run / "checkpoints/step_000003"
        files = {path.name for path in last.iterdir()}
        stopped_at = set()
        for room in itertools.count():   # all that is written from step 2 to the end, again
            shutil.rmtree(last)
            stopped = train("--resume", run, ROOM=str(room))
            self.assertEqual(list(self.dir.rglob("*.tmp-*")), [], room)
            if stopped.returncode == 0:
                break
            self.assertEqual(stopped.returncode, 3, (room, stopped.stderr))
            why = stopped.stderr[stopped.stderr.find("error: "):]   # before it may be a warning
            self.assertIn("hint: the disk is full", why)
            name, = re.findall(r"([\w.]+): cannot write: No space left", why)
            stopped_at.add(name)
            self.assertEqual(last.exists(), name in ["steps.csv", "summary.json", "results.csv"])
            again = train("--resume", run)
            self.assertEqual(again.returncode, 0, (room, again.stderr))
            self.assertEqual(expected, bits(), (room, name))
        self.assertEqual(expected, bits())
        self.assertGreater(room, 50)   # a checkpoint alone
        self.assertLessEqual(files | {"steps.csv", "summary.json", "results.csv"}, stopped_at)
        self.assertTrue(stopped_at & {"steps.bin", "evals.csv"})   # two threads: either may be first

    def tmpfs(self, size):
        folder = self.dir / "small"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder],
                                 capture_output=True)
        if mounted.returncode != 0:
            self.skipTest("mounting a small file system needs root")
        self.mounts.append(folder)
        return folder

    def test_full_file_system(self):
        expected = self.expected()
        folder = self.tmpfs("16m")
        process = self.start("--keep-checkpoints", "1000", cwd=folder)
        self.wait_for(process, lambda: self.checkpoints(folder))
        # All but a few pages, so that checkpoints fail in any of their files.
        with open(folder / "ballast", "wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                ballast.truncate(max(0, ballast.tell() - 3 * 4096))
        _, stderr = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 3, stderr)
        self.assertIn("error: training stopped at step", stderr)
        self.assertIn("No space left on device", stderr)
        self.assertIn("hint: the disk is full", stderr)
        (folder / "ballast").unlink()
        self.check_recovery(folder, expected, stderr)

    def test_start_on_a_full_file_system(self):
        folder = self.tmpfs("64k")
        with open(folder / "ballast", "wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                pass
        process = self.start(cwd=folder)
        _, stderr = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 3, stderr)
        self.assertIn("No space left on device", stderr)
        self.assertIn("hint: the disk is full", stderr)

    def test_the_table_of_results_is_another_file(self):
        (self.dir / "runs").mkdir()
        table = self.dir / "runs" / "results.csv"
        table.write_text("mine\n1\n")
        done = self.train("--num-iterations", "3", "--eval-every", "-1")
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("results.csv:1: the header is not that of these results", done.stderr)
        self.assertIn("hint: move the file away", done.stderr)
        self.assertEqual(table.read_text(), "mine\n1\n")
        run = self.only_run()
        self.assertEqual(self.summary(run)["status"], "ok")
        table.unlink()
        again = self.run_tool("train", "--resume", run)   # has nothing to do but its row
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(len(table.read_text().splitlines()), 2)

    def test_other_commands_on_a_full_file_system(self):
        folder = self.tmpfs("128k")
        (self.dir / "text.txt").write_text("the cat sat on the mat.\n\n" * 40000)
        made = self.tool("data", "synth", folder / "corpus", "--train-tokens", "500000",
                         cwd=self.dir)
        self.assertEqual(made.returncode, 3, made.stderr)
        self.assertIn("No space left on device", made.stderr)
        made = self.run_tool("tokenizer", "train", "text.txt", "-o", "t.json", "--vocab-size", "270")
        self.assertEqual(made.returncode, 0, made.stderr)
        made = self.run_tool("data", "tokenize", "text.txt", "-o", folder / "tok", "--tokenizer",
                             "t.json", "--separator", "\\n\\n")
        self.assertEqual(made.returncode, 3, made.stderr)
        self.assertIn("No space left on device", made.stderr)
        self.assertEqual(list(folder.iterdir()), [])   # nothing half-made stays


if __name__ == "__main__":
    unittest.main(verbosity=2)
