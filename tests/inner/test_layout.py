"""The choice between contiguous and channels-last, with networks that advance the clock that times them."""

import io

import pytest
import torch
from networks import images_and_labels, tiny_network
from rich.console import Console
from torch import Tensor, nn

from fastadaad.cli import machine_report as doctor
from fastadaad.inner.layout import BUDGET_S, MAX_ROUNDS, choose_memory_format, remembered_choices


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path))


class Timed(nn.Module):
    """A network whose forward takes the next of `durations`, in seconds of the fake clock; the last one stays."""

    def __init__(self, clock: "FakeClock", network: nn.Module, name: str, durations: list[float]) -> None:
        super().__init__()
        self.clock, self.network, self.name, self.durations = clock, network, name, durations

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not any(parameter.requires_grad for parameter in self.parameters())
        self.clock.passes.append(self.name)
        self.clock.now += self.durations.pop(0) if len(self.durations) > 1 else self.durations[0]
        return self.network(x)


class FakeClock:
    def __init__(self, contiguous: list[float], channels_last: list[float]) -> None:
        self.now, self.passes = 100.0, []
        self.durations = {torch.contiguous_format: contiguous, torch.channels_last: channels_last}

    def __call__(self) -> float:
        return self.now

    def build(self, memory_format: torch.memory_format) -> nn.Module:
        name = str(memory_format).removeprefix("torch.")
        return Timed(self, tiny_network(1).to(memory_format=memory_format), name, self.durations[memory_format])


def choose(
    clock: FakeClock, network: nn.Module | None = None, x: Tensor | None = None, **options
) -> torch.memory_format:
    x = images_and_labels(4)[0] if x is None else x
    return choose_memory_format(network or tiny_network(1), x, clock.build, clock=clock, **options)


def test_the_faster_layout_is_chosen_and_stored_with_its_milliseconds():
    clock = FakeClock([0.01], [0.004])
    assert choose(clock) is torch.channels_last
    assert clock.passes.count("channels_last") == clock.passes.count("contiguous_format") == 1 + MAX_ROUNDS
    (entry,) = remembered_choices()
    assert entry.value.contiguous_ms == pytest.approx(10)
    assert entry.value.channels_last_ms == pytest.approx(4)
    assert entry.value.shape == (4, 3, 8, 8)

    again = FakeClock([0.004], [0.01])
    assert choose(again, tiny_network(9)) is torch.channels_last  # other weights, the same architecture
    assert again.passes == []


@pytest.mark.parametrize(
    ("contiguous_s", "channels_last_s", "eager", "compiled"),
    [
        (0.01, 0.02, torch.contiguous_format, torch.contiguous_format),
        (0.01, 0.011, torch.contiguous_format, torch.channels_last),
        (0.011, 0.01, torch.channels_last, torch.channels_last),
    ],
)
def test_a_network_to_be_compiled_is_contiguous_only_where_that_is_much_faster(
    contiguous_s, channels_last_s, eager, compiled
):
    clock = FakeClock([contiguous_s], [channels_last_s])
    assert choose(clock) is eager
    passes = len(clock.passes)
    assert choose(clock, compiled=True) is compiled
    assert len(clock.passes) == passes  # one measurement serves both


def test_doctor_shows_what_was_chosen_and_why():
    choose(FakeClock([0.01], [0.004]), precision="bf16")
    console = Console(file=io.StringIO(), width=200)
    doctor.print_report(console, layouts=True)
    (line,) = [line for line in console.file.getvalue().splitlines() if "Sequential" in line]
    assert all(word in line for word in ("4x3x8x8", "bf16", "channels_last", "10.0", "4.0"))


def test_contiguous_where_neither_is_faster_or_there_is_nothing_to_choose():
    assert choose(FakeClock([0.01], [0.01])) is torch.contiguous_format
    clock = FakeClock([0.01], [0.001])
    assert choose(clock, nn.Sequential(nn.Flatten(), nn.Linear(192, 5))) is torch.contiguous_format
    assert choose(clock, x=torch.zeros(4, 3)) is torch.contiguous_format
    assert clock.passes == []


@pytest.mark.parametrize(
    "change",
    [
        lambda network, x: (tiny_network(1, channels=7), x),
        lambda network, x: (network.double(), x),
        lambda network, x: (nn.Sequential(*network), x[:3]),
        lambda network, x: (network, x.double()),
    ],
)
def test_another_network_or_batch_is_measured_again(change):
    choose(FakeClock([0.01], [0.004]))
    clock = FakeClock([0.004], [0.01])
    network, x = change(tiny_network(1), images_and_labels(4)[0])
    if x.dtype == torch.float64:
        clock.build = lambda memory_format: Timed(clock, tiny_network(1).double(), "", clock.durations[memory_format])
    assert choose(clock, network, x) is torch.contiguous_format
    assert clock.passes


def test_each_precision_has_its_own_choice():
    """In bf16 the contiguous layout is slower here, and in fp32 the other one."""
    times = {"fp32": ([0.004], [0.01]), "bf16": ([0.01], [0.004])}
    for precision, expected in (("fp32", torch.contiguous_format), ("bf16", torch.channels_last)):
        assert choose(FakeClock(*times[precision]), precision=precision) is expected
    for precision, expected in (("fp32", torch.contiguous_format), ("bf16", torch.channels_last)):
        clock = FakeClock([0.01], [0.01])
        assert choose(clock, precision=precision) is expected
        assert clock.passes == []
    assert {entry.value.precision for entry in remembered_choices()} == {"fp32", "bf16"}


class OnGpu:
    """Batch whose device is a GPU; nothing else of it is read where nothing is measured."""

    device, shape, dtype = torch.device("cuda", 0), torch.Size([4, 3, 8, 8]), torch.float32

    def dim(self) -> int:
        return 4


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp16"])
def test_a_compiled_network_on_tensor_cores_is_channels_last_without_a_measurement(precision):
    clock = FakeClock([0.001], [0.01])
    assert choose(clock, x=OnGpu(), precision=precision, compiled=True) is torch.channels_last
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    assert choose(clock, linear, OnGpu(), precision=precision, compiled=True) is torch.contiguous_format
    assert clock.passes == []


def test_the_passes_alternate_and_outliers_do_not_decide():
    clock = FakeClock([5.0, 0.01, 0.01, 0.01], [0.1, 0.004, 0.9, 0.004])  # warm-up, then a pass that was disturbed
    assert choose(clock) is torch.channels_last
    first, second = "contiguous_format", "channels_last"
    assert clock.passes[2:8] == [first, second, second, first, first, second]


def test_a_slow_network_is_timed_in_one_round():
    clock = FakeClock([BUDGET_S], [2 * BUDGET_S])
    assert choose(clock) is torch.contiguous_format
    assert len(clock.passes) == 4


def test_measuring_leaves_networks_and_torchs_generator_alone():
    network, x = tiny_network(1), images_and_labels(4)[0]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    choose_memory_format(network, x, lambda memory_format: network)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
