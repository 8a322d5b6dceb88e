"""Error of a teacher policy at x_adv, and the interval of queries that follows from it.

The outer loss queries the teacher at x_adv in any case.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadaad import ops
from fastadaad.config import TeacherPolicy

# Relative errors of the kl between which the interval stays unchanged. On Fashion-MNIST an error of 0.10 goes with 6 %
# less kl at x_adv than the exact search reaches, and an error of 0.03 with 2 % (bench/results/policies-kl.csv).
TOLERATED = (0.05, 0.2)
# Relative error of the kl above which the policy warns.
ALARMING = 0.5
# Fraction of images with another most likely class above which the policy warns.
ALARMING_CLASSES = 0.4

# Intervals as fractions of the search, from few to many queries. 0.8 queries twice, at the first step and late: no
# later step undoes the last ones.
INTERVAL_FRACTIONS = (1.0, 0.8, 0.4, 0.3, 0.2, 0.0)


@dataclass(frozen=True, kw_only=True)
class TeacherError:
    """Error of a policy's approximation of T(x_adv), over some images."""

    logit_error: float
    """Mean absolute error of a logit."""
    kl_error: float
    """Mean absolute error of kl(S(x_adv), T(x_adv)), divided by the mean kl."""
    top_class_differs: float
    """Fraction of images with another most likely class."""
    query_interval: int
    """Number of inner steps between two queries of the teacher."""


def intervals(num_steps: int) -> list[int]:
    """Returns the intervals that an adaptive policy chooses from, the longest first.

    2 is no choice in a search of more steps: one that queries at every second step zigzags, and reaches less of the kl
    than one that queries at every third (bench/results/policies-judge.csv).
    """
    choices = {max(1, round(fraction * num_steps)) for fraction in INTERVAL_FRACTIONS}
    return sorted(choices - {2} | {num_steps}, reverse=True)


def adapted(error: TeacherError, num_steps: int) -> int:
    """Returns the interval that follows from `error`: its own, or the next longer or shorter one of intervals()."""
    choices = intervals(num_steps)
    place = min(range(len(choices)), key=lambda i: abs(choices[i] - error.query_interval))
    low, high = TOLERATED
    place += (error.kl_error > high) - (error.kl_error < low)
    return choices[min(max(place, 0), len(choices) - 1)]


class TeacherErrorMeter:
    """Sums of the errors of all batches, on the device until `read` is called.

    Args:
        policy: Policy that the warnings name.
        device: Device of the logits.
    """

    def __init__(self, policy: TeacherPolicy, device: torch.device) -> None:
        self.policy = policy
        self.sums = torch.zeros(5, device=device)
        """Sums of logit errors, kl errors, kl, differing top classes and images; `add` updates them in place."""

    @torch.no_grad()
    def add(self, student_logits: Tensor, teacher_logits: Tensor, assumed: Tensor) -> None:
        """Adds one batch, without host synchronisation.

        Args:
            student_logits: S(x_adv) [B, N].
            teacher_logits: T(x_adv) [B, N].
            assumed: The policy's approximation of T(x_adv) [B, N].
        """
        kl, _, _ = ops.kl_grad(student_logits, teacher_logits)
        assumed_kl, _, _ = ops.kl_grad(student_logits, assumed)
        logit_error = (assumed - teacher_logits).abs().mean(dim=1)
        differs = (assumed.argmax(dim=1) != teacher_logits.argmax(dim=1)).float()
        images = torch.ones_like(kl)
        self.sums += torch.stack([logit_error, (assumed_kl - kl).abs(), kl, differs, images]).sum(dim=1)

    def read(self, query_interval: int) -> TeacherError | None:
        """Returns the errors since the last read, or None if there were no images. Waits for the device.

        Warns if the error is alarming.
        """
        logit_error, kl_error, kl, differs, images = self.sums.tolist()
        if not images:
            return None
        error = TeacherError(
            logit_error=logit_error / images,
            kl_error=kl_error / max(kl, torch.finfo(torch.float32).tiny),
            top_class_differs=differs / images,
            query_interval=query_interval,
        )
        self.sums.zero_()
        if error.kl_error > ALARMING or error.top_class_differs > ALARMING_CLASSES:
            warnings.warn(
                f"teacher policy {self.policy}: the substitute for the teacher is off by {error.kl_error:.0%} of the "
                f"kl, and {error.top_class_differs:.0%} of its top classes are wrong; query more often or use exact",
                stacklevel=2,
            )
        return error
