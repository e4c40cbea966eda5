"""Bad input: each gets a message with what, where and the next step, an exit code, and loses nothing."""
import json
import os
import struct
import subprocess
import unittest

import common
from common import Case, TINY


class Messages(Case):
    def fails(self, code, *args, says=(), hint=None):
        result = self.run_tool(*args)
        self.assertEqual(result.returncode, code, result.stderr + result.stdout)
        self.assertIn("\nerror: ", "\n" + result.stderr)
        for text in says:
            self.assertIn(text, result.stderr)
        if hint is not None:
            self.assertIn("hint: ", result.stderr)
            self.assertIn(hint, result.stderr)
        return result

    def test_bare_command_and_help(self):
        result = self.run_tool()
        self.assertEqual(result.returncode, 0)
        self.assertIn("train --preset quick", result.stdout)
        self.assertIn("--depth", self.run_tool("train", "--help").stdout)
        self.assertEqual(self.run_tool("--version").returncode, 0)

    def test_unknown_flag_key_and_command(self):
        self.fails(2, "train", "--dept", "3", says=["'--dept'"], hint="--depth")
        self.fails(2, "train", "--set", "optim.matrix_lrr=1", says=["optim.matrix_lrr"],
                   hint="optim.matrix_lr")
        self.fails(2, "trian")
        self.fails(2, "train", "--preset", "quik", says=["quik"], hint="quick")

    def test_feature_that_does_not_exist_yet_is_not_ignored(self):
        self.fails(2, "train", "--core-metric-every", "5", says=["not available yet"])
        self.fails(2, "train", "--device", "cuda", says=["no CUDA device"])

    def test_explain_files(self):
        explain = ("explain", "--data", self.data, *TINY)
        self.fails(2, *explain, "--rounds", "0", "--html", "a.html", says=["0 rounds"])
        self.fails(3, *explain, "--rounds", "1", "--html", "nowhere/a.html", says=["nowhere"])
        result = self.run_tool(*explain, "--rounds", "1", "--html", "a.html", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        stages = json.loads(result.stdout)["stages"]
        self.assertEqual([s["stage"] for s in stages][:2], ["model", "differentiate"])
        self.assertLess(stages[0]["cost"]["flops"], stages[1]["cost"]["flops"])
        page = (self.dir / "a.html").read_text()
        self.assertIn('id="panel-roofline"', page)
        self.assertNotIn("http://", page.replace("http://www.w3.org/2000/svg", ""))

    def test_bad_values(self):
        self.fails(2, "train", "--depth", "three", says=["--depth", "'three'"])
        self.fails(2, "train", "--warmdown-ratio", "1.5", says=["--warmdown-ratio", "0 to 1"])
        self.fails(2, "train", "--window-pattern", "XL", "--data", self.data, says=["S (short)"])
        self.fails(2, "train", "--data", self.data, *TINY, "--total-batch-size", "500",
                   "--num-iterations", "2", says=["500", "448", "512"])
        self.fails(2, "train", "--data", self.data, *TINY, "--head-dim", "15", says=["odd"])

    def test_toml(self):
        (self.dir / "bad.toml").write_text("[model]\ndepth = = 3\n")
        self.fails(2, "train", "-c", "bad.toml", says=["bad.toml:2"])
        (self.dir / "unknown.toml").write_text("[model]\ndepht = 3\n")
        self.fails(2, "train", "-c", "unknown.toml", says=["model.depht", "unknown.toml:2"],
                   hint="model.depth")
        self.fails(3, "train", "-c", "missing.toml", says=["missing.toml"])

    def shards(self):
        folder = self.dir / "data"
        subprocess.run(["cp", "-r", self.data, folder], check=True)
        return folder

    def test_shards(self):
        self.fails(3, "train", "--data", "nowhere", says=["nowhere"])
        folder = self.shards()
        train = next(folder.glob("train*.bin"))
        good = train.read_bytes()
        train.write_bytes(good[:-10])
        self.fails(2, "train", "--data", folder, *TINY, says=[train.name])
        train.write_bytes(b"PK\x03\x04" + good[4:])
        self.fails(2, "train", "--data", folder, *TINY, says=[train.name, "magic"])
        train.write_bytes(good[:1024 + 20] + struct.pack("<H", 60000) + good[1024 + 22:])
        self.fails(2, "train", "--data", folder, *TINY, says=[train.name, "60000"])

    def test_tokenizer(self):
        folder = self.shards()
        path = folder / "tokenizer.json"
        path.write_text(path.read_text()[:200])
        self.fails(2, "train", "--data", folder, *TINY, says=["tokenizer.json"])
        path.unlink()
        self.fails(3, "train", "--data", folder, *TINY, hint="--tokenizer")

    def test_checkpoints(self):
        done = self.train("--num-iterations", "3", "--eval-every", "-1")
        self.assertEqual(done.returncode, 0, done.stderr)
        run = self.only_run()
        checkpoint = next((run / "checkpoints").glob("step_*"))
        self.fails(3, "generate", "nowhere", says=["nowhere"])
        self.fails(2, "train", "--resume", run, "--depth", "2", says=["another model"])
        model = checkpoint / "model.safetensors"
        good = model.read_bytes()
        model.write_bytes(good[:-8])
        self.assertNotEqual(self.run_tool("generate", run).returncode, 0)
        model.write_bytes(b"\xff" * 8 + good[8:])
        self.fails(2, "generate", checkpoint, says=["model.safetensors"])
        model.write_bytes(good)
        self.assertEqual(self.run_tool("generate", run, "--max-tokens", "2").returncode, 0)

    def test_vocabulary_mismatch(self):
        done = self.train("--num-iterations", "2", "--eval-every", "-1")
        self.assertEqual(done.returncode, 0, done.stderr)
        large = self.dir / "large"
        made = self.run_tool("data", "synth", large, "--corpus", "large", "--train-tokens", "20000",
                             "--val-tokens", "5000")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.fails(2, "eval", self.only_run(), "--data", large, says=["another tokenizer"])

    def test_plan_larger_than_memory(self):
        self.fails(3, "train", "--data", self.data, "--depth", "200", "--num-iterations", "1",
                   "--total-batch-size", "65536", says=["GiB", "by purpose"], hint="--")

    def test_run_folder_in_use(self):
        process = subprocess.Popen([common.BINARY, "train", "--data", str(self.data), *TINY,
                                    "--num-iterations", "100000", "--save-every", "5",
                                    "--eval-every", "-1"],
                                   cwd=self.dir, stderr=subprocess.DEVNULL)
        try:
            for _ in range(3000):
                if list(self.dir.glob("runs/*/checkpoints/step_??????")):
                    break
                import time
                time.sleep(0.02)
            self.fails(3, "train", "--resume", self.only_run(), says=["in use", str(process.pid)])
        finally:
            process.kill()
            process.wait()

    def test_run_dir_not_writable(self):
        (self.dir / "file").write_text("")
        self.fails(3, "train", "--data", self.data, *TINY, "--num-iterations", "1", "--run-dir",
                   "file/x", says=["cannot make a run folder"], hint="ls -l")

    def test_non_finite_loss_names_step_and_tensor(self):
        result = self.train("--num-iterations", "40", "--lr-mult", "1e30", "--eval-every", "-1",
                            "--save-every", "1")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("at step", result.stderr)
        self.assertIn("first non-finite value", result.stderr)
        self.assertIn("last good checkpoint", result.stderr)
        self.assertEqual(self.summary(self.only_run())["status"], "nonfinite")

    def test_json_error(self):
        result = self.run_tool("train", "--dept", "3", "--json")
        self.assertEqual(result.returncode, 2)
        self.assertEqual(json.loads(result.stdout)["kind"], "usage")

    def test_data_and_tokenizer_commands(self):
        text = self.dir / "text.txt"
        text.write_text("the cat sat on the mat.\n\nthe dog ran.\n\n" * 4000)
        made = self.run_tool("tokenizer", "train", text, "-o", "tok.json", "--vocab-size", "300")
        self.assertEqual(made.returncode, 0, made.stderr)
        encoded = self.run_tool("tokenizer", "encode", "tok.json", text)
        ids = self.dir / "ids.txt"
        ids.write_text(encoded.stdout)
        self.assertEqual(self.run_tool("tokenizer", "decode", "tok.json", ids).stdout,
                         text.read_text())
        done = self.run_tool("data", "tokenize", text, "-o", "tok", "--tokenizer", "tok.json",
                             "--separator", "\\n\\n", "--val-fraction", "0.1")
        self.assertEqual(done.returncode, 0, done.stderr)
        shown = json.loads(self.run_tool("data", "inspect", "tok", "--json").stdout)
        self.assertGreater(shown["documents"], 500)
        trained = self.run_tool("train", "--data", "tok", *TINY, "--num-iterations", "5")
        self.assertEqual(trained.returncode, 0, trained.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
