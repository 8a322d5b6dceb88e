"""Option `statistics`: the passes that batch-norm's running statistics see, of each program and in any order."""

import copy
import itertools

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.config_io import override
from fastadaad.methods.programs import PROGRAMS, program_of
from fastadaad.recipes import get as recipe

BEGIN = 60  # epoch from which IAD and AdaIAD introspect
# Order of the student's passes in train mode after the search, read in each program's file; n: x_natural, a: x_adv,
# o: x_opposite. Before BEGIN, and from BEGIN on.
ORDERS = {
    "adaad": ("na", "na"),  # main.py: ori_outputs, adv_outputs
    "adaiad": ("nan", "nann"),  # main.py: ori_outputs, adv_outputs, net(inputs) in the kl and in the cross-entropy
    "pgd-at": ("an", "an"),  # main.py: adv_outputs, ori_outputs
    "trades": ("nan", "nan"),  # trades.py: logits, then both arguments of the kl
    "mart": ("na", "na"),  # mart.py: logits, logits_adv
    "lbgat-fixed": ("an", "an"),  # lbgat.py: out_adv, out_natural
    "ard": ("an", "an"),  # main.py: the attack returns the logits of its last image, then basic_outputs
    "iad": ("an", "ann"),  # IAD-I.py: as ARD, and basic_net(inputs) in the kl
    "rslad": ("an", "an"),  # rslad_inner_loss returns the logits of its image, then nat_logits
    "akd": ("a", "a"),  # AKD2.py: the logits of the attack alone
    "saad": ("aon", "aon"),  # saad.py: student_plus, student_minus, student_clean
    "adaad+igdm": ("ao", "ao"),  # igdm.py: student_plus, student_minus
}


def one_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2))


def images() -> tuple[Tensor, Tensor, Tensor]:
    """x_natural and x_adv, two images of 2x2 pixels, and their labels."""
    x_natural = torch.tensor([0.0, 0.2, 0.4, 0.9, 0.3, 0.3, 0.8, 1.0]).view(2, 1, 2, 2)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0]).view(2, 1, 2, 2)
    return x_natural, (x_natural + 0.1 * signs).clamp(0, 1), torch.tensor([0, 1])


def running_mean_after(order: str) -> Tensor:
    """The running mean of a new layer by hand: 0.9 old + 0.1 of the batch's mean, one pass after the other."""
    x_natural, x_adv, _ = images()
    points, mean = {"n": x_natural, "a": x_adv, "o": 2 * x_natural - x_adv}, torch.zeros(1)
    layer = nn.BatchNorm2d(1)
    for point in order:
        layer(points[point])
        mean = 0.9 * mean + 0.1 * points[point].mean()
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-6, atol=1e-7)
    return layer.running_mean


def test_every_program_has_an_order_here():
    assert ORDERS.keys() == PROGRAMS.keys()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ORDERS)
def test_a_row_with_its_programs_options_updates_one_batch_norm_as_the_program(name, late):
    student, teacher = one_batch_norm(), one_batch_norm().eval()
    x_natural, x_adv, labels = images()
    method = methods.get(name, **program_of(name, "cifar10").options)
    method.outer_loss(student, teacher, x_natural, x_adv, labels, BEGIN if late else BEGIN - 1).backward()
    assert torch.equal(student[0].running_mean, running_mean_after(ORDERS[name][late]))
    assert student[0].num_batches_tracked == len(ORDERS[name][late])


@pytest.mark.parametrize("name", [*methods.METHODS, "trades+igdm"])
def test_listed_passes_change_no_loss_and_no_gradient(name):
    student, teacher = student_and_teacher()
    teacher.eval()
    x_natural, labels = images_and_labels(batch_size=6)
    x_adv = (x_natural + 0.05 * torch.randn(x_natural.shape)).clamp(0, 1)
    needed = ("natural", "adversarial", "opposite")
    for order in [*itertools.permutations(needed), (*needed, *needed), ("opposite", "natural", *needed)]:
        results = []
        for options in ({}, {"statistics": order}):
            network = copy.deepcopy(student)
            loss = methods.get(name, **options).outer_loss(network, teacher, x_natural, x_adv, labels, 100)
            results.append((loss, *torch.autograd.grad(loss, list(network.parameters()))))
        assert int(network[1].num_batches_tracked - student[1].num_batches_tracked) == len(order)
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_a_student_without_batch_norm_in_train_mode_makes_its_usual_passes():
    student, teacher = (network.eval() for network in student_and_teacher())
    calls = []
    student.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    x_natural, labels = images_and_labels(batch_size=6)
    methods.get("trades", statistics=("natural",) * 5).outer_loss(student, teacher, x_natural, x_natural, labels)
    assert calls == [12]  # both points in one pass


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adaad", {"statistics": ("clean",)}, "a pass of statistics is 'clean': choose natural, adversarial, opposite"),
        ("adaad", {"statistics": 2}, r"statistics is 2: give a list such as \[natural,adversarial\]"),
        ("adaad", {"statistics": ("natural",), "clean_statistics": False}, "set clean_statistics=true"),
        ("trades", {"statistics": ("natural-introspective",)}, "method trades has no introspection: list natural"),
        ("trades", {"loss_scale": 0.0}, "loss_scale is 0.0: it must be positive"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        methods.get(name, **options)


@pytest.mark.parametrize("order", [("adversarial",), ("natural", "opposite")])
def test_a_list_without_a_point_of_the_loss_is_refused_when_the_loss_asks_for_it(order):
    student, teacher = student_and_teacher()
    x_natural, labels = images_and_labels(batch_size=6)
    with pytest.raises(ValueError, match=r"statistics lists x_(natural|adv) too early or not at all"):
        methods.get("trades", statistics=order).outer_loss(student, teacher.eval(), x_natural, x_natural, labels)


@pytest.mark.parametrize("text", ["natural,adversarial", "[natural, adversarial]", '["natural","adversarial"]'])
def test_the_passes_are_read_from_text(text):
    config = override(recipe("cifar10-rn18"), [f"method_options.statistics={text}"])
    assert config.method_row.options.statistics == ("natural", "adversarial")


def test_loss_scale_multiplies_loss_and_gradient():
    student, teacher = student_and_teacher()
    x_natural, labels = images_and_labels(batch_size=6)
    for name in methods.METHODS:
        loss, scaled = (
            methods.get(name, loss_scale=scale).outer_loss(student, teacher.eval(), x_natural, x_natural, labels)
            for scale in (1.0, 10.0)
        )
        torch.testing.assert_close(scaled, 10 * loss, rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaiad", "trades+igdm", "rslad"])
def test_listed_passes_are_part_of_one_graph(name):
    torch._dynamo.reset()
    student, teacher = student_and_teacher()
    plain = copy.deepcopy(student)
    x_natural, labels = images_and_labels(batch_size=6)
    options = program_of(name, "cifar100").options
    arguments = (teacher.eval(), x_natural, x_natural.flip(3), labels, 100)
    compiled = torch.compile(methods.get(name, **options).outer_loss, fullgraph=True, backend="aot_eager")
    loss = compiled(student, *arguments)
    expected = methods.get(name, **options).outer_loss(plain, *arguments)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for buffer, wanted in zip(student.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, wanted, rtol=1e-5, atol=1e-6)
