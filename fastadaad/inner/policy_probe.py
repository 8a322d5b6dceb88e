"""Probe of a teacher policy: the kl that its search reaches, as a share of what an exact search reaches.

The error of the substitute (teacher_error.py) is free, but says little about the images that were found: the closer the
student is to its teacher, the more of the kl's gradient is a small difference of two large ones, and a stale one wins.
The probe runs an exact search beside the policy's, from the same start on a few images of some batches. It comes before
the student learns from the batch: afterwards student and teacher agree better at the images of the step than elsewhere.
"""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from fastadaad import ops
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.inner.search import tape_vjp
from fastadaad.inner.start import start_point
from fastadaad.inner.teacher_error import intervals
from fastadaad.inner.teacher_policies import POLICIES, query_exactly
from fastadaad.runtime.distributed import ProcessGroup

INTERVAL = 100  # training steps from one probe to the next
NUM_IMAGES = 32
# Share of the exact search's kl below which the policy queries the teacher more often.
LEAST_SHARE = 0.8


class PolicyProbe:
    """Measures a policy at intervals, and lets it query the teacher more often if it falls short.

    Args:
        maximizer: Search with the policy.
        process_group: Ranks that probe together, each on images of its own.
    """

    def __init__(self, maximizer: InnerMaximizer, process_group: ProcessGroup) -> None:
        self.maximizer, self.process_group = maximizer, process_group
        self.share: float | None = None
        """Share of the exact search's kl in the last probe; None: there was none."""

    def is_due(self, num_steps: int) -> bool:
        """Returns True if the policy is probed before the training step that follows `num_steps` others."""
        return self.maximizer.teacher_policy.kind != "exact" and (num_steps + 1) % INTERVAL == 0

    def run(self, x_natural: Tensor, labels: Tensor | None) -> None:
        """Searches around the first images of a batch, by the policy and exactly. Waits for the device.

        Warns if the policy reaches too little, and shortens the interval of its queries.
        """
        first = slice(NUM_IMAGES)
        sums = kl_sums(self.maximizer, x_natural[first], None if labels is None else labels[first])
        self.process_group.all_reduce(sums)
        reached, exact = sums.tolist()
        self.share = reached / max(exact, torch.finfo(torch.float32).tiny)
        if self.share < LEAST_SHARE:
            self._query_more_often()

    def _query_more_often(self) -> None:
        maximizer = self.maximizer
        shorter = [n for n in intervals(maximizer.inner.num_steps) if n < maximizer.query_interval]
        then = f"it queries every {shorter[0]} steps from now on" if shorter else "set teacher.policy=exact"
        warnings.warn(
            f"teacher policy {maximizer.teacher_policy}, every {maximizer.query_interval} steps, reaches "
            f"{self.share:.0%} of the kl of an exact search: {then}",
            stacklevel=2,
        )
        if shorter:
            maximizer.query_interval = shorter[0]


def kl_sums(maximizer: InnerMaximizer, x_natural: Tensor, labels: Tensor | None) -> Tensor:
    """Sums kl(S(x), T(x)) over the images that the policy's search finds, and over those of an exact search.

    Both begin at the same points, which take none of the caller's random numbers. Student and teacher are the search's
    copies, in eval mode.

    Args:
        maximizer: Search whose method goes through the teacher.
        x_natural: Natural images, fp32 [B, C, H, W].
        labels: Class numbers [B], or None.

    Returns:
        Both sums, fp32 [2], on the device.
    """
    generator = torch.Generator(x_natural.device).manual_seed(0)
    with maximizer.networks(x_natural) as networks:
        search = replace(maximizer.new_search(networks, x_natural, labels), vjp=tape_vjp)
        exact = start_point(x_natural, maximizer.inner.start or maximizer.method.start, maximizer.inner, generator)
        found, policy, answer = exact.clone(), POLICIES[maximizer.teacher_policy.kind], None
        for number, step in enumerate(search.steps()):
            query_exactly(step, exact)
            if number % maximizer.query_interval == 0:
                answer = policy.query(step, found)
            else:
                policy.reuse(step, found, answer)
        with torch.no_grad():
            logits = [[network(x) for network in search.networks] for x in (found, exact)]
    return torch.stack([ops.kl_grad(student, teacher)[0].sum() for student, teacher in logits])
