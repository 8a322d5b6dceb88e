// kl = sum_j q_j (log q_j - log p_j) of each row, and its gradients with respect to both rows of logits.
#include "kernels.h"
#include "softmax.h"

namespace fastadaad {
namespace {

// d + e^-d - 1 for |d| < 0.25 by its series, which does not cancel.
FASTADAAD_INLINE float excess(float d) {
  float series = -1.0f / 5040;
  series = series * d + 1.0f / 720;
  series = series * d - 1.0f / 120;
  series = series * d + 1.0f / 24;
  series = series * d - 1.0f / 6;
  series = series * d + 0.5f;
  return d * d * series;
}

struct KlRow {
  Block* student;          // in: logits; scratch
  Block* teacher;          // in: logits; out: grad_teacher_logits
  Block* student_weights;  // out: grad_student_logits
  Block* teacher_weights;  // scratch
  int64_t blocks;
  float inverse_temperature;
  float* kl;  // out
};

FASTADAAD_INLINE void kl_row_loop(const KlRow& row) {
  const auto [student, teacher, student_weights, teacher_weights, blocks, inverse_temperature, kl_out] = row;
  const double student_sum = exponentiate(student, student_weights, blocks, inverse_temperature);
  const double teacher_sum = exponentiate(teacher, teacher_weights, blocks, inverse_temperature);
  const float p_scale = static_cast<float>(1 / student_sum), q_scale = static_cast<float>(1 / teacher_sum);
  const float log_sum_gap = static_cast<float>(std::log(teacher_sum) - std::log(student_sum));
  double sums[LANES] = {};  // of q log_ratio
  double terms[LANES] = {};  // of kl_terms (fastadaad/ops/kl_grad.py)
  double lost[LANES] = {};  // probability of classes that only the student masks
  for (int64_t b = 0; b < blocks; ++b)
#pragma GCC ivdep  // the four arrays do not overlap
    for (int64_t i = 0; i < LANES; ++i) {
      const float s = student[b].lane[i], t = teacher[b].lane[i], q = teacher_weights[b].lane[i] * q_scale;
      // Numbers instead of conditions: GCC would turn two uses of one condition into jumps and would not vectorise.
      const float student_masks = s == -INFINITE ? 1.0f : 0.0f, teacher_masks = t == -INFINITE ? 1.0f : 0.0f;
      // Instead of log q - log p: the gap of the logarithms is rounded once per row, not twice per class.
      const float log_ratio = student_masks + teacher_masks > 0.0f ? 0.0f : (t - s) - log_sum_gap;
      const float p = student_masks > 0.0f ? 0.0f : student_weights[b].lane[i] * p_scale;
      const float small = std::clamp(log_ratio, -0.25f, 0.25f);
      const float near = small == log_ratio ? (1.0f - student_masks) * (1.0f - teacher_masks) : 0.0f;
      sums[i] += static_cast<double>(q) * log_ratio;
      terms[i] += near * (q * excess(small)) + (1.0f - near) * (q * log_ratio + (p - q));
      lost[i] += q * student_masks;
      teacher[b].lane[i] = log_ratio;
      teacher_weights[b].lane[i] = q;
    }
  const float mean_log_ratio = static_cast<float>(total(sums)), kl = static_cast<float>(total(terms));
  for (int64_t b = 0; b < blocks; ++b)
#pragma GCC ivdep
    for (int64_t i = 0; i < LANES; ++i) {
      const float p = student_weights[b].lane[i] * p_scale, q = teacher_weights[b].lane[i];
      student_weights[b].lane[i] = (p - q) * inverse_temperature;
      teacher[b].lane[i] = q * (teacher[b].lane[i] - mean_log_ratio) * inverse_temperature;
    }
  *kl_out = total(lost) > 0 ? kl + INFINITE : kl;
}

FASTADAAD_DEFINE_VERSIONS(kl_row, kl_row_loop, KlRow)

}  // namespace

std::tuple<Tensor, Tensor, Tensor> kl_grad(const Tensor student_logits, const Tensor teacher_logits,
                                           double temperature) {
  const int64_t num_rows = student_logits.size(0), blocks = num_blocks(student_logits.size(1));
  Tensor kl = torch::stable::new_empty(student_logits, {num_rows}, ScalarType::Float);
  Tensor grad_student = torch::stable::new_empty(student_logits, student_logits.sizes());
  Tensor grad_teacher = torch::stable::new_empty(teacher_logits, teacher_logits.sizes());
  const Rows student_rows(student_logits), teacher_rows(teacher_logits);
  const Rows grad_student_rows(grad_student), grad_teacher_rows(grad_teacher);
  const float inverse_temperature = static_cast<float>(1 / temperature);
  float* kl_values = kl.mutable_data_ptr<float>();
  parallel_for(num_rows, blocks * LANES, [&](int64_t begin, int64_t end) {
    std::vector<Block> student(blocks), teacher(blocks), student_weights(blocks), teacher_weights(blocks);
    for (int64_t row = begin; row < end; ++row) {
      student_rows.load(row, student);
      teacher_rows.load(row, teacher);
      kl_row({student.data(), teacher.data(), student_weights.data(), teacher_weights.data(), blocks,
              inverse_temperature, kl_values + row});
      grad_student_rows.store(row, student_weights);
      grad_teacher_rows.store(row, teacher);
    }
  });
  return {kl, grad_student, grad_teacher};
}

}  // namespace fastadaad
