#!/bin/bash
# Runs every fuzzer of a build directory from its committed corpus; fails on a crash, a leak or a hang.
# usage: tools/run_fuzzers.sh BUILD_DIR SECONDS [NAME...]
# The last line counts the fuzzers. An input that breaks one is kept as BUILD_DIR/fuzz/NAME.*-<hash>.
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:?usage: tools/run_fuzzers.sh BUILD_DIR SECONDS [NAME...]}
seconds=${2:?usage: tools/run_fuzzers.sh BUILD_DIR SECONDS [NAME...]}
shift 2
if [ $# -eq 0 ]; then
  for binary in "$build"/fuzz/*_fuzz; do set -- "$@" "$(basename "$binary" _fuzz)"; done
fi
passed=0 failed=0
for name in "$@"; do
  binary=$build/fuzz/${name}_fuzz
  work=$build/fuzz/corpus/$name
  mkdir -p "$work"
  cp -r tests/fuzz/corpus/"$name"/. "$work"/ 2>/dev/null || { echo "$name: no corpus at tests/fuzz/corpus/$name"; failed=$((failed + 1)); continue; }
  options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$build/fuzz/$name.")
  [ -e "tests/fuzz/$name.dict" ] && options+=(-dict="tests/fuzz/$name.dict")
  if "$binary" "${options[@]}" "$work" >"$build/fuzz/$name.log" 2>&1; then
    passed=$((passed + 1))
    runs=$(awk '/stat::number_of_executed_units/ { print $2 }' "$build/fuzz/$name.log")
    echo "$name: $runs runs in $seconds s, nothing found"
  else
    failed=$((failed + 1))
    echo "$name: FAILED, the end of $build/fuzz/$name.log:"
    tail -40 "$build/fuzz/$name.log"
  fi
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
