#!/bin/bash
# The page of `weft serve` in Debian's chromium, driven by npm's playwright-core: first against a stand-in that says what
# the demo model cannot be made to say, then against `weft serve` itself.
# usage: tests/page/run.sh BUILD_DIR [FOLDER_FOR_SCREENSHOTS]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "${1:?usage: tests/page/run.sh BUILD_DIR [FOLDER_FOR_SCREENSHOTS]}" && pwd)
[ -x "$build/weft" ] || { echo "no $build/weft: build the target weft first"; exit 1; }
modules=$build/page  # node's packages live in the build directory
mkdir -p "$modules"
cp "$here"/{package.json,package-lock.json,media.mjs,mock.mjs,states_test.mjs,page_test.mjs} "$modules/"
[ -d "$modules/node_modules/playwright-core" ] || (cd "$modules" && npm ci --no-audit --no-fund --silent)
shots=${2:+$(realpath "$2")}

passed=0 failed=0
run() {
  local code=0 ok=0 bad=0
  node "$@" ${shots:+"$shots"} | tee "$modules/log" || code=$?
  read -r ok bad < <(sed -nE 's/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$modules/log" | tail -1) || true
  [ "$code" -eq 0 ] || [ "${bad:-0}" -gt 0 ] || bad=1
  passed=$((passed + ok)) failed=$((failed + bad))
}
run "$modules/states_test.mjs" "$here/../.."
run "$modules/page_test.mjs" "$build/weft"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
