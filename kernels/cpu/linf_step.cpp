// x_adv + step_size sign(grad_x), clamped to the l_inf ball around x_natural, then to [lower, upper].
#include "kernels.h"
#include "pixels.h"

namespace fastadaad {
namespace {

struct LinfRange {
  float* x_adv;
  const float* x_natural;
  const float* grad_x;
  int64_t begin, end;
  float step_size, epsilon, lower, upper;
};

FASTADAAD_INLINE void linf_range_loop(const LinfRange& range) {
  const auto [x_adv, x_natural, grad_x, begin, end, step_size, epsilon, lower, upper] = range;
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) {
    const float natural = x_natural[i], grad = grad_x[i];
    const float step = grad > 0.0f ? step_size : (grad < 0.0f ? -step_size : 0.0f);
    const float projected = clamp(x_adv[i] + step, natural - epsilon, natural + epsilon);
    // A NaN bound does not clamp; torch.clamp makes it NaN.
    x_adv[i] = natural != natural ? natural : clamp(projected, lower, upper);
  }
}

FASTADAAD_DEFINE_VERSIONS(linf_range, linf_range_loop, LinfRange)

}  // namespace

void linf_step_(Tensor x_adv, const Tensor x_natural, const Tensor grad_x, double step_size, double epsilon,
                double lower, double upper) {
  const auto number = [](double value) { return static_cast<float>(value); };
  with_one_layout(x_adv, x_natural, grad_x, [&](float* adv, const float* natural, const float* grad) {
    parallel_for(x_adv.numel(), 1, [&](int64_t begin, int64_t end) {
      linf_range({adv, natural, grad, begin, end, number(step_size), number(epsilon), number(lower), number(upper)});
    });
  });
}

}  // namespace fastadaad
