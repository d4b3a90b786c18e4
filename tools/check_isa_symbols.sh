#!/bin/sh
# Fails when objects compiled for one instruction set define a weak symbol outside its namespace: the
# linker would keep one copy for the whole program, perhaps one that this machine can't execute
# (src/kernels/cpu/isa.h).
# usage: tools/check_isa_symbols.sh NAMESPACE OBJECT...
set -eu
isa=$1
shift
shared=$(nm -C "$@" | grep -E ' [WVu] ' | grep -v -e "weft::$isa::" -e 'DW\.ref\.' || true)
[ -z "$shared" ] && exit 0
echo "weak symbols outside weft::$isa:"
echo "$shared" | sort -u
exit 1
