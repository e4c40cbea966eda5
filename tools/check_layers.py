#!/usr/bin/env python3
"""Checks the rules about who may include and call what. Exit 1 with file:line when one is broken.

1. Layers: a file of src/tightloop/<layer>/ includes only itself, core, and the layers in LAYERS.
2. Ops: no op includes another op; what ops share lives in ops/common/.
3. Voice: nothing but cli prints or ends the process (tests, benches and fuzz targets may).
4. CUDA: no CUDA, NCCL or MPI header outside .cu, .cuh and GPU_FILES, cuDNN in one file alone; a
   .cuh is included by .cu and .cuh only; TL_CUDA is asked for in TL_CUDA_FILES only, and neither
   it nor TL_CUDA_KERNEL is in a _cpu.cpp or _ref.cpp.
5. Roots: a project header is included as "tightloop/<layer>/...", never by a relative path.

Usage: tools/check_layers.py [ROOT]    ROOT is the project folder (default: the one of this script)
"""

import re
import sys
from pathlib import Path

BELOW_CAPI = {
    "io", "text", "dist", "program", "ops", "engine", "model", "optim", "decode", "train", "lab",
}

# The table of docs/design.md. Every layer may also include itself and core.
LAYERS = {
    "core": set(),
    "io": set(),
    "text": set(),
    "dist": set(),
    "program": set(),
    "ops": {"program", "dist"},
    "engine": {"program", "ops", "dist"},
    "model": {"io", "program", "ops"},
    "optim": {"dist", "program", "ops"},
    "decode": {"io", "text", "program", "ops", "engine", "model"},
    "train": {"io", "text", "dist", "program", "ops", "engine", "model", "optim", "decode"},
    "lab": {"io", "train", "decode", "engine"},
    "capi": BELOW_CAPI,
    "cli": BELOW_CAPI | {"capi"},
}

# Above every layer: they may include anything. A *_testing.h is for them alone.
FREE_SUFFIXES = ("_test.cpp", "_bench.cpp", "_fuzz.cpp", "_test.cu", "_testing.h")
SOURCES = {".h", ".cpp", ".cu", ".cuh"}
CUDNN_FILE = "ops/attention/attention_cudnn.cpp"
GPU_FILES = {"dist/nccl.cpp", "dist/mpi.cpp", CUDNN_FILE}
TL_CUDA_FILES = {"core/cuda_device_none.cpp", "engine/ceilings.cpp", "ops/common/dispatch.h"}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
PRINTING = re.compile(
    r"\bstd::(cout|cerr|clog)\b"
    r"|(?<![\w.>])(std::)?(printf|puts|putchar|vprintf|perror)\s*\("
    r"|\bfmt::print(ln)?\s*\("
    r"|\b(fprintf|fputs|fputc|fwrite|vfprintf)\s*\([^;]*\b(stdout|stderr)\b"
    r"|(?<![\w.>])(std::)?(exit|_Exit|_exit|abort|quick_exit|terminate)\s*\("
)
TL_CUDA = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*\bTL_CUDA\b")
GPU_HEADER = re.compile(
    r"^(cuda|cublas|cudnn|nccl|curand|cusparse|cusolver|nvtx|nvToolsExt|cub/|thrust/|cute/|cutlass/|mpi\.h)"
)


def strip_noise(text):
    """Replaces comments and string literals by blanks, keeping every line where it is."""

    def blank(match):
        return re.sub(r"[^\n]", " ", match.group(0))

    token = r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])*\''
    return re.sub(token, blank, text, flags=re.S)


def check_file(path, layer, relative):
    """Yields (line number, message) for one file; `relative` is its path below src/tightloop."""
    text = path.read_text(encoding="utf-8", errors="replace")
    free = path.name.endswith(FREE_SUFFIXES)
    op = relative.parts[1] if layer == "ops" and len(relative.parts) > 2 else None
    allowed = LAYERS[layer] | {layer, "core"}

    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quote, target = match.groups()
        parts = target.split("/")
        if parts[0] == "tightloop" and len(parts) > 2:
            other = parts[1]
            if other not in LAYERS:
                yield number, f'"{target}" is in no known layer'
            elif not free and other not in allowed:
                yield number, (
                    f'{layer} may not include {other} ("{target}"); '
                    f"allowed: {', '.join(sorted(allowed))}"
                )
            elif not free and op and other == "ops" and len(parts) > 3 and parts[2] not in (op, "common"):
                if op == "common":
                    message = f'ops/common may not include the op {parts[2]} ("{target}")'
                else:
                    message = f'op {op} includes op {parts[2]} ("{target}"); share through ops/common/'
                yield number, message
        elif quote == '"':
            yield number, f'"{target}" must be included as "tightloop/<layer>/..."'
        if target.endswith("_testing.h") and not free:
            yield number, f'"{target}" is for tests only'
        kernel_file = path.suffix in {".cu", ".cuh"}
        if target.startswith("cudnn"):
            if relative.as_posix() != CUDNN_FILE:
                yield number, f"{target}: cuDNN is wrapped by {CUDNN_FILE} alone"
        elif GPU_HEADER.match(target) and not kernel_file and relative.as_posix() not in GPU_FILES:
            yield number, f"{target}: GPU and MPI headers belong in .cu, .cuh, {', '.join(sorted(GPU_FILES))}"
        elif target.endswith(".cuh") and not kernel_file:
            yield number, f"{target}: only .cu and .cuh include a .cuh; declare the function in a .h"

    if path.name.endswith(("_cpu.cpp", "_ref.cpp")):
        for number, line in enumerate(text.splitlines(), 1):
            if "TL_CUDA" in line:
                yield number, "TL_CUDA: a _cpu.cpp or _ref.cpp compiles as without CUDA; dispatch in the op's .cpp"
    elif relative.as_posix() not in TL_CUDA_FILES:
        for number, line in enumerate(text.splitlines(), 1):
            if TL_CUDA.match(line):
                yield number, f"TL_CUDA is asked for in {', '.join(sorted(TL_CUDA_FILES))} only; ask cuda::built()"

    if layer != "cli" and not free:
        for number, line in enumerate(strip_noise(text).splitlines(), 1):
            match = PRINTING.search(line)
            if match:
                yield number, f"{match.group(0).strip()}: only cli prints or ends the process; throw Error or use the log sink"


def check_tree(root):
    """Returns the broken rules below root/src/tightloop as sorted 'file:line: message' strings."""
    source = root / "src" / "tightloop"
    problems = []
    for path in sorted(source.rglob("*")):
        if path.suffix not in SOURCES or not path.is_file():
            continue
        relative = path.relative_to(source)
        where = path.relative_to(root).as_posix()
        layer = relative.parts[0]
        if len(relative.parts) == 1 or layer not in LAYERS:
            problems.append(f"{where}:1: is in no layer of the table in tools/check_layers.py")
            continue
        problems += [f"{where}:{n}: {message}" for n, message in check_file(path, layer, relative)]
    return problems


def main(arguments):
    if len(arguments) > 1 or (arguments and arguments[0] in ("-h", "--help")):
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    if not (root / "src" / "tightloop").is_dir():
        print(f"error: {root}/src/tightloop is not a folder", file=sys.stderr)
        return 2
    problems = check_tree(root)
    for problem in problems:
        print(problem)
    print(f"check_layers: {len(problems)} problem(s)" if problems else "check_layers: ok")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
