#!/bin/bash
# The tokenizer against Hugging Face's JavaScript tokenizers, the templates against Debian's jinja2, JSON schemas
# against Debian's jsonschema, on generated inputs; fails on the first difference of either.
# usage: tests/differential/run.sh BUILD_DIR [SECONDS]
# Without SECONDS the same inputs every time (the first 4,000 of seed 1 each), as CI has to; with SECONDS as many as
# fit into that time, which is how rare differences are looked for.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "${1:?usage: tests/differential/run.sh BUILD_DIR [SECONDS]}" && pwd)
seconds=${2:-240}
cases=$([ $# -ge 2 ] && echo 0 || echo 4000)
cli=$build/tests/text_cli
for binary in "$cli" "$build/tests/grammar_cli"; do
  [ -x "$binary" ] || { echo "no $binary: build the target $(basename "$binary") first"; exit 1; }
done
python=/usr/bin/python3  # Debian's, whose jinja2 is the reference
[ -x "$python" ] || python=python3
oracle=${WEFT_ORACLE_DIR:-$build/oracle}/text

modules=$build/differential  # node's packages live in the build directory
mkdir -p "$modules"
cp "$here/package.json" "$here/package-lock.json" "$here/tokenizers.mjs" "$modules/"
[ -d "$modules/node_modules/@huggingface/tokenizers" ] ||
  (cd "$modules" && npm ci --no-audit --no-fund --silent)

# The three beside each other: each is a thread of its own.
parts=()
part() {  # NAME COMMAND...
  local log=$modules/$1.log
  parts+=("$1")
  shift
  "$@" >"$log" 2>&1 &
}
part tokenizers "$python" "$here/tokenizers.py" --cli "$cli" --node "$modules/tokenizers.mjs" --seconds "$seconds" \
  --cases "$cases" "$here/../../models/demo" "$oracle"/{qwen2,qwen3_5,llama3,sentencepiece_bpe}
part templates "$python" "$here/templates.py" --cli "$cli" --seconds "$seconds" --cases "$cases" \
  "$here/../../models/demo/chat_template.jinja" "$oracle"/templates/*.jinja
schemas=$([ $# -ge 2 ] && echo $((seconds * 40)) || echo 1200)
part schemas "$python" "$here/schemas.py" --weft "$build/weft" --cli "$build/tests/grammar_cli" --schemas "$schemas"
failed=0
for job in $(jobs -p); do wait "$job" || failed=1; done
for name in "${parts[@]}"; do cat "$modules/$name.log"; done
exit $failed
