// Kernels with one fault each, which the sanitizers must detect; `clean` has no fault.
#include <cstring>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;

namespace {

// volatile: the compiler knows neither value and must keep the writes to `sink`.
volatile int64_t one = 1, sixty_four = 64;
volatile float sink;

float* data(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

void clean(Tensor x) { sink = data(x)[x.numel() - one]; }
void read_past(Tensor x) { sink = data(x)[x.numel() - 1 + one]; }
void read_before(Tensor x) { sink = data(x)[-one]; }
void write_past(Tensor x) { data(x)[x.numel() - 1 + one] = 1.0f; }
void copy_past(Tensor x) { std::memset(data(x) + one, 0, x.numel() * sizeof(float)); }
void overflow(Tensor x) { sink = static_cast<float>(INT64_MAX - x.numel() + x.numel() + one); }
void shift(Tensor x) { sink = static_cast<float>(x.numel() << sixty_four); }
void misaligned(Tensor x) { sink = *reinterpret_cast<float*>(reinterpret_cast<char*>(data(x)) + one); }

}  // namespace

STABLE_TORCH_LIBRARY(planted, library) {
  for (const char* schema : {"clean(Tensor x) -> ()", "read_past(Tensor x) -> ()", "read_before(Tensor x) -> ()",
                             "write_past(Tensor x) -> ()", "copy_past(Tensor x) -> ()", "overflow(Tensor x) -> ()",
                             "shift(Tensor x) -> ()", "misaligned(Tensor x) -> ()"})
    library.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(planted, CPU, library) {
  library.impl("clean", TORCH_BOX(&clean));
  library.impl("read_past", TORCH_BOX(&read_past));
  library.impl("read_before", TORCH_BOX(&read_before));
  library.impl("write_past", TORCH_BOX(&write_past));
  library.impl("copy_past", TORCH_BOX(&copy_past));
  library.impl("overflow", TORCH_BOX(&overflow));
  library.impl("shift", TORCH_BOX(&shift));
  library.impl("misaligned", TORCH_BOX(&misaligned));
}
