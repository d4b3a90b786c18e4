#!/usr/bin/env bash
# The command line end to end, with the bundled demo model: answers, exit codes, error texts.
# usage: cli_test.sh WEFT_BINARY SOURCE_DIR
set -u
weft=$1
source_dir=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
passed=0

# matches PATTERN FILE: an extended regular expression; '' means an empty file, '*' anything.
matches() {
  if [ "$1" = '*' ]; then true; elif [ -z "$1" ]; then [ ! -s "$2" ]; else grep -Eq -- "$1" "$2"; fi
}

# check NAME EXPECTED_CODE STDOUT_PATTERN STDERR_PATTERN ARGS...
check() {
  local name=$1 code=$2 out=$3 err=$4
  shift 4
  "$weft" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
  local got=$?
  if [ "$got" -ne "$code" ] || ! matches "$out" "$scratch/out" || ! matches "$err" "$scratch/err"; then
    failed=$((failed + 1))
    echo "FAILED: $name: weft $* (exit code $got, expected $code)"
    head -c 600 "$scratch/out" | sed 's/^/  stdout: /'
    head -c 600 "$scratch/err" | sed 's/^/  stderr: /'
  else
    passed=$((passed + 1))
  fi
}

# Usage errors: code 2, the field and what is allowed, never a stack trace.
check "no command" 2 '' 'Subcommands' 
check "unknown flag" 2 '' "unknown flag '--max-token' .*did you mean '--max-tokens'" run --max-token 5
check "unknown command" 2 '' "unexpected 'rum' .*did you mean 'run'" rum
check "unknown nested command" 2 '' "unexpected 'latncy' for .weft bench.; did you mean 'latency'" bench latncy
check "no nested command" 2 '' 'weft bench. needs one of its commands: latency, throughput' bench
check "bad choice" 2 '' '--dtype.*bfloat16' run --dtype int7 -p hi
check "bad range" 2 '' 'temperature: -1 is not in \[0, 100\]' run -p hi --temperature -1
check "bad top_p" 2 '' 'top_p: 0 is not in \(0, 1\]' run -p hi --top-p 0
check "no number" 2 '' "--temperature: 'warm' is not a number" run -p hi --temperature warm
check "empty number" 2 '' "--max-tokens: '' is not a whole number" run -p hi --max-tokens ''
check "NaN beside a range" 2 '' "--swap-space: 'nan' is not a number" run -p hi --swap-space nan
check "number beyond 64 bits" 2 '' "--seed: '18446744073709551616' is not a whole number from 0 to" run -p hi --seed 18446744073709551616
check "negative seed" 2 '' "--seed: '-1' is not a whole number from 0 to" run -p hi --seed -1
check "octal" 2 '' "--top-k: '010' is not a whole number" run -p hi --top-k 010
check "message that is not UTF-8" 2 '' '--prompt: the text is not valid UTF-8' run -p $'a\xffb'
check "system message that is not UTF-8" 2 '' '--system: the text is not valid UTF-8' run -p hi --system $'\xff'
check "too many tokens" 2 '' 'max_tokens.*max_model_len 512' run -p hi --max-model-len 512 --max-tokens 600
check "bad size" 2 '' '--max-model-len.*not a size' run -p hi --max-model-len 12x
check "refused pair" 2 '' '\[float32-quantized\]' run -p hi --dtype float32 -q int8
check "image that is not there" 1 '' "nonexistent" run -p hi --image /nonexistent.png
check "video that is not there" 1 '' "nonexistent" run -p hi --video /nonexistent.gif
check "bad hub name" 2 '' 'ORG/NAME' pull not-a-model

# serve: flags of vLLM, refusals, the configuration file.
check "serve unknown flag" 2 '' "unknown flag '--prt' .*did you mean '--port'" serve --prt 1
check "serve tls" 2 '' '\[tls\] --ssl-keyfile' serve --ssl-keyfile key.pem
check "serve two devices" 2 '' '\[one-device\] --tensor-parallel-size' serve -tp 2
check "serve public" 2 '' '\[public-without-key\]' serve --host 0.0.0.0
check "serve dotted" 2 '' '"eagle" is not allowed; allowed: ngram, mtp' serve --speculative-config.method eagle
check "serve port" 2 '' '--port' serve --port 70000
printf 'port: 8000\nmax-numseqs: 4\n' >"$scratch/serve.yaml"
check "serve config" 2 '' "serve.yaml:2: unknown key 'max-numseqs'; did you mean 'max-num-seqs'" serve --config "$scratch/serve.yaml"
check "serve help" 0 'WEFT_MAX_MODEL_LEN' '' serve --help
check "completion shell" 2 '' 'bash' completion tcsh

# Completion: bash completes commands, flags and values.
"$weft" completion bash >"$scratch/completion.bash"
complete_words() {
  bash -c 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _weft; echo "${COMPREPLY[*]}"' \
    _ "$scratch/completion.bash" "$@"
}
same() {
  if [ "$2" = "$3" ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $1: '$2' instead of '$3'"
  fi
}
same "completes commands" "$(complete_words weft se)" serve
same "completes nested commands" "$(complete_words weft bench lat)" latency
same "completes flags" "$(complete_words weft serve --max-num-b)" --max-num-batched-tokens
same "completes values" "$(complete_words weft run --dtype bf)" bfloat16

# Run-time errors: code 1.
check "missing evaluation set" 1 '' 'heldout.jsonl' eval "$scratch"
item() {  # ID CONTENT MAX_TOKENS: a line of an evaluation set
  printf '{"id": "%s", "task": "t", "messages": [{"role": "user", "content": %s}], "enable_thinking": false, "expected": "", "check": "any", "max_tokens": %d}\n' "$@"
}
mkdir "$scratch/eval"
cp "$source_dir/models/demo/eval/results.json" "$scratch/eval"
echo '{"id": "g", "images": [], "prompt_ids": [4083], "output_ids": [1], "smallest_margin": 0, "top5": [], "mtp_first_drafts": []}' >"$scratch/eval/golden.jsonl"
{
  item long '"Write a story."' 4000
  item gone '[{"type": "image", "image": "gone.png"}, {"type": "text", "text": "What is it?"}]' 4
} >"$scratch/eval/heldout.jsonl"
check "an item that fails while others run" 1 '' 'gone.png: no such file' eval "$scratch/eval"
for i in $(seq 4200); do item "$i" '"Hi."' 1; done >"$scratch/eval/heldout.jsonl"
check "more items than the engine takes at once" 0 '^t .* 4200 ' '*' eval "$scratch/eval"
mkdir "$scratch/empty"
check "empty model directory" 1 '' 'config.json' run "$scratch/empty" -p hi
cp -r "$source_dir/models/demo" "$scratch/cut"
truncate -s 1000000 "$scratch/cut/model-00001-of-00002.safetensors"
check "truncated weights" 1 '' 'model-00001-of-00002.safetensors' run "$scratch/cut" -p hi

# Static scales of the KV cache: made, and taken by either format, asked for here or by config.json.
scales=$scratch/scales.safetensors
echo 'The cat sat on the mat.' >"$scratch/texts"
item='{"messages": [{"role": "user", "content": [%s]}]}\n'
printf "$item$item" '{"type": "text", "text": "The cat"}' '{"type": "image", "image": "x"}' >"$scratch/parts"
mkdir "$scratch/config" && cp "$source_dir/models/demo/config.json" "$scratch/config"
cp -r "$source_dir/models/demo" "$scratch/asks"
sed '1s/{/{"quantization_config": {"quantization": "mix_quant", "kv_cache_quant_type": "int8"},/' \
  "$source_dir/models/demo/config.json" >"$scratch/asks/config.json"
check "int8 without scales" 2 '' 'no scales of its cache .*weft calibrate' run -p hi --kv-cache-dtype int8
check "int8 by config.json without scales" 2 '' 'kv_cache_quant_type int8: the checkpoint has no scales of its cache' run "$scratch/asks" -p hi
check "calibrate" 0 '1 texts' '*' calibrate "$scratch/asks" --data "$scratch/texts" --out "$scales.asks"
check "calibrate for int8" 0 '1 texts' '*' calibrate --data "$scratch/texts" --kv-cache-dtype int8 --out "$scales"
check "calibrate with parts" 0 '1 texts' '1 lines with pictures left out' calibrate --data "$scratch/parts" --out "$scales.parts"
check "calibrate to nowhere" 1 '' '--out: .*/gone: no such directory' calibrate --data "$scratch/texts" --out "$scratch/gone/s"
check "int8 of a config.json alone" 0 '1.02 kB a token as int8' '*' info "$scratch/config" --kv-cache-dtype int8
same "ranges of either" "$(cmp "$scales" "$scales.asks" 2>&1)" ''
for format in int8 fp8; do
  check "scales for $format" 0 '.' '*' run -p hi --max-tokens 4 --kv-cache-dtype $format --kv-scales "$scales"
done
check "scales for what config.json says" 0 '.' '*' run "$scratch/asks" -p hi --max-tokens 4 --kv-scales "$scales"
check "scales for a cache without" 2 '' '--kv-scales: the KV cache is bfloat16' run -p hi --kv-scales "$scales"

# What heads see: every layer, also in chunks that ask for no logits.
paw=$(dirname "$weft")/oracle/models/pawqwen3_xattn_streaming
seq -s, 1 200 | sed 's/.*/[&,&,&,&]/' >"$scratch/ids.json"
check "a prompt below the crossover" 2 '' 'add from=0' inspect attention "$paw" -p "$scratch/ids.json" --prefill-attention xattn -o "$scratch/a.html"
check "a picture that can't be written" 1 '' "can't write" inspect attention "$paw" -p "$scratch/ids.json" -o "$scratch/none/a.html"
check "a bad stride" 2 '' '^weft: error: --prefill-attention: stride must' inspect attention "$paw" -p "$scratch/ids.json" --prefill-attention xattn:stride=5
check "a thresholds file that is not there" 1 '' '--prefill-attention thresholds: .*none' inspect attention "$paw" -p "$scratch/ids.json" --prefill-attention xattn:thresholds=none
check "heads by chunks" 0 '24 full, 0 streaming, 0 by blocks; computed 100.0 %' '*' inspect attention "$paw" -p "$scratch/ids.json" --prefill-attention xattn:threshold=1,from=0 --max-num-batched-tokens 256 -o "$scratch/a.html"
same "layers of it, each whole" "$(grep -c '^layer .*blocks 100.0 %.*least 100.00 %' "$scratch/out")" 3
check "heads of a window" 0 '16 streaming, 8 by blocks' '*' inspect attention "$paw" -p "$scratch/ids.json" --prefill-policy sticky:tokens=256 -o "$scratch/a.html"
same "no layer without its rows" "$(grep -c '^layer .*least 0.00 %' "$scratch/out")" 0

# Answers of the demo model: only the answer on standard output, the same bits each time.
check "greedy answer" 0 '^92\.?$' '*' run -p 'Calculate 13 + 79.' --temperature 0
check "quantised answer" 0 '^92\.?$' '*' run -p 'Calculate 13 + 79.' --temperature 0 -q int8
check "length limit" 0 '[A-Za-z]' '*' run -p 'Write a short story with Luke and a ball.' --max-tokens 12 --temperature 0
"$weft" run -p 'Write a short story with Luke and a ball.' --temperature 1 --seed 5 >"$scratch/a" 2>/dev/null </dev/null
"$weft" run -p 'Write a short story with Luke and a ball.' --temperature 1 --seed 5 --threads 1 >"$scratch/b" 2>/dev/null </dev/null
if cmp -s "$scratch/a" "$scratch/b" && [ -s "$scratch/a" ]; then
  passed=$((passed + 1))
else
  failed=$((failed + 1))
  echo "FAILED: a seeded answer differs between two runs"
fi

# What can't be written ends an answer; a reader that goes away is no news to other commands.
written() {  # NAME EXPECTED_CODES STDERR_PATTERN COMMAND...: codes of a pipe's parts
  local name=$1 codes=$2 err=$3
  shift 3
  local got
  got=$(bash -c "$*"' >"$0"/pipe; echo "${PIPESTATUS[*]}"' "$scratch" 2>"$scratch/err" </dev/null)
  if [ "$got" = "$codes" ] && matches "$err" "$scratch/err"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $name: codes '$got' instead of '$codes'"
    head -c 600 "$scratch/err"
  fi
}
written "an answer nobody reads" '1 0' 'standard output' \
  "timeout 20 '$weft' run -p 'Write a story.' --ignore-eos --max-tokens 8000 | head -c 5"
written "a full disk" '1 0' 'standard output: No space left' "'$weft' info >/dev/full | cat"
written "closed standard streams" '0 0' '' "'$weft' run -p hi --max-tokens 1 <&- >&- 2>&- | cat"

# Chat on a pipe: each line is a turn, one that is not UTF-8 is refused alone; /reset forgets.
printf 'Calculate 2 + 3.\n\xff\n/reset\nCalculate 4 + 4.\n/quit\n' | "$weft" run --temperature 0 >"$scratch/out" 2>"$scratch/err"
if [ $? -eq 0 ] && grep -q 5 "$scratch/out" && grep -q 8 "$scratch/out" &&
  grep -q 'message: the text is not valid UTF-8' "$scratch/err"; then
  passed=$((passed + 1))
else
  failed=$((failed + 1))
  echo "FAILED: chat on a pipe"
  head -c 600 "$scratch/out" "$scratch/err"
fi

# What was attached belongs to the conversation that /reset forgets.
printf 'Calculate 4 + 4.\n/reset\n/image %s\n/reset\nCalculate 4 + 4.\n' \
  "$source_dir/models/demo/eval/images/picture_color-0-0.png" |
  "$weft" run --temperature 0 --verbose >"$scratch/out" 2>"$scratch/err"
same "/reset forgets attachments" \
  "$(sed -nE 's/^.*\[([0-9]+) prompt tokens.*$/\1/p' "$scratch/err" | uniq -c | sed -E 's/ +([0-9]+) .*/\1/')" 2

check "info" 0 'Qwen3_5ForConditionalGeneration' '*' info
mkdir "$scratch/large"  # 1,000 layers of 20 GB
printf '%s' '{"architectures": ["LlamaForCausalLM"], "hidden_size": 65536, "intermediate_size": 65536, "vocab_size": 1000,
  "num_attention_heads": 256, "num_hidden_layers": 1000, "max_position_embeddings": 4096}' >"$scratch/large/config.json"
mkdir "$scratch/odd"  # as OpenLLaMA 3B
printf '%s' '{"architectures": ["LlamaForCausalLM"], "hidden_size": 3200, "intermediate_size": 8640, "vocab_size": 32000,
  "num_attention_heads": 32, "num_hidden_layers": 26, "max_position_embeddings": 2048}' >"$scratch/odd/config.json"
check "heads that no kernel takes" 1 '' 'odd/config.json: head_dim is 100: the CPU kernels take multiples of 16 up to 256' info "$scratch/odd" --device cpu
check "info of a model too large" 0 'fits here +no: the model needs .* of weights' '' info "$scratch/large"
check "info of its parameters" 0 '^parameters +3006' '' info "$scratch/large"
check "info json of a model too large" 0 '"fits": null' '' info "$scratch/large" --json
check "info json" 0 '"architecture"' '*' info --json
check "doctor" 0 'kernels' '*' doctor
check "version" 0 '^weft [0-9]' '*' version
check "latency bench" 0 'tg8' '*' bench latency -p 64 -n 8 -r 2
check "throughput bench" 0 'tokens/s|t/s' '*' bench throughput --num-prompts 4 --input-len 64 --output-len 8
check "dummy weights" 0 'pp64' '*' bench latency "$source_dir/models/demo" --load-format dummy -p 64 -n 0 -r 1

echo "cli: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
