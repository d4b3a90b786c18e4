#include "kernels/weight.h"

namespace weft {

std::string_view weight_format_name(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return "f32";
    case WeightFormat::kBf16: return "bf16";
    case WeightFormat::kInt8: return "int8";
    case WeightFormat::kInt4: return "int4";
    case WeightFormat::kFp8Block: return "fp8";
    case WeightFormat::kDraft4: return "draft4";
  }
  return "?";
}

}  // namespace weft
