"""The pretend GPU computes right values, and each rule of CUDA that a program breaks is an error there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pretend_gpu.books import counts


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Captures a function after one run of it, as every program does."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    return captured_at_once(function)


def captured_at_once(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph


@pytest.fixture
def x() -> Tensor:
    return torch.arange(12.0, device="cuda").reshape(3, 4)


def test_operations_have_the_values_of_the_cpu():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    gradients = []
    for device in ("cpu", "cuda"):
        network.to(device).zero_grad()
        F.cross_entropy(network(images.to(device)), labels.to(device)).backward()
        gradients.append([parameter.grad.cpu().clone() for parameter in network.parameters()])
    for on_cpu, on_cuda in zip(*gradients, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu)


def test_new_memory_holds_nan():
    with torch.cuda.use_mem_pool(torch.cuda.MemPool()):  # which holds nothing that was used before
        assert torch.empty(1000, device="cuda").isnan().all()


def test_views_in_place_results_and_outputs_share_memory(x):
    x[:, 1:3].mul_(2)
    assert x.tolist() == [[0, 2, 4, 3], [4, 10, 12, 7], [8, 18, 20, 11]]
    output = torch.empty(0, device="cuda")
    assert torch.add(x, 1, out=output) is output
    assert output.tolist() == (x + 1).tolist()


def test_numbers_promote_types_as_on_a_device(x):
    assert (x.half() * 0.5).dtype == torch.float16
    assert (torch.arange(3, device="cuda") % 2).dtype == torch.int64
    assert (torch.arange(3, device="cuda") * 0.5).dtype == torch.float32


def test_a_generator_determines_the_draws_and_advances():
    generator = torch.Generator("cuda").manual_seed(3)
    first, second = (torch.rand(5, device="cuda", generator=generator) for _ in range(2))
    generator.manual_seed(3)
    assert torch.equal(torch.rand(5, device="cuda", generator=generator), first)
    assert not torch.equal(first, second)


def test_a_capture_leaves_no_trace_and_each_replay_runs_it(x):
    total = torch.zeros(3, 4, device="cuda")
    made: list[Tensor] = []

    def add() -> None:
        made.append(x * 2)
        total.add_(made[-1])

    graph = captured(add)
    assert torch.equal(total, 2 * x)  # of the run before the capture
    assert made[-1].isnan().all()
    x.fill_(1)
    for _ in range(3):
        graph.replay()
    assert torch.equal(made[-1], torch.full_like(x, 2))
    assert total[0, 0].item() == 6


def test_replays_draw_new_numbers():
    drawn = torch.zeros(4, device="cuda")
    graph = captured(lambda: drawn.uniform_())
    graph.replay()
    first = drawn.clone()
    graph.replay()
    assert not torch.equal(drawn, first)


BROKEN_IN_A_CAPTURE = {
    "reading a number": (lambda x: x.sum().item(), "captured work|pageable memory"),
    "waiting for the device": (lambda x: torch.cuda.synchronize(), "cudaDeviceSynchronize during a capture"),
    "waiting for an event": (lambda x: _wait_for_event(), "cudaEventSynchronize of captured work"),
    "a copy that waits": (lambda x: x.cpu(), "cudaStreamSynchronize of captured work"),
    "a copy of pageable memory": (lambda x: x.copy_(torch.ones(3, 4), non_blocking=True), "pageable memory"),
    "a shape that depends on values": (lambda x: x[x > 3], "cudaStreamSynchronize of captured work"),
    "work on a stream that is not captured": (lambda x: _on_side_stream(x, joins=False), "escapes the capture"),
    "work that is not joined": (lambda x: _on_side_stream(x, joins=True), "is not joined when the capture ends"),
}


def _wait_for_event() -> None:
    event = torch.cuda.Event()
    event.record()
    event.synchronize()


def _on_side_stream(x: Tensor, *, joins: bool) -> None:
    side = torch.cuda.Stream()
    if joins:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x.add_(1)


@pytest.mark.parametrize("name", BROKEN_IN_A_CAPTURE)
def test_a_broken_rule_of_captures_is_an_error(name, x):
    function, rule = BROKEN_IN_A_CAPTURE[name]
    before = counts().broken_rules
    with pytest.raises(RuntimeError, match=rule):
        captured(lambda: function(x))
    assert counts().broken_rules > before
    torch.cuda.synchronize()  # no capture is left


def test_a_replay_that_touches_freed_memory_is_an_error():
    x = torch.ones(1 << 20, device="cuda")
    total = torch.zeros(1 << 20, device="cuda")
    graph = captured(lambda: total.add_(x))
    graph.replay()
    x = None
    with pytest.raises(RuntimeError, match="were freed after the capture"):
        graph.replay()


def test_memory_from_outside_of_the_pool_is_an_error(x):
    outside = torch.cuda.Stream()  # takes no part in the capture

    def function() -> None:
        with torch.cuda.stream(outside):
            torch.empty(1 << 20, device="cuda")

    with pytest.raises(RuntimeError, match="cudaMalloc during a capture"):
        captured_at_once(function)


WAITING = {
    "a number": lambda x: x.sum().item(),
    "a copy to the host": lambda x: x.cpu(),
    "a copy from the host": lambda x: x.copy_(torch.ones(3, 4)),
    "the number of nonzeros": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 3],
}


@pytest.mark.parametrize("name", WAITING)
def test_waits_are_errors_in_the_debug_mode(name, x):
    torch.cuda.set_sync_debug_mode("error")
    try:
        x.add_(1)
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            WAITING[name](x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_kernel_that_nobody_computes_is_an_error(x):
    with pytest.raises(RuntimeError, match=r"no operation for the kernel .*nms"):
        torchvision.ops.nms(x, x[:, 0], 0.5)


def test_tensors_on_two_devices_are_an_error(x):
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3, 4)


def test_races_between_streams_are_errors():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).with_name("races.py")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-2000:]
    assert "3 passed" in finished.stdout
