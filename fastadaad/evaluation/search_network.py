"""Network that an attack searches on: the folded copy if it is one, checked against the network itself."""

import torch
from torch import Tensor, nn

from fastadaad.config import PrecisionConfig, ThreatModel
from fastadaad.evaluation.attacks import GradientAttack, SearchSettings
from fastadaad.inner.folding import fold
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.inner.spot_check import SpotCheck
from fastadaad.runtime.precision import STRICT_FP32

# Images on which the layout of a copy is measured: a batch of 500 would take half a minute on two cores.
NUM_MEASURED = 64


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
