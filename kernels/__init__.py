"""Kernels of fastadaad.ops: `triton/` for CUDA; `cpu/` in C++, built into the library `_C.so` beside this file."""

KERNELS_VARIABLE = "FASTADAAD_KERNELS"
