"""Statistics of the timing protocol, on invented samples."""

import torch

from fastadaad.runtime.timing import Spread, _cuda_sampler, alternate, ratios

CPU = torch.device("cpu")


def test_quantiles():
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == Spread(2.0, 3.5, 5.0, 6)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_ratios_are_taken_within_each_round():
    # The machine slows down tenfold from round to round; the variant takes half of the reference's time in each.
    reference = [1.0, 10.0, 100.0, 1000.0]
    assert ratios(reference, [value / 2 for value in reference]) == Spread(2.0, 2.0, 2.0, 4)


def test_columns_are_scaled_and_named():
    assert Spread(0.1, 0.2, 0.3, 9).columns("{}_us", scale=1e3) == {"p20_us": 100.0, "p50_us": 200.0, "p80_us": 300.0}


def test_every_round_runs_every_variant_in_a_rotating_order():
    order = []
    names = "abc"
    variants = {name: lambda name=name: order.append(name) or sum(range(200_000)) for name in names}
    timings = alternate(variants, CPU, rounds=3, warmup=0)
    assert {name: len(values) for name, values in timings.items()} == dict.fromkeys(names, 3)
    firsts = [name for i, name in enumerate(order[3:]) if i == 0 or order[3:][i - 1] != name]
    assert "".join(firsts) == "abcabcabc"[:1] + "bc" + "bca" + "cab"


def test_each_sample_on_cuda_is_waited_for(monkeypatch):
    """A device that works through a queue: 3 ms of launches and 1 ms of kernels a sample, by a fake clock."""
    log, clock = [], [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = clock[0]

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, other: "Event") -> float:
            return other.time - self.time

    def run() -> None:
        log.append("run")
        clock[0] += 4.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    sample = _cuda_sampler(CPU)
    assert [sample("a", run), sample("b", run)] == [4.0, 4.0]
    assert log == ["run", "wait", "run", "wait"]
