"""Benchmarks of fastadaad: `python -m bench NAME` writes figures, with their hardware, to bench/results/."""
