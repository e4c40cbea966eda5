"""Experiments end to end: a run of template G, kills and resumes, failing cells, two labs at once.

With --kills N only the kill test runs, with N random SIGKILLs of a lab run.
"""
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import unittest

KILLS = None
if "--kills" in sys.argv:
    at = sys.argv.index("--kills")
    KILLS = int(sys.argv[at + 1])
    del sys.argv[at:at + 2]

import common
from common import LabCase, TINY

CELLS = [f"G.{arm}.s{seed}" for seed, arms in
         [(1, ["baseline", "fused-rmsnorm", "chunked-ce", "both"]),
          (2, ["both", "chunked-ce", "fused-rmsnorm", "baseline"])] for arm in arms]

# Trains as asked, except for the cells named in $MISBEHAVE: "<cell>=<how>,...". A cell that is to
# misbehave only once leaves a mark in the current folder.
WRAPPER = """#!/usr/bin/env bash
cell=none
for ((i = 1; i <= $#; i++)); do
  if [ "${!i}" = --run ]; then j=$((i + 1)); cell=${!j}; fi
done
IFS=, read -ra rules <<<"$MISBEHAVE"
for rule in "${rules[@]}"; do
  if [ "${rule%%=*}" = "$cell" ]; then
    how=${rule#*=}
    case $how in
      once-*) if [ -e "did-$cell" ]; then continue; fi; touch "did-$cell"; how=${how#once-} ;;
    esac
    case $how in
      crash) kill -SEGV $$ ;;
      hang) exec sleep 600 ;;
      diverge) set -- "$@" --lr-mult 30000 --wd-mult 0 ;;
      oom) echo '{"error":"cannot allocate 9 TiB","chain":[],"kind":"oom","exit_code":3}'; exit 3 ;;
    esac
  fi
done
exec BINARY "$@"
"""


class Lab(LabCase):
    def test_template_g_from_lock_to_report(self):
        self.lock("--lab-dir", "lab/dry")
        dry = self.lab("run", "G", *self.base(), "--dry-run", "--lab-dir", "lab/dry")
        self.assertEqual(dry.returncode, 0, dry.stderr)
        self.assertIn("8 cells", dry.stdout)
        result = self.made_lab()
        self.assertEqual([v["arm"] for v in result["verdicts"]],
                         ["fused-rmsnorm", "chunked-ce", "both"])
        for verdict in result["verdicts"]:   # two seeds of four arms: four degrees of freedom
            self.assertEqual(verdict["answer"], "INCONCLUSIVE")
            self.assertEqual(verdict["time_per_step"]["noise_df"], 4)
            self.assertEqual(verdict["loss"]["result"], "equal")
        rows = self.rows()
        self.assertEqual([row["experiment_name"] for row in rows], CELLS)
        lock = json.loads((self.dir / "lab/main/lock/target.json").read_text())
        for row in rows:
            self.assertEqual(row["status"], "ok")
            self.assertEqual(row["lock_hash"], lock["hash"])
            self.assertGreater(float(row["time_to_target_sec_measured"]), 0)
            self.assertLessEqual(float(row["ttt_lo"]), float(row["time_to_target_sec_measured"]))
            self.assertEqual(row["plan_rebuilds"], "0")
            self.assertEqual(row["allocs_after_warmup"], "0")
            self.assertEqual(row["recaptures"], "0")
            self.assertEqual(row["captures"], "4")   # two micro-steps, evaluation, optimizer
            self.assertGreater(float(row["capture_ms"]), 0)
            for column in ["gpu_name", "driver", "cuda", "graph_breaks", "host_syncs_per_step",
                           "autotune_ms", "autotune_hit_rate"]:   # on cuda alone
                self.assertEqual(row[column], "", column)
            self.assertEqual(row["device_batch_size"], "4")
            self.assertEqual((row["matrix_lr"], row["transfer_rule"]), ("0.02", "nanochat"))
            self.assertLess(float(row["tau"]), float(row["tau_eff"]))
            self.assertEqual(row["time_to_target_sec_extrapolated"], "")
            self.assertEqual(len(row["eval_hash"]), 16)
            self.assertEqual(row["eval_hash"], rows[0]["eval_hash"])
            self.assertGreater(float(row["mfu_median"]), 0)
            self.assertEqual(row["ttt_observed_frac"], "1")
            # The runs end below the target: a shorter schedule would have been enough.
            self.assertLess(float(row["final_val_loss"]), lock["threshold"])
            self.assertLess(float(row["ttt_end_horizon_sec"]), float(row["train_clock_sec"]))
            self.assertGreater(float(row["ttt_end_horizon_sec"]), 0)
        arms = {row["arm"]: row["rewrites"] for row in rows}
        self.assertIn("--no-fused-rmsnorm", arms["baseline"])
        self.assertIn("--fused-rmsnorm", arms["both"].replace("--no-", "no "))
        html = (self.dir / "lab/main/report-G.html").read_text()
        self.assertIn("</html>", html)
        self.assertIn("tightloop lab lock --data ", html)
        self.assertLess(html.index("tightloop lab lock --data "),
                        html.index("tightloop lab run G --save-every 4"))
        self.assertIn('id="panel-roofline"', html)
        # Again: nothing is run, the result is shown.
        again = self.lab(*self.RUN_G, *self.base())
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn("there already", again.stderr)
        self.assertIn(result["headline"], again.stdout)
        self.assertIn(result["headline"].split(" ")[0], html.split("</h1>")[0])
        self.assertEqual(len(self.rows()), 8)
        # More seeds extend it; other flags do not fit into the folder.
        self.assertNotIn('id="panel-roofline"',
                         (self.dir / "lab/main/report-G.html").read_text())
        more = self.lab(*self.RUN_G, *self.base(), "--seeds", "1..3")
        self.assertEqual(more.returncode, 0, more.stderr)
        self.assertEqual(len(re.findall(r"  eta \d+:\d\d\n", more.stderr)), 4)
        self.assertEqual(len(self.rows()), 12)
        other = self.lab(*self.RUN_G, *self.base(), "--lr-mult", "0.5", "--seeds", "1..3")
        self.assertEqual(other.returncode, 2)
        self.assertIn("--lab-dir", other.stderr)
        for command in ["status", "table"]:
            shown = self.lab(command, "--json")
            self.assertEqual(shown.returncode, 0, shown.stderr)
            json.loads(shown.stdout)

    def test_the_ledger_is_made_again(self):
        self.made_lab()
        before = self.rows()
        for path in (self.dir / "lab/main").glob("ledger.sqlite*"):
            path.unlink()
        self.assertEqual(self.lab("status").returncode, 0)
        (self.dir / "lab/main/results.csv").unlink()
        self.assertEqual(self.lab("status").returncode, 0)
        self.assertEqual(self.rows(), before)
        # Even from the run folders alone.
        for path in [*(self.dir / "lab/main").glob("ledger.sqlite*"),
                     self.dir / "lab/main/results.csv"]:
            path.unlink()
        for command in ["status", "table"]:
            self.assertIn("8 finished runs have no row in the ledger: `tightloop lab resume "
                          "lab/main` makes them again\n", self.lab(command).stderr)
        again = self.lab("resume", *self.NO_PROFILE)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(self.rows(), before)
        self.assertNotIn("no row", self.lab("table").stderr)

    @unittest.skipUnless(os.path.exists("/proc/stat"), "nobody tells what others use")
    def test_reading_makes_nothing(self):
        (self.dir / "folder").mkdir()
        for command in ["status", "table", "report", "resume"]:
            for folder, why in [("folder", "it has no experiments/"), ("none", "does not exist")]:
                refused = self.lab(command, folder)
                self.assertEqual(refused.returncode, 2, (command, refused.stderr))
                self.assertIn(f"'{folder}' is no lab folder: ", refused.stderr)
                self.assertIn(why, refused.stderr)
                self.assertIn("hint: `tightloop lab run G", refused.stderr)
        self.assertEqual([str(p) for p in self.dir.rglob("*")], [str(self.dir / "folder")])
        (self.dir / "folder/experiments").mkdir()
        self.assertEqual(self.lab("status", "folder").returncode, 0)
        self.assertEqual([p.name for p in (self.dir / "folder").rglob("*")], ["experiments"])

    def test_a_plan_made_while_others_use_the_machine_says_so(self):
        self.lock()
        spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
                    for _ in range(os.cpu_count())]
        try:
            dry = self.lab("run", "G", *self.base(), "--dry-run")
        finally:
            for process in spinning:
                process.kill()
                process.wait()
        self.assertEqual(dry.returncode, 0, dry.stderr)
        self.assertRegex(dry.stderr, r"warning: .*\d+ %")
        self.assertIn("a guess: ", dry.stdout)

    def test_verify_resume_of_every_cell(self):
        self.lock()
        command = ["run", "AA", *self.NO_PROFILE, *self.base(), "--verify-resume"]
        # It takes the place of --save-every, and says so.
        replaced = self.lab(*command, "--save-every", "4", "--dry-run")
        self.assertEqual(replaced.returncode, 0, replaced.stderr)
        self.assertIn("note: --save-every 4 is not used: --verify-resume saves one checkpoint "
                      "before the end, at step 30", replaced.stderr)
        self.assertIn("from a checkpoint at step 30\n", replaced.stdout)
        self.assertNotIn("--save-every", self.lab(*command, "--dry-run").stderr)
        self.assertRegex(self.lab("run", "--help").stdout,
                         r"replaces\s+those\s+of\s+--save-every")
        done = self.lab(*command, "--seeds", "3,4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([row["resume_check"] for row in self.rows()], ["pass"] * 4)
        self.assertFalse(list((self.dir / "lab/main").glob("resume-check/*")))
        for check in (self.dir / "lab/main/runs").glob("*/resume_check.json"):
            self.assertEqual(json.loads(check.read_text())["detail"], "")
        done = self.lab(*command, "--seeds", "1", "--lab-dir", "lab/none")
        self.assertEqual(done.returncode, 2)   # no target there
        # A cell that does not continue as it was, or does not start as it did, is a row that says so.
        for lab, pattern, what in [
                ("lab/resumed", "*--resume*", "the loss of step 31 has other bits after resuming at 30"),
                ("lab/started", "*/resume-check/*/start*", "the loss of step 1 of a second start has other bits")]:
            wrapper = self.dir / "wrapper"
            wrapper.write_text(f'#!/bin/sh\ncase "$*" in {pattern}) set -- "$@" --lr-mult 0.5;; esac\n'
                               f'exec {common.BINARY} "$@"\n')
            wrapper.chmod(0o755)
            self.lock("--lab-dir", lab)
            done = self.lab(*command, "--seeds", "1", "--lab-dir", lab, "--program", wrapper)
            self.assertEqual(done.returncode, 1, done.stderr)
            for row in self.rows(lab):
                self.assertEqual((row["status"], row["resume_check"]), ("resume_mismatch", "fail"))
                self.assertEqual(row["detail"], what)

    def test_target_is_checked(self):
        refused = self.lab("run", "G", *self.base())
        self.assertEqual(refused.returncode, 2)
        self.assertIn("tightloop lab lock", refused.stderr)
        self.lock()
        for template, flag, then, now in [("G", "--eval-tokens", 1024, 2048),
                                          ("AA", "--max-seq-len", 64, 32)]:
            changed = self.lab("run", template, *self.base(), flag, now)
            self.assertEqual(changed.returncode, 2, changed.stderr)
            self.assertIn(f"locked with {flag} {then}, and this run has {now}", changed.stderr)
            self.assertIn("hint: ", changed.stderr)
            self.assertIn("`tightloop lab lock --lab-dir lab/main-2", changed.stderr)
        twice = self.lab("lock", *self.base(), "--floor-offset", "3.5")
        self.assertEqual(twice.returncode, 2)
        switched = self.lab("run", "G", *self.base(), "--fused-rmsnorm")
        self.assertEqual(switched.returncode, 2)
        self.assertIn("template G", switched.stderr)

    def test_a_dry_run_of_lock_writes_nothing(self):
        for flags, says in [(["--floor-offset", "3.5"], "+ 3.5 nats; not measured"),
                            (["--target-threshold", "5"], "given; not measured"),
                            (["--seeds", "1,2"], "2 cells")]:
            dry = self.lab("lock", *self.base(), "--dry-run", *flags)
            self.assertEqual(dry.returncode, 0, dry.stderr)
            self.assertIn(says, dry.stdout)
            self.assertEqual(list(self.dir.iterdir()), [])
        # Written, it has a hash.
        given = self.lab("lock", *self.base(), "--target-threshold", "5")
        self.assertIn("given; not measured", given.stdout)
        self.assertIn("  hash ", given.stdout)
        self.assertNotIn("degrees of freedom", given.stdout)
        target = json.loads((self.dir / "lab/main/lock/target.json").read_text())
        self.assertEqual(target["threshold"], 5)

    def test_a_target_that_is_no_number_above_zero_is_refused(self):
        for flag, value in [("--target-threshold", "nan"), ("--target-threshold", "inf"),
                            ("--target-threshold", "0"), ("--target-threshold", "-1"),
                            ("--floor-offset", "nan"), ("--floor-offset", "-100")]:
            refused = self.lab("lock", *self.base(), f"{flag}={value}")
            self.assertEqual(refused.returncode, 2, refused.stderr)
            self.assertRegex(refused.stderr, f"error: {flag}.*(expected a number above 0|usable)")
            self.assertIn("hint: ", refused.stderr)
        self.assertEqual(list(self.dir.iterdir()), [])

    def test_flags_that_exclude_each_other_in_lock_are_refused(self):
        both = self.lab("lock", *self.base(), "--target-threshold", "5", "--floor-offset", "1")
        self.assertEqual(both.returncode, 2, both.stderr)
        self.assertIn("--target-threshold and --floor-offset: ", both.stderr)
        for fixed in ["--target-threshold", "--floor-offset"]:
            for flag in [["--seeds", "1,2"], ["--verify-resume"], ["--cell-timeout", "9"]]:
                refused = self.lab("lock", *self.base(), fixed, "5", *flag)
                self.assertEqual(refused.returncode, 2, refused.stderr)
                self.assertIn(f"{flag[0]} and {fixed}: ", refused.stderr)
                self.assertIn("hint: ", refused.stderr)
        self.assertEqual(list(self.dir.iterdir()), [])

    def test_another_target_than_that_of_the_runs_is_refused(self):
        self.made_lab()
        target = self.dir / "lab/main/lock/target.json"
        self.lock("--lab-dir", "lab/other", floor_offset="4.3")
        edited = target.read_text().replace('"eval_tokens": 1024', '"eval_tokens": 1023')
        for text, why in [(edited, "its hash is not that of its content"),
                          ((self.dir / "lab/other/lock/target.json").read_text(),
                           "under another target"), ("{", "target.json")]:
            self.assertNotEqual(text, target.read_text())
            target.write_text(text)
            for command in [[*self.RUN_G, *self.base()], ["resume", "lab/main"],
                            ["status", "lab/main"], ["table", "lab/main"], ["report", "lab/main"]]:
                refused = self.lab(*command)
                self.assertEqual(refused.returncode, 2, (command, refused.stderr))
                self.assertIn(why, refused.stderr)
                self.assertIn("hint: ", refused.stderr)
        self.assertEqual(len(self.rows()), 8)

    def test_crash_hang_and_out_of_memory_become_rows(self):
        self.lock()
        wrapper = self.dir / "wrapper"
        wrapper.write_text(WRAPPER.replace("BINARY", common.BINARY))
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        env = dict(self.env, MISBEHAVE="G.baseline.s1=once-crash,G.fused-rmsnorm.s1=crash,"
                                       "G.chunked-ce.s1=once-hang,G.both.s1=once-oom")
        done = self.lab("run", "G", *self.base(), *self.NO_PROFILE, "--program", wrapper,
                        "--cell-timeout", "2", env=env)
        self.assertEqual(done.returncode, 1, done.stderr)
        rows = self.rows()
        of = lambda cell: [(r["status"], r["attempt"]) for r in rows if r["experiment_name"] == cell]
        self.assertEqual(of("G.baseline.s1"), [("killed", "1"), ("ok", "2")])
        self.assertEqual(of("G.fused-rmsnorm.s1"), [("killed", "1"), ("killed", "2")])
        self.assertEqual(of("G.chunked-ce.s1"), [("timeout", "1"), ("ok", "2")])
        self.assertEqual(of("G.both.s1"), [("oom", "1"), ("ok", "2")])
        self.assertEqual(of("G.fused-rmsnorm.s2"), [("ok", "1")])
        self.assertIn("signal 11", rows[0]["detail"])
        verdicts = json.loads((self.dir / "lab/main/decisions/G.json").read_text())["verdicts"]
        self.assertEqual(verdicts[0]["broken_pairs"], 1)
        self.assertNotIn("broken_pairs", verdicts[1])

    def test_a_plan_that_does_not_fit_is_not_tried_again(self):
        done = self.lab("lock", *self.base(), "--device-batch-size", "1000000",
                        "--total-batch-size", "64000000", "--seeds", "1,2")
        self.assertEqual(done.returncode, 1, done.stderr)
        rows = [(r["experiment_name"], r["status"], r["attempt"]) for r in self.rows()]
        self.assertEqual(rows, [("lock.baseline.s1", "oom", "1"), ("lock.baseline.s2", "oom", "1")])
        for row in self.rows():
            self.assertRegex(row["detail"], r"the plan needs .*; hint: use `--device-batch-size \d+")
        self.assertNotIn("eta", done.stderr)   # no cell has finished
        self.assertIn("--device-batch-size", self.lab("status").stdout)

    def test_a_cell_that_diverges_is_a_row_and_counts(self):
        self.lock()
        wrapper = self.dir / "wrapper"
        wrapper.write_text(WRAPPER.replace("BINARY", common.BINARY))
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        env = dict(self.env, MISBEHAVE="G.both.s2=diverge")
        done = self.lab("run", "G", *self.base(), *self.NO_PROFILE, "--program", wrapper, env=env)
        self.assertEqual(done.returncode, 1, done.stderr)
        rows = {row["experiment_name"]: row for row in self.rows()}
        self.assertEqual(len(self.rows()), 8)   # the same bits would do it again: not repeated
        self.assertEqual(rows["G.both.s2"]["status"], "diverged")
        self.assertIn("the training loss rose from", rows["G.both.s2"]["detail"])
        self.assertIn("Without a result, counted in runs only: G.both.s2 diverged.", done.stdout)
        self.assertRegex(done.stdout, r"\nboth +1/2 ")
        verdict = json.loads((self.dir / "lab/main/decisions/G.json").read_text())["verdicts"][2]
        self.assertEqual((verdict["unstable_pairs"], verdict["broken_pairs"]), (1, 1))
        table = self.lab("table")
        self.assertIn("failed = [G.both.s2 diverged]", table.stdout)
        self.assertIn("G.both.s2 diverged", (self.dir / "lab/main/report-G.html").read_text())

    def test_flags_that_the_lab_decides_are_refused_and_not_offered(self):
        for flag, value in [("--seed", "3"), ("--run", "x"), ("--run-dir", "x"),
                            ("--eval-window", "1:2:1"), ("--target-threshold", "3")]:
            refused = self.lab("run", "G", *self.base(), flag, value)
            self.assertEqual(refused.returncode, 2, (flag, refused.stderr))
            self.assertIn(f"{flag} is not for the lab", refused.stderr)
            self.assertIn("hint: ", refused.stderr)
        for command, kept in [("run", ["--seeds", "--lr-mult", "--save-every"]),
                              ("lock", ["--seeds", "--target-metric", "--target-threshold"])]:
            shown = self.lab(command, "--help").stdout
            for flag in ["--seed", "--run", "--run-dir", "--resume", "--eval-window",
                         "--fused-rmsnorm", "--chunked-ce"]:
                self.assertNotRegex(shown, rf"\n +{flag}[ \n]")
            for flag in kept:
                self.assertRegex(shown, rf"\n +{flag}[ \n]")

    def test_help_has_an_example_and_the_exit_codes(self):
        for command in ["run", "lock", "resume", "status", "table", "report"]:
            shown = self.lab(command, "--help").stdout
            self.assertIn(f"Example: tightloop lab {command} ", shown)
            self.assertIn("Exit codes: 0 done", shown)
        lock = " ".join(self.lab("lock", "--help").stdout.split())
        self.assertIn("--target-threshold VALUE the target itself, without baseline runs", lock)

    def test_seeds_that_are_none_are_named(self):
        for seeds in ["3,x", "3,", "2..1", "-1", "1..x"]:
            refused = self.lab("lock", *self.base(), f"--seeds={seeds}")
            self.assertEqual(refused.returncode, 2, refused.stderr)
            self.assertIn(f"--seeds '{seeds}': ", refused.stderr)
            self.assertIn("hint: ", refused.stderr)
            self.assertIn("`--seeds 1..10`", refused.stderr)

    def start(self, *args):
        return subprocess.Popen([common.BINARY, "lab", *map(str, args)], cwd=self.dir, env=self.env,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def wait_for_steps(self, folder="lab/main"):
        deadline = time.time() + 60
        while time.time() < deadline and not list((self.dir / folder).glob("runs/*/steps.bin")):
            time.sleep(0.005)

    def test_one_lab_at_a_time_and_ctrl_c_is_clean(self):
        self.lock()
        base = ["--data", self.data, *TINY, "--threads", "1", "--num-iterations", "4000",
                "--eval-every", "500"]
        first = self.start("run", "G", *base)
        self.wait_for_steps()
        running = json.loads(self.lab("status", "--json").stdout)
        self.assertIn(f"pid {first.pid} on ", running["running"])
        self.assertEqual(running["experiments"][0]["cells"][0]["state"], "running")
        self.assertIn(f"running: pid {first.pid} on ", self.lab("status").stdout)
        second = self.lab("run", "G", *base)
        self.assertEqual(second.returncode, 3, second.stderr)
        self.assertIn("in use", second.stderr)
        first.send_signal(signal.SIGINT)
        _, stderr = first.communicate(timeout=60)
        self.assertEqual(first.returncode, 130, stderr)
        self.assertIn("lab resume", stderr)
        run, = (self.dir / "lab/main/runs").glob("*-G.baseline.s1-*")
        self.assertEqual(len(list((run / "checkpoints").glob("step_*"))), 1)
        status = json.loads(self.lab("status", "--json").stdout)
        self.assertNotIn("running", status)
        self.assertNotIn("no row", self.lab("status").stderr)
        self.assertEqual(status["experiments"][0]["cells"][0]["state"], "interrupted")

    def kill_and_resume(self, kills, generator):
        self.made_lab()
        expected = self.bits()
        shutil.rmtree(self.dir / "lab/main")
        arguments = [*self.RUN_G, *self.base()]
        self.lock()
        process, done_kills = self.start(*arguments), 0
        while done_kills < kills:
            try:
                process.wait(timeout=generator.uniform(0.02, 0.6))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done_kills += 1
            else:   # it got through: begin again in the same place for the rest of the kills
                self.assertEqual(process.returncode, 0, process.stderr.read())
                self.assertEqual(expected, self.bits())
                shutil.rmtree(self.dir / "lab/main")
                self.lock()
                process.stderr.close()
                process = self.start(*arguments)
                continue
            process.stderr.close()
            # Before its plan was on disk there is nothing to resume: the command is repeated.
            planned = (self.dir / "lab/main/experiments/G.json").exists()
            process = self.start(*(["resume", "lab/main", *self.NO_PROFILE] if planned
                                   else arguments))
        _, stderr = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 0, stderr)
        self.assertEqual(expected, self.bits())
        for row in self.rows():
            self.assertEqual(row["final_val_loss"] == "", row["status"] != "ok")
            self.assertIn((row["status"], row["detail"]), [("ok", ""), ("killed", "the lab ended")])
        for run in (self.dir / "lab/main/runs").glob("*-G.*"):   # no run without a row
            self.assertIn(run.name, [row["run_id"] for row in self.rows()])

    def test_kill_9_and_resume_give_the_same_bits_and_a_complete_ledger(self):
        self.kill_and_resume(KILLS or 6, random.Random(7))


if __name__ == "__main__":
    if KILLS:
        unittest.main(verbosity=2, argv=[sys.argv[0], "Lab.test_kill_9_and_resume_give_the_same_"
                                         "bits_and_a_complete_ledger"])
    unittest.main(verbosity=2)
