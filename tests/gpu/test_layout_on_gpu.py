"""The student's training pass on tensor cores is channels-last, in every mode, and its runs resume."""

import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from rich.console import Console
from tiny_runs import gpu_run
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastadaad import Distiller, InnerConfig, ThreatModel
from fastadaad.config import PrecisionConfig
from fastadaad.run_config import OptimConfig, RunConfig
from fastadaad.training import build
from fastadaad.training.self_check import CHECKS, SelfCheckResult
from fastadaad.training.trainer import Trainer


@pytest.fixture(autouse=True)
def checked_machine(monkeypatch):
    """A self-check that has passed: these tests are about the runs."""
    result = SelfCheckResult(passed=CHECKS, failures={}, not_run={}, device="cuda", seconds=0.0)
    monkeypatch.setattr(build, "ensure_checked", lambda device: result)


def config_of(folder: Path, precision: str, mode: str = "eager") -> RunConfig:
    optim = OptimConfig(epochs=1, learning_rate=0.05, ema_decay=0.9)
    precision = PrecisionConfig.parse(precision)
    return gpu_run(folder, mode=mode, precision=precision, optim=optim, checkpoint_every=1)


def trainer(config: RunConfig, folder: Path, *, resume: bool = False) -> Trainer:
    return Trainer(config, folder, Console(file=io.StringIO(), width=200), resume=resume)


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


class ConvolutionsOf(TorchFunctionMode):
    """Notes input and weight of the convolutions with a network's own weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is F.conv2d and any(arguments[1] is weight for weight in self.network.parameters()):
            self.seen.append(arguments[:2])
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_convolutions_of_the_outer_pass_are_channels_last_on_tensor_cores(tmp_path, precision):
    run = trainer(config_of(tmp_path, precision), tmp_path / "run")
    num_convolutions = sum(isinstance(module, nn.Conv2d) for module in run.state.student.modules())
    with ConvolutionsOf(run.state.student) as convolutions:
        run.train()
    assert len(convolutions.seen) >= 4 * num_convolutions  # at least one pass in each of four steps
    # Tensors of one channel or one pixel have both layouts.
    layouts = {
        (is_channels_last(tensor), tensor.is_contiguous())
        for pair in convolutions.seen
        for tensor in pair
        if tensor.shape[1] > 1 and tensor.shape[2] > 1
    }
    assert layouts == {(False, True) if precision == "fp32" else (True, False)}


def four_dimensional(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.dim() == 4]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_stopped_channels_last_run_resumes(tmp_path, mode):
    config = config_of(tmp_path, "tf32", mode)
    whole = trainer(config, tmp_path / "whole")
    whole.train()

    run = trainer(config, tmp_path / "stopped")
    take_step = run.distiller.step

    def step_or_die(*arguments, **options):
        if run.state.step == 2:
            raise KeyboardInterrupt
        return take_step(*arguments, **options)

    run.distiller.step = step_or_die
    with pytest.raises(KeyboardInterrupt):
        run.train()
    resumed = trainer(config, tmp_path / "stopped", resume=True)
    assert resumed.state.step == 2
    states = resumed.state.optimizer.state.values()
    momenta = [momentum for state in states if (momentum := state["momentum_buffer"]).dim() == 4]
    resumed.train()
    weights = [*four_dimensional(resumed.state.student), *four_dimensional(resumed.state.averaged.module)]
    assert len(weights) == 2 * len(momenta) > 0
    assert all(map(is_channels_last, [*weights, *momenta]))
    for name, tensor in whole.state.evaluated.state_dict().items():
        torch.testing.assert_close(resumed.state.evaluated.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_distiller_takes_a_channels_last_student_and_images_as_they_are(mode):
    x_natural, labels = (tensor.to("cuda") for tensor in images_and_labels(8))
    inner = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.03, num_steps=2)
    students = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = x_natural.contiguous(memory_format=memory_format)
        student, teacher = (network.to("cuda") for network in student_and_teacher())
        student.to(memory_format=memory_format)
        addresses = [parameter.data_ptr() for parameter in student.parameters()]
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
        options = {"inner": inner, "optimizer": optimizer, "precision": "fp32", "layout": "contiguous", "mode": mode}
        distiller, generator = Distiller(student, teacher, **options), torch.Generator("cuda").manual_seed(0)
        with ConvolutionsOf(student) as convolutions:
            results = [distiller.step(images, labels, generator=generator) for _ in range(2)]
        assert all(result.x_adv.is_contiguous(memory_format=memory_format) for result in results)
        if mode == "eager":  # compiled code calls no torch.nn.functional
            inputs = [x for x, _ in convolutions.seen if x.shape[1] == 3]
            assert len(inputs) >= 2
            assert all(x.is_contiguous(memory_format=memory_format) for x in inputs)
        assert addresses == [parameter.data_ptr() for parameter in student.parameters()]
        assert all(parameter.grad.stride() == parameter.stride() for parameter in four_dimensional(student))
        students.append(student)
    for one, other in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
