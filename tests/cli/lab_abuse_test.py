"""A lab on a full disk and under a clock that runs backwards: a clear error, nothing lost, and
`lab resume` completes it with the same bits."""
import csv
import resource
import shutil
import subprocess
import unittest

import common
from common import LabCase

# Every look at the time of day is an hour before the one before it.
BACKWARDS = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long calls;
int clock_gettime(clockid_t id, struct timespec* t) {
  const int code = (int)syscall(SYS_clock_gettime, id, t);
  if (id == CLOCK_REALTIME) t->tv_sec -= 3600 * __sync_fetch_and_add(&calls, 1);
  return code;
}
time_t time(time_t* out) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  if (out) *out = t.tv_sec;
  return t.tv_sec;
}
int gettimeofday(struct timeval* t, void* zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
"""


class LabAbuse(LabCase):
    RUN_AA = ["run", "AA", "--save-every", "4", "--seeds", "1", *LabCase.NO_PROFILE]

    def wrapper(self, limit):
        """A program that trains under a limit of its own for the size of files."""
        path = self.dir / "wrapper"
        path.write_text(f'#!/bin/sh\nulimit -S -f {limit}\nexec {common.BINARY} "$@"\n')
        path.chmod(0o755)
        return path

    def limited(self, limit, *args):
        """The lab, but not its cells, may not write files of more than `limit` bytes."""
        set_limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE,
                                               (limit, resource.RLIM_INFINITY))
        return self.lab(*args, "--program", self.wrapper("unlimited"), preexec_fn=set_limit)

    def check_complete(self, folder="lab/main"):
        """Both cells are there, each once, with the bits of the same run elsewhere."""
        done = self.bits(folder)
        self.assertEqual(sorted(done), ["AA.again.s1", "AA.baseline.s1"])
        self.assertEqual(done["AA.again.s1"], done["AA.baseline.s1"])
        shutil.rmtree(self.dir / "lab/main", ignore_errors=True)
        self.made_lab()
        self.assertEqual(done["AA.again.s1"], self.bits()["G.baseline.s1"])

    def test_the_lab_cannot_write(self):
        self.lock()
        command = [*self.RUN_AA, *self.base()]
        stops = set()
        for limit in [100, 1500, 8000, 33000]:
            stopped = self.limited(limit, *command)
            self.assertEqual(stopped.returncode, 3, (limit, stopped.stderr))
            self.assertRegex(stopped.stderr, "error: .*(File too large|disk I/O error|full)")
            self.assertNotIn("bug", stopped.stderr)
            stops.add(stopped.stderr.split("error: ")[1].split("\n")[0].split(": ")[0])
        self.assertGreaterEqual(len(stops), 2, stops)
        done = self.lab("resume", *self.NO_PROFILE)
        self.assertEqual(done.returncode, 0, done.stderr)
        for row in self.rows():
            self.assertEqual(row["status"], "ok")
        self.check_complete()

    def test_the_cells_cannot_write(self):
        self.lock()
        command = [*self.RUN_AA, *self.base()]
        stopped = self.lab(*command, "--program", self.wrapper(10))   # blocks of a checkpoint
        self.assertEqual(stopped.returncode, 3, stopped.stderr)
        self.assertIn("error: cell AA.baseline.s1: ", stopped.stderr)
        self.assertIn("File too large", stopped.stderr)
        self.assertIn("tightloop lab resume", stopped.stderr)
        self.assertEqual([(row["status"], row["attempt"]) for row in self.rows()],
                         [("io_error", "1"), ("io_error", "2")])
        done = self.lab("resume", *self.NO_PROFILE)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([(row["status"], row["attempt"]) for row in self.rows()[2:]],
                         [("ok", "3"), ("ok", "1")])
        self.check_complete()

    def test_full_file_system(self):
        folder = self.dir / "lab/small"
        folder.mkdir(parents=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder],
                          capture_output=True).returncode != 0:
            self.skipTest("mounting a small file system needs root")
        try:
            self.lock("--lab-dir", folder)
            command = [*self.RUN_AA, *self.base(), "--lab-dir", folder]
            for room in [0, 1, 12, 30, 60]:   # pages left for the lab
                with open(folder / "ballast", "wb", buffering=0) as ballast:
                    try:
                        while True:
                            ballast.write(bytes(4096))
                    except OSError:
                        ballast.truncate(max(0, ballast.tell() - room * 4096))
                stopped = self.lab(*command)
                self.assertEqual(stopped.returncode, 3, (room, stopped.stderr))
                self.assertRegex(stopped.stderr, "No space left on device|disk|full")
                (folder / "ballast").unlink()
            done = self.lab("resume", folder, *self.NO_PROFILE)
            self.assertEqual(done.returncode, 0, done.stderr)
            for row in self.rows(folder):
                self.assertIn((row["status"], row["detail"] == ""),
                              [("ok", True), ("io_error", False), ("killed", False)])
            self.check_complete(folder)
        finally:
            subprocess.run(["umount", folder], check=True)

    def test_a_clock_that_runs_backwards(self):
        compiler = shutil.which("cc")
        if compiler is None:
            self.skipTest("no C compiler")
        (self.dir / "shim.c").write_text(BACKWARDS)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c"], cwd=self.dir,
                       check=True)
        env = dict(self.env, LD_PRELOAD=str(self.dir / "shim.so"))
        self.lock(env=env)
        done = self.lab(*self.RUN_AA, *self.base(), env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.rows()
        for row in rows:
            self.assertEqual(row["status"], "ok")
            self.assertGreater(row["timestamp"], row["finished"])   # it did
            for column in ["dt_p10", "train_clock_sec", "time_to_target_sec_measured",
                           "ttt_process_sec", "process_sec", "startup_sec"]:
                self.assertGreater(float(row[column]), 0, column)
                self.assertLess(float(row[column]), 600, column)
            with open(self.dir / "lab/main/runs" / row["run_id"] / "evals.csv", newline="") as f:
                clock = [float(line["process_sec"]) for line in csv.DictReader(f)]
            self.assertEqual(clock, sorted(clock))
        for command in ["status", "table"]:
            shown = self.lab(command, env=env)
            self.assertEqual(shown.returncode, 0, (command, shown.stderr))
        again = self.lab("resume", *self.NO_PROFILE, env=env)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(self.rows(), rows)
        self.check_complete()


if __name__ == "__main__":
    unittest.main(verbosity=2)
