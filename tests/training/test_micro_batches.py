"""A batch in micro-batches against the same batch as a whole."""

import copy

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from torch import nn
from torch.testing import assert_close

from fastadaad import Distiller, InnerConfig, methods
from fastadaad.training.distiller import split_batch

INNER = InnerConfig(num_steps=2, start="natural")
BATCH_SIZE = 10
IN_MICRO_BATCHES = [name for name, method in methods.METHODS.items() if method.supports_micro_batch]


def with_frozen_statistics() -> tuple[nn.Module, nn.Module]:
    student, teacher = student_and_teacher()
    student[1].eval(), student[4].eval()
    return student, teacher


def distiller(student: nn.Module, teacher: nn.Module, **settings) -> Distiller:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return Distiller(student, teacher, inner=INNER, optimizer=optimizer, **settings)


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 10, 64])  # of 10 images: 4 leaves 2 for the last micro-batch
@pytest.mark.parametrize("method", [*IN_MICRO_BATCHES, "adaad+igdm"])
def test_micro_batches_train_as_the_whole_batch(method, micro_batch):
    student, teacher = with_frozen_statistics()
    whole_student = copy.deepcopy(student)
    parts = distiller(student, teacher, method=method, micro_batch=micro_batch)
    whole = distiller(whole_student, teacher, method=method)
    for seed in range(2):
        batch = images_and_labels(BATCH_SIZE, seed)
        results = [each.step(*batch, epoch=100) for each in (parts, whole)]
        # Not all pixels: a sign flips where a gradient is within rounding of zero.
        assert ((results[0].x_adv - results[1].x_adv).abs() < 1e-6).double().mean() > 0.99
        assert_close(results[0].loss, results[1].loss, rtol=1e-3, atol=1e-4)
        for parameter, wanted in zip(student.parameters(), whole_student.parameters(), strict=True):
            scale = wanted.grad.abs().max().item()
            assert_close(parameter.grad, wanted.grad, rtol=1e-2, atol=1e-3 * scale + 1e-6)


def test_awp_trains_in_micro_batches_too():
    student, teacher = with_frozen_statistics()
    whole_student = copy.deepcopy(student)
    batch = images_and_labels(BATCH_SIZE)
    distiller(student, teacher, awp_gamma=0.05, micro_batch=4).step(*batch)
    distiller(whole_student, teacher, awp_gamma=0.05).step(*batch)
    for parameter, wanted in zip(student.parameters(), whole_student.parameters(), strict=True):
        assert_close(parameter.grad, wanted.grad, rtol=1e-2, atol=1e-3 * wanted.grad.abs().max().item() + 1e-6)


def test_no_network_gets_more_images_than_a_micro_batch_has():
    student, teacher = with_frozen_statistics()
    rows = []
    student.register_forward_hook(lambda module, inputs, logits: rows.append(len(inputs[0])))
    teacher.register_forward_hook(lambda module, inputs, logits: rows.append(len(inputs[0])))
    distilling = distiller(student, teacher, micro_batch=4)
    distilling.step(*images_and_labels(BATCH_SIZE))  # the first step also counts classes on one image
    rows.clear()
    distilling.step(*images_and_labels(BATCH_SIZE))
    assert set(rows) == {4, 2}


def test_the_search_of_each_micro_batch_uses_the_student_before_the_step():
    """In train mode a training pass changes the running statistics, which the search uses."""
    student, teacher = student_and_teacher()
    whole_student = copy.deepcopy(student)
    batch = images_and_labels(BATCH_SIZE)
    x_adv = distiller(student, teacher, micro_batch=4).step(*batch).x_adv
    expected = distiller(whole_student, teacher).step(*batch).x_adv
    assert ((x_adv - expected).abs() < 1e-6).double().mean() > 0.99


def test_micro_batches_cover_the_batch_in_its_order():
    x_natural, labels = images_and_labels(BATCH_SIZE)
    parts = split_batch(x_natural, labels, 4)
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), x_natural)
    assert torch.equal(torch.cat([y for _, y in parts]), labels)
    assert [y for _, y in split_batch(x_natural, None, 4)] == [None] * 3


def test_a_loss_that_depends_on_the_whole_batch_refuses_micro_batches():
    student, teacher = student_and_teacher()
    with pytest.raises(
        ValueError,
        match=r"method saad normalises .* does not support micro_batch: leave it out",
    ):
        distiller(student, teacher, method="saad", micro_batch=4)


@pytest.mark.parametrize("name", [*methods.METHODS, "adaad+igdm"])
def test_supports_micro_batch_is_true_if_the_loss_is_a_mean_over_images(name):
    student, teacher = with_frozen_statistics()
    x_natural, labels = images_and_labels(BATCH_SIZE)
    x_adv = (x_natural + 0.05 * torch.randn(x_natural.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    method = methods.get(name)

    def loss(part: slice) -> float:
        arguments = (x_natural[part], x_adv[part], labels[part], 100)
        return method.outer_loss(student, teacher.eval(), *arguments).item()

    parts = 0.3 * loss(slice(0, 3)) + 0.7 * loss(slice(3, 10))
    assert (parts == pytest.approx(loss(slice(0, 10)), rel=1e-4)) == method.supports_micro_batch
