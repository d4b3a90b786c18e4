#pragma once

namespace weft {

// What the CPU kernels take. Dims are the head dim of attention and of the vision tower, K and V of
// the gated delta rule.
inline constexpr int kCpuDimStep = 16;  ///< a dim is a multiple of it
inline constexpr int kCpuMaxDim = 256;
inline constexpr int kCpuMaxConvWidth = 8;  ///< taps of the short convolution

}  // namespace weft
