#!/bin/bash
# All measurements of GPU kernels in one call, on a machine with a Hopper GPU: every workshop (each checks its results
# first), the peers beside it, and the comparison with bench/baseline/h100.json.
# usage: bench/gpu.sh [--quick] [--tests] [--accept] [--sanitize] [BUILD_DIR [OUT_DIR]]
#   --quick   a few shapes of each kernel, about a minute    --tests   the tests of the ops before it
#   --accept  afterwards the rows become the baseline
#   --sanitize  instead of all that: the small tests of every op under each tool of compute-sanitizer, a line each
# Without workshops in BUILD_DIR (default build/cuda-kernels) they are built: that needs cmake, nvcc and gtest alone.
# Writes OUT_DIR/kernels.jsonl (a row a line: kernel, shape, dtype, us, gbps, tflops, share, peer, peer_us, ratio,
# machine, date) and OUT_DIR/peers.jsonl. Exits with 1 if a check fails or a row is slower than the baseline allows.
set -u
cd "$(dirname "$0")/.." || exit 1
quick= tests= accept= sanitize=
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=--quick ;;
    --tests) tests=1 ;;
    --accept) accept=1 ;;
    --sanitize) sanitize=1 ;;
    -*) sed -n '4,9s/^# //p' "$0"; exit 2 ;;
    *) break ;;
  esac
  shift
done
build=${1:-build/cuda-kernels}
out=${2:-bench-out}
python=${PYTHON:-python3}
mkdir -p "$out" || exit 1

workshops() { find "$build/bench" -maxdepth 1 -type f -name '*_gpu_bench' 2>/dev/null | sort; }
if [ -z "$(workshops)" ]; then
  cmake --preset cuda-kernels -B "$build" > "$out/build.log" 2>&1 &&
    cmake --build "$build" -j"$(nproc)" >> "$out/build.log" 2>&1 || { tail -20 "$out/build.log"; exit 1; }
fi
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,temperature.gpu,power.draw --format=csv,noheader

failed=0
if [ -n "$sanitize" ]; then
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  for test in "$build"/gpu_tests/*; do
    for tool in memcheck racecheck synccheck initcheck; do
      log=$out/$tool.$(basename "$test").log
      timeout 600 "$sanitizer" --tool $tool --error-exitcode 9 "$test" --gtest_filter='*Small*:Vision*:*Stores*' > "$log" 2>&1
      code=$?
      echo "$tool $(basename "$test"): exit $code $(grep -hE 'PASSED|FAILED|SUMMARY' "$log" | tail -2 | tr '\n' ' ')"
      [ $code = 0 ] && grep -q PASSED "$log" || failed=1
    done
  done
  exit $failed
fi
if [ -n "$tests" ]; then
  for test in "$build"/gpu_tests/*; do
    timeout 600 "$test" --gtest_brief=1 > "$out/test.log" 2>&1 || { echo "FAILED: $test"; tail -20 "$out/test.log"; failed=1; }
  done
fi

: > "$out/kernels.jsonl"
for workshop in $(workshops); do
  name=$(basename "$workshop")
  # Notes of a workshop go to its log; rows are lines of JSON.
  short=
  [ "$name" = attention_prefill_gpu_bench ] && short=$quick  # the others are short
  if ! timeout 600 "$workshop" $short > "$out/$name.log" 2> "$out/$name.err"; then
    echo "FAILED: $name"; tail -5 "$out/$name.err"; failed=1
  fi
  grep '^{"kernel"' "$out/$name.log" >> "$out/kernels.jsonl"
done

# Peers that are Python: none of them is needed, and each says what it misses.
: > "$out/peers.jsonl"
for peer in bench/gpu/*_peers.py; do
  timeout 600 "$python" "$peer" $quick 2> "$out/$(basename "$peer").err" | grep '^{' >> "$out/peers.jsonl" ||
    echo "no rows from $peer: $(tail -1 "$out/$(basename "$peer").err")"
done
"$python" bench/gpu/rows.py join "$out/kernels.jsonl" "$out/peers.jsonl" || failed=1
"$python" bench/gpu/rows.py table "$out/kernels.jsonl"
baseline=bench/baseline/h100.json
if [ -n "$accept" ]; then
  [ $failed = 0 ] && "$python" bench/gpu/rows.py accept "$out/kernels.jsonl" $baseline || failed=1
else
  "$python" bench/gpu/rows.py check "$out/kernels.jsonl" $baseline ${quick:+--partial} || failed=1
fi
exit $failed
