"""What a training says at its end besides its metrics, in a line each where there is something to say."""

from collections.abc import Iterator

from fastadaad.runtime.progress import ImageProgress
from fastadaad.training.distiller import Distiller

# Share of the time of a training.
WORTH_A_THOUGHT = 0.05


def closing_lines(distiller: Distiller, progress: ImageProgress) -> Iterator[str]:
    """Updates that were left out, the error of a teacher policy, and what waiting for data cost."""
    if num_skipped := distiller.read_skipped():
        yield f"updates left out, as NaN or inf was in their loss or gradients: {num_skipped}"
    if distiller.maximizer.teacher_policy.kind != "exact":
        yield _policy_line(distiller)
    if progress.waited_share > WORTH_A_THOUGHT:
        yield (
            f"{progress.waited_share:.0%} of the time was spent waiting for data: raise data.num_workers, or run "
            "fastadaad pack once and train from what it writes"
        )


def _policy_line(distiller: Distiller) -> str:
    maximizer, error = distiller.maximizer, distiller.teacher_error
    known = "its error is not known: the outer loss does not ask the teacher at x_adv"
    if error is not None:
        known = f"kl off by {error.kl_error:.1%}, another top class in {error.top_class_differs:.1%} of the images"
    return f"teacher policy {maximizer.teacher_policy}: asked every {maximizer.query_interval} steps, {known}"
