"""One pass of a gradient attack over the images: eager or compiled, on the images that are still classified correctly.

A search, those of cw and AutoAttack too, runs on a folded copy, which the first batch compares with the network. The
network itself, in eval mode and fp32, decides whether an image survives.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from fastadaad.config import Mode, PrecisionConfig, ThreatModel
from fastadaad.evaluation.attacks import GradientAttack, SearchSettings, correct
from fastadaad.inner.checks import check_radius
from fastadaad.inner.compile_choice import compile_notice, forward_flops, is_worth_compiling
from fastadaad.inner.folding import fold
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.inner.spot_check import SpotCheck
from fastadaad.runtime.precision import STRICT_FP32

log = logging.getLogger(__name__)

# Images of one search: on a CPU few enough that the activations of a layer stay in its cache. On a GPU an eager search
# takes all survivors of a batch at once; a compiled one has a fixed number, whose last search is padded.
CPU_SEARCH_SIZE = 64
COMPILED_SEARCH_SIZE = 128
# Images on which the layout of a copy is measured: a batch of 500 would take half a minute on two cores.
NUM_MEASURED = 64


class GradientPass:
    """A gradient attack on batch after batch of the same network.

    Args:
        name: Name of the attack.
        attack: The attack.
        model: Network in eval mode, from pixels to logits [B, N].
        threat_model: Norm and radius.
        settings: Execution of the search.
        num_images: Number of images of the pass; None: unknown, and mode auto is eager.
        surrogate: Network in eval mode whose adversarial images are tried on `model`. Default: `model` itself.
    """

    def __init__(
        self,
        name: str,
        attack: GradientAttack,
        model: nn.Module,
        threat_model: ThreatModel,
        settings: SearchSettings,
        num_images: int | None,
        surrogate: nn.Module | None = None,
    ) -> None:
        self.name, self.attack, self.model, self.threat_model = name, attack, model, threat_model
        self.attacked = model if surrogate is None else surrogate
        self.settings, self.num_images = settings, num_images
        self._maximizer: InnerMaximizer | None = None
        self._search_size: int | None = None

    def survives(
        self, x_natural: Tensor, labels: Tensor, generators: Sequence[torch.Generator], nonfinite: Tensor
    ) -> Tensor:
        """Attacks the images of a batch that are classified correctly, once per generator and target class.

        Args:
            x_natural: Images [B, C, H, W], fp32 in [0, 1].
            labels: Class numbers [B], int64.
            generators: One generator of random starts per restart, which draws for all images of the batch.
            nonfinite: Counter of images with non-finite logits; see `correct`.

        Returns:
            A bool tensor [B]: True if the image is classified as its label before the attack and after every restart.
        """
        survives = correct(self.model, x_natural, labels, nonfinite)
        if self.attack.num_steps == 0 or not len(labels):
            return survives
        goals = self.attack.goals(self.attacked, x_natural, labels)
        if self._maximizer is None:
            check_radius(self.threat_model, x_natural.shape[1:])  # also if there is no image to attack
            self._maximizer = self._new_maximizer(x_natural, labels, len(generators) * len(goals))
        rows = survives.nonzero().flatten()
        for generator, goal in product(generators, goals):
            x_start = self._maximizer.start_point(x_natural, generator)
            parts = [self._attacked(x_natural, labels, goal, x_start, part, nonfinite) for part in self._parts(rows)]
            rows = torch.cat([rows[:0], *parts])
        return torch.zeros_like(survives).index_fill_(0, rows, True)

    def _parts(self, rows: Tensor) -> Sequence[Tensor]:
        """Splits the images to attack, by their rows in a batch, into the images of one search each."""
        if not len(rows):
            return []
        return [rows] if self._search_size is None else rows.split(self._search_size)

    def _attacked(
        self, x_natural: Tensor, labels: Tensor, goal: Tensor, x_start: Tensor, rows: Tensor, nonfinite: Tensor
    ) -> Tensor:
        """Attacks the images `rows` of a batch with the class numbers `goal`, and returns the rows that survive."""
        assert self._maximizer is not None
        searched = rows
        if self._maximizer.mode == "compiled":  # always the same shape, as another one would be compiled too
            searched = torch.cat([rows, rows[:1].expand((self._search_size or len(rows)) - len(rows))])
        x_adv = self._maximizer.search(x_natural[searched], goal[searched], x_start=x_start[searched]).x_adv
        return rows[correct(self.model, x_adv[: len(rows)], labels[rows], nonfinite)]

    def _new_maximizer(self, x_natural: Tensor, labels: Tensor, num_searches: int) -> InnerMaximizer:
        """Returns the search after the spot check of its folded copy and the choice of its mode."""
        settings = replace(self.settings, mode=self._mode(x_natural, num_searches))
        maximizer = self.attack.maximizer(self.attacked, self.threat_model, settings)
        if not is_faithful(maximizer, x_natural, labels, self.name):
            settings = replace(settings, fold=False, precision=STRICT_FP32)
            maximizer = self.attack.maximizer(self.attacked, self.threat_model, settings)
        if x_natural.device.type == "cpu":
            self._search_size = min(CPU_SEARCH_SIZE, len(labels))
        elif maximizer.mode == "compiled":
            self._search_size = min(COMPILED_SEARCH_SIZE, len(labels))
        return maximizer

    def _mode(self, x_natural: Tensor, num_searches: int) -> Mode:
        if self.settings.mode != "auto":
            return self.settings.mode
        if self.num_images is None:
            return "eager"
        passes = 2 * self.attack.num_steps * num_searches  # the pixel gradient costs as much as the forward pass
        flops = passes * self.num_images * forward_flops(self.attacked, x_natural)
        if not is_worth_compiling(flops, [self.attacked], x_natural.device):
            return "eager"
        log.info(f"{self.name}: {compile_notice(self.attacked)}")
        return "compiled"


def search_network(
    model: nn.Module, x_natural: Tensor, labels: Tensor, threat_model: ThreatModel, settings: SearchSettings, name: str
) -> tuple[nn.Module, PrecisionConfig, str | None]:
    """Returns the network that a library or cw searches on, its precision, and the reason if it is not a folded copy.

    Args:
        model: Network in eval mode.
        x_natural: First batch [B, C, H, W], fp32; B is 1 or more.
        labels: Its class numbers [B], int64.
        threat_model: Norm and radius.
        settings: Execution of the search; the mode does not count.
        name: Name of the attack, for warnings.
    """
    if not settings.fold:
        return model, STRICT_FP32, None
    _, why_not = fold(model, x_natural[:2])
    if why_not is not None:
        return model, STRICT_FP32, why_not
    maximizer = GradientAttack(num_steps=1, relative_step_size=1.0).maximizer(model, threat_model, settings)
    if not is_faithful(maximizer, x_natural, labels, name):
        return model, STRICT_FP32, "the folded copy has other pixel gradients"
    with maximizer.networks(x_natural) as (network, _):
        return network, settings.precision, None


def is_faithful(maximizer: InnerMaximizer, x_natural: Tensor, labels: Tensor, name: str) -> bool:
    """Compares pixel gradients of the search's folded copy and of the network, on the first images of a batch.

    Args:
        maximizer: Search on the network.
        x_natural: Images [B, C, H, W], fp32; B is 1 or more.
        labels: Class numbers [B], int64.
        name: Name of the attack, for the warning.

    Returns:
        False, after a warning, if too few of the signs agree for rounding; True also if there is nothing to compare.
    """
    x_natural, labels = x_natural[:NUM_MEASURED], labels[:NUM_MEASURED]
    with maximizer.networks(x_natural) as (network, _):
        is_copy = network is not maximizer.student
    if not is_copy or not maximizer.can_be_spot_checked:
        return True
    check = SpotCheck(maximizer.precision, x_natural.device)
    # From another point than the images that the copy was compared on when it was made.
    start = maximizer.start_point(x_natural, torch.Generator(x_natural.device).manual_seed(0))
    check.add(maximizer, x_natural, labels, start)
    fraction = check.read(f"{name} runs on the network itself")
    return fraction is None or fraction >= check.least
