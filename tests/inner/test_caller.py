"""Programs of users: their modes, wrappers around networks, devices, and the global state that must not change."""

import contextlib
import copy
import os
import random
import warnings
from collections import Counter

import distributed_steps
import numpy as np
import pytest
import torch
from networks import Branching, images_and_labels, student_and_teacher
from plain import mean_kl
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel, adaad_inner_loss, methods
from fastadaad.inner import folded_cache

INNER = InnerConfig(threat_model=ThreatModel(epsilon=16 / 255), step_size=4 / 255, num_steps=4)
METHODS = ("adaad", "pgd-at", "trades", "rslad", "adaiad", "saad", "adaad+igdm")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def make_distiller(student: nn.Module, teacher: nn.Module, method: str = "adaad", **options) -> Distiller:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    return Distiller(student, teacher, method=method, inner=INNER, optimizer=optimizer, **options)


def losses_of(distiller: Distiller, num_steps: int = 3) -> list[float]:
    generator = seeded()
    return [distiller.step(*images_and_labels(), generator=generator).loss.item() for _ in range(num_steps)]


def assert_same_weights(network: nn.Module, expected: nn.Module) -> None:
    """Compares all bits in the order of the tensors, whose names a wrapper changes."""
    for tensor, wanted in zip(network.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(tensor, wanted)


# Modes


def test_a_first_search_under_autocast_folds_and_reaches_nearly_the_same_kl():
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    with bf16(), warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: the folded network has other outputs
        x_adv = InnerMaximizer(student, teacher, inner=INNER)(x_natural, generator=seeded())
        drop_in = adaad_inner_loss(student, teacher.eval(), x_natural, step_size=4 / 255, steps=4, epsilon=16 / 255)
    in_full = mean_kl(student, teacher, InnerMaximizer(student, teacher, inner=INNER)(x_natural, generator=seeded()))
    for found in (x_adv, drop_in):
        assert found.dtype == torch.float32
        assert mean_kl(student, teacher, found) > 0.95 * in_full > 1.1 * mean_kl(student, teacher, x_natural)


def test_a_layout_is_measured_outside_of_the_callers_autocast(monkeypatch):
    """The cached choice is for all callers."""
    under_autocast = []

    def choose(*_, **__) -> torch.memory_format:
        under_autocast.append(torch.is_autocast_enabled("cpu"))
        return torch.contiguous_format

    monkeypatch.setattr(folded_cache, "choose_memory_format", choose)
    with bf16():
        InnerMaximizer(*student_and_teacher(), inner=INNER)(images_and_labels()[0])
    assert under_autocast == [False, False]


@pytest.mark.parametrize("options", [{}, {"awp_gamma": 0.05}, {"micro_batch": 8}], ids=str)
def test_steps_in_one_region_of_autocast_train_on_the_weights_of_each_step(options):
    """autocast caches the bf16 weights of its first pass until its region ends."""
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    with bf16():
        losses = losses_of(make_distiller(student, teacher, **options))
    distiller, wanted, generator = make_distiller(expected, teacher, **options), [], seeded()
    for _ in range(3):
        with bf16():
            wanted.append(distiller.step(*images_and_labels(), generator=generator).loss.item())
    assert losses == wanted
    assert losses[2] < losses[1] < losses[0]
    assert_same_weights(student, expected)


def test_awp_under_autocast_perturbs_the_weights_that_are_used():
    losses = {}
    for gamma in (0.0, 0.2):
        with bf16():
            losses[gamma] = losses_of(make_distiller(*student_and_teacher(), awp_gamma=gamma), num_steps=1)[0]
    assert losses[0.2] > 1.02 * losses[0.0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_step_trains_whatever_grad_mode_the_caller_is_in(context, method):
    """Under inference_mode the batch is made of inference tensors, which autograd does not keep."""
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    wanted = losses_of(make_distiller(expected, teacher, method))
    with context():
        assert losses_of(make_distiller(student, teacher, method)) == wanted
    assert_same_weights(student, expected)
    assert not any(tensor.is_inference() for tensor in student.state_dict().values())


@pytest.mark.parametrize("method", METHODS)
def test_inference_tensors_can_be_searched_outside_of_inference_mode(method):
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(student, teacher, method=method, inner=INNER)
    expected = maximizer(*images_and_labels(), generator=seeded())
    with torch.inference_mode():
        batch = images_and_labels()
    assert all(tensor.is_inference() for tensor in batch)
    x_adv = maximizer(*batch, generator=seeded())
    assert torch.equal(x_adv, expected)
    assert not x_adv.is_inference()


def test_networks_made_in_inference_mode_can_teach_and_be_attacked_but_not_be_trained():
    student, teacher = student_and_teacher()
    wanted = losses_of(make_distiller(copy.deepcopy(student), teacher))
    with torch.inference_mode():
        inference_student, inference_teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    x_adv = InnerMaximizer(student, teacher, inner=INNER)(x_natural, generator=seeded())
    found = InnerMaximizer(inference_student, inference_teacher, inner=INNER)(x_natural, generator=seeded())
    assert torch.equal(found, x_adv)
    assert losses_of(make_distiller(student, inference_teacher)) == wanted
    with pytest.raises(
        ValueError, match=r"^the student was made under torch.inference_mode, .*: make it outside of it$"
    ):
        make_distiller(inference_student, teacher)
    with pytest.raises(ValueError, match=r"^Branching was made under torch.inference_mode, .*: make it outside of it$"):
        InnerMaximizer(student, Branching(inference_teacher), inner=INNER)(x_natural)


def test_a_student_that_nothing_can_train_is_refused():
    student, teacher = student_and_teacher()
    with pytest.raises(ValueError, match="no parameter of the student requires a gradient: call"):
        make_distiller(student.requires_grad_(False), teacher)


# Wrappers


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="aot_eager")
    return network


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="aot_eager")


WRAPPERS = {
    "module.compile()": compiled_in_place,
    "torch.compile": compiled,
    "DataParallel": DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "torch.compile in DistributedDataParallel": lambda network: DistributedDataParallel(compiled(network)),
    "DistributedDataParallel in torch.compile": lambda network: compiled(DistributedDataParallel(network)),
}


@pytest.mark.slow
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_networks_train_as_bare_ones(wrapper):
    torch._dynamo.reset()
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    wanted = losses_of(make_distiller(expected, teacher))
    x_natural, _ = images_and_labels()
    x_adv = InnerMaximizer(expected, teacher, inner=INNER)(x_natural, generator=seeded())
    wrap = WRAPPERS[wrapper]
    wrapped_student, wrapped_teacher = wrap(student), wrap(teacher)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was not folded")
        assert losses_of(make_distiller(wrapped_student, wrapped_teacher)) == pytest.approx(wanted, rel=1e-5)
        found = InnerMaximizer(wrapped_student, wrapped_teacher, inner=INNER)(x_natural, generator=seeded())
    assert (found - x_adv).abs().max() <= 2 * 4 / 255
    assert ((found - x_adv).abs() <= 1e-6).double().mean() >= 0.99
    for tensor, other in zip(student.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("make", [lambda network: network, Branching], ids=["folded", "unfolded"])
@pytest.mark.filterwarnings("ignore:Branching")
def test_a_distributed_student_runs_through_its_wrapper_in_the_training_passes_only(make):
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    wanted = losses_of(make_distiller(make(expected), teacher))
    distributed = DistributedDataParallel(make(student))
    passes: Counter = Counter()
    distributed.register_forward_hook(lambda *_: passes.update(["forward"]))
    assert losses_of(make_distiller(distributed, teacher)) == wanted
    assert passes == {"forward": 2 * 3}  # each step: x_natural for the running statistics, and x_adv
    assert_same_weights(student, expected)
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in student.parameters())


@pytest.mark.slow
def test_two_processes_with_half_of_each_batch_train_the_student_of_one_process(tmp_path):
    torch.multiprocessing.spawn(distributed_steps.train_together, (2, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for method in distributed_steps.METHODS:
        student, teacher = distributed_steps.fixed_batch_norm()
        losses = torch.stack(distributed_steps.train(student, teacher, method, slice(None)))
        torch.testing.assert_close((ranks[0][method][0] + ranks[1][method][0]) / 2, losses, rtol=1e-3, atol=1e-5)
        for name, tensor in student.state_dict().items():
            of_ranks = [rank[method][1][name] for rank in ranks]
            assert torch.equal(*of_ranks), name
            torch.testing.assert_close(of_ranks[0], tensor, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_a_compiled_step_takes_a_compiled_student():
    torch._dynamo.reset()
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    wanted = losses_of(make_distiller(expected, teacher))
    options = {"mode": "compiled", "compile_options": {"backend": "aot_eager"}}
    assert losses_of(make_distiller(compiled(student), teacher, **options)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mode": "compiled", "compile_options": {"backend": "aot_eager"}}], ids=str)
def test_a_search_inside_a_compiled_function_equals_one_outside(options):
    """If torch.compile traced the search, student and teacher would share one folded copy, and no image would move."""
    torch._dynamo.reset()
    student, teacher = student_and_teacher()
    method = methods.get("adaad")
    search = InnerMaximizer(student.eval(), teacher.eval(), method=method, inner=INNER, **options)

    def training_step(x_natural: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_adv = search(x_natural, generator=seeded())
        return x_adv, method.outer_loss(student, teacher, x_natural, x_adv)

    x_natural, _ = images_and_labels()
    expected, wanted = training_step(x_natural)
    x_adv, loss = torch.compile(training_step, backend="aot_eager")(x_natural)
    assert torch.equal(x_adv, expected)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


# Global state after a call


def facts_of_the_process() -> dict:
    return {
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "random": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "cudnn": [
            getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
        ],
        "precision": (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
    }


def facts_of(network: nn.Module) -> list:
    modules = [(name, module.training, len(module._forward_hooks)) for name, module in network.named_modules()]
    return modules + [(name, p.requires_grad, p.grad is None) for name, p in network.named_parameters()]


@contextlib.contextmanager
def unusual_settings():
    """Sets every switch to the opposite of its default."""
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    try:
        with torch.device("meta"), bf16(), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision("highest")


def search(student: nn.Module, teacher: nn.Module, method: str, batch: tuple) -> None:
    InnerMaximizer(student, teacher, method=method, inner=INNER)(*batch, generator=seeded_on_the_cpu())


def step(student: nn.Module, teacher: nn.Module, method: str, batch: tuple) -> None:
    make_distiller(student, teacher, method).step(*batch, generator=seeded_on_the_cpu())


def seeded_on_the_cpu() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(3)


@pytest.mark.parametrize("settings", [contextlib.nullcontext, unusual_settings], ids=["usual", "unusual"])
@pytest.mark.parametrize("call", [search, step])
@pytest.mark.parametrize("method", METHODS)
def test_global_state_and_the_teacher_stay_as_they_were(method, call, settings):
    student, teacher = student_and_teacher()
    student[1].eval()
    teacher[0].weight.requires_grad_(False)
    batch = images_and_labels()
    with settings():
        before, teacher_before, student_before = facts_of_the_process(), facts_of(teacher), facts_of(student)
        call(student, teacher, method, batch)
        assert facts_of_the_process() == before
    assert facts_of(teacher) == teacher_before
    if call is search:
        assert facts_of(student) == student_before


def test_the_drop_in_function_draws_its_start_once_and_nothing_else():
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    adaad_inner_loss(
        student, teacher.eval(), x_natural
    )  # the first call folds and measures, which must draw nothing either
    torch.manual_seed(5)
    torch.randn(x_natural.shape)
    expected = facts_of_the_process()
    other_student, other_teacher = student_and_teacher()
    torch.manual_seed(5)
    adaad_inner_loss(other_student, other_teacher.eval(), x_natural)
    assert facts_of_the_process() == expected


# Devices


@pytest.mark.parametrize("call", [search, step])
@pytest.mark.parametrize(
    ("on_meta", "names"),
    [
        ("x_natural", "x_natural is on meta, the student on cpu"),
        ("labels", "x_natural is on cpu, labels on meta"),
        ("teacher", "x_natural is on cpu, the teacher on meta"),
        ("student", "x_natural is on cpu, the student on meta"),
    ],
)
def test_two_devices_are_named_and_nothing_is_moved(call, on_meta, names):
    student, teacher = student_and_teacher()
    x_natural, labels = images_and_labels()
    given = {"student": student, "teacher": teacher, "x_natural": x_natural, "labels": labels}
    given[on_meta] = given[on_meta].to("meta")
    with pytest.raises(ValueError, match=f"^{names}: move both to one device$"):
        call(given["student"], given["teacher"], "adaiad", (given["x_natural"], given["labels"]))
