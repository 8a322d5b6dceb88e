// uint8 images -> zero-padded crops, mirrored where asked, as fp32 pixels in [0, 1].
#include <array>

#include "common.h"
#include "kernels.h"

namespace fastadaad {
namespace {

// Not a product with 1/255: the table gives exactly the quotients of torch's division.
std::array<float, 256> quotients() {
  std::array<float, 256> table{};
  for (int value = 0; value < 256; ++value) table[value] = static_cast<float>(value) / 255.0f;
  return table;
}

const std::array<float, 256> PIXELS = quotients();

// Raises unless every entry of `values` [B] is in [0, limit).
const int64_t* checked(const char* name, const Tensor& values, int64_t limit) {
  const int64_t* data = values.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < values.numel(); ++b)
    STD_TORCH_CHECK(0 <= data[b] && data[b] < limit, name, "[", b, "] is ", data[b], ": it must be in [0, ", limit,
                    ")");
  return data;
}

struct Crop {
  const uint8_t* image;  // [H, W, C]
  float* out;            // [C, H, W], contiguous
  int64_t height, width, channels;
  int64_t row_stride, column_stride, channel_stride;
  int64_t top, left;  // of the crop in the unpadded image: negative in the padding
  bool flip;
};

void crop_one(const Crop& crop) {
  const int64_t first = std::max<int64_t>(0, crop.left), last = std::min(crop.width, crop.left + crop.width);
  // Column x of the image lands in column start + direction * x of the crop.
  const int64_t direction = crop.flip ? -1 : 1, start = crop.flip ? crop.width - 1 + crop.left : -crop.left;
  std::fill(crop.out, crop.out + crop.channels * crop.height * crop.width, 0.0f);
  for (int64_t c = 0; c < crop.channels; ++c)
    for (int64_t i = 0; i < crop.height; ++i) {
      const int64_t row = crop.top + i;
      if (row < 0 || row >= crop.height) continue;
      const uint8_t* pixels = crop.image + row * crop.row_stride + c * crop.channel_stride;
      float* out = crop.out + (c * crop.height + i) * crop.width;
      for (int64_t x = first; x < last; ++x) out[start + direction * x] = PIXELS[pixels[x * crop.column_stride]];
    }
}

}  // namespace

Tensor crop_flip(const Tensor images, const Tensor indices, const Tensor top, const Tensor left, const Tensor flip,
                 int64_t padding) {
  const int64_t num_samples = indices.size(0), height = images.size(1), width = images.size(2);
  const int64_t channels = images.size(3), size = channels * height * width;
  const Tensor dense_indices = torch::stable::contiguous(indices), dense_top = torch::stable::contiguous(top);
  const Tensor dense_left = torch::stable::contiguous(left), dense_flip = torch::stable::contiguous(flip);
  const int64_t* index = checked("indices", dense_indices, images.size(0));
  const int64_t* top_of = checked("top", dense_top, 2 * padding + 1);
  const int64_t* left_of = checked("left", dense_left, 2 * padding + 1);
  const bool* flip_of = dense_flip.const_data_ptr<bool>();
  const uint8_t* first = images.const_data_ptr<uint8_t>();
  Tensor x_natural = torch::stable::new_empty(images, {num_samples, channels, height, width}, ScalarType::Float);
  float* out = x_natural.mutable_data_ptr<float>();
  parallel_for(num_samples, size, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      crop_one({first + index[b] * images.stride(0), out + b * size, height, width, channels, images.stride(1),
                images.stride(2), images.stride(3), top_of[b] - padding, left_of[b] - padding, flip_of[b]});
  });
  return x_natural;
}

}  // namespace fastadaad
