"""Execution of code on this machine: compilation, CUDA graphs, precision, ranks, files, signals, progress."""
