#!/bin/sh
# Runs ctest in a build directory; the last line is `N passed, N failed` (and `, N skipped`).
# usage: tools/run_tests.sh BUILD_DIR [ctest arguments]        e.g. -j 2 -L threaded
# Code 1 if a test failed, was not built or none ran.
set -eu
build=$1
shift
report=$build/ctest.xml
rm -f "$report"
ctest --test-dir "$build" --output-on-failure --no-tests=error \
  --test-output-size-passed 1000000 --output-junit "$PWD/$report" "$@" || true
[ -s "$report" ] || { echo "0 passed, 1 failed"; exit 1; }
# An entry that is a whole GoogleTest binary counts by its closing lines.
# Failed is all that neither passed nor was skipped: a test that could not run did not pass.
awk '
  /<testcase /          { total++; ran = /status="run"/; passed += ran }
  /<skipped/            { skipped++ }
  ran && /\[  PASSED  \] [0-9]+ test/ { more = $0; sub(/.*PASSED  \] /, "", more); passed += more - 1; total += more - 1 }
  ran && /\[  SKIPPED \] [0-9]+ test/ { more = $0; sub(/.*SKIPPED \] /, "", more); skipped += more; total += more }
  END {
    failed = total - passed - skipped
    line = sprintf("%d passed, %d failed", passed, failed)
    if (skipped) line = line sprintf(", %d skipped", skipped)
    print line
    exit !(passed > 0 && failed == 0)
  }' "$report"
