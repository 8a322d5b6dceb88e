"""One training step (Distiller) and one training run (Trainer)."""
