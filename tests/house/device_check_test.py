"""Tests tools/device_check without a GPU: on programs that only pretend to be the real ones."""

import json
import os
import subprocess
import tempfile
import textwrap
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "device_check"

# What `tightloop` prints and writes, as far as device_check looks at it. SPOIL names what goes wrong.
TIGHTLOOP = r"""#!/usr/bin/env python3
import json, os, pathlib, sys
command, arguments, spoil = sys.argv[1], sys.argv[2:], os.environ.get("SPOIL", "")
value = lambda flag: arguments[arguments.index(flag) + 1]
if command == "doctor":
    cuda = {"built": True, "device": {"name": "Pretend 1", "compute_capability": "9.0",
            "memory_total_bytes": 2 ** 37, "runtime_cuda": "13.0"}}
    if spoil == "device":
        cuda = {"built": True, "reason": "no CUDA device: it is a pity"}
    print(json.dumps({"build": {"commit": "c0ffee"}, "cuda": cuda,
                      "checks": [{"name": "cuda", "ok": spoil != "doctor", "detail": "seen"}]}))
    sys.exit(3 if spoil == "doctor" else 0)
if command == "check":
    generic = "--arch" in arguments
    assert value("--device") == "cuda" and value("--rewrites") == ("none" if generic else "sweep")
    bad = spoil == ("generic" if generic else "check")
    print("FAIL  case" if bad else "ok    case")
    sys.exit(bad)
if command == "train":
    resumed = "--resume" in arguments
    run = pathlib.Path(value("--resume") if resumed else value("--run-dir") + "/2026-run")
    for step in ("10", "20", "30"):
        folder = run / "checkpoints" / ("step_0000" + step)
        assert not (resumed and step == "10" and not folder.exists())
        folder.mkdir(parents=True, exist_ok=True)
        text = "resumed" if spoil == "resume" and resumed else "another" * (
            (spoil == "repeat" and "second" in str(run)) or (spoil == "watched" and "watched" in str(run)))
        for name in ("model", "optimizer"):
            (folder / (name + ".safetensors")).write_text(text)
    (run / "summary.json").write_text(json.dumps({
        "graphs_captured_in_steps": 0, "graph_breaks_in_steps": 0, "device_allocations_in_steps": 0,
        "device_syncs_in_steps": 2 * (spoil == "syncs"), "blocks_made_in_steps": 0}))
if command == "bench":
    assert value("--device") == "cuda"
    if spoil == "bench" and value("--dtype") == "f32":
        sys.exit("the bench needs more")
    times = {"median_ms": 100.0, "min_ms": 99.0, "max_ms": 101.0}
    print(json.dumps({"event": "train", "dtype": value("--dtype"), "micro_step": times, "step": times,
                      "micro_step_gflops": 40.0, "step_gflops": 30.0, "fma_gflops": 80.0,
                      "tok_per_sec": 123456.0, "first_step_ms": 7.0, "memory_bytes": 2 ** 34,
                      "model": {"micro_batch": 32, "sequence": 2048}}))
    print(json.dumps({"event": "op", "op": "linear"}))
"""
TESTS = "#!/bin/sh\necho '[==========] 7 tests from 3 test suites ran.'\n[ \"$SPOIL\" != ops ]\n"
# What racecheck finds does not show in its exit code: device_check reads its report.
SANITIZER = """#!/bin/sh
race() {
  echo "========= Error: Race reported between Read access at $1+0xa60"
  echo "=========     and Write access at $1+0x2fb0 [512 hazards]"
  echo '========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)'
}
case "$*" in
  "--tool memcheck --error-exitcode 9 "*)
    [ "$SPOIL" = memcheck ] && { echo '========= ERROR SUMMARY: 3 errors'; exit 9; }
    echo '========= ERROR SUMMARY: 0 errors' ;;
  "--tool racecheck --print-limit 100000 --kernel-name-exclude kernel_substring=cudnn "*)
    case $SPOIL in
      racecheck) race row_kernel ;;
      nvjet) race nvjet_sm90_tst_64x96 ;;
      unknown) echo '========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)' ;;
      cut) ;;
      crash) exit 3 ;;
      *) echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)' ;;
    esac ;;
  *) exit 5 ;;
esac
echo '[==========] 7 tests from 3 test suites ran.'
"""
OPS_BENCH = """#!/bin/sh
[ "$1" = --json ] || exit 2
echo '{"event":"kernel","kernel":"rmsnorm 8 x 9","us":20.00,"p10":19.00,"p90":21.00,"floor_us":15.00}'
[ "$SPOIL" != kernels ]
"""
GEMM_BENCH = """#!/bin/sh
echo '{"event":"kernel","kernel":"product nt 1 x 2 x 3 x 4 ","us":50.00,"floor_us":45.00,"peer":"cuBLASLt","peer_us":55.00}'
"""
STEPS = ["device", "ops", "check", "repeat", "generic", "memcheck", "racecheck", "kernels", "bench"]


class DeviceCheck(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.dir = Path(holder.name)
        (self.dir / "path").mkdir()
        for name, text in (
            ("build/bin/tightloop", TIGHTLOOP),
            ("build/ops/ops_all_test", TESTS),
            ("build/bench/ops_cuda_bench", OPS_BENCH),
            ("build/bench/gemm_cuda_bench", GEMM_BENCH),
            ("path/compute-sanitizer", SANITIZER),
            ("path/nvidia-smi", "#!/bin/sh\necho 580.1\n"),
        ):
            path = self.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
            path.chmod(0o755)

    def check(self, *arguments, spoil=""):
        """Returns (exit code, {step: verdict}, whole output, JSON lines)."""
        out = self.dir / "results" / "out.jsonl"
        env = dict(os.environ, SPOIL=spoil, PATH=f"{self.dir / 'path'}:{os.environ['PATH']}")
        done = subprocess.run(
            [SCRIPT, "--build", self.dir / "build", "--out", out, *arguments],
            env=env, capture_output=True, text=True, check=False, cwd=self.dir,
        )
        verdicts = dict(line.split()[:2] for line in done.stdout.splitlines()
                        if line.split()[:1] and line.split()[0] in STEPS)
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return done.returncode, verdicts, done.stdout + done.stderr, lines

    def test_everything_passes(self):
        code, verdicts, text, lines = self.check()
        self.assertEqual((code, verdicts), (0, dict.fromkeys(STEPS, "ok")), text)
        self.assertIn("device_check: Pretend 1, driver 580.1, commit c0ffee", text)
        self.assertIn("7 tests from 3", text)
        self.assertRegex(text, r"bf16 32 x 2048, forward \+ backward +100.0 ms +99.0 +101.0 +50.0 +50.0%")
        self.assertRegex(text, r"f32 32 x 2048, tokens/s +123,456")
        self.assertRegex(text, r"rmsnorm 8 x 9 +15.0 us +20.0 us +75.0%\n")
        self.assertRegex(text, r"product nt 1 x 2 x 3 x 4 +45.0 us +50.0 us +90.0% +55.0 us +1.10 +cuBLASLt\n")
        self.assertEqual([line["step"] for line in lines if line["event"] == "step"], STEPS)
        self.assertEqual(sum(line["event"] == "kernel" for line in lines), 2)
        self.assertEqual(sum(line["event"] == "train" for line in lines), 2)
        for line in lines:
            self.assertEqual((line["gpu"], line["driver"]), ("Pretend 1", "580.1"), line)

    def test_each_step_can_fail_alone(self):
        says = {
            "device": "no CUDA device: it is a pity", "ops": "", "check": "4 do not", "generic": "2 do not",
            "memcheck": "ERROR SUMMARY: 3 errors", "racecheck": " 0 in kernels of cuBLASLt, ",
            "kernels": "ops_cuda_bench failed", "bench": "f32 failed",
        }
        for step, detail in says.items():
            with self.subTest(step):
                code, verdicts, text, lines = self.check(spoil=step)
                self.assertEqual(code, 1, text)
                self.assertEqual(verdicts.pop(step), "FAILED", text)
                self.assertEqual(set(verdicts.values()), {"FAILED"} if step == "device" else {"ok"}, text)
                self.assertIn(detail, text)

    def test_what_racecheck_reports(self):
        processes = min(os.cpu_count(), 16)
        for spoil, verdict, detail in (
                ("", "ok", f"{7 * processes} tests, {processes} processes, 0 found: 0 in kernels of cuBLASLt, 0 in others"),
                ("nvjet", "ok", f"{processes} found: {processes} in kernels of cuBLASLt, 0 in others"),
                ("racecheck", "FAILED", f"{processes} found: 0 in kernels of cuBLASLt, {processes} in others"),
                ("unknown", "FAILED", f"0 in kernels of cuBLASLt, {2 * processes} in others"),
                ("cut", "FAILED", "a summary is missing"), ("crash", "FAILED", "ended with code 3")):
            with self.subTest(spoil):
                code, verdicts, text, _ = self.check("--only", "racecheck", spoil=spoil)
                self.assertEqual((code, verdicts),
                                 (int(verdict != "ok"), {"device": "ok", "racecheck": verdict}), text)
                self.assertIn(detail, text)

    def test_bits_that_differ(self):
        for spoil, detail in (("repeat", "f32: two runs differ"), ("resume", "f32: the resumed run differs"),
                              ("watched", "f32: the run with --debug-sync differs"),
                              ("syncs", "in steps: 2 device_syncs_in_steps")):
            with self.subTest(spoil):
                code, verdicts, text, _ = self.check("--only", "repeat", spoil=spoil)
                self.assertEqual((code, verdicts), (1, {"device": "ok", "repeat": "FAILED"}), text)
                self.assertIn(detail, text)

    def test_self_test_that_fails(self):
        code, verdicts, text, _ = self.check("--only", "ops", spoil="doctor")
        self.assertEqual((code, verdicts), (1, {"device": "FAILED", "ops": "ok"}), text)
        self.assertIn("cuda: seen", text)

    def test_missing_programs(self):
        (self.dir / "build/ops/ops_all_test").unlink()
        code, verdicts, text, _ = self.check("--only", "ops,memcheck,check")
        self.assertEqual((code, verdicts["check"], verdicts["memcheck"]), (1, "ok", "FAILED"), text)
        self.assertIn("no program ops_all_test below", text)

    def test_usage(self):
        for arguments in (["--only", "opz"], ["--bogus"], [self.dir / "path"], ["--out"]):
            with self.subTest(arguments):
                self.assertEqual(self.check(*arguments)[0], 2)


if __name__ == "__main__":
    unittest.main()
