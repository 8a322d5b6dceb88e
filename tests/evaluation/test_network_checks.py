"""Networks that silently gave a wrong accuracy: NaN, one class, other outputs, probabilities, chance."""

import copy
import math
import warnings

import pytest
import torch
from networks import images_and_labels, tiny_network, trained_network
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.evaluation import evaluate
from fastadaad.models import load_model

X_NATURAL, LABELS = images_and_labels(22)
LINF = ThreatModel(epsilon=12 / 255)
ATTACKS = ("natural", "pgd1", "cw5")


class Output(nn.Module):
    """Applies a function to the logits of a network."""

    def __init__(self, function) -> None:
        super().__init__()
        self.network, self.function = trained_network(X_NATURAL, LABELS), function

    def forward(self, x: Tensor) -> object:
        return self.function(self.network(x))


class Doubling(nn.Module):
    """float64 network that takes fp32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_network(1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(tiny_network(1).eval(), {nn.Linear}, dtype=torch.qint8)


def damaged() -> nn.Module:
    network = tiny_network(1)
    network[-1].weight.data[2, 3] = math.nan
    return network


NETWORKS = {
    "a NaN weight": (damaged, r"^the model returns NaN or inf \(attack natural\): its weights are damaged"),
    "one logit": (lambda: Output(lambda z: z[:, :1]), r"^model returns logits of shape \[8, 1\], one class: let it"),
    "a tuple": (lambda: Output(lambda z: (z, z)), r"^model returns tuple: let it return its logits \[B, N\] alone$"),
    "a dict": (lambda: Output(lambda z: {"logits": z}), "^model returns dict: let it return its logits"),
    "one row for all images": (lambda: Output(lambda z: z[:1]), "^model returns 1 rows for 8 images"),
    "integers": (lambda: Output(lambda z: (100 * z).long()), "^model returns logits in torch.int64"),
    "float64": (lambda: tiny_network(1).double(), r"its weights are torch.float64, use model\.float\(\)"),
    "float64 logits": (Doubling, r"^model returns logits in torch.float64: .*use model\.float\(\)$"),
    "three channels": (
        lambda: load_model("cnn-4", num_classes=5, in_channels=1), "images have 3 channels and the network takes 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_network_without_usable_logits_is_refused_in_one_line(case, attack):
    build, message = NETWORKS[case]
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(build(), (X_NATURAL, LABELS), attack, threat_model=LINF)
    assert "\n" not in str(caught.value)


def nan_of_the_darkest_image() -> nn.Module:
    """Returns NaN for the image with the least mean, which is not among the first."""
    least = X_NATURAL.mean((1, 2, 3))
    assert least.argmin() >= 8

    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = trained_network(X_NATURAL, LABELS)

        def forward(self, x: Tensor) -> Tensor:
            is_darkest = x.mean((1, 2, 3)) <= least.min() + 1e-6
            return torch.where(is_darkest[:, None], math.nan, self.network(x))

    return Rare()


@pytest.mark.filterwarnings("ignore:Rare. batch-norm was not folded")
@pytest.mark.parametrize("attack", ATTACKS)
def test_nan_of_a_single_later_image_is_named_with_the_attack(attack):
    name = "natural" if attack == "cw5" else attack
    with pytest.raises(ValueError, match=rf"^the model returns NaN or inf \(attack {name}\): its weights are damaged"):
        evaluate(nan_of_the_darkest_image(), (X_NATURAL, LABELS), attack, threat_model=LINF, batch_size=8)


class NanOffThePixels(nn.Module):
    """Returns NaN for every image but the natural ones."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained_network(X_NATURAL, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x.detach()[:, None] - X_NATURAL).abs().amax((2, 3, 4)).amin(1)
        return torch.where((distance > 1e-4)[:, None], math.nan, self.network(x))


@pytest.mark.filterwarnings("ignore:NanOffThePixels. batch-norm was not folded")
@pytest.mark.parametrize("attack", ["fgsm", "pgd1", "cw5"])
def test_nan_under_attack_does_not_count_as_robust(attack):
    with pytest.raises(ValueError, match=r"^the model returns NaN or inf \(attack"):
        evaluate(NanOffThePixels(), (X_NATURAL, LABELS), attack, threat_model=LINF)
    (natural,) = evaluate(NanOffThePixels(), (X_NATURAL, LABELS), "natural")
    network = trained_network(X_NATURAL, LABELS).eval()
    assert natural.accuracy == (network(X_NATURAL).argmax(1) == LABELS).sum().item() / len(LABELS)


def test_a_quantised_network_has_a_natural_accuracy_and_no_attack():
    network = quantized()
    (natural,) = evaluate(network, (X_NATURAL, LABELS), "natural")
    assert natural.accuracy == (network(X_NATURAL).argmax(1) == LABELS).sum().item() / len(LABELS)
    for attack in ("pgd1", "cw5"):
        with pytest.raises(
            ValueError, match=r"^model is quantised \(layer Linear\).*give the network in torch.float32"
        ):
            evaluate(network, (X_NATURAL, LABELS), attack, threat_model=LINF)


def test_probabilities_are_named_once_per_network():
    model = Output(lambda z: z.softmax(1))
    with pytest.warns(UserWarning, match="^model seems to return probabilities.*: let it return its logits"):
        evaluate(model, (X_NATURAL, LABELS), "natural")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(model, (X_NATURAL, LABELS), "natural")
        evaluate(Output(lambda z: z.log_softmax(1)), (X_NATURAL, LABELS), "natural")
        evaluate(Output(lambda z: z.relu()), (X_NATURAL, LABELS), "natural")


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = trained_network(X_NATURAL, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.1 * torch.randn_like(x))


def test_a_network_that_uses_chance_is_named_once():
    model = Noisy()
    with pytest.warns(UserWarning, match=r"^model uses chance: .*use autoattack-rand.*\(EoT\)"):
        evaluate(model, (X_NATURAL, LABELS), "natural")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(model, (X_NATURAL, LABELS), "natural")
        evaluate(nn.Sequential(nn.Dropout(0.5), tiny_network(1)), (X_NATURAL, LABELS), "natural")  # eval mode


@pytest.mark.filterwarnings("ignore:model uses chance")
def test_the_checks_draw_no_number_of_the_attacks():
    torch.manual_seed(3)
    (result,) = evaluate(Noisy(), (X_NATURAL, LABELS), "natural", batch_size=len(LABELS))
    model = copy.deepcopy(Noisy()).eval()
    torch.manual_seed(3)
    Noisy()  # its training draws from a generator of its own
    assert result.accuracy == (model(X_NATURAL).argmax(1) == LABELS).sum().item() / len(LABELS)
