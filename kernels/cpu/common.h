// Shared by all kernels. The public functions in fastadaad/ops check shapes, dtypes and devices before a kernel runs.
#pragma once

#include <algorithm>
#include <cstdint>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#define FASTADAAD_INLINE inline __attribute__((always_inline))

// CMake sets FASTADAAD_MULTIVERSION if compiler, processor and C library can choose among versions at load time.
#ifdef FASTADAAD_MULTIVERSION
#define FASTADAAD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTADAAD_CLONES
#endif

// Defines `void run(const Arguments&)`: the always-inline function `loop`, compiled for AVX-512, for AVX2 and for any
// processor. The best version is chosen at load time. Tests run the version for any processor through use_baseline.
#define FASTADAAD_DEFINE_VERSIONS(run, loop, Arguments)                                   \
  FASTADAAD_CLONES void run##_dispatched(const Arguments& arguments) { loop(arguments); } \
  void run##_baseline(const Arguments& arguments) { loop(arguments); }                    \
  void run(const Arguments& arguments) {                                                  \
    use_baseline ? run##_baseline(arguments) : run##_dispatched(arguments);               \
  }

namespace fastadaad {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool use_baseline = false;

constexpr int64_t PARALLEL_GRAIN = 16384;  // elements; with fewer, waking a thread takes longer than the work

// Calls body(begin, end) on ranges of [0, count) in parallel; each item has `size` elements.
template <class Body>
void parallel_for(int64_t count, int64_t size, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, PARALLEL_GRAIN / std::max<int64_t>(1, size));
  torch::stable::parallel_for(0, count, grain, body);
}

// NaN stays NaN.
FASTADAAD_INLINE float clamp(float value, float lower, float upper) {
  value = value < lower ? lower : value;
  return value > upper ? upper : value;
}

}  // namespace fastadaad
