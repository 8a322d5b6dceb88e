// uint8 images -> zero-padded crops, optionally mirrored and with a black square, as fp32 pixels in [0, 1].
#include <array>

#include "common.h"
#include "kernels.h"

namespace fastadaad {
namespace {

// A table instead of a product with 1/255: its quotients are exactly those of torch's division.
std::array<float, 256> quotients() {
  std::array<float, 256> table{};
  for (int value = 0; value < 256; ++value) table[value] = static_cast<float>(value) / 255.0f;
  return table;
}

const std::array<float, 256> PIXELS = quotients();

// Raises unless `value` is in [0, limit); `place` names it in the message.
template <class... Place>
void check_range(int64_t value, int64_t limit, const Place&... place) {
  STD_TORCH_CHECK(0 <= value && value < limit, place..., " is ", value, ": it must be in [0, ", limit, ")");
}

// Entries of `values` [B], checked.
const int64_t* checked(const char* name, const Tensor& values, int64_t limit) {
  const int64_t* data = values.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < values.numel(); ++b) check_range(data[b], limit, name, "[", b, "]");
  return data;
}

// Entries of `centers` [B, 2], checked.
const int64_t* checked_centers(const Tensor& centers, int64_t height, int64_t width) {
  const int64_t* data = centers.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < centers.size(0); ++b) {
    check_range(data[2 * b], height, "cutout_center[", b, ", 0]");
    check_range(data[2 * b + 1], width, "cutout_center[", b, ", 1]");
  }
  return data;
}

struct Crop {
  const uint8_t* image;  // [H, W, C]
  float* out;            // [C, H, W], without gaps
  int64_t height, width, channels;
  int64_t row_stride, column_stride, channel_stride;
  int64_t out_row_stride, out_column_stride, out_channel_stride;
  int64_t top, left;  // of the crop in the unpadded image: negative in the padding
  bool flip;
};

// Writes column x of an image's row to start + step * x of the crop's row, for the columns in [first, last).
FASTADAAD_INLINE void crop_row(const uint8_t* pixels, int64_t column_stride, float* out, int64_t start, int64_t step,
                               int64_t first, int64_t last) {
  for (int64_t x = first; x < last; ++x) out[start + step * x] = PIXELS[pixels[x * column_stride]];
}

void crop_one(const Crop& crop) {
  const int64_t first = std::max<int64_t>(0, crop.left), last = std::min(crop.width, crop.left + crop.width);
  const int64_t direction = crop.flip ? -1 : 1, start = crop.flip ? crop.width - 1 + crop.left : -crop.left;
  const int64_t stride = crop.out_column_stride;
  std::fill(crop.out, crop.out + crop.channels * crop.height * crop.width, 0.0f);
  for (int64_t i = 0; i < crop.height; ++i) {
    const int64_t row = crop.top + i;
    if (row < 0 || row >= crop.height) continue;
    for (int64_t c = 0; c < crop.channels; ++c) {
      const uint8_t* pixels = crop.image + row * crop.row_stride + c * crop.channel_stride;
      float* out = crop.out + i * crop.out_row_stride + c * crop.out_channel_stride;
      // The compiler copies many pixels at a time if it knows that the step is 1.
      if (stride == 1)
        crop_row(pixels, crop.column_stride, out, start, direction, first, last);
      else
        crop_row(pixels, crop.column_stride, out, start * stride, direction * stride, first, last);
    }
  }
}

// Blackens rows [row, row + size) and columns [column, column + size), clipped to the crop.
void cut_out(const Crop& crop, int64_t row, int64_t column, int64_t size) {
  const int64_t first_row = std::max<int64_t>(0, row), last_row = std::min(crop.height, row + size);
  const int64_t first_column = std::max<int64_t>(0, column), last_column = std::min(crop.width, column + size);
  // With the channels last, one run of values holds the columns of all channels.
  const int64_t num_runs = crop.out_column_stride == 1 ? crop.channels : 1;
  for (int64_t i = first_row; i < last_row; ++i)
    for (int64_t c = 0; c < num_runs; ++c) {
      float* out = crop.out + i * crop.out_row_stride + c * crop.out_channel_stride;
      std::fill(out + first_column * crop.out_column_stride, out + last_column * crop.out_column_stride, 0.0f);
    }
}

}  // namespace

Tensor crop_flip(const Tensor images, const Tensor indices, const Tensor top, const Tensor left, const Tensor flip,
                 int64_t padding, int64_t cutout, const std::optional<Tensor> cutout_center, bool channels_last) {
  using torch::headeronly::MemoryFormat, torch::stable::contiguous;
  const int64_t num_samples = indices.size(0), height = images.size(1), width = images.size(2);
  const int64_t channels = images.size(3), size = channels * height * width;
  const Tensor dense_indices = contiguous(indices), dense_top = contiguous(top), dense_left = contiguous(left);
  const Tensor dense_flip = contiguous(flip);
  const std::optional<Tensor> dense_centers = cutout_center ? std::optional(contiguous(*cutout_center)) : std::nullopt;
  const int64_t* index = checked("indices", dense_indices, images.size(0));
  const int64_t* top_of = checked("top", dense_top, 2 * padding + 1);
  const int64_t* left_of = checked("left", dense_left, 2 * padding + 1);
  const int64_t* centers = dense_centers ? checked_centers(*dense_centers, height, width) : nullptr;
  const bool* flip_of = dense_flip.const_data_ptr<bool>();
  const uint8_t* first = images.const_data_ptr<uint8_t>();
  Tensor x_natural =
      torch::stable::empty({num_samples, channels, height, width}, ScalarType::Float, std::nullopt, images.device(),
                           std::nullopt, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  float* out = x_natural.mutable_data_ptr<float>();
  parallel_for(num_samples, size, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Crop crop{first + index[b] * images.stride(0), out + b * size,
                      height, width, channels,
                      images.stride(1), images.stride(2), images.stride(3),
                      x_natural.stride(2), x_natural.stride(3), x_natural.stride(1),
                      top_of[b] - padding, left_of[b] - padding, flip_of[b]};
      crop_one(crop);
      if (centers) cut_out(crop, centers[2 * b] - cutout / 2, centers[2 * b + 1] - cutout / 2, cutout);
    }
  });
  return x_natural;
}

}  // namespace fastadaad
