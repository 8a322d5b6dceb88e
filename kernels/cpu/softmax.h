// Rows of logits for the two logit kernels: fp32, in blocks of 16, padded with -inf (probability 0).
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common.h"

namespace fastadaad {

constexpr int64_t LANES = 16;  // one AVX-512 register of fp32
constexpr float INFINITE = std::numeric_limits<float>::infinity();

struct alignas(64) Block {
  float lane[LANES];
};

inline int64_t num_blocks(int64_t num_classes) { return (num_classes + LANES - 1) / LANES; }

// Calls body(T{}) with the type of a floating dtype.
template <class Body>
void visit_float(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Half: return body(torch::headeronly::Half{});
    case ScalarType::BFloat16: return body(torch::headeronly::BFloat16{});
    default: STD_TORCH_CHECK(false, "logits must be torch.float32, torch.float16 or torch.bfloat16: convert them");
  }
}

// Rows of a matrix [B, N] of any floating dtype and strides; pointer, dtype and strides are queried once.
class Rows {
 public:
  explicit Rows(const Tensor& matrix)
      : data_(matrix.data_ptr()),
        dtype_(matrix.scalar_type()),
        num_classes_(matrix.size(1)),
        row_stride_(matrix.stride(0)),
        class_stride_(matrix.stride(1)) {}

  void load(int64_t row, std::vector<Block>& values) const {
    float* out = values.data()->lane;
    visit_float(dtype_, [&](auto zero) {
      const auto* first = static_cast<const decltype(zero)*>(data_) + row * row_stride_;
      for (int64_t j = 0; j < num_classes_; ++j) out[j] = static_cast<float>(first[j * class_stride_]);
    });
    std::fill(out + num_classes_, out + values.size() * LANES, -INFINITE);
  }

  void store(int64_t row, const std::vector<Block>& values) const {
    const float* in = values.data()->lane;
    visit_float(dtype_, [&](auto zero) {
      using T = decltype(zero);
      T* first = static_cast<T*>(data_) + row * row_stride_;
      for (int64_t j = 0; j < num_classes_; ++j) first[j * class_stride_] = static_cast<T>(in[j]);
    });
  }

 private:
  void* data_;
  ScalarType dtype_;
  int64_t num_classes_, row_stride_, class_stride_;
};

// e^x for x <= 0, -inf or NaN, within 1.5 ulp; 0 below -87, where fp32 loses precision.
// e^x = 2^n e^r with n the integer nearest to x / ln 2, so that |r| <= ln(2) / 2, and e^r by its series.
FASTADAAD_INLINE float exp_of_negative(float x) {
  constexpr float LOWEST = -87.0f;
  constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: a sum with it has ulp 1, its low bits are the rounded integer
  constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;  // n * LN2_HIGH is exact
  const float clamped = x < LOWEST ? LOWEST : x;
  const float rounded = clamped * 1.44269504f + ROUNDER;
  const float n = rounded - ROUNDER;
  const float r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const float power_of_two = std::bit_cast<float>((std::bit_cast<uint32_t>(rounded) + 127u) << 23);
  return x < LOWEST ? 0.0f : series * power_of_two;
}

FASTADAAD_INLINE float largest(const Block* values, int64_t blocks) {
  float best[LANES];
  std::fill(best, best + LANES, -INFINITE);
  for (int64_t b = 0; b < blocks; ++b) {
    const float* value = values[b].lane;
#pragma GCC unroll 1  // GCC vectorises this loop, but not the 16 comparisons that it would otherwise unroll it to
    for (int64_t i = 0; i < LANES; ++i) best[i] = value[i] > best[i] ? value[i] : best[i];
  }
  float result = best[0];
  for (int64_t i = 1; i < LANES; ++i) result = best[i] > result ? best[i] : result;
  return result;
}

FASTADAAD_INLINE double total(const double (&lanes)[LANES]) {
  double sum = 0;
  for (int64_t i = 0; i < LANES; ++i) sum += lanes[i];
  return sum;
}

// logits <- (logits - largest) / temperature; weights <- e^logits; returns the sum of the weights.
FASTADAAD_INLINE double exponentiate(Block* logits, Block* weights, int64_t blocks, float inverse_temperature) {
  const float peak = largest(logits, blocks);
  const float shift = peak == -INFINITE ? 0.0f : peak;  // a row whose classes are all masked keeps -inf instead of NaN
  double sums[LANES] = {};
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t i = 0; i < LANES; ++i) {
      const float logit = (logits[b].lane[i] - shift) * inverse_temperature;
      const float weight = exp_of_negative(logit);
      logits[b].lane[i] = logit;
      weights[b].lane[i] = weight;
      sums[i] += weight;
    }
  return total(sums);
}

}  // namespace fastadaad
