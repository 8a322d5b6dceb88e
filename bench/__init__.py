"""Measurements of fastadaad: `python -m bench NAME`; figures go to bench/results/ with their hardware."""
