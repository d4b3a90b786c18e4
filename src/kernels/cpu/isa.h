#pragma once

// Every kernel of this directory is compiled once per instruction set (weft_isa_sources() in
// CMakeLists.txt), inside the namespace weft::WEFT_ISA_NS with its own -m flags.
//
// The rule that keeps this sound: an inline function or template that the compiler emits out of
// line has a weak symbol, and the linker keeps one copy for the whole program, perhaps the AVX-512
// one. So a kernel file defines everything inside namespace weft::WEFT_ISA_NS (an unnamed
// namespace in it where possible), uses no std:: function templates or containers that the
// compiler may not inline, and checks with ISA_CHECK, never CHECK. tools/check_isa_symbols.sh (a
// test) fails on a weak symbol outside the namespace.

#include <immintrin.h>

#include "kernels/cpu/cpu_ops.h"

#ifndef WEFT_ISA_NS  // for tools that look at one file alone
#define WEFT_ISA_NS avx2
#endif

#if defined(__AVX512F__)
#define WEFT_AVX512 1
#endif
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define WEFT_AVX512_BF16 1
#endif
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define WEFT_AMX 1
#endif

#define WEFT_INLINE [[gnu::always_inline]] inline

namespace weft {
/// CHECK for kernel files: no std::string is made there.
[[noreturn]] void isa_check_failed(const char* condition, const char* file, int line);
}  // namespace weft

#define ISA_CHECK(condition)                                    \
  do {                                                          \
    if (!(condition)) [[unlikely]]                              \
      ::weft::isa_check_failed(#condition, __FILE__, __LINE__); \
  } while (false)
