"""Triton kernels for CUDA: one module per operation, with its kernels and a launch function named like the module.

Launch functions take the arguments of the operation's schema, already checked. They do not use autograd and never
synchronise with the host. Launch parameters are plain functions of the shapes, so that the interpreter can run every
kernel and every launched configuration can be compiled ahead of time.
"""
