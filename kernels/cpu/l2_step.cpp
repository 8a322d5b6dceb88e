// x_adv + step_size g / max(||g||, 1e-12), scaled back to the l_2 ball around x_natural, clamped to [lower, upper].
#include <cmath>

#include "kernels.h"
#include "pixels.h"

namespace fastadaad {
namespace {

constexpr double SMALLEST_NORM = 1e-12;
constexpr int64_t LANES = 16;

struct L2Sample {
  float* x_adv;
  const float* x_natural;
  const float* grad_x;
  int64_t size;
  double step_size, epsilon;
  float lower, upper;
};

// Norm of value(0), ..., value(size - 1), summed in double: no overflow, and as accurate as fp32 pixels allow.
template <class Value>
FASTADAAD_INLINE double norm(int64_t size, const Value& value) {
  double sums[LANES] = {};
  const int64_t whole = size / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) {
      const double x = value(i + j);
      sums[j] += x * x;
    }
  double sum = 0;
  for (int64_t i = whole; i < size; ++i) {
    const double x = value(i);
    sum += x * x;
  }
  for (const double lane : sums) sum += lane;
  return std::sqrt(sum);
}

FASTADAAD_INLINE void l2_sample_loop(const L2Sample& sample) {
  const auto [x_adv, x_natural, grad_x, size, step_size, epsilon, lower, upper] = sample;
  const double grad_norm = norm(size, [grad = grad_x](int64_t i) { return grad[i]; });
  const float scale = static_cast<float>(step_size / (grad_norm < SMALLEST_NORM ? SMALLEST_NORM : grad_norm));
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) x_adv[i] += scale * grad_x[i];
  const double delta_norm =
      norm(size, [adv = x_adv, natural = x_natural](int64_t i) { return adv[i] - natural[i]; });
  if (!(delta_norm <= epsilon)) {  // NaN makes the whole sample NaN, instead of leaving it outside the ball
    const float shrink = static_cast<float>(epsilon / delta_norm);
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) x_adv[i] = x_natural[i] + (x_adv[i] - x_natural[i]) * shrink;
  }
  for (int64_t i = 0; i < size; ++i) x_adv[i] = clamp(x_adv[i], lower, upper);
}

FASTADAAD_DEFINE_VERSIONS(l2_sample, l2_sample_loop, L2Sample)

}  // namespace

void l2_step_(Tensor x_adv, const Tensor x_natural, const Tensor grad_x, double step_size, double epsilon,
              double lower, double upper) {
  const int64_t num_samples = x_adv.size(0), size = x_adv.numel() / std::max<int64_t>(1, num_samples);
  with_one_layout(x_adv, x_natural, grad_x, [&](float* adv, const float* natural, const float* grad) {
    parallel_for(num_samples, size, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * size; first < end * size; first += size)
        l2_sample({adv + first, natural + first, grad + first, size, step_size, epsilon, static_cast<float>(lower),
                   static_cast<float>(upper)});
    });
  });
}

}  // namespace fastadaad
