"""Images/s of a training step under each teacher policy: `python -m bench policies --speed`."""

from collections.abc import Iterator, Sequence

import torch

from fastadaad import Distiller, InnerConfig, methods
from fastadaad.config import PrecisionConfig, TeacherPolicy

from .networks import Pair
from .timing import Spread, alternate, ratios


def step_of(pair: Pair, policy: str, precision: str, device: torch.device) -> Distiller:
    """Builds AdaAD's compiled step with K = 10 on the pair's networks; `precision` is the teacher's."""
    student, teacher = pair.networks(device)
    return Distiller(
        student,
        teacher,
        method=methods.get("adaad"),
        inner=InnerConfig(),
        optimizer=torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
        teacher_policy=TeacherPolicy.parse(policy),
        precision=PrecisionConfig(student="fp32", teacher=precision),
        mode="compiled",
    )


def speed_rows(
    pair: Pair, settings: Sequence[tuple[str, str]], rounds: int, device: torch.device
) -> Iterator[dict[str, object]]:
    """Yields one row per setting; an adaptive policy is timed at its initial interval.

    Args:
        pair: Networks and batch.
        settings: Policy and precision of the teacher; the first setting is the baseline of the others.
        rounds: Measurements of each setting.
        device: Device of the networks.
    """
    x_natural, labels = pair.batch(device)
    steps = {setting: step_of(pair, *setting, device) for setting in settings}
    runs = {str(setting): lambda step=step: step.step(x_natural, labels) for setting, step in steps.items()}
    timings = alternate(runs, device, rounds=rounds, warmup=2)
    exact = timings[str(settings[0])]
    for setting in settings:
        milliseconds = timings[str(setting)]
        spread = Spread.of(milliseconds)
        yield {
            "student": pair.student,
            "teacher": pair.teacher,
            "batch_shape": "x".join(map(str, x_natural.shape)),
            "policy": setting[0],
            "teacher_precision": setting[1],
            "images_per_s": round(1e3 * pair.batch_size / spread.p50, 1),
            **ratios(exact, milliseconds).columns("times_exact_{}"),
            **spread.columns("{}_ms"),
            "n": spread.n,
        }
