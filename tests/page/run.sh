#!/bin/bash
# The page of `weft serve` in Debian's chromium, driven by npm's playwright-core.
# usage: tests/page/run.sh BUILD_DIR [FOLDER_FOR_SCREENSHOTS]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "${1:?usage: tests/page/run.sh BUILD_DIR [FOLDER_FOR_SCREENSHOTS]}" && pwd)
[ -x "$build/weft" ] || { echo "no $build/weft: build the target weft first"; exit 1; }
modules=$build/page  # node's packages live in the build directory
mkdir -p "$modules"
cp "$here/package.json" "$here/package-lock.json" "$here/page_test.mjs" "$modules/"
[ -d "$modules/node_modules/playwright-core" ] || (cd "$modules" && npm ci --no-audit --no-fund --silent)
exec node "$modules/page_test.mjs" "$build/weft" ${2:+"$(realpath "$2")"}
