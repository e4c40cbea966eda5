#!/usr/bin/env bash
# golden_test.sh TIGHTLOOP DEVICE REWRITES: every nanochat and tokenizer case of the folder
# ../shared/golden beside the project (or $TL_GOLDEN). Exit code 77, skipped, where there is none.
set -euo pipefail
tightloop=$1 device=$2 rewrites=$3
golden=${TL_GOLDEN:-$(dirname "${BASH_SOURCE[0]}")/../../../shared/golden}
shopt -s nullglob
cases=("$golden"/nanochat-* "$golden"/tiny-nanochat-* "$golden"/bpe-*)
if [ ${#cases[@]} -eq 0 ]; then
  echo "skipped: no cases in $golden"
  exit 77
fi
"$tightloop" check "${cases[@]}" --device "$device" --rewrites "$rewrites"
