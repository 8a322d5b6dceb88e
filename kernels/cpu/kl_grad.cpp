// kl = sum_j q_j (log q_j - log p_j) of each row, and its gradients with respect to both rows of logits.
#include "kernels.h"
#include "softmax.h"

namespace fastadaad {
namespace {

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
  const double student_sum = exponentiate(row.student, row.student_weights, row.blocks, row.inverse_temperature);
  const double teacher_sum = exponentiate(row.teacher, row.teacher_weights, row.blocks, row.inverse_temperature);
  const float p_scale = static_cast<float>(1 / student_sum), q_scale = static_cast<float>(1 / teacher_sum);
  const float log_sum_gap = static_cast<float>(std::log(teacher_sum) - std::log(student_sum));
  double sums[LANES] = {};
  double lost[LANES] = {};  // probability of classes that only the student masks
  for (int64_t b = 0; b < row.blocks; ++b)
    for (int64_t i = 0; i < LANES; ++i) {
      const float s = row.student[b].lane[i], t = row.teacher[b].lane[i];
      const float q = row.teacher_weights[b].lane[i] * q_scale;
      // Not log q - log p: the sum of two logarithms is rounded once for the row, not twice for each class.
      const float ratio = (t - s) - log_sum_gap;
      const float log_ratio = (s == -INFINITE) | (t == -INFINITE) ? 0.0f : ratio;
      sums[i] += static_cast<double>(q) * log_ratio;
      lost[i] += s == -INFINITE ? q : 0.0f;
      row.teacher[b].lane[i] = log_ratio;
      row.teacher_weights[b].lane[i] = q;
    }
  const float kl = static_cast<float>(total(sums));
  for (int64_t b = 0; b < row.blocks; ++b)
    for (int64_t i = 0; i < LANES; ++i) {
      const float p = row.student_weights[b].lane[i] * p_scale, q = row.teacher_weights[b].lane[i];
      row.student_weights[b].lane[i] = (p - q) * row.inverse_temperature;
      row.teacher[b].lane[i] = q * (row.teacher[b].lane[i] - kl) * row.inverse_temperature;
    }
  *row.kl = total(lost) > 0 ? kl + INFINITE : kl;
}

FASTADAAD_DEFINE_VERSIONS(kl_row, kl_row_loop, KlRow)

}  // namespace

std::tuple<Tensor, Tensor, Tensor> kl_grad(const Tensor student_logits, const Tensor teacher_logits, double temperature) {
  const int64_t num_rows = student_logits.size(0), blocks = num_blocks(student_logits.size(1));
  Tensor kl = torch::stable::new_empty(student_logits, {num_rows}, ScalarType::Float);
  Tensor grad_student = torch::stable::new_empty(student_logits, student_logits.sizes());
  Tensor grad_teacher = torch::stable::new_empty(teacher_logits, teacher_logits.sizes());
  float* kl_values = kl.mutable_data_ptr<float>();
  parallel_for(num_rows, blocks * LANES, [&](int64_t begin, int64_t end) {
    std::vector<Block> student(blocks), teacher(blocks), student_weights(blocks), teacher_weights(blocks);
    for (int64_t row = begin; row < end; ++row) {
      load_row(student_logits, row, student);
      load_row(teacher_logits, row, teacher);
      kl_row({student.data(), teacher.data(), student_weights.data(), teacher_weights.data(), blocks,
              static_cast<float>(1 / temperature), kl_values + row});
      store_row(student_weights, grad_student, row);
      store_row(teacher, grad_teacher, row);
    }
  });
  return {kl, grad_student, grad_teacher};
}

}  // namespace fastadaad
