"""The memory plan against the resident peak that the kernel reports for the whole process."""
import json
import os
import subprocess
import unittest

import common
from common import Case

SMALL = ["--depth", "1", "--aspect-ratio", "32", "--head-dim", "16"]
LARGE = ["--depth", "2", "--aspect-ratio", "192", "--head-dim", "64"]
BATCH = ["--max-seq-len", "256", "--device-batch-size", "16", "--total-batch-size", "4096",
         "--num-iterations", "2", "--eval-tokens", "4096", "--threads", "2"]


class Memory(Case):
    def resident_peak(self, *arguments):
        """Of the program with these arguments, as wait4 tells it."""
        command = [common.BINARY, *arguments]
        env = dict(os.environ, TL_HOME=str(self.home / "tl"))
        process = subprocess.Popen(command, cwd=self.dir, env=env, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        stderr = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.stderr.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0, stderr)
        return usage.ru_maxrss * 1024

    def peak(self, name, *args):
        """Resident peak of a training run, and its summary."""
        peak = self.resident_peak("train", "--data", str(self.data), "--run", name, *BATCH, *args)
        summary, = self.dir.glob(f"runs/*-{name}-*/summary.json")
        return peak, json.loads(summary.read_text())

    def test_resident_peak_is_the_plan_and_a_named_list(self):
        # The list of docs/design.md, but for the weights: the program and its libraries, data,
        # batches, tokenizer, threads and records. A run of a small model on the same batches has it
        # all, and next to no plan.
        if self.resident_peak("--version") > 128 << 20:
            self.skipTest("built with CUDA: 200 MiB of cuBLASLt, whose pages come and go")
        small_peak, small = self.peak("small", *SMALL)
        named = small_peak - small["planned_bytes"]
        self.assertLess(named, 64 << 20)
        for name, rewrites in [("fused", []),
                               ("plain", ["--no-fused-rmsnorm", "--no-fused-relu2",
                                          "--no-fused-qk-norm", "--no-chunked-ce"])]:
            peak, summary = self.peak(name, *LARGE, *rewrites)
            plan = summary["planned_bytes"]
            self.assertGreater(plan, 200 << 20)
            self.assertLess(abs(peak - named - plan), 0.02 * plan,
                            f"{name}: peak {peak}, named {named}, plan {plan}")
            # What the process counts itself: the blocks of the plan, and the sampler's.
            self.assertGreaterEqual(summary["peak_bytes"], plan)
            self.assertLess(summary["peak_bytes"], 1.02 * plan)


if __name__ == "__main__":
    unittest.main(verbosity=2)
