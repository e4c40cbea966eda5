#!/usr/bin/env bash
# The installed program must work away from the source tree. Usage: install_test.sh BUILD_DIR
set -euo pipefail
build=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cmake --install "$build" --prefix "$scratch/prefix" >"$scratch/install.log"
mkdir "$scratch/elsewhere"
cd "$scratch/elsewhere"
tightloop=$scratch/prefix/bin/tightloop
"$tightloop" --version
"$tightloop" --help >/dev/null
"$tightloop" config show >/dev/null
"$tightloop" train --preset quick --num-iterations 3 --run-dir run >/dev/null
test -f run/*/summary.json
test -f "$scratch/prefix/share/doc/tightloop/LICENSE"
echo "installed program works"
