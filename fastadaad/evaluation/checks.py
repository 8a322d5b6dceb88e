"""Checks of the network, the labels and the passes over the images of an evaluation.

A wrong input would otherwise give a number that looks like an accuracy. The first batch is checked on the host; later
labels on a GPU are counted on the device and read at the end of each pass.
"""

import warnings
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastadaad.evaluation.attacks import check_finite
from fastadaad.evaluation.batches import Batches
from fastadaad.inner.checks import NUM_CHECKED, check_values, logits_of, warn_of_probabilities, wrong_label

# Difference of the logits of two passes, as a fraction of the largest logit, above which the network uses chance.
# Another algorithm of the same convolution changes logits in TF32 by less than 1e-3 of it.
CHANCE_TOLERANCE = 1e-2

# Networks that the warning about chance has named.
_named: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class PassChecks:
    """Checks of all passes of one evaluation over its images.

    Args:
        model: Network in eval mode.
        device: Device of the network.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.num_classes: int | None = None
        self.num_images: int | None = None
        self._num_wrong = torch.zeros((), dtype=torch.int64, device=device)

    def admit(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of one pass after their checks.

        Args:
            batches: Batches (x_natural [B, C, H, W], labels [B]).

        Raises:
            ValueError: The network does not fit the images or returns something else than finite logits of two classes
                or more, pixels of the first batch are outside [0, 1], or a label is outside 0..N-1.
        """
        is_first = True
        for x_natural, labels in batches:
            if len(labels):
                if self.num_classes is None:
                    self.num_classes = check_model(self.model, x_natural)
                if is_first:
                    check_values(x_natural, labels, self.num_classes)
                    is_first = False
                self._check_labels(labels, self.num_classes)
            yield x_natural, labels

    def _check_labels(self, labels: Tensor, num_classes: int) -> None:
        wrong = (labels < 0) | (labels >= num_classes)
        if labels.device.type == "cpu":
            if wrong.any():
                raise wrong_label(labels[wrong][0].item(), num_classes)
        else:  # a read would wait for the device in every batch
            self._num_wrong += wrong.sum()

    def finish(self, num_images: int) -> None:
        """Checks the whole of a pass: its number of images, and the labels that were counted on the device.

        Raises:
            ValueError: There are no images, another number of them than in the first pass, or wrong labels.
        """
        if num_images == 0 and self.num_images is None:
            raise ValueError("no images to evaluate on: the data set or its split is empty")
        if self.num_images is None:
            self.num_images = num_images
        if num_images != self.num_images:
            raise ValueError(
                f"data gives {num_images} images to one attack and {self.num_images} to the first: every attack reads "
                "all images, let the function or the dataset make a new iterator each time"
            )
        if self._num_wrong.device.type != "cpu" and (num_wrong := int(self._num_wrong.item())):
            raise ValueError(
                f"{num_wrong} labels are outside 0..{(self.num_classes or 0) - 1}, the classes of the networks: number "
                "the classes from 0"
            )


def check_model(model: nn.Module, x_natural: Tensor) -> int:
    """Checks the logits of a few images, in two forward passes.

    Warns once per network that seems to return probabilities or to use chance.

    Args:
        model: Network in eval mode.
        x_natural: Images [B, C, H, W], fp32; B is 1 or more.

    Returns:
        The number of classes N.

    Raises:
        ValueError: The network does not fit the images, or returns something else than finite fp32 logits [B, N] with
            N of 2 or more.
    """
    x_natural = x_natural[:NUM_CHECKED]
    devices = [x_natural.device] if x_natural.is_cuda else []
    with torch.random.fork_rng(devices=devices):  # the attacks draw the numbers that they drew without this check
        logits, again = (logits_of("model", model, x_natural) for _ in range(2))
    check_finite("natural", (~logits.isfinite()).any(1).sum().item())
    warn_of_probabilities("model", model, logits)
    difference = (again - logits).abs().max()
    if model not in _named and difference > CHANCE_TOLERANCE * logits.abs().max():
        _named.add(model)
        warnings.warn(
            f"model uses chance: the logits of two passes differ by up to {difference:.2g}. Attacks see one draw, so "
            "its accuracies are too high; use autoattack-rand, which averages gradients over draws (EoT)",
            stacklevel=2,
        )
    return logits.shape[1]
