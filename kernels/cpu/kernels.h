// Kernels that library.cpp registers, one source file each; fastadaad/ops documents the operations.
#pragma once

#include <optional>
#include <tuple>

#include <torch/csrc/stable/tensor.h>

namespace fastadaad {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> kl_grad(const Tensor student_logits, const Tensor teacher_logits,
                                           double temperature);
std::tuple<Tensor, Tensor> cross_entropy_grad(const Tensor student_logits, const Tensor labels);
void linf_step_(Tensor x_adv, const Tensor x_natural, const Tensor grad_x, double step_size, double epsilon,
                double lower, double upper);
void l2_step_(Tensor x_adv, const Tensor x_natural, const Tensor grad_x, double step_size, double epsilon,
              double lower, double upper);
void random_start_(Tensor x_adv, const Tensor x_natural, const Tensor noise, double scale, double lower, double upper);
Tensor crop_flip(const Tensor images, const Tensor indices, const Tensor top, const Tensor left, const Tensor flip,
                 int64_t padding, int64_t cutout, const std::optional<Tensor> cutout_center, bool channels_last);

}  // namespace fastadaad
