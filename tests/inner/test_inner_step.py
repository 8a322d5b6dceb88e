"""One inner step as a graph: its operations, the tensors kept for its backward pass, and the number of compilations."""

import copy
from collections import Counter

import pytest
import torch
from networks import images_and_labels, student_and_teacher, tiny_network
from plain import fraction_equal, kl_to_teacher
from searches import pixel_gradient, search_of
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import aot_eager
from torch.fx import GraphModule

from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel, methods
from fastadaad.config import TeacherPolicy
from fastadaad.inner.folded_cache import Form, folded_copy
from fastadaad.inner.search import tape_vjp, traceable_vjp
from fastadaad.inner.teacher_policies import POLICIES
from fastadaad.methods.objectives import KL_TO_TEACHER
from fastadaad.runtime.compile import one_graph

INNER = InnerConfig(threat_model=ThreatModel(epsilon=16 / 255), step_size=4 / 255, num_steps=4, start="natural")
REFRESHED = TeacherPolicy(kind="refreshed", every=2)


def folded(*networks: nn.Module) -> tuple[nn.Module, ...]:
    x, _ = images_and_labels()
    return tuple(folded_copy(network, x, Form(layout="contiguous")) for network in networks)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("vjp", [tape_vjp, traceable_vjp])
def test_the_pixel_gradient_is_that_of_float64(vjp, scale):
    networks = student_and_teacher()
    x, _ = images_and_labels()
    in_double = [copy.deepcopy(network).eval().double() for network in networks]
    x_double = x.double().requires_grad_()
    expected = torch.autograd.grad(kl_to_teacher(*in_double)(x_double), x_double)[0]
    grad_x = pixel_gradient(vjp, folded(*networks), KL_TO_TEACHER, x, gradient_scale=scale)
    assert (grad_x.double() - expected).abs().max() < 2e-5 * expected.abs().max()


class CountingBackend:
    """aot_eager that counts the graphs it is given."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: GraphModule, inputs: list):
        self.num_graphs += 1
        return aot_eager(graph, inputs)


class RecordingBackend:
    """Runs inference graphs unchanged and keeps them; refuses a training graph, which would need a tape."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []
        self.compile = aot_autograd(fw_compiler=self.refuse, bw_compiler=self.refuse, inference_compiler=self.keep)

    def keep(self, graph: GraphModule, inputs: list):
        self.graphs.append(graph)
        return graph.forward

    def refuse(self, graph: GraphModule, inputs: list):
        raise AssertionError("a graph with a backward pass of its own: the step keeps a tape")


def operations(graph: GraphModule) -> Counter:
    """Counts the calls of a graph by name; in-place operations by their own name, not by that of their wrapper."""
    calls = graph.graph.find_nodes(op="call_function", target=torch.ops.higher_order.auto_functionalized_v2)
    names = Counter(str(node.args[0]) for node in calls)
    names.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function" and node not in calls)
    return names


def recorded_steps(kind: str, norm: str = "linf") -> list[GraphModule]:
    """Returns the graph of a step that queries the teacher, and of one that does not."""
    backend = RecordingBackend()
    query, reuse = (one_graph(step, backend=backend.compile) for step in (POLICIES[kind].query, POLICIES[kind].reuse))
    inner = InnerConfig(threat_model=ThreatModel(norm=norm, epsilon=16 / 255), step_size=4 / 255)
    x_natural, _ = images_and_labels()
    networks = folded(*student_and_teacher())
    search = search_of(networks, KL_TO_TEACHER, x_natural, vjp=traceable_vjp, inner=inner, top=2)
    x_adv = x_natural.clone()
    state = query(search, x_adv)
    if kind != "exact":
        reuse(search, x_adv, state)
    return backend.graphs


# Forward and backward passes of all networks, of a step that queries the teacher and of one that reuses its state. Each
# network has two ReLUs, by which the passes are counted.
REUSING = [(2, 2), (1, 1)]
PASSES = {"exact": [(2, 2)], "refreshed": REUSING, "directional": REUSING, "linearized": [(2, 1 + 2), (1, 1)]}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", POLICIES)
def test_a_step_is_one_graph_with_the_operations_of_the_package_and_no_extra_passes(kind, norm):
    graphs = recorded_steps(kind, norm)
    assert len(graphs) == len(PASSES[kind])
    for graph, (forwards, backwards) in zip(graphs, PASSES[kind], strict=True):
        seen = operations(graph)
        assert {name: count for name, count in seen.items() if name.startswith("fastadaad")} == {
            "fastadaad.kl_grad.default": 1,
            f"fastadaad.{norm}_step_.default": 1,
        }
        assert seen["aten.relu.default"] == 2 * forwards
        assert seen["aten.threshold_backward.default"] == 2 * backwards
        assert not [name for name in seen if "batch_norm" in name or "log_softmax" in name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", POLICIES)
def test_a_graph_computes_no_weight_gradient_and_holds_no_constant(kind):
    """Weights are inputs of the graph: it sees updates in place, and serves every student of this shape."""
    for graph in recorded_steps(kind):
        calls = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)
        assert calls
        assert [node.args[10] for node in calls] == [[True, False, False]] * len(calls)
        assert graph.graph.find_nodes(op="get_attr") == []


def kept_for_the_backward_pass(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Returns one tensor per storage that autograd keeps, except the network's own tensors and x."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, pull_back = tape_vjp(network, x)
    pull_back(torch.ones_like(logits))
    theirs = {tensor.untyped_storage().data_ptr() for tensor in (x, *network.buffers(), *network.parameters())}
    own = {tensor.untyped_storage().data_ptr(): tensor for tensor in saved}
    return [tensor for address, tensor in own.items() if address not in theirs]


def conv_relu_conv() -> nn.Module:
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers)


def test_an_eager_step_keeps_the_output_of_each_relu_and_nothing_else():
    """The pixel gradient of a convolution needs its weight only, and that of a ReLU its output."""
    x, _ = images_and_labels()
    kept = kept_for_the_backward_pass(*folded(conv_relu_conv()), x)
    assert [tuple(tensor.shape) for tensor in kept] == [(16, 6, 6, 6)]
    kept = kept_for_the_backward_pass(*folded(tiny_network(1)), x)
    assert [tuple(tensor.shape) for tensor in kept] == [(16, 6, 8, 8), (16, 12, 3, 3)]
    # Unfolded, the network keeps the input of each batch-norm as well.
    unfolded = tiny_network(1).eval().requires_grad_(False)
    assert len(kept_for_the_backward_pass(unfolded, x)) > 2


def compiled(student: nn.Module, teacher: nn.Module, backend, **options) -> InnerMaximizer:
    options = {"inner": INNER, "layout": "contiguous"} | options
    return InnerMaximizer(student, teacher, mode="compiled", compile_options={"backend": backend}, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "kinds"), [(TeacherPolicy(), 1), (REFRESHED, 2)], ids=str)
def test_each_kind_of_step_is_compiled_once_per_batch_shape(policy, kinds):
    student, teacher = student_and_teacher()
    backend = CountingBackend()
    maximizer = compiled(student, teacher, backend, teacher_policy=policy)
    for num_images, graphs in ((16, 1), (16, 1), (7, 2), (16, 2), (7, 2), (3, 3), (16, 3)):
        maximizer(images_and_labels(num_images)[0])
        assert backend.num_graphs == kinds * graphs


@pytest.mark.slow
def test_modes_and_updates_of_the_student_are_seen_and_do_not_compile_again():
    student, teacher = student_and_teacher()
    backend = CountingBackend()
    maximizer = compiled(student, teacher, backend, teacher_policy=REFRESHED)
    x_natural, _ = images_and_labels()
    found = []
    for round_ in range(6):
        student.train(round_ % 2 == 0)
        teacher.train(round_ % 3 == 0)
        student.requires_grad_(round_ != 4)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1.05)
        x_adv = maximizer(x_natural)
        eager = InnerMaximizer(student, teacher, inner=INNER, layout="contiguous", teacher_policy=REFRESHED)
        assert fraction_equal(x_adv, eager(x_natural)) >= 0.999
        found.append(x_adv)
    assert fraction_equal(found[0], found[-1]) < 0.99
    assert backend.num_graphs == 2


@pytest.mark.slow
def test_a_new_interval_does_not_compile_again():
    backend = CountingBackend()
    maximizer = compiled(*student_and_teacher(), backend, teacher_policy=TeacherPolicy(kind="linearized"))
    for interval in (2, 4, 3, 1, 2):
        maximizer.query_interval = interval
        maximizer(images_and_labels()[0])
    assert backend.num_graphs == 2


def test_grad_modes_of_the_caller_do_not_compile_again():
    backend = CountingBackend()
    maximizer = compiled(*student_and_teacher(), backend)
    x_natural, _ = images_and_labels()
    maximizer(x_natural)
    with torch.no_grad():
        maximizer(x_natural)
    with torch.inference_mode():
        maximizer(x_natural)
    assert backend.num_graphs == 1


def distiller(backend, method: str = "adaad", **options) -> Distiller:
    student, teacher = student_and_teacher()
    return Distiller(
        student,
        teacher,
        method=methods.get(method, **options),
        inner=INNER,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.01),
        layout="contiguous",
        mode="compiled",
        compile_options={"backend": backend},
    )


@pytest.mark.slow
@pytest.mark.parametrize("ramp", [0, 4, 200])
def test_twelve_epochs_with_a_smaller_last_batch_compile_a_few_graphs_in_the_first_two_only(ramp):
    """IGDM's loss depends on the epoch: the first graph has it as a constant, the second one as a variable."""
    backend = CountingBackend()
    each = distiller(backend, "adaad+igdm", igdm_ramp_epochs=ramp)
    seen = []
    for epoch in range(12):
        for num_images in (16, 16, 7):
            each.step(images_and_labels(num_images, epoch)[0], epoch=epoch)
        seen.append(backend.num_graphs)
    assert seen[0] <= 4
    assert seen[2:] == [seen[2]] * 10
    assert seen[2] <= 6


@pytest.mark.slow
def test_nine_students_in_one_process_do_not_reach_the_recompilation_limit():
    assert torch._dynamo.config.recompile_limit < 9
    for _ in range(9):
        backend = CountingBackend()
        each = distiller(backend, "pgd-at")
        for _ in range(2):
            each.step(*images_and_labels())
        assert backend.num_graphs == 2  # the inner step and the outer loss
