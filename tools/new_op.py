#!/usr/bin/env python3
"""Starts a new operation: copies tools/op_template/ to src/tightloop/ops/NAME/ under the new name
and adds the line tl_add_op(NAME). What it makes builds and passes its test as it stands.

Usage: tools/new_op.py NAME [ROOT]    NAME in snake_case; ROOT is the project folder
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main(arguments):
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    name = arguments[0]
    root = Path(arguments[1]) if len(arguments) == 2 else Path(__file__).resolve().parent.parent
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        fail(f"'{name}' is not a snake_case name such as rmsnorm or residual_rmsnorm")
    template = root / "tools" / "op_template"
    ops = root / "src" / "tightloop" / "ops"
    cmake = ops / "CMakeLists.txt"
    for path in (template, cmake):
        if not path.exists():
            fail(f"{path} is missing; is {root} the project folder?")
    if (ops / name).exists():
        fail(f"{ops / name} exists already")

    lines = cmake.read_text().splitlines(keepends=True)
    registered = [i for i, line in enumerate(lines) if line.startswith("tl_add_op(")]
    if not registered:
        fail(f"{cmake} has no tl_add_op(...) line to add to")
    added = f"tl_add_op({name})\n"
    after = [i for i in registered if lines[i] > added]
    lines.insert(after[0] if after else registered[-1] + 1, added)

    pascal = "".join(word.capitalize() for word in name.split("_"))
    (ops / name).mkdir()
    made = []
    for source in sorted(template.iterdir()):
        target = ops / name / source.name.replace("op_template", name)
        text = source.read_text().replace("op_template", name).replace("OpTemplate", pascal)
        target.write_text(text)
        made.append(target)
    cmake.write_text("".join(lines))
    formatter = shutil.which("clang-format-14")  # a new name moves line breaks
    if formatter:
        subprocess.run([formatter, "-i", *made], check=True)

    for path in made:
        print(f"made    {path.relative_to(root)}")
    print(f"changed {cmake.relative_to(root)}: {added.strip()}")
    if not formatter:
        print("note    clang-format-14 is not installed: format the new files before a commit")
    print(f"next    write the contract in {name}.h, then {name}_ref.cpp until the test passes:")
    print(f"        ninja -C build/cpu ops_{name}_test && ctest --test-dir build/cpu -R '^ops.{name}$'")


if __name__ == "__main__":
    main(sys.argv[1:])
