"""What `check` judges and its exit codes; flags and commands that this version lacks."""
import array
import json
import os
import pathlib
import shutil
import subprocess
import unittest

from common import Case

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tiny-nanochat-2026-07"
REWRITES = ["fused-qk-norm", "fused-relu2", "fused-rmsnorm", "chunked-ce"]


class Check(Case):
    def check(self, code, *args):
        result = self.run_tool("check", *args, "--device", "cpu")
        self.assertEqual(result.returncode, code, result.stderr + result.stdout)
        return result.stdout

    def test_a_case_that_holds(self):
        shown = self.check(0, GOLDEN, "--rewrites", "all")
        self.assertIn(f"[{' '.join(REWRITES)}]", shown)
        self.assertIn("1 runs, 0 failed\n", shown)

    def test_a_case_that_does_not(self):
        case = self.dir / "case"
        shutil.copytree(GOLDEN, case)
        path = case / "case.json"
        changed = json.loads(path.read_text())
        changed["losses"][0] *= 1 + 1e-5
        path.write_text(json.dumps(changed))
        shown = self.check(1, GOLDEN, case, "--rewrites", "none")
        self.assertRegex(shown, r"(?m)^ok .*tiny-nanochat-2026-07 ")
        self.assertRegex(shown, r"(?m)^FAIL .*case .*worst loss\.step0 1\.00e-05 of 1e-06$")
        self.assertRegex(shown, r"(?m)^ +FAIL loss\.step0: 1\.000e-05, tolerance 1e-06$")
        self.assertIn("2 runs, 1 failed\n", shown)
        report = json.loads(self.check(1, case, "--rewrites", "none", "--json"))
        self.assertFalse(report["ok"])
        self.assertEqual(report["failures"], [])

    def test_tolerances_follow_the_dtype_and_not_the_name(self):
        case = self.dir / "nanochat-a"
        shutil.copytree(GOLDEN, case)
        path = case / "expected.safetensors"
        raw = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(raw[:8], "little")
        begin, end = json.loads(raw[8:start])["step0.grad.lm_head.weight"]["data_offsets"]
        values = array.array("f", raw[start + begin:start + end])
        raw[start + begin:start + end] = array.array("f", [x * (1 + 5e-5) for x in values]).tobytes()
        path.write_bytes(raw)
        shown = self.check(1, case, "--rewrites", "none")
        self.assertRegex(shown, r"(?m)^ +FAIL grad\.lm_head\.weight: 5\.\d*e-05, tolerance 2e-05$")
        path = case / "case.json"
        path.write_text(path.read_text().replace('"float32"', '"bfloat16"'))
        result = self.run_tool("check", case)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("case.json: dtype 'bfloat16': tolerances are known for float32 only",
                      result.stderr)

    def test_a_rewrite_that_was_asked_for_and_did_not_apply(self):
        program = os.environ.get("TL_NO_SITE_BINARY")   # set by ctest
        if program is None:
            self.skipTest("TL_NO_SITE_BINARY is not set")
        command = [program, "check", GOLDEN, "--device", "cpu", "--rewrites"]
        why = [f"rewrite chunked-ce did not apply to the Program 'micro-step, {which}': "
               "loss: the logits have another reader" for which in ["first", "later"]]
        for rewrites in ["chunked-ce", "fused-relu2,chunked-ce"]:
            done = subprocess.run([*command, rewrites], capture_output=True, text=True)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertRegex(done.stdout, r"(?m)^FAIL .*tiny-nanochat-2026-07 ")
            for sentence in why:
                self.assertIn(f"\n      {sentence}\n", done.stdout)
            self.assertNotIn("      FAIL", done.stdout)   # every quantity is right
            self.assertIn("1 runs, 1 failed\n", done.stdout)
        done = subprocess.run([*command, "chunked-ce", "--json"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(json.loads(done.stdout)["failures"], why)
        done = subprocess.run([*command, "fused-relu2"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_bf16_is_for_cuda(self):
        for args in [["--dtype", "bf16"], ["--dtype", "bf16", "--device", "ref"]]:
            result = self.run_tool("check", GOLDEN, *args)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn("--dtype bf16 computes on cuda only", result.stderr)
        result = self.run_tool("check", GOLDEN, "--dtype", "i32")
        self.assertEqual(result.returncode, 2, result.stderr)

    def test_unknown_rewrite(self):
        result = self.run_tool("check", GOLDEN, "--rewrites", "fused-relu3")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("unknown rewrite 'fused-relu3'", result.stderr)
        self.assertIn("fused-relu2", result.stderr)

    def test_what_this_version_lacks_is_named(self):
        for args, instead in [(["check", GOLDEN, "--bisect"], "--rewrites none"),
                              (["train", "--fused-norm-linear"], "--fused-rmsnorm"),
                              (["train", "--core-metric-every=5"], "--eval-every"),
                              (["explain", "--fused-norm-linear"], "--fused-rmsnorm"),
                              (["chat"], "tightloop generate"),
                              (["chat", "runs/x"], "tightloop generate"),
                              (["bench", "decode"], "tightloop generate"),
                              (["bench", "compare"], "bench train --compare")]:
            result = self.run_tool(*args)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertRegex(result.stderr, r"(?m)^error: .* is not available yet: ")
            self.assertRegex(result.stderr, rf"(?m)^hint: use what this version has: .*{instead}")
            self.assertEqual(result.stdout, "")


if __name__ == "__main__":
    unittest.main(verbosity=2)
