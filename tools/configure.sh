#!/bin/sh
# Configures build/release, only when what is asked for differs from what is there.
# usage: tools/configure.sh BUILD_DIR CUDA(0|1) WERROR(0|1) program|tests
# `program` needs no test packages and is content with a directory that has the tests.
set -eu
build=$1 cuda=$2 werror=$3 what=$4
case "$cuda$werror" in
  [01][01]) ;;
  *) echo "CUDA and WERROR are 0 or 1, not '$cuda' and '$werror'" >&2; exit 2 ;;
esac
stamp=$build/.configured
have=$(cat "$stamp" 2>/dev/null || true)
want="cuda=$cuda werror=$werror tests"
[ "$have" = "$want" ] && [ -e "$build/build.ninja" ] && exit 0
tests=ON
if [ "$what" = program ]; then
  tests=OFF
  want="cuda=$cuda werror=$werror program"
  [ "$have" = "$want" ] && [ -e "$build/build.ninja" ] && exit 0
fi
rm -f "$stamp"
cmake --preset release -B "$build" -DWEFT_CUDA="$cuda" -DWEFT_WERROR="$werror" -DWEFT_TESTS=$tests
echo "$want" >"$stamp"
