#!/bin/bash
# weft beside a llama-bench (llama.cpp or ik_llama.cpp), alternating, on a Qwen3-0.6B-shaped model of
# random weights. Prints a line a sample series: best and median tokens/s, and the load of the machine.
# usage: bench/cpu/compare.sh WEFT LLAMA_BENCH GGUF_PREFIX [ROUNDS]
#   GGUF_PREFIX-bf16.gguf, -q8_0.gguf, -q4_0.gguf: the same shape for the peer (bench/README.md)
set -eu
weft=$1 peer=$2 prefix=$3 rounds=${4:-2}
here=$(cd "$(dirname "$0")" && pwd)
model=$(mktemp -d)
trap 'rm -rf "$model"' EXIT
cp "$here/qwen3-0.6b.json" "$model/config.json"

# summary NAME: JSON of either program on stdin
summary() {
  python3 -c '
import json, os, sys
name, text = sys.argv[1], sys.stdin.read()
try:
    rows = json.loads(text)
except ValueError:
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
for r in [rows] if isinstance(rows, dict) else rows:
    s = sorted(r.get("samples_ts") or [])
    if not s: continue
    test = "pp%d" % r["n_prompt"] if r.get("n_prompt") else "tg%d" % r.get("n_gen", 0)
    print("%-12s %-8s best %8.2f  median %8.2f t/s  (n=%d)  load %.1f"
          % (name, test, s[-1], s[len(s) // 2], len(s), os.getloadavg()[0]))' "$1"
}

for round in $(seq "$rounds"); do
  for pair in none:bf16 int8:q8_0 int4:q4_0; do
    "$weft" bench latency -m "$model" --load-format dummy -q "${pair%:*}" -t 2 -p 512 -n 32 -r 6 \
      --max-model-len 4k --json 2>/dev/null | summary "weft ${pair%:*}"
    "$peer" -m "$prefix-${pair#*:}.gguf" -t 2 -p 512 -n 32 -r 6 -o json 2>/dev/null |
      summary "peer ${pair#*:}"
  done
done
