#!/bin/sh
# The workshops of the kernels (bench/kernels: each checks against ref first), then the whole engine.
# usage: tools/run_bench.sh BUILD_DIR [arguments of `weft bench latency`]
set -eu
build=$1
shift
for binary in "$build"/bench/*; do
  [ -f "$binary" ] && [ -x "$binary" ] || continue
  echo "== $(basename "$binary")"
  "$binary"
done
echo "== weft bench latency"
"$build/weft" bench latency "$@"
