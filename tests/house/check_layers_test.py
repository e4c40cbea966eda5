"""Tests tools/check_layers.py on small made-up trees: each rule must fire, and only where it should."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "check_layers.py"


def run_on(files):
    """Writes {path below src/tightloop: text} into a new tree; returns (exit code, output lines)."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src" / "tightloop"
        source.mkdir(parents=True)
        for name, text in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        done = subprocess.run(
            [sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout.splitlines()


class CheckLayers(unittest.TestCase):
    def expect_clean(self, files):
        code, lines = run_on(files)
        self.assertEqual((code, lines), (0, ["check_layers: ok"]))

    def expect_one(self, files, start, *fragments):
        code, lines = run_on(files)
        self.assertEqual(code, 1, lines)
        self.assertEqual(len(lines), 2, lines)
        self.assertTrue(lines[0].startswith(start), lines[0])
        for fragment in fragments:
            self.assertIn(fragment, lines[0])

    def test_this_project_is_clean(self):
        done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_allowed_includes(self):
        self.expect_clean({
            "core/a.h": '#include <vector>\n#include "tightloop/core/b.h"\n',
            "ops/norm/norm.cpp": '#include "tightloop/ops/norm/norm.h"\n'
            '#include "tightloop/ops/common/gemm.h"\n#include "tightloop/program/op.h"\n',
            "engine/plan.cpp": '#include "tightloop/ops/norm/norm.h"\n',
            "cli/main.cpp": '#include "tightloop/train/loop.h"\n',
        })

    def test_upward_include_names_place_and_path(self):
        self.expect_one(
            {"core/a.h": '#pragma once\n\n#include "tightloop/engine/plan.h"\n'},
            "src/tightloop/core/a.h:3:", "core may not include engine", "tightloop/engine/plan.h",
        )

    def test_sideways_include(self):
        self.expect_one(
            {"text/a.cpp": '#include "tightloop/io/b.h"\n'},
            "src/tightloop/text/a.cpp:1:", "text may not include io",
        )

    def test_spaces_in_the_directive_do_not_hide_it(self):
        self.expect_one({"io/a.h": ' #  include "tightloop/train/x.h"\n'}, "src/tightloop/io/a.h:1:")

    def test_op_includes_op(self):
        self.expect_one(
            {"ops/a/a.cpp": '#include "tightloop/ops/b/b.h"\n'},
            "src/tightloop/ops/a/a.cpp:1:", "op a includes op b",
        )

    def test_common_includes_op(self):
        self.expect_one(
            {"ops/common/a.h": '#include "tightloop/ops/b/b.h"\n'},
            "src/tightloop/ops/common/a.h:1:", "ops/common may not include the op b",
        )

    def test_testing_headers_are_free_but_for_tests_only(self):
        header = {"ops/common/op_testing.h": '#include "tightloop/ops/b/b.h"\n'}
        include = '#include "tightloop/ops/common/op_testing.h"\n'
        self.expect_clean({**header, "ops/a/a_test.cpp": include})
        self.expect_one({**header, "ops/a/a.cpp": include}, "src/tightloop/ops/a/a.cpp:1:", "tests only")

    def test_unknown_layer_and_relative_include(self):
        self.expect_one({"io/a.h": '#include "tightloop/misc/x.h"\n'}, "src/tightloop/io/a.h:1:")
        self.expect_one({"io/a.h": '#include "b.h"\n'}, "src/tightloop/io/a.h:1:", "tightloop/<layer>")
        self.expect_one({"misc/a.h": "\n"}, "src/tightloop/misc/a.h:1:", "no layer")

    def test_printing_and_exit(self):
        for call in (
            "std::cout << 1;", "std::cerr << 1;", 'printf("x");', 'std::printf("x");',
            'fprintf(stderr, "x");', 'std::fputs("x", stdout);', 'fmt::print("x");', "std::exit(1);",
            "abort();",
        ):
            with self.subTest(call):
                self.expect_one({"io/a.cpp": f"void f() {{\n  {call}\n}}\n"}, "src/tightloop/io/a.cpp:2:")

    def test_printing_is_allowed_in_cli_and_tests(self):
        self.expect_clean({
            "cli/a.cpp": "std::cout << 1; std::exit(0);\n",
            "io/a_test.cpp": 'printf("x");\n',
        })

    def test_printing_in_comments_strings_and_lookalikes(self):
        self.expect_clean({
            "io/a.cpp": '// printf("x")\n/* std::cout\n abort(); */\nauto s = "std::cerr // exit(1)";\n'
            'int n = 1\'000; snprintf(b, 9, "x"); fprintf(file, "x"); stream.abort();\n',
        })

    def test_line_numbers_survive_block_comments(self):
        self.expect_one({"io/a.cpp": "/* 1\n 2\n*/\nabort();\n"}, "src/tightloop/io/a.cpp:4:")

    def test_gpu_headers(self):
        self.expect_one({"ops/a/a.cpp": "#include <cuda_runtime.h>\n"}, "src/tightloop/ops/a/a.cpp:1:")
        self.expect_one({"dist/a.h": "#include <mpi.h>\n"}, "src/tightloop/dist/a.h:1:")
        self.expect_clean({
            "ops/a/a.cu": "#include <cuda_runtime.h>\n",
            "ops/a/a.cuh": "#include <cub/block/block_reduce.cuh>\n",
            "dist/nccl.cpp": "#include <nccl.h>\n",
            "dist/mpi.cpp": "#include <mpi.h>\n",
        })

    def test_kernel_files_obey_the_layers_too(self):
        self.expect_one(
            {"ops/a/a.cu": '#include <cuda_runtime.h>\n#include "tightloop/engine/plan.h"\n'},
            "src/tightloop/ops/a/a.cu:2:", "ops may not include engine",
        )
        self.expect_one(
            {"ops/a/a.cu": '#include "tightloop/ops/b/b_device.cuh"\n'},
            "src/tightloop/ops/a/a.cu:1:", "op a includes op b",
        )
        self.expect_one({"ops/common/a.cuh": '#include "b.cuh"\n'}, "src/tightloop/ops/common/a.cuh:1:")
        self.expect_one({"ops/a/a.cu": 'void f() { printf("x"); }\n'}, "src/tightloop/ops/a/a.cu:1:")

    def test_cuh_is_for_kernel_files(self):
        header = '#include "tightloop/ops/common/rows.cuh"\n'
        for name in ("ops/a/a.h", "ops/a/a.cpp", "ops/a/a_test.cpp"):
            with self.subTest(name):
                self.expect_one({name: header}, f"src/tightloop/{name}:1:", "only .cu and .cuh")
        self.expect_clean({"ops/a/a.cu": header, "ops/common/b.cuh": header})

    def test_cudnn_has_one_file(self):
        wrapper = "ops/attention/attention_cudnn.cpp"
        self.expect_clean({wrapper: "#include <cuda_runtime.h>\n#include <cudnn.h>\n"})
        for name in ("ops/attention/attention.cu", "ops/attention/attention.cpp"):
            with self.subTest(name):
                self.expect_one({name: "#include <cudnn.h>\n"}, f"src/tightloop/{name}:1:", wrapper)

    def test_the_build_switch_is_asked_for_in_few_files(self):
        for line in ("#ifdef TL_CUDA", "#  if defined(TL_CUDA)", "#elif TL_CUDA"):
            with self.subTest(line):
                self.expect_one({"train/a.cpp": line + "\n"}, "src/tightloop/train/a.cpp:1:", "cuda::built")
        self.expect_clean({
            "ops/common/dispatch.h": "#ifdef TL_CUDA\n#define TL_CUDA_KERNEL(call) call\n#endif\n",
            "ops/a/a.cpp": "TL_CUDA_KERNEL(f());\n",
        })
        self.expect_one({"ops/a/a_cpu.cpp": "TL_CUDA_KERNEL(f());\n"}, "src/tightloop/ops/a/a_cpu.cpp:1:")

    def test_usage(self):
        done = subprocess.run(
            [sys.executable, SCRIPT, "/nonexistent"], capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 2)
        self.assertIn("/nonexistent", done.stderr)


if __name__ == "__main__":
    unittest.main()
