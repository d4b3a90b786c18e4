# CUDA for Hopper (sm_90a: wgmma and the bulk tensor copies need the `a`). The compiler is looked for in
# the PATH, then where NVIDIA's packages put it; -DCMAKE_CUDA_COMPILER=... names another.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(WEFT_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(NOT WEFT_NVCC)
    message(FATAL_ERROR "WEFT_CUDA needs nvcc: neither in the PATH nor at /usr/local/cuda/bin/nvcc")
  endif()
  set(CMAKE_CUDA_COMPILER ${WEFT_NVCC})
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)  # SASS alone: nothing is compiled on the user's machine
endif()
enable_language(CUDA)
# CMake 3.25 (Debian 12) does not know that nvcc has C++20; what 3.26 says of it:
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_COMPILE_FEATURES cuda_std_20)
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit REQUIRED)

# --expt-relaxed-constexpr: constexpr functions of the standard library in device code (std::array, std::min).
# -lineinfo costs nothing at run time and names source lines in profiles.
target_compile_options(weft_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -lineinfo -Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-ffp-contract=off>)
if(WEFT_WERROR)
  target_compile_options(weft_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
