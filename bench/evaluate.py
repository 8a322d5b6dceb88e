"""Times PGD evaluations: ours, a plain loop of the usual libraries, and foolbox: `python -m bench evaluate`.

The variants alternate in one process on one batch of images. A network with random weights names the labels itself, and
a fixed fraction of them is wrong, as ours does not attack images that are misclassified. Compiling is not timed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadaad import ThreatModel, load_model
from fastadaad.evaluation import parse_attack
from fastadaad.evaluation.attacks import GradientAttack, SearchSettings
from fastadaad.evaluation.gradient_pass import GradientPass
from fastadaad.inner.frozen import frozen
from fastadaad.runtime.timing import Spread, alternate, ratios

from .rows import RESULTS, hardware, write_rows
from .tables import print_rows

PLAIN, FOOLBOX = "plain loop", "foolbox"
EPSILON = 8 / 255
SHOWN = (
    "network", "batch_shape", "attack", "natural_accuracy", "variant", "robust_accuracy", "images_per_s", "ratio_p50",
    "ratio_p20", "ratio_p80", "times_foolbox_p50",
)  # fmt: skip


def labelled_images(network: nn.Module, num_images: int, natural_accuracy: float) -> tuple[Tensor, Tensor]:
    """Returns images [N, 3, 32, 32] and labels [N] of which the network has `natural_accuracy` right."""
    device, generator = next(network.parameters()).device, torch.Generator().manual_seed(0)
    x_natural = torch.rand(num_images, 3, 32, 32, generator=generator).to(device)
    with torch.no_grad():
        labels = torch.cat([network(part).argmax(1) for part in x_natural.split(64)])
    labels[round(natural_accuracy * num_images) :] += 1
    return x_natural, labels % 10


def plain_pgd(network: nn.Module, x_natural: Tensor, labels: Tensor, num_steps: int) -> Tensor:
    """Returns True [N] for each image that PGD from a uniform start leaves right; attacks all images at once."""
    x_adv = (x_natural + torch.empty_like(x_natural).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
    for _ in range(num_steps):
        x_adv.requires_grad_()
        (grad_x,) = torch.autograd.grad(F.cross_entropy(network(x_adv), labels), x_adv)
        delta = (x_adv.detach() + EPSILON / 4 * grad_x.sign() - x_natural).clamp(-EPSILON, EPSILON)
        x_adv = (x_natural + delta).clamp(0, 1)
    with torch.no_grad():
        return network(x_adv).argmax(1) == labels


def foolbox_pgd(network: nn.Module, x_natural: Tensor, labels: Tensor, num_steps: int) -> Tensor:
    """Returns the same by foolbox."""
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=x_natural.device)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=num_steps)
    return ~attack(model, x_natural, labels, epsilons=EPSILON)[2]


def variants_of(
    network: nn.Module, x_natural: Tensor, labels: Tensor, num_steps: int, modes: list[str]
) -> dict[str, Callable[[], Tensor]]:
    """Returns name -> function that returns which images survive [N]."""
    batch = x_natural, labels
    runs = {
        PLAIN: lambda: plain_pgd(network, *batch, num_steps),
        FOOLBOX: lambda: foolbox_pgd(network, *batch, num_steps),
    }
    (name, attack), *_ = parse_attack(f"pgd{num_steps}").stages
    assert isinstance(attack, GradientAttack)
    for mode in modes:
        settings = SearchSettings(mode=mode)
        one_pass = GradientPass(name, attack, network, ThreatModel(epsilon=EPSILON), settings, len(labels))
        runs[f"evaluate-{mode}"] = lambda one_pass=one_pass: _ours(one_pass, *batch)
    return runs


def _ours(one_pass: GradientPass, x_natural: Tensor, labels: Tensor) -> Tensor:
    generator = torch.Generator(labels.device).manual_seed(0)
    with frozen(one_pass.model):
        return one_pass.survives(x_natural, labels, [generator], labels.new_zeros(()))


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Returns a row per variant of the network `name`."""
    device, num_steps = options.device, options.num_steps
    torch.manual_seed(0)
    network = load_model(name).to(device).eval()
    x_natural, labels = labelled_images(network, options.batch_size, options.natural_accuracy)
    runs = variants_of(network, x_natural, labels, num_steps, options.modes)
    accuracies = {name: run().double().mean().item() for name, run in runs.items()}  # the first call compiles
    timings = alternate(runs, device, rounds=options.rounds, warmup=0)
    return [
        {
            "network": name,
            "batch_shape": "x".join(map(str, x_natural.shape)),
            "attack": f"pgd{num_steps}",
            "natural_accuracy": options.natural_accuracy,
            "variant": variant,
            "robust_accuracy": round(accuracies[variant], 4),
            "images_per_s": round(1e3 * len(labels) / Spread.of(milliseconds).p50, 2),
            **ratios(timings[PLAIN], milliseconds).columns("ratio_{}"),
            **ratios(timings[FOOLBOX], milliseconds).columns("times_foolbox_{}"),
            **Spread.of(milliseconds).columns("{}_ms"),
            "n": len(milliseconds),
        }
        for variant, milliseconds in timings.items()
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench evaluate", description=__doc__.splitlines()[0])
    words = {"type": lambda text: text.split(",")}
    parser.add_argument("--networks", default="resnet18,mobilenet-v2", help="default: %(default)s", **words)
    parser.add_argument("--modes", default="eager,compiled", help="modes of evaluate; default: %(default)s", **words)
    parser.add_argument("--batch-size", type=int, default=500, help="images per batch; default: %(default)s")
    parser.add_argument("--num-steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument(
        "--natural-accuracy", type=float, default=0.84, help="that of the paper's students; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements per variant; default: %(default)s")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "evaluate.csv", help="CSV file, overwritten")
    options = parser.parse_args(argv)
    rows = [row for name in options.networks for row in measure(name, options)]
    options.output.unlink(missing_ok=True)
    write_rows(options.output, rows, options.device)
    print_rows(rows, SHOWN, title=f"PGD evaluations on {hardware(options.device)}")
