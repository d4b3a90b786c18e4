#!/bin/bash
# The npm `openai` client against `weft serve`: the demo model, and the fake engine where a test is about load.
# usage: tests/openai/run.sh BUILD_DIR [NAME...]      (NAME: only tests whose name holds it)
# node's packages are installed from the registry into BUILD_DIR/openai. The last line counts the tests.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "${1:?usage: tests/openai/run.sh BUILD_DIR [NAME...]}" && pwd)
shift
[ -x "$build/weft" ] || { echo "no $build/weft: build the target weft first"; exit 1; }

modules=$build/openai
mkdir -p "$modules"
if ! cmp -s "$here/package-lock.json" "$modules/package-lock.json" || [ ! -d "$modules/node_modules/openai" ]; then
  cp "$here/package.json" "$here/package-lock.json" "$modules/"
  (cd "$modules" && npm ci --no-audit --no-fund --silent)
fi
cp "$here"/*.mjs "$modules/"
exec node "$modules/main.mjs" "$build/weft" "$here/../../models/demo" "$@"
