"""Runs of `make bench-gpu`: what is measured on a GPU, and how long that takes by the model."""

from dataclasses import dataclass
from itertools import product

from fastadaad.cli.benchmarks.measuring import WARMUP
from fastadaad.config import TeacherPolicy

from .flops import network_cost
from .gpu_model import predict, shifted
from .networks import PAIRS
from .predict import AFTER, ERROR, card

METHOD, NUM_STEPS = "adaad", 10
POLICY = "directional(every=4)"
BATCH_SIZES = (128, 256, 512, 1024)
COMPILE_S = 60.0  # of one variant on one core of a server: assumed
REFERENCE_FACTOR = 1.5  # time of the authors' program over ours at equal arithmetic: assumed


# Recipe of `fastadaad benchmark` with the networks of a pair.
RECIPES = {"cifar": ("cifar10-rn18", "teacher.name=wrn-16-4"), "paper": ("cifar10-rn18",)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of `fastadaad benchmark` on a GPU, or with details of `python -m bench step`."""

    file: str
    pair: str
    precisions: tuple[str, ...]
    modes: tuple[str, ...] = ("graph",)
    policies: tuple[str, ...] = ("exact",)
    batch_sizes: tuple[int, ...] = ()
    rounds: int = 5
    details: bool = False

    @property
    def name(self) -> str:
        """Name of the folder of `fastadaad benchmark`, and without .csv of the file of `python -m bench step`."""
        return f"{self.file}-{self.pair}"

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.batch_sizes or (PAIRS[self.pair].batch_size,)

    @property
    def arguments(self) -> list[str]:
        """Arguments of the command, without the place of its files."""
        lists = ["--precisions", ",".join(self.precisions), "--modes", ",".join(self.modes)]
        lists += ["--batch-sizes", ",".join(map(str, self.sizes)), "--rounds", str(self.rounds)]
        if self.details:
            return ["--device", "cuda", "--pair", self.pair, *lists]
        return ["benchmark", *RECIPES[self.pair], "device=cuda", *lists, "--policies", ",".join(self.policies)]


PLAN = (
    # Both sides in the same arithmetic.
    Run(file="precision", pair="cifar", precisions=("fp32", "tf32", "bf16"), rounds=10),
    Run(file="precision", pair="paper", precisions=("fp32", "tf32", "bf16"), rounds=3),
    Run(
        file="batch", pair="paper", precisions=("bf16",), policies=("exact", POLICY), batch_sizes=BATCH_SIZES, rounds=3
    ),
    Run(file="modes", pair="cifar", precisions=("bf16",), modes=("eager", "compiled", "graph"), details=True),
)


def seconds(run: Run, name: str) -> float:
    """Predicts the seconds of a run on a card, with compiling and with the plain program beside each step."""
    pair, total = PAIRS[run.pair], 0.0
    costs = [network_cost(network, pair.image_shape) for network in pair.networks("meta")]
    steps = run.rounds + WARMUP + 1 + 3 * run.details
    for size, precision, mode, policy in product(run.sizes, run.precisions, run.modes, run.policies):
        exact, own = (
            predict(card(name, precision), AFTER, METHOD, *costs, NUM_STEPS, TeacherPolicy.parse(text), size).step_s
            for text in ("exact", policy)
        )
        total += steps * (own + REFERENCE_FACTOR * exact) + COMPILE_S * (mode != "eager")
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
    student, teacher = (network_cost(network, pair.image_shape) for network in pair.networks("meta"))
    mode = "graph" if row["mode"] == "graph" else "compiled"
    policy = TeacherPolicy.parse(row["policy"])
    arguments = AFTER, row["method"], student, teacher, int(row["num_steps"]), policy, batch_size
    device = card(name, row["precision"], mode)
    factors = {"worst": 1 / ERROR, "likely": 1.0, "best": ERROR}
    return {word: batch_size / predict(shifted(device, factor), *arguments).step_s for word, factor in factors.items()}
