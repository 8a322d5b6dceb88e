"""Forward passes of each outer loss and their batch sizes, and one pass for two points against two passes."""

import copy

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from torch import Tensor, nn
from torch.testing import assert_close

from fastadaad import methods
from fastadaad.methods.outer_batch import OuterBatch
from fastadaad.runtime.batch_norm import depends_on_batch

X_NATURAL, LABELS = images_and_labels(batch_size=4)
X_ADV = (X_NATURAL + 0.1 * torch.randn(X_NATURAL.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)
B = len(LABELS)
LATE = 100  # an epoch after introspection_begin

# Method, options, epoch; images per forward of a student that depends on the batch, of one that does not, of the
# teacher.
PASSES = [
    ("adaad", {}, 0, [B, B], [B], [B]),
    ("adaad", {"clean_statistics": False}, 0, [B], [B], [B]),
    ("adaad", {"adversarial_weight": 0.5}, 0, [B, B], [2 * B], [2 * B]),
    ("adaad", {"adversarial_weight": 0.0}, 0, [B], [B], [B]),
    ("rslad", {}, 0, [B, B], [2 * B], [B]),
    ("rslad", {"adversarial_weight": 1.0}, 0, [B, B], [B], [B]),
    ("rslad", {"adversarial_weight": 0.0}, 0, [B], [B], [B]),
    ("pgd-at", {}, 0, [B], [B], []),
    ("trades", {}, 0, [B, B], [2 * B], []),
    ("trades", {"robustness_weight": 0.0}, 0, [B], [B], []),
    ("mart", {}, 0, [B, B], [2 * B], []),
    ("mart", {"robustness_weight": 0.0}, 0, [B], [B], []),
    ("lbgat-fixed", {}, 0, [B, B], [2 * B], [B]),
    ("lbgat-fixed", {"robustness_weight": 0.0}, 0, [B, B], [B], [B]),
    ("akd", {}, 0, [B], [B], [B]),
    ("akd", {"teacher_weight": 1.0}, 0, [B], [B], [B]),
    ("akd", {"teacher_weight": 0.0}, 0, [B], [B], []),
    ("ard", {}, 0, [B, B], [B], [B]),
    ("ard", {"teacher_weight": 0.5}, 0, [B, B], [2 * B], [B]),
    ("ard", {"teacher_weight": 0.0}, 0, [B], [B], []),
    ("iad", {}, 0, [B, B], [B], [B]),
    ("iad", {}, LATE, [B, B], [2 * B], [2 * B]),
    ("iad", {"introspection_power": 0.0}, LATE, [B, B], [B], [B]),
    ("iad", {"teacher_weight": 0.0}, LATE, [B], [B], []),
    ("adaiad", {}, 0, [B, B], [B], [B]),
    ("adaiad", {}, LATE, [B, B], [2 * B], [B]),
    ("adaiad", {"introspection_power": 0.0, "clean_statistics": False}, LATE, [B], [B], [B]),
    ("adaiad", {"teacher_weight": 0.0}, LATE, [B], [B], []),
    ("saad", {}, 0, [B, B, B], [2 * B], [2 * B]),
    ("saad", {"igdm_weight": 0.0}, 0, [B, B], [B], [B]),
    ("saad", {"natural_weight": 1.0}, 0, [B, B, B], [3 * B], [3 * B]),
    ("saad", {"igdm_weight": 0.0, "natural_weight": 1.0}, 0, [B, B], [2 * B], [2 * B]),
    ("adaad+igdm", {}, 0, [B, B, B], [2 * B], [2 * B]),
    ("adaad+igdm", {"igdm_weight": 0.0}, 0, [B, B], [B], [B]),
    ("trades+igdm", {}, 0, [B, B, B], [2 * B, B], [2 * B]),
    ("pgd-at+igdm", {"igdm_weight": 0.0}, 0, [B], [B], []),
]


class Counted(nn.Module):
    """Network that records the number of images of each forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.network(x)


def freeze_statistics(network: nn.Module) -> nn.Module:
    """Sets the network to train mode, except its batch-norm layers."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def networks(*, frozen_statistics: bool) -> tuple[Counted, Counted]:
    student, teacher = student_and_teacher()
    return Counted(freeze_statistics(student) if frozen_statistics else student), Counted(teacher.eval())


def loss_of(name: str, options: dict, epoch: int, student: nn.Module, teacher: nn.Module) -> Tensor:
    return methods.get(name, **options).outer_loss(student, teacher, X_NATURAL, X_ADV, LABELS, epoch)


IDS = [f"{name} {options} {epoch}" for name, options, epoch, *_ in PASSES]


@pytest.mark.parametrize(("name", "options", "epoch", "dependent", "independent", "teachers"), PASSES, ids=IDS)
def test_a_loss_makes_no_unused_pass_and_joins_passes(name, options, epoch, dependent, independent, teachers):
    for frozen_statistics, expected in ((False, dependent), (True, independent)):
        student, teacher = networks(frozen_statistics=frozen_statistics)
        loss_of(name, options, epoch, student, teacher).backward()
        assert student.rows == expected
        assert teacher.rows == teachers
        assert all(parameter.grad is not None for parameter in student.parameters())


def test_every_method_is_counted_here():
    assert {name for name, *_ in PASSES} >= set(methods.METHODS)


@pytest.mark.parametrize(
    ("name", "options", "epoch"),
    [("trades", {}, 0), ("iad", {}, LATE), ("saad", {"natural_weight": 1.0}, 0), ("trades+igdm", {}, 0)],
)
def test_one_forward_for_several_points_equals_one_forward_for_each(name, options, epoch, monkeypatch):
    together, teacher = networks(frozen_statistics=True)
    apart = copy.deepcopy(together)
    loss = loss_of(name, options, epoch, together, teacher)
    loss.backward()
    monkeypatch.setattr("fastadaad.methods.outer_batch.depends_on_batch", lambda network: True)
    expected = loss_of(name, options, epoch, apart, teacher)
    expected.backward()
    assert len(apart.rows) > len(together.rows)
    assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for parameter, wanted in zip(together.parameters(), apart.parameters(), strict=True):
        assert_close(parameter.grad, wanted.grad, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(together.buffers(), apart.buffers(), strict=True))


class HomeMadeBatchNorm(nn.Module):
    """Third-party batch-norm, without torch's class."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=self.training)


@pytest.mark.parametrize(
    ("layer", "in_train_mode", "in_eval_mode"),
    [
        (nn.BatchNorm2d(3), True, False),
        (nn.SyncBatchNorm(3), True, False),
        (nn.BatchNorm2d(3, track_running_stats=False), True, True),
        (HomeMadeBatchNorm(), True, False),
        (nn.GroupNorm(1, 3), False, False),
        (nn.InstanceNorm2d(3), False, False),
    ],
)
def test_layers_that_depend_on_the_batch_are_known(layer, in_train_mode, in_eval_mode):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    assert depends_on_batch(network.train()) == in_train_mode
    assert depends_on_batch(network.eval()) == in_eval_mode


def test_logits_are_fp32_also_under_autocast():
    student, teacher = networks(frozen_statistics=True)
    batch = OuterBatch(student=student, teacher=teacher, x_natural=X_NATURAL, x_adv=X_ADV, labels=None, epoch=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert student.network(X_NATURAL).dtype == torch.bfloat16
        logits = [*batch.student_logits("natural", "adv"), *batch.teacher_logits("adv", "opposite")]
    assert all(logit.dtype == torch.float32 for logit in logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trades", "iad", "saad", "trades+igdm"])
def test_one_forward_for_several_points_is_one_graph(name):
    torch._dynamo.reset()
    student, teacher = student_and_teacher()
    freeze_statistics(student)
    teacher.eval()
    compiled = torch.compile(methods.get(name).outer_loss, fullgraph=True, backend="aot_eager")
    arguments = (student, teacher, X_NATURAL, X_ADV, LABELS, LATE)
    assert_close(compiled(*arguments), methods.get(name).outer_loss(*arguments), rtol=1e-4, atol=1e-5)
