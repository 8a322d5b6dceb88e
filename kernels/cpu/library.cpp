// Registers the kernels for the CPU; the schemas are defined in fastadaad/ops/registration.py.
#include "common.h"
#include "kernels.h"

using namespace fastadaad;

// For tests: true runs the versions compiled for any processor instead of the versions chosen for this processor.
void set_use_baseline(bool value) { use_baseline = value; }

STABLE_TORCH_LIBRARY_FRAGMENT(fastadaad, library) {
  library.def("_use_baseline(bool value) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastadaad, CompositeExplicitAutograd, library) {
  library.impl("_use_baseline", TORCH_BOX(&set_use_baseline));
}

STABLE_TORCH_LIBRARY_IMPL(fastadaad, CPU, library) {
  library.impl("kl_grad", TORCH_BOX(&kl_grad));
  library.impl("cross_entropy_grad", TORCH_BOX(&cross_entropy_grad));
  library.impl("linf_step_", TORCH_BOX(&linf_step_));
  library.impl("l2_step_", TORCH_BOX(&l2_step_));
  library.impl("random_start_", TORCH_BOX(&random_start_));
  library.impl("crop_flip", TORCH_BOX(&crop_flip));
}
