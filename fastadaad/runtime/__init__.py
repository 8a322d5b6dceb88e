"""How code runs on this machine: compilation, CUDA graphs, precision, ranks, files, signals, progress."""
