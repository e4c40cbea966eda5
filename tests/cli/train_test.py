"""Training runs that last: records, resume to the bit, kill -9, interrupts, generate and eval.

With --kills N only the test of random kills runs, with N SIGKILLs.
"""
import json
import os
import random
import shutil
import signal
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
from common import Case, TINY, evaluations, losses, weights


class Train(Case):
    def reference(self, steps, *args):
        done = self.train("--num-iterations", steps, "--eval-every", "10", *args)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.only_run()

    def test_record_is_complete_and_loss_falls(self):
        run = self.reference(40)
        for name in ["run.json", "steps.bin", "steps.csv", "evals.csv", "summary.json"]:
            self.assertTrue((run / name).is_file(), name)
        summary = self.summary(run)
        self.assertEqual(summary["status"], "ok")
        evals = (run / "evals.csv").read_text().splitlines()
        first, last = evals[1].split(","), evals[-1].split(",")
        self.assertLess(float(last[4]), float(first[4]) - 0.5)
        self.assertEqual([s for s, _ in losses(run)], list(range(40)))
        rows = (self.dir / "runs" / "results.csv").read_text().splitlines()
        self.assertEqual(len(rows), 2)
        self.assertEqual(len(rows[0].split(",")), 23)
        self.assertTrue(rows[1].endswith(",ok"))
        options = json.loads((run / "run.json").read_text())["options"]
        self.assertEqual(options["train.num_iterations"], {"value": "40", "origin": "flag"})
        self.assertEqual(options["model.recipe"]["origin"], "default")

    def test_same_seed_gives_the_same_bits_on_any_thread_count(self):
        one = self.reference(8, "--threads", "1")
        kept = losses(one), weights(one, 8)
        os.rename(self.dir / "runs", self.dir / "first")
        two = self.reference(8, "--threads", "2")
        self.assertEqual(kept, (losses(two), weights(two, 8)))

    def test_initial_weights_are_saved_on_request(self):
        run = self.reference(4, "--save-initial")
        self.assertEqual(self.checkpoint_names(), {"step_000000", "step_000004"})
        expected = losses(run), weights(run, 4)
        subprocess.run(["rm", "-r", run / "checkpoints" / "step_000004"], check=True)
        again = self.run_tool("train", "--resume", run)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(self.checkpoint_names(), {"step_000000", "step_000004"})
        self.assertEqual(expected, (losses(run), weights(run, 4)))

    def test_a_resume_is_the_same_run(self):
        self.assertEqual(self.train("--num-iterations", "4", "--save-every", "2").returncode, 0)
        run = self.only_run()
        before = (run / "run.json").read_bytes()
        for flags, says in (["--seed", "7"], "train.seed is '42' in this run"), \
                (["--run", "other"], "run.name"), (["--run-dir", "elsewhere"], "run.dir"), \
                (["--save-initial"], "checkpoint.initial"), \
                (["--total-batch-size", "1024"], "steps of 512 tokens, now they would be of 1024"):
            with self.subTest(flags):
                done = self.run_tool("train", "--resume", run, *flags)
                self.assertEqual(done.returncode, 2)
                self.assertIn(says, done.stderr)
        self.assertEqual((run / "run.json").read_bytes(), before)
        done = self.run_tool("train", "--resume", run, "--num-iterations", "6", "--lr-mult", "0.5")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("resumed at step 4; train.num_iterations: '6', was '4'; "
                      "optim.lr_mult: '0.5', was '1'", (run / "log.txt").read_text())

    def test_resume_gives_the_same_bits(self):
        whole = self.reference(24)
        expected = losses(whole), weights(whole, 24)
        os.rename(self.dir / "runs", self.dir / "whole")
        part = self.train("--num-iterations", "24", "--eval-every", "10", "--save-every", "7",
                          "--keep-checkpoints", "9")
        self.assertEqual(part.returncode, 0, part.stderr)
        run = self.only_run()
        for step in [7, 14, 21]:
            for later in (run / "checkpoints").glob("step_*"):
                if int(later.name[5:]) > step:
                    subprocess.run(["rm", "-r", later], check=True)
            again = self.run_tool("train", "--resume", run)
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertIn(f"continued at step {step}", again.stderr)
            self.assertEqual(expected, (losses(run), weights(run, 24)))

    def checkpoint_names(self):
        return {path.name for path in self.dir.glob("runs/*/checkpoints/step_??????")}

    def test_kill_9_and_resume_give_the_same_bits(self):
        whole = self.reference(60)
        expected = losses(whole), weights(whole, 60)
        os.rename(self.dir / "runs", self.dir / "whole")
        command = [common.BINARY, "train", "--data", str(self.data), *TINY, "--num-iterations", "60",
                   "--eval-every", "10", "--save-every", "5"]
        env = dict(os.environ, TL_HOME=str(self.home / "tl"))
        process = subprocess.Popen(command, cwd=self.dir, env=env, stderr=subprocess.DEVNULL)
        kills = 0
        for wait in [0.0, 0.01, 0.03, 0.07]:   # after the next checkpoint: it moves, at any speed
            known = self.checkpoint_names()
            deadline = time.time() + 60
            while time.time() < deadline and process.poll() is None and self.checkpoint_names() <= known:
                time.sleep(0.002)
            time.sleep(wait)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            process = subprocess.Popen([common.BINARY, "train", "--resume", str(self.only_run())],
                                       cwd=self.dir, env=env, stderr=subprocess.DEVNULL)
        process.wait(timeout=300)
        self.assertGreater(kills, 0)
        run = self.only_run()
        if not (run / "summary.json").exists():
            self.assertEqual(self.run_tool("train", "--resume", run).returncode, 0)
        self.assertEqual(expected, (losses(run), weights(run, 60)))

    def kill_at_random(self, kills, seed):
        command = [common.BINARY, "train", "--data", str(self.data), *TINY, "--threads", "1",
                   "--num-iterations", "120", "--eval-every", "8", "--save-every", "20"]
        env = dict(os.environ, TL_HOME=str(self.home / "tl"))
        start = lambda args: subprocess.Popen(args, cwd=self.dir, env=env, text=True,
                                              stderr=subprocess.PIPE)

        def finished(process):   # the bits of a run that got through, which then makes room
            _, stderr = process.communicate(timeout=300)
            self.assertEqual(process.returncode, 0, stderr)
            run = self.only_run()
            self.assertEqual(self.summary(run)["status"], "ok")
            bits = losses(run), evaluations(run), weights(run, 120)
            shutil.rmtree(self.dir / "runs")
            return bits

        began = time.monotonic()
        expected = finished(start(command))
        longest = (time.monotonic() - began) / 3
        generator, moments, resumed, runs = random.Random(seed), [], 0, 0
        process = start(command)
        while len(moments) < kills:
            wait = generator.uniform(0, longest)
            try:
                process.wait(timeout=wait)
            except subprocess.TimeoutExpired:
                process.kill()
            if process.wait() == -signal.SIGKILL:
                process.stderr.close()
                moments.append(round(wait, 3))
                if any(self.dir.glob("runs/*/checkpoints/step_??????")):
                    resumed += 1
                    process = start([common.BINARY, "train", "--resume", str(self.only_run())])
                    continue
                shutil.rmtree(self.dir / "runs", ignore_errors=True)   # nothing to resume yet
            else:
                self.assertEqual(expected, finished(process), (seed, moments))
                runs += 1
            process = start(command)
        self.assertEqual(expected, finished(process), (seed, moments))
        print(f"seed {seed}: killed after {moments} s; {resumed} resumed, {runs + 1} runs finished")
        self.assertEqual(len(moments), kills)
        self.assertGreater(resumed, 0)

    def test_kill_9_at_random_moments_and_resume_give_the_same_bits(self):
        self.kill_at_random(KILLS or 8, 11)

    def test_sigterm_ends_with_a_checkpoint(self):
        env = dict(os.environ, TL_HOME=str(self.home / "tl"))
        process = subprocess.Popen([common.BINARY, "train", "--data", str(self.data), *TINY,
                                    "--num-iterations", "100000", "--eval-every", "-1"],
                                   cwd=self.dir, env=env, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 60
        while time.time() < deadline and not list(self.dir.glob("runs/*/steps.bin")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 130, stderr)
        self.assertIn("--resume", stderr)
        run = self.only_run()
        self.assertEqual(self.summary(run)["status"], "killed")
        self.assertEqual(len(list((run / "checkpoints").glob("step_*"))), 1)

    def test_sigterm_does_not_wait_for_a_long_step_or_evaluation(self):
        env = dict(os.environ, TL_HOME=str(self.home / "tl"))
        long_step = ["--total-batch-size", "51200000", "--num-iterations", "2", "--eval-every", "-1"]
        long_evaluation = ["--eval-tokens", "4000", "--num-iterations", "100000",
                           "--eval-every", "1"]
        for options in [long_step, long_evaluation]:
            process = subprocess.Popen([common.BINARY, "train", "--data", str(self.data), *TINY,
                                        *options], cwd=self.dir, env=env, stderr=subprocess.PIPE,
                                       text=True)
            deadline = time.time() + 60
            while time.time() < deadline and not list(self.dir.glob("runs/*/run.json")):
                time.sleep(0.02)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=120)   # a step takes far longer
            self.assertEqual(process.returncode, 130, stderr)
            run = self.only_run()
            self.assertEqual(self.summary(run)["status"], "killed")
            if options is long_step:
                self.assertFalse((run / "steps.bin").exists())   # not one step
                self.assertEqual(self.checkpoint_names(), {"step_000000"})
            os.rename(self.dir / "runs", self.dir / f"runs-{len(options)}-{options[0][2:]}")

    def test_a_signal_ends_eval(self):
        self.assertEqual(self.train("--num-iterations", "1").returncode, 0)
        made = self.run_tool("data", "synth", "long", "--train-tokens", "1000", "--val-tokens",
                             "6000000")
        self.assertEqual(made.returncode, 0, made.stderr)
        command = [common.BINARY, "eval", str(self.only_run()), "--data", "long", "--threads", "1",
                   "--device-batch-size", "1"]
        for number in (signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen(command, cwd=self.dir, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True)
            time.sleep(1)
            self.assertIsNone(process.poll())   # all of it takes far longer
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=120)
            self.assertEqual((process.returncode, stdout), (130, ""), stderr)
            self.assertIn("interrupted before the evaluation was done", stderr)
            self.assertIn("--tokens", stderr)

    def test_an_interrupted_step_or_evaluation_is_taken_again(self):
        # Steps of 128 micro-steps, evaluations of 30 batches: almost every signal meets one.
        options = ["--total-batch-size", "32768", "--num-iterations", "6", "--eval-every", "2",
                   "--eval-tokens", "7680", "--warmup-steps", "2"]
        whole = self.train(*options)
        self.assertEqual(whole.returncode, 0, whole.stderr)
        run = self.only_run()
        expected = losses(run), weights(run, 6), common.evaluations(run)
        os.rename(self.dir / "runs", self.dir / "whole")
        env = dict(os.environ, TL_HOME=str(self.home / "tl"))
        command = [common.BINARY, "train", "--data", str(self.data), *TINY, *options]
        interrupted = 0
        for wait in [0.0, 0.1, 0.2, 0.3, 0.45]:
            process = subprocess.Popen(command, cwd=self.dir, env=env, stderr=subprocess.DEVNULL)
            known = set(self.dir.glob("runs/*/run.json"))
            deadline = time.time() + 60
            while time.time() < deadline and process.poll() is None and not known:
                known = set(self.dir.glob("runs/*/run.json"))
            time.sleep(wait)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=120)
            self.assertIn(code, [0, 130, -signal.SIGTERM])
            interrupted += code == 130
            if any(self.dir.glob("runs/*/checkpoints/step_??????")):
                command = [common.BINARY, "train", "--resume", str(self.only_run())]
            else:   # the signal came before training
                subprocess.run(["rm", "-rf", str(self.dir / "runs")], check=True)
        if "--resume" not in command or not (self.only_run() / "checkpoints/step_000006").exists():
            self.assertEqual(subprocess.run(command, cwd=self.dir, env=env,
                                            stderr=subprocess.DEVNULL).returncode, 0)
        self.assertGreater(interrupted, 0)
        run = self.only_run()
        self.assertEqual(expected, (losses(run), weights(run, 6), common.evaluations(run)))

    def test_rewrites_keep_the_loss(self):
        on = self.reference(12)
        kept = [loss for _, loss in losses(on)]
        os.rename(self.dir / "runs", self.dir / "first")
        off = self.reference(12, "--no-fused-rmsnorm", "--no-chunked-ce", "--no-fused-relu2",
                             "--no-fused-qk-norm")
        import struct
        for a, (_, b) in zip(kept, losses(off)):
            x, y = struct.unpack("<d", a)[0], struct.unpack("<d", b)[0]
            self.assertAlmostEqual(x, y, delta=2e-3)

    def test_generate_and_eval(self):
        run = self.reference(20)
        one = self.run_tool("generate", run, "--max-tokens", "30", "--seed", "5", "--json")
        two = self.run_tool("generate", run, "--max-tokens", "30", "--seed", "5", "--json")
        self.assertEqual(one.returncode, 0, one.stderr)
        self.assertEqual(json.loads(one.stdout)["tokens"], json.loads(two.stdout)["tokens"])
        greedy = self.run_tool("generate", run, "--max-tokens", "5", "--temperature", "0",
                               "--dtype", "f32", "--no-stop", "--json")
        self.assertEqual(len(json.loads(greedy.stdout)["tokens"]), 5, greedy.stderr)
        evaluated = self.run_tool("eval", run, "--tokens", "1024", "--device-batch-size", "4",
                                  "--json")
        self.assertEqual(evaluated.returncode, 0, evaluated.stderr)
        self.assertAlmostEqual(json.loads(evaluated.stdout)["loss"], self.summary(run)["val_loss"],
                               places=6)

    def test_stops_at_the_target(self):
        run = self.reference(200, "--target-metric", "val_loss", "--target-threshold", "4.5")
        summary = self.summary(run)
        self.assertLess(summary["steps"], 200)
        self.assertGreater(summary["time_to_target_sec"], 0)


if __name__ == "__main__":
    if KILLS:
        unittest.main(verbosity=2, argv=[sys.argv[0], "Train.test_kill_9_at_random_moments_and_"
                                         "resume_give_the_same_bits"])
    unittest.main(verbosity=2)
