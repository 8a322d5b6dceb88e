"""Timing protocol of all benchmarks: variants alternate in one process; measurements have p20, p50 and p80."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

_CACHE_BYTES = 256 * 2**20  # more than the L2 cache of any current GPU
_MIN_SAMPLE_S = 2e-3  # a sample on the CPU repeats its variant for at least this long

Variants = Mapping[str, Callable[[], object]]
Sampler = Callable[[str, Callable[[], object]], float]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Quantiles of n measurements."""

    p20: float
    p50: float
    p80: float
    n: int

    def columns(self, name: str, scale: float = 1.0) -> dict[str, float]:
        """Returns p20, p50 and p80 as columns of a CSV row, to five digits.

        Args:
            name: Name of the columns, with one {} for the quantile.
            scale: Factor of the values, such as 1e3 for us.
        """
        values = {"p20": self.p20, "p50": self.p50, "p80": self.p80}
        return {name.format(key): float(f"{scale * value:.5g}") for key, value in values.items()}

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Quantiles of one or more values, interpolated between values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        quintiles = statistics.quantiles(values, n=5, method="inclusive")
        return cls(quintiles[0], statistics.median(values), quintiles[-1], len(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the ratio in each round: a busy or throttled machine affects both measurements of a round alike."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def alternate(variants: Variants, device: torch.device, *, rounds: int = 30, warmup: int = 3) -> dict[str, list[float]]:
    """Returns the milliseconds of each variant in each round.

    The order rotates with the round, so that drift affects all variants alike.

    Args:
        variants: Functions to time, by name.
        device: Device that the functions run on; CUDA devices are timed by events.
        rounds: Measurements of each variant.
        warmup: Calls of each variant before the first round.
    """
    for run in variants.values():
        for _ in range(warmup):
            run()
    sample = _cuda_sampler(device) if device.type == "cuda" else _cpu_sampler(variants)
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in rotated(list(variants), number):
            samples[name].append(sample(name, variants[name]))
    return samples


def rotated(names: list[str], number: int) -> list[str]:
    """The names in the order of round `number`: it begins one name later in each round."""
    shift = number % len(names)
    return names[shift:] + names[:shift]


def _cpu_sampler(variants: Variants) -> Sampler:
    """Sampler that uses the host's clock; a sample is the mean over the calls that fill _MIN_SAMPLE_S."""

    def seconds(run: Callable[[], object], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return time.perf_counter() - start

    repeats = {name: max(1, round(_MIN_SAMPLE_S / seconds(run, 1))) for name, run in variants.items()}

    def sample(name: str, run: Callable[[], object]) -> float:
        return 1e3 * seconds(run, repeats[name]) / repeats[name]

    return sample


def _cuda_sampler(device: torch.device) -> Sampler:
    """Sampler that uses CUDA events and waits for each sample.

    Queued samples would hide the launches of one behind the kernels of the one before. Clearing the L2 cache first
    keeps the device busy while a single kernel is launched, but not while a step of hundreds of launches is.
    """
    cache = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device=device)

    def sample(name: str, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return sample
