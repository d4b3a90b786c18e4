#!/bin/bash
# Packs reference data into tests/data/oracle, one reproducible archive a folder.
# The settings of xz are those for words of four bytes (7 % less than -9e), and for text those of bytes (3 % less).
# usage: tools/pack_oracle.sh ORACLE_DIR [models/NAME | text]...     (default: what is packed now)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
oracle=${1:?usage: tools/pack_oracle.sh ORACLE_DIR [models/NAME | text]...}
shift
if [ $# -eq 0 ]; then
  # Every family once; two of the three pawqwen3 checkpoints differ from the third only in routing.
  set -- text models/{ernie4_5,ernie4_5_moe,llama3,pawqwen3_xattn_streaming,qwen2,qwen2_5_vl} \
    models/{qwen3,qwen3_5,qwen3_5_moe,qwen3_5_mtp,qwen3_moe,qwen3_next,qwen3_vl,qwen3_yarn}
fi
for folder in "$@"; do
  words=lp=2,pb=2
  [ "$folder" = text ] && words=lp=0,pb=0
  archive=$root/tests/data/oracle/$(basename "$folder").tar.xz
  tar -C "$oracle" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    -cf - "$folder" | xz --lzma2=preset=9e,lc=2,$words,nice=273 >"$archive"
  echo "$(stat -c %s "$archive") $archive"
done
