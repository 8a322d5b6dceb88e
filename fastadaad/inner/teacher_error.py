"""How far a teacher policy was off at x_adv, where the outer loss asks the teacher in any case; and what to do then."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadaad import ops
from fastadaad.config import TeacherPolicy

# Relative errors of the kl between which the interval stays as it is, and above which the policy warns. On
# Fashion-MNIST an error of 0.10 goes with 6 % less kl at x_adv than the exact search reaches, and one of 0.03 with 2 %
# (bench/results/policies-kl.csv).
TOLERATED = (0.05, 0.2)
ALARMING = 0.5
# The share of images whose most likely class differs, above which it warns too.
ALARMING_CLASSES = 0.4

# Shares of the search from one answer of the teacher to the next, from seldom to often. The second asks twice, at the
# first step and late: what the last steps do is not undone.
SHARES = (1.0, 0.8, 0.4, 0.3, 0.2, 0.0)


@dataclass(frozen=True, kw_only=True)
class TeacherError:
    """Of what a policy took for T(x_adv), over some images."""

    logit_error: float
    """Mean absolute error of a logit."""
    kl_error: float
    """Mean absolute error of kl(S(x_adv), T(x_adv)), divided by the mean kl."""
    top_class_differs: float
    """Share of images for which another class is the most likely."""
    query_interval: int
    """Inner steps from one answer of the teacher to the next."""


def intervals(num_steps: int) -> list[int]:
    """The intervals that an adaptive policy chooses from, from seldom to often."""
    return sorted({max(1, round(share * num_steps)) for share in SHARES}, reverse=True)


def adapted(error: TeacherError, num_steps: int) -> int:
    """The interval that follows from `error`: the one it was measured at, or one place up or down in intervals()."""
    choices = intervals(num_steps)
    place = min(range(len(choices)), key=lambda i: abs(choices[i] - error.query_interval))
    low, high = TOLERATED
    place += (error.kl_error > high) - (error.kl_error < low)
    return choices[min(max(place, 0), len(choices) - 1)]


class TeacherErrorMeter:
    """Adds up the errors of the batches on the device, and reads them when asked to."""

    def __init__(self, policy: TeacherPolicy, device: torch.device) -> None:
        self.policy = policy
        self.sums = torch.zeros(5, device=device)
        """Errors of logits and of the kl, the kl, differing top classes, images; add writes to it in place."""

    @torch.no_grad()
    def add(self, student_logits: Tensor, teacher_logits: Tensor, assumed: Tensor) -> None:
        """One batch, each [B, N] at x_adv. No host synchronisation."""
        kl, _, _ = ops.kl_grad(student_logits, teacher_logits)
        assumed_kl, _, _ = ops.kl_grad(student_logits, assumed)
        logit_error = (assumed - teacher_logits).abs().mean(dim=1)
        differs = (assumed.argmax(dim=1) != teacher_logits.argmax(dim=1)).float()
        images = torch.ones_like(kl)
        self.sums += torch.stack([logit_error, (assumed_kl - kl).abs(), kl, differs, images]).sum(dim=1)

    def read(self, query_interval: int) -> TeacherError | None:
        """The errors since the last read, or None where there were no images. Waits for the device."""
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
                f"teacher policy {self.policy}: what stands in for the teacher is off by {error.kl_error:.0%} of the "
                f"kl, and {error.top_class_differs:.0%} of its top classes are wrong; ask more often or use exact",
                stacklevel=2,
            )
        return error
