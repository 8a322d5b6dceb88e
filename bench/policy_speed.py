"""Images/s of a training step under each teacher policy: `python -m bench policies --speed`."""

from collections.abc import Iterator

import torch

from fastadaad import Distiller, InnerConfig, methods
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.runtime.timing import Spread, alternate, ratios

from .networks import Pair
from .policy_settings import Setting, Table


def step_of(pair: Pair, setting: Setting, inner: InnerConfig, device: torch.device) -> Distiller:
    """Builds AdaAD's compiled step on the pair's networks."""
    student, teacher = pair.networks(device)
    return Distiller(
        student,
        teacher,
        method=methods.get("adaad"),
        inner=inner,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
        teacher_policy=TeacherPolicy.parse(setting.policy),
        precision=PrecisionConfig(student="fp32", teacher=setting.teacher_precision),
        mode="compiled",
    )


def speed_rows(pair: Pair, chosen: Table, rounds: int, device: torch.device) -> Iterator[dict[str, object]]:
    """Yields one row per setting; an adaptive policy is timed at its initial interval.

    Args:
        pair: Networks and batch.
        chosen: Table of settings, of which those of AdaAD are timed; the first is the baseline of the others.
        rounds: Measurements of each setting.
        device: Device of the networks.
    """
    x_natural, labels = pair.batch(device)
    settings = [setting for setting in chosen.settings if setting.method == "adaad"]
    steps = {s.name: step_of(pair, s, chosen.config(s, seed=0).inner, device) for s in settings}
    runs = {name: lambda step=step: step.step(x_natural, labels) for name, step in steps.items()}
    timings = alternate(runs, device, rounds=rounds, warmup=2)
    exact = timings[settings[0].name]
    for setting in settings:
        milliseconds = timings[setting.name]
        spread = Spread.of(milliseconds)
        yield {
            "student": pair.student,
            "teacher": pair.teacher,
            "batch_shape": "x".join(map(str, x_natural.shape)),
            "setting": setting.name,
            "policy": setting.policy,
            "teacher_precision": setting.teacher_precision,
            "images_per_s": round(1e3 * pair.batch_size / spread.p50, 1),
            **ratios(exact, milliseconds).columns("times_exact_{}"),
            **spread.columns("{}_ms"),
            "n": spread.n,
        }
