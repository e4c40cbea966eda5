"""Commands around training: what they print holds together, and their JSON can be relied on."""
import csv
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time
import tomllib
import unittest

import common
from common import Case, TINY

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[2] / "configs").glob("*.toml"))
BENCH = ["--depth", "1", "--aspect-ratio", "32", "--head-dim", "16", "--max-seq-len", "32",
         "--device-batch-size", "2", "--vocab", "300", "--steps", "2"]


class Commands(Case):
    def ok(self, *args):
        result = self.run_tool(*args)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        return result.stdout

    def lines(self, *args):
        return [json.loads(line) for line in self.ok(*args).splitlines()]

    def positive(self, object_, *fields):
        for field in fields:
            self.assertGreater(object_[field], 0, field)

    def test_doctor(self):
        report = json.loads(self.ok("doctor", "--json"))
        self.assertTrue(report["ok"])
        cuda = report["cuda"]
        checks = ["gradients", "same bits", "tokenizer", "files"]
        if "device" in cuda:
            self.assertTrue(cuda["built"])
            self.positive(cuda["device"], "multiprocessors", "memory_total_bytes")
            checks.insert(2, "cuda")
        else:
            self.assertTrue(cuda["reason"].startswith("no CUDA device: "), cuda)
            self.assertEqual(cuda["built"], "without CUDA" not in cuda["reason"], cuda)
        self.assertEqual([check["name"] for check in report["checks"]], checks)
        self.assertTrue(all(check["ok"] and check["detail"] for check in report["checks"]))
        self.positive(report["ceilings"], "fma_gflops", "read_gbs", "copy_gbs", "update_gbs",
                      "threads")
        self.positive(report["machine"], "logical_cpus", "memory_total_bytes")
        self.positive(report, "disk_free_bytes")
        self.assertIn("commit", report["build"])

    def test_config_show_prints_what_follows_from_the_depth(self):
        # By hand: width 768 = 12 x 64 = 6 heads of 128. At depth 12 the reference is the model
        # itself, so the batch is 2^19 and every coupled factor 1. The scaling parameters are
        # 12 layers x 12 x 768^2, six gates of 6 heads x 12 channels, and the head over the padded
        # vocabulary.
        shown = json.loads(self.ok("config", "show", "--depth", "12", "--data", self.data,
                                   "--json"))
        options, derived = shown["options"], shown["derived"]
        value = lambda key: float(derived[key]["value"])
        self.assertEqual(value("width"), 768)
        self.assertEqual(value("heads"), 6)
        vocab = 64 * -(-int(value("vocab_size")) // 64)
        scaling = 12 * 12 * 768 ** 2 + 6 * 6 * 12 + 768 * vocab
        self.assertEqual(value("scaling_parameters"), scaling)
        self.assertEqual(value("lr_factor"), 1)
        self.assertAlmostEqual(value("weight_decay"), 0.28)
        self.assertEqual(options["train.total_batch_size"]["value"], "524288")
        steps = 12 * scaling // 524288
        self.assertEqual(options["train.num_iterations"]["value"], str(steps))
        self.assertIn("derived", options["train.num_iterations"]["origin"])
        self.assertEqual(options["optim.matrix_lr"]["value"], "0.02")
        self.assertEqual(options["optim.matrix_lr"]["origin"], "recipe 2026-07")
        self.assertAlmostEqual(value("decay_timescale"), 1 / (0.02 * 0.28 * steps), places=5)
        self.assertAlmostEqual(value("lr.embed"), 0.3)
        # The laws couple: four times the batch, twice the rates; the flag still wins.
        wide = json.loads(self.ok("config", "show", "--depth", "12", "--data", self.data,
                                  "--batch-mult", "4", "--num-iterations", "7", "--json"))
        self.assertEqual(float(wide["derived"]["lr_factor"]["value"]), 2)
        self.assertEqual(wide["options"]["train.num_iterations"],
                         {"value": "7", "default": "", "unit": "steps", "origin": "flag",
                          "flag": "--num-iterations"})
        text = self.ok("config", "show", "--depth", "12", "--data", self.data)
        self.assertRegex(text, r"derived\.width +768 +.*depth x aspect ratio")

    def test_config_show_is_what_training_does(self):
        shown = json.loads(self.ok("config", "show", "--data", self.data, *TINY,
                                   "--num-iterations", "3", "--json"))
        done = self.train("--num-iterations", "3", "--eval-every", "-1")
        self.assertEqual(done.returncode, 0, done.stderr)
        record = json.loads((self.only_run() / "run.json").read_text())
        derived = shown["derived"]
        self.assertEqual(int(derived["parameters"]["value"]), record["parameters"])
        self.assertEqual(int(derived["width"]["value"]), record["model"]["n_embd"])
        self.assertAlmostEqual(float(derived["lr_factor"]["value"]), record["lr_factor"], places=5)

    def test_records_equal_what_the_loop_printed(self):
        # The loop prints each step itself; a thread of its own writes the record later.
        done = self.train("--num-iterations", "12", "--eval-every", "5", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        steps = [(e["step"], e["loss"]) for e in events if e["event"] == "step"]
        self.assertEqual([step for step, _ in steps], list(range(12)))
        run = self.only_run()
        self.assertEqual(steps, [(step, struct.unpack("<d", loss)[0])
                                 for step, loss in common.losses(run)])
        with open(run / "steps.csv", newline="") as f:
            self.assertEqual(steps, [(int(row["step"]), float(row["loss"]))
                                     for row in csv.DictReader(f)])
        with open(run / "evals.csv", newline="") as f:
            recorded = [(int(row["step"]), float(row["val_loss"]), float(row["val_bpb"]))
                        for row in csv.DictReader(f)]
        self.assertEqual(recorded, [(e["step"], e["val_loss"], e["val_bpb"]) for e in events
                                    if e["event"] == "eval"])
        self.assertEqual([step for step, _, _ in recorded], [0, 5, 10, 12])

    def test_old_checkpoints_are_pruned(self):
        for keep, left in [("1", [10]), ("3", [8, 9, 10])]:
            done = self.train("--num-iterations", "10", "--eval-every", "-1", "--save-every", "1",
                              "--keep-checkpoints", keep)
            self.assertEqual(done.returncode, 0, done.stderr)
            names = sorted(p.name for p in (self.only_run() / "checkpoints").iterdir())
            self.assertEqual(names, [f"step_{step:06d}" for step in left])
            shutil.rmtree(self.dir / "runs")

    def test_every_config_file_loads(self):
        self.assertGreaterEqual(len(CONFIGS), 3)
        for path in CONFIGS:
            with self.subTest(path.name):
                shown = json.loads(self.ok("config", "show", "-c", path, "--json"))["options"]
                for table, entries in tomllib.loads(path.read_text()).items():
                    for key, value in entries.items():
                        option = shown[f"{table}.{key}"]
                        self.assertEqual(option["value"], str(value))
                        self.assertIn(path.name, option["origin"])

    def test_a_chunk_budget_that_holds_no_chunk_is_refused(self):
        done = self.run_tool("explain", "--preset", "quick", "--ce-chunk-bytes", "4096")
        self.assertEqual(done.returncode, 2)
        self.assertIn("chunked-ce takes 8 rows of 256 logits at least", done.stderr)
        self.assertIn("--ce-chunk-bytes 8192", done.stderr)
        self.ok("explain", "--preset", "quick", "--ce-chunk-bytes", "8192")

    def test_switches(self):
        for flags, value in ([], "true"), (["--fused-rmsnorm=false"], "false"), \
                (["--fused-rmsnorm=off"], "false"), (["--no-fused-rmsnorm"], "false"), \
                (["--fused-rmsnorm", "--fused-rmsnorm"], "true"):
            with self.subTest(flags):
                shown = json.loads(self.ok("config", "show", *flags, "--json"))["options"]
                self.assertEqual(shown["rewrite.fused-rmsnorm"]["value"], value)
        for flags, message in (["--fused-rmsnorm=maybe"], "'maybe' is neither true nor false"), \
                (["--no-fused-rmsnorm=on"], "--no-fused-rmsnorm takes no value"), \
                (["--no-fused-rmsnorm", "--fused-rmsnorm"],
                 "--fused-rmsnorm is both switched on and off"):
            with self.subTest(flags):
                done = self.run_tool("config", "show", *flags)
                self.assertEqual(done.returncode, 2)
                self.assertIn(message, done.stderr)

    def test_quick_config_is_the_quick_preset(self):
        path, = [path for path in CONFIGS if path.name == "quick.toml"]
        values = [{key: option["value"] for key, option in
                   json.loads(self.ok("config", "show", *source, "--json"))["options"].items()}
                  for source in (["-c", path], ["--preset", "quick"])]
        self.assertEqual(*values)

    def check_samples(self, samples, count):
        self.assertEqual(samples["samples"], count)
        ordered = ["min_ms", "p10_ms", "median_ms", "p90_ms", "max_ms"]
        self.positive(samples, *ordered)
        for less, more in zip(ordered, ordered[1:]):
            self.assertLessEqual(samples[less], samples[more])

    def test_bench_train(self):
        whole, *ops = self.lines("bench", "train", *BENCH, "--json")
        self.assertEqual((whole["v"], whole["event"]), (1, "train"))
        self.assertEqual(whole["model"]["width"], 32)
        self.assertEqual(whole["micro_steps"], 1)
        for part in ("micro_step", "optimizer", "step"):
            self.check_samples(whole[part], 2)
        self.positive(whole, "tok_per_sec", "flops_per_token", "micro_step_gflops", "step_gflops",
                      "fma_gflops", "read_gbs", "share_of_peak", "memory_bytes", "startup_ms")
        self.assertIn("linear", {op["op"] for op in ops})
        several = self.lines("bench", "train", *BENCH, "--total-batch-size", "256", "--json")[0]
        self.assertEqual(several["micro_steps"], 4)
        self.check_samples(several["later_micro_step"], 2)

    def test_bench_compare(self):
        line, = self.lines("bench", "train", *BENCH, "--compare", "chunked-ce", "--json")
        self.assertEqual(line["rewrite"], "chunked-ce")
        self.check_samples(line["with"], 4)
        self.check_samples(line["without"], 4)
        self.assertLessEqual(line["ratio_low"], line["ratio"])
        self.assertLessEqual(line["ratio"], line["ratio_high"])
        self.assertAlmostEqual(line["loss_with"], line["loss_without"], places=4)

    def test_bench_ops(self):
        rows = self.lines("bench", "ops", *BENCH, "--json")
        for row in rows:
            self.assertEqual(row["event"], "op")
            self.check_samples(row, 2)
            self.positive(row, "count", "bytes", "gbs", "floor_ms", "share_of_floor")
            self.assertGreaterEqual(row["flops"], 0)
        self.assertLessEqual({"linear", "linear_dw", "attention", "adamw"},
                             {row["op"] for row in rows})
        only = self.lines("bench", "ops", "linear", *BENCH, "--json")
        self.assertEqual({row["op"] for row in only}, {"linear"})
        unknown = self.run_tool("bench", "ops", "linaer", *BENCH)
        self.assertEqual(unknown.returncode, 2)
        self.assertIn("'linear'", unknown.stderr)

    def test_explain(self):
        arguments = ["explain", "--data", self.data, *TINY, "--num-iterations", "1"]
        report = json.loads(self.ok(*arguments, "--fused-rmsnorm", "--json"))
        applied = {r["name"]: r["applied"] for r in report["rewrites"]}
        self.assertEqual(sorted(applied),
                         ["chunked-ce", "fused-qk-norm", "fused-relu2", "fused-rmsnorm"])
        for name, sites in applied.items():
            self.assertTrue(sites, name)
            for site in sites:
                self.assertTrue(site["scope"] and site["what"])
        saved = lambda sites, key: sum(s[key]["bytes_read"] + s[key]["bytes_written"]
                                       for s in sites)
        self.assertLess(saved(applied["fused-rmsnorm"], "after"),
                        saved(applied["fused-rmsnorm"], "before"))
        self.assertEqual(max(op["live_bytes"] for op in report["ops"]), report["peak_live_bytes"])
        self.assertEqual(report["ops"][report["peak_op"]]["live_bytes"], report["peak_live_bytes"])
        self.assertLessEqual(report["peak_live_bytes"],
                             report["arena_bytes"] + report["memory"]["scratch"])
        text = self.ok(*arguments, "--fused-rmsnorm", "--ops")
        # One op for loss and gradients: most of it is backward work, and counts as such.
        scope, = {op["scope"] for op in report["ops"] if op["op"] == "linear_cross_entropy_grad"}
        self.assertTrue(scope.endswith("'"), scope)
        for name in applied:
            self.assertRegex(text, rf"--{name}: \d+ place")
        self.assertIn("memory of the run by purpose", text)
        self.assertIn("linear_cross_entropy_grad", text)
        plain = json.loads(self.ok(*arguments, "--plain", "--json"))
        self.assertEqual(plain["rewrites"], [])
        self.assertNotIn("linear_cross_entropy_grad", {op["op"] for op in plain["ops"]})
        evaluation = json.loads(self.ok(*arguments, "--program", "evaluation", "--json"))
        self.assertNotIn("chunked-ce", {r["name"] for r in evaluation["rewrites"] if r["applied"]})

    def test_explain_warns_of_a_busy_machine(self):
        spin = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
                for _ in range(os.cpu_count())]
        try:
            time.sleep(0.2)
            shown = self.run_tool("explain", "--data", self.data, *TINY, "--num-iterations", "1")
        finally:
            for process in spin:
                process.kill()
                process.wait()
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertRegex(shown.stderr, r"warning: other programs took \d+ % of the CPU time .*low")

    def test_data_inspect(self):
        shown = json.loads(self.ok("data", "inspect", self.data, "--json"))
        self.positive(shown, "tokens", "documents")
        self.assertGreaterEqual(shown["tokens"], 68000)
        text = self.ok("data", "inspect", self.data)
        self.assertIn("train", text)
        self.assertIn("documents", text)

    def test_data_rows(self):
        made = json.loads(self.ok("data", "rows", self.data, "-o", "rows.bin", "--rows", "24",
                                  "--max-seq-len", "64", "--json"))
        self.assertEqual((made["rows"], made["row_tokens"], made["packing"]), (24, 65, "in-order"))

        def tokens(path):
            raw = path.read_bytes()
            return list(struct.unpack(f"<{(len(raw) - 1024) // 2}H", raw[1024:]))

        # Documents as they come; the rest of one that does not fit is dropped.
        stream = tokens(sorted(self.data.glob("train_*.bin"))[0])
        starts = [i for i, token in enumerate(stream) if token == stream[0]]
        documents = iter(stream[a:b] for a, b in zip(starts, starts[1:]))
        expected = []
        while len(expected) < 24 * 65:
            room = 65 - len(expected) % 65
            expected += next(documents)[:room]
        self.assertEqual(tokens(self.dir / "rows.bin"), expected)
        for args, says in [(["--rows", "0", "-o", "x.bin"], "--rows: 0"),
                           (["--rows", "1"], "--output is required")]:
            result = self.run_tool("data", "rows", self.data, *args)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(says, result.stderr)

    def test_tokenizer_round_trip(self):
        # Bytes that are no UTF-8, a special token's name, carriage returns, no final line end.
        text = ("The caf\u00e9 isn't open; 1234 \u6f22\u5b57 \U0001f408\r\n\t  <|bos|> the end" * 50)
        raw = text.encode() + b"\xff\xfe\x80 tail"
        (self.dir / "text.txt").write_bytes(raw)
        for split in ("nanochat", "gpt2"):
            made = json.loads(self.ok("tokenizer", "train", "text.txt", "-o", "t.json",
                                      "--vocab-size", "320", "--split", split, "--json"))
            self.assertEqual(made["file"], "t.json")
            self.assertLessEqual(made["vocab_size"], 320)
            encoded = json.loads(self.ok("tokenizer", "encode", "t.json", "text.txt", "--json"))
            self.assertEqual(encoded["bytes"], len(raw))
            self.positive(encoded, "mb_per_sec")
            self.assertLess(len(encoded["ids"]), len(raw) // 2)
            plain = self.run_tool("tokenizer", "encode", "t.json", "text.txt")
            self.assertEqual([int(word) for word in plain.stdout.split()], encoded["ids"])
            self.assertRegex(plain.stderr, rf"{len(raw)} bytes, .* MB/s")
            (self.dir / "ids.txt").write_text(plain.stdout)
            with open(self.dir / "decoded.txt", "wb") as out:
                subprocess.run([common.BINARY, "tokenizer", "decode", "t.json", "ids.txt"],
                               cwd=self.dir, stdout=out, check=True)
            self.assertEqual((self.dir / "decoded.txt").read_bytes(), raw)
        special = json.loads(self.ok("tokenizer", "encode", "t.json", "text.txt", "--specials",
                                     "--json"))
        self.assertEqual(len(special["ids"]), len(encoded["ids"]))   # gpt2's has no <|bos|>
        bad = self.run_tool("tokenizer", "decode", "t.json", "text.txt")
        self.assertEqual(bad.returncode, 2)
        self.assertIn("not a whole number", bad.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
