"""Bad input: each gets a message with what, where and the next step, an exit code, and loses nothing."""
import array
import csv
import json
import math
import os
import pathlib
import re
import resource
import struct
import subprocess
import time
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
        self.fails(2, "train", "--seeds", "a", says=["'--seeds'"], hint="'--seed'")
        self.fails(2, "trian", says=["'trian'"], hint="did you mean 'train'?")
        self.fails(2, "data", "fech", says=["'fech'", "tightloop data"], hint="'fetch'")
        self.fails(2, "frobnicate", says=["'frobnicate'"], hint="`tightloop --help`")
        self.fails(2, "doctor", "now", says=["'now'"], hint="`tightloop doctor --help`")
        # The misspelt flag, not the argument that is missing for it.
        self.fails(2, "generate", "--promt", "x", says=["'--promt'"], hint="'--prompt'")
        self.fails(2, "train", "--preset", "quik", says=["quik"], hint="quick")

    def test_group_without_its_command(self):
        for group, commands in {"data": ["synth", "tokenize", "inspect", "fetch"],
                                "bench": ["train", "ops"], "config": ["show"],
                                "tokenizer": ["train", "encode", "decode"]}.items():
            shown = self.fails(2, group, says=[f"usage: tightloop {group} COMMAND"])
            self.assertEqual(shown.stdout, "")
            for command in commands:
                self.assertRegex(shown.stderr, rf"\n  {command} +\S.*\n.*tightloop {group} {command} ",
                                 f"{group} {command}: no example")
        self.fails(2, "lab", says=["usage: tightloop lab", "\n  resume ", "tightloop lab run G"])

    def test_names_that_do_not_exist(self):
        self.fails(3, "check", "nope", says=["'nope' is no parity case", "no such folder"],
                   hint="tightloop check tests/golden")
        self.fails(3, "check", self.data, says=["case.json"], hint="tightloop check tests/golden")
        (self.dir / "case.json").write_text('{"model": "other"}')
        self.fails(2, "check", self.dir, says=["'other' cannot be checked"],
                   hint="tightloop check tests/golden")
        self.fails(2, "data", "fetch", says=["what is required"],
                   hint="Example: tightloop data fetch fineweb10b")
        self.fails(2, "data", "fetch", "foo", says=["'foo'", "expected fineweb10b"],
                   hint="tightloop data fetch fineweb10b -o")
        self.fails(2, "data", "fetch", "fineweb10b", says=["--output is required"],
                   hint="tightloop data fetch fineweb10b -o")
        for command in [["train", "--data"], ["data", "inspect"]]:
            self.fails(3, *command, "/nonexistent", says=["'/nonexistent' does not exist", "shard"],
                       hint="tightloop data synth")

    def test_text_that_gives_no_data(self):
        text, book = self.dir / "text", self.dir / "book.txt"
        text.mkdir()
        (self.dir / "empty").mkdir()
        (self.dir / "blank.txt").write_text("")
        (self.dir / "two.txt").write_text("one\n\ntwo\n")
        book.write_text("the cat sat on the mat. " * 40)
        (text / ".hidden").write_bytes(b"\0")
        (text / "a.txt").write_text("the cat sat on the mat. " * 40)
        train = ["tokenizer", "train", "-o", "tok.json", "--vocab-size", "300"]
        self.fails(3, *train, "nope", says=["nope: no such file or folder"], hint="text file")
        self.fails(2, *train, "empty", says=["empty: no file in this folder"])
        self.fails(2, *train, "blank.txt", says=["blank.txt: no text to train on in 1 file"])
        self.assertFalse((self.dir / "tok.json").exists())
        made = self.run_tool(*train, text)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertIn("characters of 1 file\n", made.stdout)
        self.assertIn("fewer than the 300 asked for", made.stderr)
        # The command that it names works, and what that makes can be trained on.
        self.assertIn("--separator '\\n\\n'`", made.stderr)
        tokenize = ["data", "tokenize", "-o", "tok", "--tokenizer", "tok.json"]
        self.fails(3, *tokenize, "nope", says=["nope: no such file or folder"], hint="--separator")
        self.fails(2, *tokenize, "empty", says=["empty: no file in this folder"])
        self.fails(3, *tokenize, text, "--val", "nope", says=["--val", "nope: no such file"])
        self.fails(2, *tokenize, text, "--val", "blank.txt", says=["blank.txt: no document", "--val"])
        self.fails(2, *tokenize, text, says=["a.txt: one document only: nothing is left"],
                   hint="--separator '\\n\\n' (a document for each paragraph), or give validation "
                        "text with --val FILE")
        self.fails(2, *tokenize, book, "--separator", "@@", says=["--separator occurs nowhere"],
                   hint="--val FILE")
        self.fails(2, *tokenize, book, "--val-fraction", "2", says=["--val-fraction: 2"])
        self.fails(2, *tokenize, book, "--max-document-tokens", "1",
                   says=["--max-document-tokens: 1 is too few"])
        self.assertFalse((self.dir / "tok").exists())
        without = self.run_tool(*tokenize, book, "--val-fraction", "0")
        self.assertEqual(without.returncode, 0, without.stderr)
        self.assertIn("no validation text", without.stderr)
        self.assertNotIn("next:", without.stderr)
        # A shard beside its tokenizer.
        shown = self.run_tool("data", "inspect", "tok/train_000000.bin")
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertIn("the cat sat", shown.stdout)
        self.fails(2, "data", "inspect", "tok", "--documents", "-1", says=["--documents: -1"])
        # The arguments in the wrong order; letters for ids.
        self.fails(2, "tokenizer", "encode", book, "tok.json", says=["book.txt", "not valid JSON"],
                   hint="the tokenizer comes first, then the text")
        self.fails(3, "tokenizer", "encode", text, hint="tightloop tokenizer train")
        self.fails(2, "tokenizer", "decode", "tok.json", book, says=["'the' is not a whole number"],
                   hint="tokenizer encode")
        self.fails(2, "data", "fetch", "blank.txt", "-o", "f", says=["blank.txt: no URL"])
        self.fails(2, "data", "fetch", text, "-o", "f", says=["but a folder"])
        self.fails(2, "data", "synth", "s", "--train-tokens", "0",
                   says=["0 training and 262144 validation tokens: expected at least 1 of each"])

    def test_shards_without_a_tokenizer(self):
        # What is wrong with the shard comes before the tokenizer that is not there.
        shard = self.dir / "train.bin"
        good = next(self.data.glob("train*.bin")).read_bytes()
        for content, says in [(b"PK\3\4\0\0", "file has 6 bytes"), (b"PK\3\4" * 300, "magic"),
                              (good[:-10], "truncated")]:
            shard.write_bytes(content)
            for more in [], ["--tokenizer", self.data]:
                shown = self.fails(2, "data", "inspect", shard, *more, says=[says],
                                   hint="tightloop data tokenize")
                self.assertNotIn("without the tokenizer", shown.stderr)
        shard.write_bytes(good)
        self.fails(3, "data", "inspect", shard, says=["without the tokenizer"], hint="--tokenizer")

    def test_help_in_plain_words(self):
        for command in ["generate"], ["eval"], ["data", "fetch"], ["data", "rows"]:
            shown = self.run_tool(*command, "--help").stdout
            self.assertNotRegex(shown, r":\w+ in \[|\[required\]")
        self.assertRegex(self.run_tool("generate", "--help").stdout, r"--max-tokens tokens ")
        self.assertRegex(self.run_tool("data", "fetch", "--help").stdout, r"--output \w+ REQUIRED")

    def test_names_with_words_more_or_fewer(self):
        self.fails(2, "eval", "x", "--eval-tokens", "5", says=["'--eval-tokens'"], hint="'--tokens'")
        self.fails(2, "data", "synth", "x", "--tokens", "5", says=["'--tokens'"],
                   hint="'--train-tokens'")

    def test_target_without_evaluations(self):
        train = ["train", "--data", self.data, *TINY, "--num-iterations", "2", "--eval-every", "-1",
                 "--target-threshold"]
        self.fails(2, *train, "0.5", says=["--target-threshold", "--eval-every -1"],
                   hint="--eval-every 100")
        done = self.run_tool(*train, "0.5", "--eval-window", "1:2:1")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_bench_refuses_what_it_does_not_use(self):
        for command in ["train"], ["ops"]:
            shown = self.run_tool("bench", *command, "--help").stdout
            for flag in ["--eval-every", "--save-initial", "--run-dir", "--data", "--matrix-lr",
                         "--resume", "--num-iterations"]:
                self.assertNotRegex(shown, rf" {flag}\b")
            for flag in ["--depth", "--window-pattern", "--device-batch-size", "--total-batch-size",
                         "--dtype", "--device", "--threads", "--seed", "--recipe", "--chunked-ce"]:
                self.assertRegex(shown, rf" {flag}\b")
            for given, flag in [(["--eval-every", "5"], "--eval-every"),
                                (["--save-initial"], "--save-initial"),
                                (["--resume", "runs/x"], "--resume"),
                                (["--set", "optim.matrix_lr=0.1"], "--matrix-lr")]:
                self.fails(2, "bench", *command, *given,
                           says=[f"{flag} is not for `tightloop bench {command[0]}`"],
                           hint="--help")

    def test_presets_are_explained(self):
        shown = self.run_tool("train", "--help").stdout
        self.assertRegex(shown, r"\n +quick: .*layers.*steps")
        self.assertRegex(shown, r"\n +quick-lab: .*layers.*steps")
        self.fails(2, "train", "--preset", "zzz", says=["'zzz'"], hint="quick-lab")

    def test_bench_larger_than_memory(self):
        # What the hint names fits, twice as much does not.
        small = ["bench", "train", "--depth", "1", "--aspect-ratio", "32", "--head-dim", "16",
                 "--max-seq-len", "64", "--steps", "2", "--compare", "chunked-ce"]
        refused = self.fails(3, *small, "--device-batch-size", "500000", says=["the bench needs"],
                             hint="--device-batch-size")
        fitting = int(re.search(r"--device-batch-size (\d+)", refused.stderr)[1])
        self.assertEqual(fitting & (fitting - 1), 0)
        needed, free = (float(x) for x in re.search(r"needs ([\d.]+) GiB, ([\d.]+) GiB are free",
                                                    refused.stderr).groups())
        each = needed / 500000    # nearly all of it grows with the micro-batch
        self.assertLess(fitting * each, 1.1 * free)
        self.assertGreater(4 * fitting * each, 0.9 * free)
        self.fails(3, "bench", "train", "--depth", "200", "--device-batch-size", "1",
                   says=["the bench needs"], hint="--depth ")

    def test_feature_that_does_not_exist_yet_is_not_ignored(self):
        self.fails(2, "train", "--core-metric-every", "5", says=["not available yet"])

    def test_device_that_is_not_there(self):
        cuda = json.loads(self.run_tool("doctor", "--json").stdout)["cuda"]
        if "device" in cuda:
            self.skipTest(f"there is one: {cuda['device']['name']}")
        code, hint = (3, "nvidia-smi") if cuda["built"] else (2, "cmake --preset cuda")
        says = ["no CUDA device: ", cuda["reason"]]
        self.fails(code, "check", common.GOLDEN, "--device", "cuda", says=says, hint=hint)
        for command in (["train"], ["bench", "train"]):   # a setting: refused as a bad value is
            self.fails(2, *command, "--device", "cuda", says=["--device: ", *says], hint=hint)

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
        self.fails(2, "train", "--depth", says=["--depth needs a value"], hint="tightloop train")
        self.fails(2, "bench", "train", "--steps", "x", says=["--steps: cannot read 'x'"],
                   hint="tightloop bench train")
        self.fails(3, "tokenizer", "encode", "nope", says=["nope"], hint="tokenizer train")
        self.fails(2, "train", "--depth", "three", says=["--depth: 'three' is not a whole number"],
                   hint="--depth layers: ")
        self.fails(2, "tokenizer", "decode", self.data, self.ids("5 99999"),
                   says=["token 99999 is outside"], hint="ids are 0 to ")
        self.fails(2, "train", "--warmdown-ratio", "1.5", says=["--warmdown-ratio", "0 to 1"])
        self.fails(2, "train", "--window-pattern", "XL", "--data", self.data, says=["S (short)"],
                   hint="SSSL")
        self.fails(2, "train", "--data", self.data, *TINY, "--total-batch-size", "500",
                   "--num-iterations", "2", says=["500", "448", "512"])
        self.fails(2, "train", "--data", self.data, *TINY, "--total-batch-size", "10",
                   "--num-iterations", "2", hint="64")
        self.fails(2, "train", "--data", self.data, *TINY, "--head-dim", "15",
                   says=["head size 15 is odd", "14 and 16"], hint="--head-dim 16")
        self.fails(2, "train", "--data", self.data, *TINY, "--aspect-ratio", "8", "--head-dim", "8",
                   says=["width 8 is too small"])
        self.fails(2, "train", "--data", self.data, *TINY, "--max-seq-len", "9000",
                   "--total-batch-size", "9000", "--num-iterations", "1",
                   says=["validation data"], hint="--max-seq-len")
        self.fails(2, "train", "--data", self.data, *TINY, "--num-iterations", "0",
                   says=["--num-iterations"])
        self.fails(2, "train", "--data", self.data, *TINY, "--target-metric", "accuracy",
                   "--num-iterations", "1", says=["accuracy", "val_bpb"], hint="--target-metric val_loss")

    def test_interval_of_no_steps(self):
        for name, off in [("eval", "never"), ("sample", "only at the end"),
                          ("save", "only at the end")]:
            for steps in ["0", "-2"]:
                self.fails(2, "train", "--data", self.data, *TINY, f"--{name}-every", steps,
                           says=[f"--{name}-every: {steps} is no interval",
                                 "1 or more steps, or -1"],
                           hint=f"-1: {off}")
            words = " ".join(self.run_tool("train", "--help").stdout.split())
            self.assertRegex(words, rf"--{name}-every [^-]*every so many steps and at the end; "
                                    rf"-1: {off}")
        (self.dir / "zero.toml").write_text("[checkpoint]\nevery = 0\n")
        self.fails(2, "train", "-c", "zero.toml", says=["--save-every", "zero.toml:2"])

    def test_toml(self):
        (self.dir / "bad.toml").write_text("[model]\ndepth = = 3\n")
        self.fails(2, "train", "-c", "bad.toml", says=["bad.toml:2"], hint="tightloop config show")
        (self.dir / "unknown.toml").write_text("[model]\ndepht = 3\n")
        self.fails(2, "train", "-c", "unknown.toml", says=["model.depht", "unknown.toml:2"],
                   hint="model.depth")
        self.fails(3, "train", "-c", "missing.toml", says=["missing.toml"])
        (self.dir / "foreign.toml").write_bytes(b"\x7fELF" + bytes(range(256)))
        self.fails(2, "train", "-c", "foreign.toml", says=["foreign.toml"])
        (self.dir / "cut.toml").write_text('[model]\ndepth = 3\nwindow_pattern = "SS')
        self.fails(2, "train", "-c", "cut.toml", says=["cut.toml:3"])
        (self.dir / "type.toml").write_text("[model]\ndepth = [3, 4]\n")
        self.fails(2, "train", "-c", "type.toml", says=["--depth", "type.toml:2"])
        (self.dir / "large.toml").write_text("#" * (2 << 20))
        self.fails(2, "train", "-c", "large.toml", says=["large.toml"])

    def ids(self, text):
        (self.dir / "ids.txt").write_text(text)
        return self.dir / "ids.txt"

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
        self.fails(2, "train", "--data", folder, *TINY, says=[train.name],
                   hint="tightloop data tokenize")
        train.write_bytes(b"PK\x03\x04" + good[4:])
        self.fails(2, "train", "--data", folder, *TINY, says=[train.name, "magic"])
        train.write_bytes(good[:1024 + 20] + struct.pack("<H", 60000) + good[1024 + 22:])
        self.fails(2, "train", "--data", folder, *TINY, says=[train.name, "60000"],
                   hint="use the tokenizer")

    def test_tokenizer(self):
        folder = self.shards()
        path = folder / "tokenizer.json"
        path.write_text(path.read_text()[:200])
        self.fails(2, "train", "--data", folder, *TINY, says=["tokenizer.json"])
        path.unlink()
        self.fails(3, "train", "--data", folder, *TINY, hint="--tokenizer")

    def test_shards_in_other_ways(self):
        folder = self.shards()
        train = next(folder.glob("train*.bin"))
        good = train.read_bytes()
        floor = next(folder.glob("train*.floor"))
        kept = floor.read_bytes()
        floor.write_bytes(kept[:-7])
        self.fails(2, "train", "--data", folder, *TINY, "--num-iterations", "1", says=[floor.name])
        floor.write_bytes(kept)
        train.write_bytes(b"")
        self.fails(2, "train", "--data", folder, *TINY, says=[train.name])
        # A header that promises 2^31 - 1 tokens.
        train.write_bytes(good[:8] + struct.pack("<i", 2 ** 31 - 1) + good[12:])
        self.fails(2, "train", "--data", folder, *TINY, says=[train.name, "2147483647"])
        train.unlink()
        train.mkdir()   # no shard
        self.fails(2, "train", "--data", folder, *TINY, says=["0 training"], hint="train_*.bin")

    def test_foreign_tokenizers(self):
        folder = self.shards()
        path = folder / "tokenizer.json"
        for content in [b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b"{}", b"[1, 2]", b"", b'{"model": 3}',
                        b'{"model": {"type": "Unigram", "vocab": []}}', b"[" * 100000]:
            path.write_bytes(content)
            self.fails(2, "train", "--data", folder, *TINY, says=["tokenizer.json"])
        pair = self.dir / "pair"
        pair.mkdir()
        (pair / "vocab.json").write_text('{"a": 0, "b": 1')
        (pair / "merges.txt").write_text("a b\n")
        self.fails(2, "tokenizer", "encode", "pair", "pair/merges.txt", says=["vocab.json"])
        (pair / "vocab.json").write_text('{"a": 0, "b": 7}')
        self.fails(2, "tokenizer", "encode", "pair", "pair/merges.txt")
        (pair / "merges.txt").unlink()
        self.fails(3, "tokenizer", "encode", "pair", "pair/vocab.json", says=["pair"])

    def test_parity_case_with_damaged_files(self):
        whole = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tiny-nanochat-2026-07"
        case = self.dir / "case"
        case.mkdir()
        for path in whole.iterdir():
            (case / path.name).write_bytes(path.read_bytes())
        check = ["check", case, "--device", "cpu", "--rewrites", "none"]
        self.assertEqual(self.run_tool(*check).returncode, 0)
        for name in ["weights.safetensors", "tokens.safetensors", "expected.safetensors"]:
            path = case / name
            good = path.read_bytes()
            header = int.from_bytes(good[:8], "little")
            for bad in [good[:-1], good[:20], b"", b"PK\x03\x04" + good[4:],
                        (header + 2 ** 40).to_bytes(8, "little") + good[8:],
                        good.replace(b'"shape":[', b'"shape":[9,', 1),
                        good.replace(b'"F32"', b'"F99"', 1).replace(b'"I32"', b'"I99"', 1)]:
                path.write_bytes(bad)
                self.fails(2, *check, says=[name])
            path.unlink()
            self.fails(3, *check, says=[name])
            path.write_bytes(good)
        path = case / "case.json"
        good = json.loads(path.read_text())
        for change, says in [({"losses": ["one"]}, "losses"), ({"window_sizes": [[1]]}, "window_sizes"),
                             ({"steps": 10 ** 9}, "steps"), ({"model": "other"}, "other"),
                             ({"optimizer": {"groups": [{"kind": "adamw", "params": [3]}]}}, "params"),
                             ({"config": dict(good["config"], n_embd=10 ** 9)}, "n_embd")]:
            path.write_text(json.dumps(dict(good, **change)))
            self.fails(2, *check, says=["case.json", says])

    def trained(self, *args):
        done = self.train("--num-iterations", "4", "--eval-every", "-1", *args)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.only_run()

    def test_checkpoints(self):
        run = self.trained()
        checkpoint = next((run / "checkpoints").glob("step_*"))
        self.fails(3, "generate", "nowhere", says=["nowhere"], hint="ls -t runs")
        self.fails(3, "generate", self.data, says=["no complete checkpoint"])
        self.fails(2, "train", "--resume", run, "--depth", "2", says=["another model"],
                   hint="leave out the model flags")
        model = checkpoint / "model.safetensors"
        good = model.read_bytes()
        model.write_bytes(good[:-8])
        self.fails(2, "generate", checkpoint, says=["model.safetensors", "bytes, expected"])
        self.fails(3, "generate", run, says=["no complete checkpoint"])
        model.write_bytes(b"\xff" * 8 + good[8:])
        self.fails(2, "generate", checkpoint, says=["model.safetensors"])
        model.write_bytes(b"PK\x03\x04" + good[4:])
        self.fails(2, "generate", checkpoint, says=["model.safetensors"])
        model.write_bytes(good)
        self.assertEqual(self.run_tool("generate", run, "--max-tokens", "2").returncode, 0)

    def test_impossible_sampling(self):
        run = self.trained()
        for flag, value in [("--temperature", "-1"), ("--temperature", "inf"), ("--top-k", "-1"),
                            ("--top-p", "0"), ("--top-p", "1.5"), ("--min-p", "2"),
                            ("--threads", "0"), ("--max-tokens", "0")]:
            self.fails(2, "generate", run, flag, value, says=[flag])
        self.fails(2, "generate", run, "--dtype", "f16", says=["f16", "bf16"])
        self.fails(2, "generate", run, "--prompt", "zzzz", says=["zzzz"], hint="without --prompt")
        self.fails(2, "eval", run, "--device-batch-size", "0", says=["--device-batch-size"])
        self.fails(2, "eval", run, "--tokens", "0", says=["--tokens"])
        self.fails(2, "bench", "train", "--steps", "0", says=["--steps"])
        self.fails(2, "data", "synth", "x", "--train-tokens", "0", says=["training"])
        self.fails(2, "tokenizer", "train", "x", "-o", "y", "--vocab-size", "10", says=["10"])

    def test_flipped_bits_in_a_checkpoint(self):
        run = self.trained()
        checkpoint = next((run / "checkpoints").glob("step_*"))
        for name, commands in [
                ("model.safetensors", [["generate", run], ["eval", run],
                                       ["train", "--resume", run, "--num-iterations", "6"]]),
                ("optimizer.safetensors", [["train", "--resume", run, "--num-iterations", "6"]])]:
            path = checkpoint / name
            good = path.read_bytes()
            at = len(good) * 3 // 4
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1:])
            for command in commands:
                self.fails(2, *command, says=[name, "bytes have changed", "checksum"],
                           hint="another checkpoint")
            path.write_bytes(good)
        self.assertEqual((run / "steps.bin").stat().st_size, 4 * 64)
        again = self.run_tool("train", "--resume", run, "--num-iterations", "6")
        self.assertEqual(again.returncode, 0, again.stderr)

    def test_parts_of_a_checkpoint_missing_or_foreign(self):
        run = self.trained("--save-every", "2")
        older, newer = sorted((run / "checkpoints").glob("step_*"))
        (newer / "COMPLETE").unlink()   # never finished: the one before counts
        shown = self.run_tool("generate", run, "--max-tokens", "2", "--json")
        self.assertEqual(json.loads(shown.stdout)["checkpoint"], str(older))
        self.fails(2, "generate", newer, says=["COMPLETE", "never finished"])
        for name in ["model.safetensors", "optimizer.safetensors", "config.json", "state.json",
                     "tokenizer.json", "checksums.json"]:
            path = older / name
            good = path.read_bytes()
            path.unlink()
            self.assertEqual(self.run_tool("train", "--resume", run).returncode, 3, name)
            # Another file of the same size. A run goes on with the tokenizer of its data.
            path.write_bytes(b"[1]".ljust(len(good)))
            command = ["generate"] if name == "tokenizer.json" else ["train", "--resume"]
            self.fails(2, *command, run, says=[name])
            path.write_bytes(good)
        again = self.run_tool("train", "--resume", run)
        self.assertEqual(again.returncode, 0, again.stderr)

    def test_vocabulary_mismatch(self):
        run = self.trained()
        checkpoint = next((run / "checkpoints").glob("step_*"))
        large = self.dir / "large"
        made = self.run_tool("data", "synth", large, "--corpus", "large", "--train-tokens", "20000",
                             "--val-tokens", "5000")
        self.assertEqual(made.returncode, 0, made.stderr)
        # Data and checkpoint.
        self.fails(2, "eval", run, "--data", large, says=["another tokenizer"])
        self.fails(2, "train", "--resume", run, "--data", large, says=["another model"])
        # Data and tokenizer: ids that the tokenizer does not have.
        self.fails(2, "train", "--data", large, *TINY, "--num-iterations", "1", "--tokenizer",
                   self.data, says=["vocabulary"])
        # Tokenizer and checkpoint.
        tokenizer = checkpoint / "tokenizer.json"
        own = tokenizer.read_bytes()
        marker = checkpoint / "COMPLETE"
        listed = marker.read_text()
        other = (large / "tokenizer.json").read_bytes()
        tokenizer.write_bytes(other)
        self.fails(2, "generate", checkpoint, says=["tokenizer.json", "bytes, expected"])
        marker.write_text(listed.replace(f"{len(own)} tokenizer", f"{len(other)} tokenizer"))
        self.fails(2, "generate", run, says=["the tokenizer has"])
        self.fails(2, "eval", run, "--data", self.data, says=["the tokenizer has"])
        # The same number of words, other words: told apart by the hash.
        swapped = self.shards()
        words = (swapped / "tokenizer.json").read_text()
        self.assertIn('"the"', words)
        (swapped / "tokenizer.json").write_text(words.replace('"the"', '"thy"'))
        tokenizer.write_bytes(own)
        marker.write_text(listed)
        self.fails(2, "train", "--resume", run, "--data", swapped, "--num-iterations", "6",
                   says=["not the one the checkpoint was trained with"])
        self.fails(2, "eval", run, "--data", swapped, says=["another tokenizer"])

    def test_plan_larger_than_memory(self):
        # The model is too large, and then the micro-batch.
        self.fails(3, "train", "--data", self.data, "--depth", "200", "--num-iterations", "1",
                   "--device-batch-size", "1", "--max-seq-len", "64", "--total-batch-size", "64",
                   says=["the plan needs", "GiB are free", "by purpose", "parameters", "optimizer"],
                   hint="use `--depth ")
        large = ["train", "--data", self.data, *TINY, "--num-iterations", "1",
                 "--total-batch-size", "64000000", "--device-batch-size"]
        refused = self.fails(3, *large, "1000000", says=["the plan needs", "activations"],
                             hint="--device-batch-size")
        fitting = int(re.search(r"--device-batch-size (\d+)", refused.stderr)[1])
        self.assertEqual(1000000 % fitting, 0)
        needed, free = (float(x) for x in re.search(r"needs ([\d.]+) GiB, ([\d.]+) GiB are free",
                                                    refused.stderr).groups())
        each = needed / 1000000   # nearly all of it grows with the micro-batch
        self.assertLess(fitting * each, 1.1 * free)
        self.assertGreater(4 * fitting * each, 0.9 * free)

    def test_explain_shows_a_plan_that_does_not_fit(self):
        shown = self.run_tool("explain", "--data", self.data, *TINY, "--num-iterations", "1",
                              "--device-batch-size", "500000", "--total-batch-size", "32000000")
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertRegex(shown.stdout, r"activations +[\d.]+ GiB")

    def test_system_refuses_memory(self):
        # Less address space than the plan: found out only when it is asked for.
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        result = subprocess.run([common.BINARY, "train", "--data", str(self.data), *TINY,
                                 "--num-iterations", "1", "--device-batch-size", "20000",
                                 "--total-batch-size", "1280000"], cwd=self.dir, preexec_fn=limit,
                                capture_output=True, text=True)
        self.assertEqual(result.returncode, 3, result.stderr)
        self.assertIn("the plan needs", result.stderr)
        self.assertIn("activations", result.stderr)
        self.assertIn("hint: use `--device-batch-size 5000`", result.stderr)
        self.assertEqual([path.name for path in (self.dir / "runs").iterdir()], ["results.csv"])
        row, = self.result_rows()
        self.assertEqual((row["status"], row["depth"], row["dt_median_ms"]), ("oom", "1", ""))

    def result_rows(self):
        with open(self.dir / "runs" / "results.csv", newline="") as f:
            return list(csv.DictReader(f))

    def test_a_refused_configuration_is_a_row(self):
        refused = self.train("--target-metric", "nonsense", "--seed", "7")
        self.assertEqual(refused.returncode, 2, refused.stderr)
        typed = self.train("--num-iterations", "many")   # not a run: its flags say nothing
        self.assertEqual(typed.returncode, 2, typed.stderr)
        row, = self.result_rows()
        self.assertEqual((row["status"], row["seed"], row["max_seq_len"]),
                         ("config_error", "7", "64"))
        self.assertEqual((row["final_train_loss"], row["extrapolation_method"]), ("", "none"))

    def test_run_folder_in_use(self):
        process = subprocess.Popen([common.BINARY, "train", "--data", str(self.data), *TINY,
                                    "--num-iterations", "100000", "--save-every", "5",
                                    "--eval-every", "-1"],
                                   cwd=self.dir, stderr=subprocess.DEVNULL)
        try:
            for _ in range(3000):
                if list(self.dir.glob("runs/*/checkpoints/step_??????")):
                    break
                time.sleep(0.02)
            self.fails(3, "train", "--resume", self.only_run(), says=["in use", str(process.pid)])
        finally:
            process.kill()
            process.wait()

    def test_run_dir_not_writable(self):
        (self.dir / "file").write_text("")
        self.fails(3, "train", "--data", self.data, *TINY, "--num-iterations", "1", "--run-dir",
                   "file/x", says=["cannot make a run folder"], hint="ls -l")
        closed = self.dir / "closed"
        closed.mkdir()
        closed.chmod(0o555)
        # Root may write everywhere but here.
        place = "/sys/runs" if os.geteuid() == 0 else closed / "runs"
        self.fails(3, "train", "--data", self.data, *TINY, "--num-iterations", "1", "--run-dir",
                   place, says=["cannot make a run folder", "runs"], hint="ls -ld")
        # The nearest folder that is there.
        self.fails(3, "train", "-c", self.dir / "no/such/a.toml", hint=f"`ls -l {self.dir}`")
        self.fails(3, "data", "synth", place, says=["runs"], hint="ls -ld")
        text = self.dir / "text.txt"
        text.write_text("the cat sat. " * 500)
        self.fails(3, "tokenizer", "train", text, "-o", f"{place}/t.json", "--vocab-size", "300",
                   says=["t.json"])

    def test_two_runs_at_once_have_folders_of_their_own(self):
        commands = [subprocess.Popen([common.BINARY, "train", "--data", str(self.data), *TINY,
                                      "--num-iterations", "3", "--eval-every", "-1"],
                                     cwd=self.dir, stderr=subprocess.PIPE) for _ in range(2)]
        for process in commands:
            _, stderr = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, stderr.decode())
        runs = [path for path in (self.dir / "runs").iterdir() if path.is_dir()]
        self.assertEqual(len(runs), 2)
        rows = (self.dir / "runs" / "results.csv").read_text().splitlines()
        self.assertEqual(len(rows), 3)

    def test_non_finite_loss_names_step_and_tensor(self):
        result = self.train("--num-iterations", "40", "--lr-mult", "1e30", "--eval-every", "-1",
                            "--save-every", "1")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("at step", result.stderr)
        self.assertIn("first non-finite value", result.stderr)
        self.assertIn("last good checkpoint", result.stderr)
        self.assertEqual(self.summary(self.only_run())["status"], "nonfinite")
        # The last good one is good.
        last = sorted((self.only_run() / "checkpoints").glob("step_*"))[-1]
        self.assertIn(f"last good checkpoint: {last.relative_to(self.dir)}", result.stderr)
        for name in ["model.safetensors", "optimizer.safetensors"]:
            raw = (last / name).read_bytes()
            values = array.array("f", raw[8 + int.from_bytes(raw[:8], "little"):])
            self.assertTrue(all(map(math.isfinite, values)), name)

    def test_non_finite_weights_are_not_saved(self):
        # The loss of the step is fine, the rate makes its update infinite.
        result = self.train("--num-iterations", "5", "--matrix-lr", "1e60", "--eval-every", "-1",
                            "--save-every", "1")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("nothing saved at step 1; first non-finite value: ", result.stderr)
        self.assertIn("no checkpoint was saved yet", result.stderr)
        run = self.only_run()
        self.assertEqual(self.summary(run)["status"], "nonfinite")
        self.assertEqual(list((run / "checkpoints").iterdir()), [])

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
