#!/usr/bin/env bash
# The op template must stay alive: in a copy of the project, makes a scratch op with tools/new_op.py,
# builds its test and runs it, and compiles its CUDA kernels where nvcc is.
# Usage: new_op_test.sh SOURCE_DIR SCRATCH_DIR
set -euo pipefail
source_dir=$1 scratch=$2

rm -rf "$scratch/src" "$scratch/tests" "$scratch/tools" "$scratch/cmake"
mkdir -p "$scratch/bench"
: >"$scratch/bench/CMakeLists.txt"
cp -r "$source_dir"/{src,tests,tools,cmake,CMakeLists.txt,.clang-format} "$scratch/"
[ ! -d "$source_dir/configs" ] || cp -r "$source_dir/configs" "$scratch/"
cd "$scratch"

expect_refusal() {
  if python3 tools/new_op.py "$1" >refusal.log 2>&1; then
    echo "new_op.py accepted the name '$1'"
    exit 1
  fi
  grep -q "$2" refusal.log || { cat refusal.log; echo "expected a message with: $2"; exit 1; }
}
expect_refusal BadName "not a snake_case name"
expect_refusal rmsnorm "exists already"

python3 tools/new_op.py scratch_op
python3 tools/check_layers.py
if grep -rniE 'op_?template' src/tightloop/ops/scratch_op; then
  echo "the template's own name was left in the new op"
  exit 1
fi
if command -v clang-format-14 >/dev/null; then
  clang-format-14 --dry-run --Werror src/tightloop/ops/scratch_op/*
fi

source tools/common.sh
if [ "$(cuda_release | cut -d. -f1)" -ge 13 ]; then
  PATH=$PATH:/usr/local/cuda/bin "${CUDACXX:-nvcc}" -c -std=c++20 -arch=sm_90a -I src --extended-lambda \
    --expt-relaxed-constexpr -DFMT_USE_CONSTEXPR=1 -Werror=all-warnings \
    -o scratch_op.o src/tightloop/ops/scratch_op/scratch_op.cu
fi

cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Debug -DTL_BENCH=OFF >configure.log ||
  { cat configure.log; exit 1; }
ninja -C build ops_scratch_op_test
ctest --test-dir build -R '^ops\.scratch_op$' --output-on-failure | tee ctest.log
grep -q '100% tests passed, 0 tests failed out of 1' ctest.log
