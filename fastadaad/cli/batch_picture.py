"""Picture of a batch as the networks see it: natural and adversarial images, and their scaled difference."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from fastadaad.evaluation.plots import new_figure
from fastadaad.run_config import RunConfig
from fastadaad.runtime.files import write_output
from fastadaad.runtime.text import pixels_text
from fastadaad.training.build import build_student, build_teacher, distiller_of
from fastadaad.training.data import TrainingData
from fastadaad.training.optimizers import make_optimizer

SHOWN_WEIGHT = 0.1  # least weight of a class in a label distribution that is shown


@dataclass(frozen=True, kw_only=True)
class ShownBatch:
    """B images on the CPU with their classes by name; unknown values are None."""

    x_natural: Tensor
    labels: list[str]
    x_adv: Tensor | None = None
    student_classes: list[str] | None = None
    """The student's predictions at x_adv."""
    epsilon: float = 0.0
    """Pixel difference that is drawn as black or white."""


def shown_batch(config: RunConfig, data: TrainingData, num_images: int, epoch: int = 0) -> ShownBatch:
    """Returns the first images of an epoch, as the training step of `config` sees them before its first update.

    There are no adversarial images if the method needs a teacher and its weights are not given.
    """
    x_natural, labels = (tensor[:num_images] for tensor in next(data.train.epoch(epoch)))
    names = data.dataset.class_names
    batch = ShownBatch(x_natural=x_natural.cpu(), labels=[_label(label, names) for label in labels.cpu()])
    method = config.method_row
    if method.needs_teacher and (config.teacher is None or config.teacher.checkpoint is None):
        return batch
    device = x_natural.device
    student = build_student(config, data, device)
    teacher = build_teacher(config.teacher, data, device) if method.needs_teacher and config.teacher else None
    distiller = distiller_of(replace(config, mode="eager"), student, teacher, make_optimizer(student, config.optim))
    x_adv = distiller.maximizer(x_natural, labels, generator=torch.Generator(device).manual_seed(config.seed))
    return replace(
        batch,
        x_adv=x_adv.cpu(),
        student_classes=[names[index] for index in _classes(student, x_adv)],
        epsilon=(x_adv - x_natural).abs().max().item(),
    )


def _label(label: Tensor, names: Sequence[str]) -> str:
    """Name of a class number, or the weights of the main classes of a distribution [N]."""
    if label.dim() == 0:
        return names[int(label)]
    weights = [(weight, name) for weight, name in zip(label.tolist(), names, strict=True) if weight >= SHOWN_WEIGHT]
    return ", ".join(f"{name} {weight:.2f}" for weight, name in sorted(weights, reverse=True))


@torch.no_grad()
def _classes(student: nn.Module, x: Tensor) -> list[int]:
    return student.eval()(x).argmax(1).tolist()


def plot_batch(path: Path | IO[bytes], batch: ShownBatch, title: str = "") -> None:
    """Draws one column per image: natural, adversarial, and their difference, in which grey is no difference.

    Args:
        path: File to write, in the format of its suffix; or a binary file object, for a PNG.
        batch: Images and their classes.
        title: Title of the picture.

    Raises:
        ValueError: `path` has the suffix of no picture format, or cannot be written.
    """
    rows = [("natural", batch.x_natural, batch.labels)]
    if batch.x_adv is not None and batch.student_classes is not None:
        difference = 0.5 + (batch.x_adv - batch.x_natural) / (2 * max(batch.epsilon, 1e-12))
        rows += [
            ("adversarial", batch.x_adv, [f"student: {name}" for name in batch.student_classes]),
            (f"difference, ±{_radius(batch.epsilon)}", difference, [""] * len(batch.labels)),
        ]
    figure = new_figure(1.2 + 1.4 * len(batch.labels), 0.5 + 1.7 * len(rows))
    grid = figure.subplots(len(rows), len(batch.labels), squeeze=False)
    for line, (name, pixels, captions) in zip(grid, rows, strict=True):
        line[0].set_ylabel(name)
        for axes, image, caption in zip(line, pixels, captions, strict=True):
            _draw(axes, image)
            axes.set_title(caption, fontsize="small")
    figure.suptitle(title)
    if not isinstance(path, Path):
        figure.savefig(path, dpi=120)
        return
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".") or "png", dpi=120)
    write_output(path, picture.getvalue())


def _radius(difference: float) -> str:
    """Formats a measured difference of fp32 pixels: 8/255 if it is one of whole 255ths but for rounding, else 0.1."""
    steps = round(255 * difference)
    is_whole = abs(255 * difference - steps) < 1e-3
    return pixels_text(steps / 255 if is_whole else float(f"{difference:.4g}"))


def _draw(axes: Any, image: Tensor) -> None:
    """Image [H, W, 3] in colour, or its first channel in grey."""
    colors = image.permute(1, 2, 0) if len(image) == 3 else image[0]
    axes.imshow(colors.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
