"""pytest plugin that loads the C++ kernels of the library $SANITIZED_KERNELS.

Use it with FASTADAAD_KERNELS=reference, so that the installed library is not loaded.
"""

import os

import torch

from fastadaad.ops import registration

torch.ops.load_library(os.environ["SANITIZED_KERNELS"])
for name, _ in registration._references.values():
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastadaad::{name}", "CPU"), name
registration._cpp = True, "the sanitized library is loaded"
