// x_adv <- x_natural + scale noise, clamped to [lower, upper].
#include "kernels.h"
#include "pixels.h"

namespace fastadaad {
namespace {

struct StartRange {
  float* x_adv;
  const float* x_natural;
  const float* noise;
  int64_t begin, end;
  float scale, lower, upper;
};

FASTADAAD_INLINE void start_range_loop(const StartRange& range) {
  const auto [x_adv, x_natural, noise, begin, end, scale, lower, upper] = range;
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) x_adv[i] = clamp(x_natural[i] + scale * noise[i], lower, upper);
}

FASTADAAD_DEFINE_VERSIONS(start_range, start_range_loop, StartRange)

}  // namespace

void random_start_(Tensor x_adv, const Tensor x_natural, const Tensor noise, double scale, double lower, double upper) {
  const auto number = [](double value) { return static_cast<float>(value); };
  with_one_layout(x_adv, x_natural, noise, [&](float* adv, const float* natural, const float* draws) {
    parallel_for(x_adv.numel(), 1, [&](int64_t begin, int64_t end) {
      start_range({adv, natural, draws, begin, end, number(scale), number(lower), number(upper)});
    });
  });
}

}  // namespace fastadaad
