// Brings the tensors of a pixel kernel into one dense layout, so that a kernel is a flat loop.
#pragma once

#include <utility>
#include <vector>

#include "common.h"

namespace fastadaad {

// True if the samples follow each other without gaps; the dimensions inside a sample may have any order.
inline bool is_dense(const Tensor& x) {
  if (x.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size), the fastest first
  for (int64_t d = 1; d < x.dim(); ++d)
    if (x.size(d) > 1) dims.emplace_back(x.stride(d), x.size(d));
  std::sort(dims.begin(), dims.end());
  if (x.size(0) > 1) dims.emplace_back(x.stride(0), x.size(0));
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline bool same_strides(const Tensor& x, const Tensor& y) {
  for (int64_t d = 0; d < x.dim(); ++d)
    if (x.size(d) > 1 && x.stride(d) != y.stride(d)) return false;
  return true;
}

// Returns `x`, or a copy of it, as fp32 in the layout of the dense fp32 tensor `model`.
inline Tensor in_layout_of(const Tensor& model, const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float && same_strides(model, x)) return x;
  Tensor copy = torch::stable::empty_like(model);
  torch::stable::copy_(copy, x);
  return copy;
}

// Calls body(x_adv, x_natural, other) with fp32 pixels in one dense layout; its result reaches x_adv.
template <class Body>
void with_one_layout(Tensor& x_adv, const Tensor& x_natural, const Tensor& other, const Body& body) {
  const bool dense = is_dense(x_adv);
  Tensor work = dense ? x_adv : torch::stable::contiguous(x_adv);
  const Tensor natural = in_layout_of(work, x_natural), like_work = in_layout_of(work, other);
  body(work.mutable_data_ptr<float>(), natural.const_data_ptr<float>(), like_work.const_data_ptr<float>());
  if (!dense) torch::stable::copy_(x_adv, work);
}

}  // namespace fastadaad
