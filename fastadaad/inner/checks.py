"""Checks of the input of a search: images, labels, radius, and two networks that fit each other.

Shapes and dtypes are checked in every call, which costs nothing. Reading a value waits for the device, so values and
classes are checked once for each pair of networks and each shape of images.
"""

import math
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad.config import InnerConfig, ThreatModel
from fastadaad.inner.frozen import frozen
from fastadaad.methods.outer_batch import are_soft, check_network_output

PIXEL_TOLERANCE = 1e-6  # rounding in an augmentation
NUM_CHECKED = 8  # images on which the output of a network is checked
PROBABILITY_TOLERANCE = 1e-3  # rounding of a sum of probabilities, in bf16 too

# Combinations that passed; an entry goes when its student goes.
_passed: weakref.WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = weakref.WeakKeyDictionary()
# Networks that the warning about probabilities has named.
_named: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_batch(x_natural: Tensor, labels: Tensor | None, *, soft: bool = False) -> None:
    """Checks types and shapes of a batch without reading a value.

    Args:
        x_natural: Images, which must be fp32 [B, C, H, W].
        labels: Class numbers, which must be int64 [B], or None.
        soft: Labels may be distributions, floats [B, N], too.

    Raises:
        ValueError: A tensor has another type, dtype or shape.
    """
    for name, given in {"x_natural": x_natural, **({} if labels is None else {"labels": labels})}.items():
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} is a {type(given).__name__}: give a tensor, such as torch.as_tensor({name})")
    if x_natural.dim() != 4:
        raise ValueError(f"x_natural has shape {list(x_natural.shape)}: give images [B, C, H, W]")
    if not x_natural.is_floating_point():
        raise ValueError(f"x_natural is {x_natural.dtype}: give pixels in [0, 1], such as x_natural.float() / 255")
    if x_natural.dtype != torch.float32:
        # bf16 is spaced 1/256 just below 1: half of a step of 2/255.
        raise ValueError(f"x_natural is {x_natural.dtype}: pixels must be torch.float32, use x_natural.float()")
    if labels is None or (soft and are_soft(labels) and len(labels) == len(x_natural)):
        return
    if labels.dim() == 2 and len(labels) == len(x_natural):
        remedy = "squeeze" if labels.shape[1] == 1 else "argmax"  # a column of class numbers, or one-hot labels
        raise ValueError(f"labels have shape {list(labels.shape)}: give class numbers [B], such as labels.{remedy}(1)")
    if labels.shape != x_natural.shape[:1]:
        raise ValueError(f"labels have shape {list(labels.shape)} for {len(x_natural)} images: give one per image")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype}: give class numbers as torch.int64, such as labels.long()")


def check_first_call(
    owners: tuple[nn.Module, nn.Module | None],
    networks: tuple[nn.Module, nn.Module | None],
    x_natural: Tensor,
    labels: Tensor | None,
    inner: InnerConfig,
    *,
    only_warns_of_pixels: bool = False,
) -> None:
    """Checks the values of a batch, the radius, and the classes of both networks.

    Waits for the device only at the first call for `owners`, `inner` and the shape of the images. Warns once about a
    network that seems to return probabilities.

    Args:
        owners: Student and teacher of the caller; the teacher is None if the method needs none.
        networks: The same networks as the search runs them.
        x_natural: Images, fp32 [B, C, H, W].
        labels: Class numbers, int64 [B], or distributions [B, N]; None if the method needs none.
        inner: Threat model and limits of the pixels.
        only_warns_of_pixels: Warn of pixels out of range instead of raising.

    Raises:
        ValueError: A value is out of range, or the networks have different classes.
    """
    student, teacher = owners
    passed = _passed.setdefault(student, set())
    key = (
        None if teacher is None else weakref.ref(teacher), x_natural.shape[1:],
        None if labels is None else labels.shape[1:], inner.threat_model, inner.lower, inner.upper,
        only_warns_of_pixels,
    )  # fmt: skip
    if key in passed or not len(x_natural):
        return
    check_radius(inner.threat_model, x_natural.shape[1:])
    student_logits, teacher_logits = logits_of("student", networks[0], x_natural[:NUM_CHECKED]), None
    num_classes = student_logits.shape[1]
    if teacher is not None:
        assert networks[1] is not None
        teacher_logits = logits_of("teacher", networks[1], x_natural[:NUM_CHECKED])
        check_same_classes(num_classes, teacher_logits.shape[1])
    lower, upper = min(inner.lower, 0.0), max(inner.upper, 1.0)
    if only_warns_of_pixels:
        warn_of_pixels(x_natural, lower=lower, upper=upper)
    else:
        check_values(x_natural, labels, num_classes, lower=lower, upper=upper)
    warn_of_probabilities("student", student, student_logits)
    if teacher is not None and teacher_logits is not None:
        warn_of_probabilities("teacher", teacher, teacher_logits)
    passed.add(key)


def check_radius(threat_model: ThreatModel, image_shape: Sequence[int]) -> None:
    """Raises ValueError if a ball in l2 is larger than the box of all images [C, H, W]."""
    diagonal = math.sqrt(math.prod(image_shape))
    if threat_model.norm == "l2" and threat_model.epsilon > diagonal:
        raise ValueError(
            f"epsilon is {threat_model.epsilon:g} in l2, and no two images {list(image_shape)} in [0, 1] are more than "
            f"{diagonal:.4g} apart: write {threat_model.epsilon:g}/255 for a radius in 0..255"
        )


def check_same_classes(num_student_classes: int, num_teacher_classes: int) -> None:
    """Raises ValueError if the two numbers of classes differ."""
    if num_student_classes != num_teacher_classes:
        raise ValueError(
            f"student has {num_student_classes} classes and teacher {num_teacher_classes}: give both networks the "
            "classes of the data set, in the same order"
        )


def check_values(
    x_natural: Tensor,
    labels: Tensor | None = None,
    num_classes: int = 0,
    *,
    lower: float = 0.0,
    upper: float = 1.0,
) -> None:
    """Checks that pixels lie in [lower, upper] and labels in 0..num_classes - 1, or that labels are distributions.

    Waits for the device once.

    NaN passes: it may come in any step, and a training checks every step for it.

    Raises:
        ValueError: A value is out of range.
    """
    soft = labels is not None and are_soft(labels)
    extremes = [*x_natural.aminmax()]
    if labels is not None:
        ranges = [labels.amin(), *labels.sum(dim=1).aminmax()] if soft else labels.aminmax()
        extremes += [value.to(x_natural.dtype) for value in ranges]
    least, most, *label_range = torch.stack(extremes).tolist()
    if least < lower - PIXEL_TOLERANCE or most > upper + PIXEL_TOLERANCE:
        raise ValueError(
            f"x_natural holds pixels from {least:.4g} to {most:.4g}, outside [{lower:g}, {upper:g}]: "
            f"{_pixel_remedy(least, most)}"
        )
    if labels is not None and soft:
        _check_distributions(labels.shape[1], num_classes, *label_range)
        return
    for label in label_range:
        if not 0 <= label < num_classes:
            raise wrong_label(label, num_classes)


def warn_of_pixels(x_natural: Tensor, *, lower: float, upper: float) -> None:
    """Warns of pixels outside [lower, upper]. Waits for the device once."""
    try:
        check_values(x_natural, lower=lower, upper=upper)
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)


def _check_distributions(num_labels: int, num_classes: int, least: float, least_sum: float, most_sum: float) -> None:
    """Raises ValueError unless label distributions have the classes of the networks, no negatives, and sums of 1."""
    if num_labels != num_classes:
        raise ValueError(f"labels are distributions over {num_labels} classes: give the {num_classes} of the networks")
    if not least >= 0:  # NaN too
        raise ValueError(f"labels hold {least:.4g}: give distributions, whose numbers are finite and 0 or more")
    if not (abs(least_sum - 1) <= PROBABILITY_TOLERANCE and abs(most_sum - 1) <= PROBABILITY_TOLERANCE):
        raise ValueError(
            f"labels have rows with sums from {least_sum:.4g} to {most_sum:.4g}: each must be 1, divide the rows by "
            "their sums"
        )


def wrong_label(label: float, num_classes: int) -> ValueError:
    """Returns the error of a label outside 0..num_classes - 1."""
    return ValueError(
        f"labels hold {label:.0f}, outside 0..{num_classes - 1}, the classes of the networks: number the classes from "
        "0, or give the networks more of them"
    )


def warn_of_probabilities(name: str, network: nn.Module, logits: Tensor) -> None:
    """Warns once per network if `logits` [B, N] seem to be probabilities: 0 or more, with a sum of 1 per row.

    Waits for the device.
    """
    sums = logits.float().sum(1)
    if network not in _named and bool((logits >= 0).all() & ((sums - 1).abs() <= PROBABILITY_TOLERANCE).all()):
        _named.add(network)
        warnings.warn(
            f"{name} seems to return probabilities, and softmax is applied to them again: let it return its logits, "
            "before its last softmax",
            stacklevel=2,
        )


def logits_of(name: str, network: nn.Module, x_natural: Tensor) -> Tensor:
    """Logits [B, N] of the network called `name` in eval mode, without gradient.

    Raises:
        ValueError: The network cannot take the images, or does not return logits of two classes or more, one row per
            image.
    """
    try:
        with torch.no_grad(), frozen(network):
            logits = network(x_natural)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{name} cannot take images {list(x_natural.shape[1:])} ({reason}): {_network_remedy(name, network)}"
        ) from error
    check_network_output(name, logits)
    _check_logits(name, logits, len(x_natural))
    return logits


def _check_logits(name: str, logits: Tensor, num_images: int) -> None:
    """Raises ValueError for logits [B, N] of one class, of another number of images, or that are not fp32."""
    if logits.shape[1] < 2:
        raise ValueError(
            f"{name} returns logits of shape {list(logits.shape)}, one class: let it return two logits or more per "
            "image, such as the logits 0 and z of a binary classifier"
        )
    if len(logits) != num_images:
        raise ValueError(f"{name} returns {len(logits)} rows for {num_images} images: let it return [B, N], one each")
    if not logits.is_floating_point() or logits.dtype == torch.float64:
        raise ValueError(
            f"{name} returns logits in {logits.dtype}: let it compute in torch.float32, use {name}.float()"
        )


def _network_remedy(name: str, network: nn.Module) -> str:
    dtype = next((parameter.dtype for parameter in network.parameters()), torch.float32)
    if dtype != torch.float32:
        return f"its weights are {dtype}, use {name}.float(), and precision for its arithmetic"
    return "give images and networks for each other"


def _pixel_remedy(least: float, most: float) -> str:
    if least < 0:
        return "give pixels as they are, and normalise inside the network, as load_model(mean=..., std=...) does"
    return "divide them by 255" if most > 2 else "clamp them"
