// loss = -log p_y of each row, and the gradient p - onehot(y).
#include "kernels.h"
#include "softmax.h"

namespace fastadaad {
namespace {

struct CrossEntropyRow {
  Block* logits;   // in; scratch
  Block* weights;  // out: grad_student_logits
  int64_t blocks;
  int64_t label;
  float* loss;  // out
};

FASTADAAD_INLINE void cross_entropy_row_loop(const CrossEntropyRow& row) {
  const double sum = exponentiate(row.logits, row.weights, row.blocks, 1.0f);
  const float p_scale = static_cast<float>(1 / sum);
  for (int64_t b = 0; b < row.blocks; ++b)
    for (int64_t i = 0; i < LANES; ++i) row.weights[b].lane[i] *= p_scale;
  row.weights[row.label / LANES].lane[row.label % LANES] -= 1.0f;
  *row.loss = static_cast<float>(std::log(sum) - row.logits[row.label / LANES].lane[row.label % LANES]);
}

FASTADAAD_DEFINE_VERSIONS(cross_entropy_row, cross_entropy_row_loop, CrossEntropyRow)

}  // namespace

std::tuple<Tensor, Tensor> cross_entropy_grad(const Tensor student_logits, const Tensor labels) {
  const int64_t num_rows = student_logits.size(0), num_classes = student_logits.size(1);
  const int64_t blocks = num_blocks(num_classes), label_stride = labels.stride(0);
  const int64_t* label_values = labels.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t label = label_values[row * label_stride];
    STD_TORCH_CHECK(0 <= label && label < num_classes, "labels[", row, "] is ", label, ": it must be in [0, ",
                    num_classes, "), the classes of student_logits");
  }
  Tensor loss = torch::stable::new_empty(student_logits, {num_rows}, ScalarType::Float);
  Tensor grad_student = torch::stable::new_empty(student_logits, student_logits.sizes());
  const Rows logit_rows(student_logits), grad_rows(grad_student);
  float* loss_values = loss.mutable_data_ptr<float>();
  parallel_for(num_rows, blocks * LANES, [&](int64_t begin, int64_t end) {
    std::vector<Block> logits(blocks), weights(blocks);
    for (int64_t row = begin; row < end; ++row) {
      logit_rows.load(row, logits);
      cross_entropy_row({logits.data(), weights.data(), blocks, label_values[row * label_stride], loss_values + row});
      grad_rows.store(row, weights);
    }
  });
  return {loss, grad_student};
}

}  // namespace fastadaad
