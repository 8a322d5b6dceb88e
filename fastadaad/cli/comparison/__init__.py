"""Comparisons: many trained and attacked students, their tables and figures."""
