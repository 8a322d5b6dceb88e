"""Lines that a training prints: one for each epoch, and every few minutes within an epoch if there is no progress bar.

They have the time left of the whole run, evaluations and waiting included.
"""

import time
from collections.abc import Sequence

from fastadaad.runtime.text import duration
from fastadaad.training.log import Row

HEARTBEAT_S = 180.0  # between two lines within an epoch


class EpochLines:
    """Lines of one start of a run.

    Args:
        num_epochs: Number of epochs of the run.
        fraction_done: Fraction of the run's steps that were made before this start.
    """

    def __init__(self, num_epochs: int, fraction_done: float) -> None:
        self.num_epochs = num_epochs
        self._done_before, self._began_at = fraction_done, time.perf_counter()
        self._last_at = self._began_at

    def of_epoch(self, row: Row, best: tuple[int, float], fraction_done: float) -> str:
        """Returns the line of an epoch.

        Args:
            row: The epoch's metrics.
            best: Epoch with the highest robust accuracy so far, and this accuracy.
            fraction_done: Fraction of the run's steps that have been made.
        """
        self._last_at = time.perf_counter()
        parts = [f"epoch {row['epoch']}/{self.num_epochs}", f"loss {row['train_loss']:.4f}"]
        if row["natural_accuracy"] is not None:
            parts.append(f"natural {100 * row['natural_accuracy']:.1f}")
        if row["robust_accuracy"] is not None:
            parts.append(f"robust {100 * row['robust_accuracy']:.1f} (best {100 * best[1]:.1f} @{best[0]})")
        if row["policy_kl_share"] is not None:
            parts.append(f"policy {row['policy_kl_share']:.0%} of exact kl")
        return "  ".join([*parts, *self._pace(row["images_per_s"] or 0.0, fraction_done)])

    def within_epoch(self, notes: Sequence[str], images_per_s: float, fraction_done: float) -> str | None:
        """Returns a line with `notes` and the pace, or None if the last line is not HEARTBEAT_S old."""
        now = time.perf_counter()
        if now - self._last_at < HEARTBEAT_S:
            return None
        self._last_at = now
        return "  ".join([*notes, *self._pace(images_per_s, fraction_done)])

    def _pace(self, images_per_s: float, fraction_done: float) -> list[str]:
        rate = f"{images_per_s:,.0f} images/s"
        done_here = fraction_done - self._done_before
        if fraction_done >= 1 or done_here <= 0:
            return [rate]
        left_s = (time.perf_counter() - self._began_at) * (1 - fraction_done) / done_here
        return [rate, f"{duration(left_s)} left"]
