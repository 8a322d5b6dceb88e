"""Runs of `make bench-gpu`: what is measured on a GPU, and how long that takes by the model."""

from dataclasses import dataclass

from fastadaad.cli.arguments import policies
from fastadaad.config import TeacherPolicy

from .flops import network_cost
from .gpu_model import predict, shifted
from .networks import PAIRS, variants_of
from .predict import AFTER, ERROR, card

POLICY = "refreshed(every=5)"
BATCH_SIZES = (128, 256, 512, 1024)
COMPILE_S = 60.0  # of one variant on one core of a server: assumed
REFERENCE_FACTOR = 1.5  # time of the authors' program over ours at equal arithmetic: assumed


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of `python -m bench step` on a GPU; `file` is its CSV file's name."""

    file: str
    pair: str
    precisions: tuple[str, ...]
    modes: tuple[str, ...] = ("graph",)
    methods: tuple[str, ...] = ("adaad",)
    policies: str = ""
    batch_sizes: tuple[int, ...] = ()
    rounds: int = 5
    details: bool = False

    @property
    def arguments(self) -> list[str]:
        """Arguments of `python -m bench step`, without the folder of the file."""
        words = ["--device", "cuda", "--pair", self.pair, "--modes", ",".join(self.modes)]
        words += ["--precisions", ",".join(self.precisions), "--rounds", str(self.rounds)]
        words += [word for method in self.methods for word in ("--method", method)]
        words += ["--policies", self.policies] if self.policies else []
        words += ["--batch-sizes", ",".join(map(str, self.batch_sizes))] if self.batch_sizes else []
        return words if self.details else [*words, "--no-details"]


PLAN = (
    # Equal arithmetic on both sides, then each side's default.
    Run(file="precision", pair="cifar", precisions=("fp32", "tf32", "bf16"), rounds=10),
    Run(file="precision", pair="paper", precisions=("fp32", "tf32", "bf16"), rounds=3),
    Run(file="batch", pair="paper", precisions=("bf16",), policies=POLICY, batch_sizes=BATCH_SIZES, rounds=3),
    Run(file="modes", pair="cifar", precisions=("bf16",), modes=("eager", "compiled", "graph"), details=True),
)


def seconds(run: Run, name: str) -> float:
    """Predicts the seconds of a run on a card, with compiling."""
    pair, total = PAIRS[run.pair], 0.0
    student, teacher = (network_cost(network, pair.image_shape) for network in pair.networks("cpu"))
    for method in run.methods:
        chosen = policies(run.policies) if run.policies else []
        variants = [*variants_of(method, [*run.modes], chosen, [*run.precisions], device_type="cuda")]
        for batch_size in run.batch_sizes or (pair.batch_size,):
            for variant in variants:
                precision = "tf32" if variant.precision == "default" else variant.precision  # torch's own setting
                step = predict(
                    card(name, precision), AFTER, method, student, teacher, 10, variant.policy, batch_size
                ).step_s
                steps = run.rounds + 3 * run.details
                total += steps * step * (REFERENCE_FACTOR if variant.is_reference else 1.0)
                total += 0.0 if variant.is_reference or variant.mode == "eager" else COMPILE_S
    return total


def minutes(name: str) -> float:
    """Predicts the minutes of the whole plan on a card."""
    return sum(seconds(run, name) for run in PLAN) / 60


def predicted_images_per_s(name: str, row: dict[str, str]) -> dict[str, float]:
    """Predicts images/s of a measured row on a card: with the stated constants, and at both ends of the error bars.

    Args:
        name: A100, H100 or H200.
        row: Row of `python -m bench step`, of Distiller.
    """
    pair = PAIRS[row["pair"]]
    batch_size = int(row["batch_shape"].split("x")[0])
    student, teacher = (network_cost(network, pair.image_shape) for network in pair.networks("cpu"))
    mode = "graph" if row["mode"] == "graph" else "compiled"
    policy = TeacherPolicy.parse(row["policy"])
    arguments = AFTER, row["method"], student, teacher, int(row["num_steps"]), policy, batch_size
    device = card(name, row["precision"], mode)
    factors = {"worst": 1 / ERROR, "likely": 1.0, "best": ERROR}
    return {word: batch_size / predict(shifted(device, factor), *arguments).step_s for word, factor in factors.items()}
