#!/bin/bash
# Format, floors, sizes and clang-tidy.
# usage: tools/lint.sh BUILD_DIR [--changed | FILE...]
# clang-tidy looks at every source of the compilation database (about 10 s a file and core), with --changed at
# those that differ from origin/main or main, with FILEs at these.
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:?usage: tools/lint.sh BUILD_DIR [--changed | FILE...]}
shift
failed=0

echo "== format"
tools/check_format.sh || failed=1
echo "== layers"
tools/check_layers.py || failed=1
echo "== sizes"
tools/check_size.py || failed=1

echo "== clang-tidy"
case "${1:-}" in
  --changed)
    base=$(git merge-base HEAD origin/main 2>/dev/null || git merge-base HEAD main)
    mapfile -t files < <({ git diff --name-only --diff-filter=d "$base"; git ls-files -o --exclude-standard; } |
      grep -E '^src/.*\.cc$' | sort -u)
    ;;
  '') mapfile -t files < <(git ls-files -co --exclude-standard 'src/*.cc' 'tests/support/*.cc') ;;
  *) files=("$@") ;;
esac
# One command a file: the CPU kernels are compiled once per instruction set, the last has the widest. A file
# outside the database (the absent half of a choice) has no flags to be read with.
# Every source has a command of its own there: build/release compiles many at once (WEFT_UNITY).
cmake --preset release -B "$build/lint" -DWEFT_UNITY=OFF >/dev/null || exit 1
mkdir -p "$build/tidy"
mapfile -t known < <(python3 - "$build" "${files[@]}" <<'PYTHON'
import json, os, sys
build, files = sys.argv[1], sys.argv[2:]
with open(f"{build}/lint/compile_commands.json", encoding="utf-8") as database:
    commands = {os.path.relpath(entry["file"]): entry for entry in json.load(database)}
chosen = [name for name in map(os.path.relpath, files) if name in commands]
with open(f"{build}/tidy/compile_commands.json", "w", encoding="utf-8") as database:
    json.dump([commands[name] for name in chosen], database)
if chosen:
    print("\n".join(chosen))
PYTHON
)
echo "${#known[@]} files"
if [ ${#known[@]} -gt 0 ]; then
  findings=$(mktemp)
  trap 'rm -f "$findings"' EXIT
  printf '%s\n' "${known[@]}" |
    xargs -P "$(nproc)" -n 1 clang-tidy-16 -p "$build/tidy" --quiet \
      --extra-arg=-Wno-unknown-warning-option >"$findings" 2>"$findings.log" || tidy=failed
  # A finding in a header comes once for each file that includes it.
  awk '/: (error|warning): / { shown = !($0 in seen); seen[$0] = 1 } shown' "$findings"
  if [ -n "${tidy:-}" ]; then
    failed=1
    grep -E 'error:' "$findings.log" | sort -u
  fi
  rm -f "$findings.log"
fi
[ $failed -eq 0 ] && echo "lint: clean" || echo "lint: FAILED"
exit $failed
