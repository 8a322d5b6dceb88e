"""Checks at the first call of a search, which later calls neither repeat nor wait for."""

import copy
import gc
import math
import re
import warnings
import weakref

import pytest
import torch
from networks import NUM_CLASSES, images_and_labels, student_and_teacher
from torch import Tensor, nn

from bench.host_sync import HostSyncWatch
from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel, adaad_inner_loss
from fastadaad.inner import checks
from fastadaad.models.normalize import Normalize

INNER = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.05, num_steps=2)
COMPILED = {"mode": "compiled", "compile_options": {"backend": "aot_eager"}}

# The checks are the same in every mode.
pytestmark = pytest.mark.filterwarnings("ignore:teacher_model is not in eval mode")


def distil(student: nn.Module, teacher: nn.Module, x_natural: Tensor, labels: Tensor, **options) -> Tensor:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return Distiller(student, teacher, method="ard", inner=INNER, optimizer=optimizer, **options).step(
        x_natural, labels, generator=torch.Generator().manual_seed(0)
    ).x_adv  # fmt: skip


def maximize(student: nn.Module, teacher: nn.Module, x_natural: Tensor, labels: Tensor, **options) -> Tensor:
    return InnerMaximizer(student, teacher, method="ard", inner=INNER, **options)(x_natural, labels)


def drop_in(student: nn.Module, teacher: nn.Module, x_natural: Tensor, labels: Tensor) -> Tensor:
    return adaad_inner_loss(student, teacher, x_natural)


def wide(teacher: nn.Module) -> nn.Module:
    """Gives the teacher one class more."""
    teacher[-1] = nn.Linear(teacher[-1].in_features, NUM_CLASSES + 1)
    return teacher


# Mistake in the arguments (student, teacher, x_natural, labels), and a part of its message.
MISTAKES = {
    "bytes": (lambda s, t, x, y: (s, t, (255 * x).byte(), y), "x_natural is torch.uint8: give pixels"),
    "0..255": (lambda s, t, x, y: (s, t, 255 * x, y), "outside [0, 1]: divide them by 255"),
    "normalised": (lambda s, t, x, y: (s, t, 4 * x - 2, y), "normalise inside the network"),
    "no batch": (lambda s, t, x, y: (s, t, x[0], y), "x_natural has shape [3, 8, 8]: give images"),
    "list": (lambda s, t, x, y: (s, t, x.tolist(), y), "x_natural is a list: give a tensor"),
    "grey": (lambda s, t, x, y: (s, t, x[:, :1], y), "student cannot take images [1, 8, 8]"),
    "thin": (lambda s, t, x, y: (s, t, x[..., :1], y), "student cannot take images [3, 8, 1]"),
    "classes": (lambda s, t, x, y: (s, wide(t), x, y), "student has 5 classes and teacher 6: give both networks"),
    "tuple": (
        lambda s, t, x, y: (nn.Sequential(s, Twice()), t, x, y),
        "student returns tuple: let it return its logits",
    ),
    "dict": (lambda s, t, x, y: (s, nn.Sequential(t, Named()), x, y), "teacher returns dict: let it return its logits"),
    "one class": (lambda s, t, x, y: (one(s), one(t), x, y), "student returns logits of shape [8, 1], one class"),
    "float64": (lambda s, t, x, y: (s, t.double(), x, y), "its weights are torch.float64, use teacher.float()"),
    "float64 logits": (
        lambda s, t, x, y: (s, nn.Sequential(t, Double()), x, y),
        "teacher returns logits in torch.float64: let it compute in torch.float32, use teacher.float()",
    ),
    "broadcast channels": (
        lambda s, t, x, y: (nn.Sequential(Normalize(3), s), t, x[:, :1], y),
        "images have 1 channels and the network takes 3: make the network with in_channels=1",
    ),
    "quantised": (lambda s, t, x, y: (s, quantized(t), x, y), "teacher is quantised (layer Linear)"),
    "map": (lambda s, t, x, y: (s[:4], t, x, y), "student returns logits of shape [8, 12, 3, 3]: let it return [B, N]"),
}
LABELS = {
    "too large": (lambda labels: labels + 1, "labels hold 5, outside 0..4"),
    "negative": (lambda labels: labels - 1, "labels hold -1, outside 0..4"),
    "one-hot": (
        lambda labels: torch.eye(5).long()[labels],
        "[16, 5]: give class numbers [B], such as labels.argmax(1)",
    ),
    "a column": (lambda labels: labels[:, None], "[16, 1]: give class numbers [B], such as labels.squeeze(1)"),
    "floats": (lambda labels: labels.float(), "labels are torch.float32: give class numbers as torch.int64"),
    "distributions of others": (lambda labels: torch.eye(6)[labels], "over 6 classes: give the 5 of the networks"),
    "negative distributions": (lambda labels: 1.1 * torch.eye(5)[labels] - 0.02, "hold -0.02: give distributions"),
    "NaN": (lambda labels: torch.eye(5)[labels] * torch.nan, "hold nan: give distributions, whose numbers are finite"),
    "infinite": (lambda labels: torch.eye(5)[labels] + torch.inf, "rows with sums from inf to inf: each must be 1"),
    "sums": (lambda labels: 0.9 * torch.eye(5)[labels], "sums from 0.9 to 0.9: each must be 1, divide the rows by"),
    "fewer distributions": (lambda labels: torch.eye(5)[labels][1:], "labels have shape [15, 5] for 16 images"),
    "int32": (lambda labels: labels.int(), "labels are torch.int32"),
    "fewer": (lambda labels: labels[1:], "labels have shape [15] for 16 images: give one per image"),
}


def one(network: nn.Module) -> nn.Module:
    """Gives the network one logit."""
    network[-1] = nn.Linear(network[-1].in_features, 1)
    return network


def quantized(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(network.eval(), {nn.Linear}, dtype=torch.qint8)


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x}


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:Sequential. batch-norm was not folded")
@pytest.mark.parametrize("call", [distil, maximize, drop_in])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_first_call_names_the_mistake(call, mistake):
    change, words = MISTAKES[mistake]
    if call is drop_in and mistake in ("0..255", "normalised"):  # the authors' function computes with any pixels
        with pytest.warns(UserWarning, match=re.escape(words)):
            call(*change(*student_and_teacher(), *images_and_labels()))
        return
    assert words in refusal(call, *change(*student_and_teacher(), *images_and_labels()))


@pytest.mark.parametrize("call", [distil, maximize])
@pytest.mark.parametrize("mistake", LABELS)
def test_the_first_call_names_invalid_labels(call, mistake):
    change, words = LABELS[mistake]
    x_natural, _ = images_and_labels()
    labels = torch.arange(16) % NUM_CLASSES
    assert words in refusal(call, *student_and_teacher(), x_natural, change(labels))


@pytest.mark.slow
@pytest.mark.parametrize("call", [distil, maximize])
def test_a_compiled_step_is_checked_before_it_compiles(call):
    x_natural, labels = images_and_labels()
    assert "divide them by 255" in refusal(call, *student_and_teacher(), 255 * x_natural, labels, **COMPILED)
    call(*student_and_teacher(), x_natural, labels, **COMPILED)


def test_unused_labels_may_be_anything():
    x_natural, _ = images_and_labels()
    InnerMaximizer(*student_and_teacher(), inner=INNER)(x_natural, torch.zeros(16, 7))


def test_an_l2_radius_is_compared_with_the_size_of_the_images():
    """Images of 3 x 8 x 8 pixels in [0, 1] are at most sqrt(192) = 13.86 apart."""
    x_natural, _ = images_and_labels()

    def search(epsilon: float) -> Tensor:
        inner = InnerConfig(threat_model=ThreatModel(norm="l2", epsilon=epsilon), num_steps=1)
        return InnerMaximizer(*student_and_teacher(), inner=inner)(x_natural)

    search(13.8)
    with pytest.raises(ValueError, match=r"epsilon is 14 in l2.*more than 13\.86 apart: write 14/255"):
        search(14)


def test_rounding_and_another_pixel_range_are_accepted():
    x_natural, _ = images_and_labels()
    networks = student_and_teacher()
    adaad_inner_loss(*networks, x_natural * (1 + 5e-7) - 5e-7)
    adaad_inner_loss(*networks, 4 * x_natural - 2, clip_min=-2.0, clip_max=2.0)
    adaad_inner_loss(*networks, x_natural, clip_min=0.2, clip_max=0.8)
    with pytest.warns(UserWarning, match=r"pixels from -3 to 3, outside \[-2, 2\]"):
        adaad_inner_loss(*networks, 6 * x_natural[:, :, :6] - 3, clip_min=-2.0, clip_max=2.0)


@pytest.fixture
def num_reads(monkeypatch) -> list:
    """List with one entry per read of the values of a batch."""
    reads: list = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: reads.append(1) or tolist(tensor))
    return reads


def test_only_the_first_call_waits_for_the_device(num_reads):
    """The drop-in function makes a new search at each call, as an evaluation does for each batch."""
    networks, batch = student_and_teacher(), images_and_labels()
    optimizer = torch.optim.SGD(networks[0].parameters(), lr=0.1)
    distiller = Distiller(*networks, method="ard", inner=INNER, optimizer=optimizer)
    calls = (lambda: distiller.step(*batch), lambda: maximize(*networks, *batch), lambda: drop_in(*networks, *batch))
    for call, expected in zip(calls, (1, 0, 1), strict=True):  # the second shares radius, range and labels
        num_reads.clear()
        call()
        assert len(num_reads) == expected
    num_reads.clear()
    with HostSyncWatch() as watch:
        for call in calls:
            call()
    assert watch.seen + num_reads == []


def test_other_images_another_radius_and_another_teacher_are_checked_again():
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    drop_in(student, teacher, x_natural, None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*divide them by 255")
        drop_in(student, teacher, 255 * x_natural, None)  # the values of a later batch are not read
    for other, images, epsilon in (
        (teacher, x_natural[..., 1:], 8 / 255), (copy.deepcopy(teacher), x_natural, 8 / 255), (teacher, x_natural, 0.2),
    ):  # fmt: skip
        with pytest.warns(UserWarning, match="divide them by 255"):
            adaad_inner_loss(student, other, 255 * images, epsilon=epsilon)
    assert "x_natural is torch.uint8" in refusal(drop_in, student, teacher, x_natural.byte(), None)  # in every call


def test_an_empty_batch_does_not_count_as_checked():
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    drop_in(student, teacher, x_natural[:0], None)
    with pytest.warns(UserWarning, match="divide them by 255"):
        drop_in(student, teacher, 255 * x_natural, None)


def test_the_record_of_a_check_goes_when_its_networks_go():
    student, teacher = student_and_teacher()
    drop_in(student, teacher, images_and_labels()[0], None)
    assert student in checks._passed
    gone = [weakref.ref(student), weakref.ref(teacher)]
    before = len(checks._passed)
    del student, teacher
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert len(checks._passed) < before


@pytest.mark.parametrize("call", [distil, maximize])
def test_a_teacher_in_train_mode_gives_the_results_of_one_in_eval_mode(call):
    """The step sets it to eval mode and restores its mode."""
    found = []
    for training in (True, False):
        student, teacher = student_and_teacher()
        teacher.train(training)
        before = copy.deepcopy(teacher.state_dict())
        torch.manual_seed(0)
        x_adv = call(student, teacher, *images_and_labels())
        found.append([x_adv, *student.state_dict().values()])
        assert all(module.training == training for module in teacher.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(map(torch.equal, *found))


# Settings of a Distiller that passed in silence, or failed later and elsewhere.
SETTINGS = {
    "infinite gamma": ({"awp_gamma": math.inf}, "awp_gamma is inf: it must be finite, 0 or more, such as 0.005"),
    "gamma without a value": ({"awp_gamma": math.nan}, "awp_gamma is nan: it must be finite"),
    "gamma as a string": ({"awp_gamma": "0.1"}, "awp_gamma is '0.1': it must be finite"),
    "no gradient": ({"grad_clip": 0}, "grad_clip is 0: it must be finite and above 0, such as 1.0"),
    "a gradient without a length": ({"grad_clip": math.nan}, "grad_clip is nan: it must be finite and above 0"),
    "a gradient as a string": ({"grad_clip": "1"}, "grad_clip is '1': it must be finite and above 0"),
    "an epoch before the first": ({"awp_begin": -1}, "awp_begin is -1: it must be 0 or more"),
    "half an epoch": ({"awp_begin": 1.5}, "awp_begin is 1.5: it must be an integer"),
    "batch-norm": ({"batch_norm": "global"}, "batch_norm is 'global': choose local or sync"),
    "half an image": ({"micro_batch": 1.5}, "micro_batch is 1.5: it must be an integer"),
    "non-finite": ({"on_nonfinite": "warn"}, "on_nonfinite is 'warn': choose stop or skip"),
    "fold": ({"fold": "x"}, "fold is 'x': it must be True or False"),
    "layout": ({"layout": "NHWC", "fold": False}, "layout is 'NHWC': choose auto, contiguous or channels_last"),
    "method": ({"method": 3}, "method is a int: give a name such as adaad, or a Method"),
    "ranks": ({"process_group": "nccl"}, "process_group is a str: give current_process_group()"),
    "options": ({"compile_options": "fast"}, "compile_options is a str: give a dict"),
    "precision": ({"precision": 16}, "precision is a int: give a PrecisionConfig or a string such as 'bf16'"),
    "policy": ({"teacher_policy": 5}, "teacher_policy is a int: give a TeacherPolicy or a string"),
    "inner": ({"inner": 10}, "inner is a int: give an InnerConfig or a dict of its settings"),
    "no optimizer": ({"optimizer": None}, "optimizer is a NoneType: give a torch.optim.Optimizer of student.param"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_without_a_meaning_is_refused_at_construction(case):
    settings, message = SETTINGS[case]
    student, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    assert message in refusal(Distiller, student, teacher, **{"optimizer": optimizer} | settings)


def test_an_optimizer_that_needs_a_closure_is_refused_and_one_that_accepts_it_is_not():
    student, teacher = student_and_teacher()
    lbfgs = torch.optim.LBFGS(student.parameters())
    assert refusal(Distiller, student, teacher, optimizer=lbfgs).startswith("optimizer LBFGS computes the loss several")
    Distiller(student, teacher, optimizer=torch.optim.Adam(student.parameters()))


def test_sparse_gradients_are_refused_at_construction():
    student, teacher = student_and_teacher()
    for layer in (nn.Embedding, nn.EmbeddingBag):
        student.positions = layer(4, 3, sparse=True)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        message = f"the student's {layer.__name__} has sparse gradients"
        assert refusal(Distiller, student, teacher, optimizer=optimizer).startswith(message)
    student.positions = nn.Embedding(4, 3)
    Distiller(student, teacher, optimizer=torch.optim.SGD(student.parameters(), lr=0.1))


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_a_quantised_network_is_refused_at_construction(network):
    networks = dict(zip(("student", "teacher"), student_and_teacher(), strict=True))
    networks[network] = quantized(networks[network])
    with pytest.raises(ValueError, match=rf"^{network} is quantised \(layer Linear\).*before its quantisation$"):
        InnerMaximizer(**networks)


def test_a_generator_of_another_type_is_refused():
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(student, teacher, inner=INNER)
    distiller = Distiller(student, teacher, inner=INNER, optimizer=torch.optim.SGD(student.parameters(), lr=0.1))
    for search in (maximizer, distiller.step):
        assert refusal(search, images_and_labels()[0], generator="x").startswith("generator is a str: give torch.Gen")


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_probabilities_in_the_place_of_logits_are_named_once(name):
    networks = dict(zip(("student", "teacher"), student_and_teacher(), strict=True))
    networks[name] = nn.Sequential(networks[name], nn.Softmax(1))
    maximizer = InnerMaximizer(**networks, inner=INNER)
    x_natural, _ = images_and_labels()
    with pytest.warns(UserWarning, match=rf"^{name} seems to return probabilities.*: let it return its logits"):
        maximizer(x_natural)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maximizer(x_natural[:, :, :6])
        InnerMaximizer(*student_and_teacher(), inner=INNER)(x_natural)


def test_the_channels_of_normalize_are_checked_in_every_call_and_in_no_trace():
    x_natural, _ = images_and_labels()
    normalize = Normalize(3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = torch.stack([(x_natural[:, c] - (0.1, 0.2, 0.3)[c]) / (0.5, 0.6, 0.7)[c] for c in range(3)], 1)
    for run in (
        normalize,
        torch.fx.symbolic_trace(normalize),
        torch.compile(normalize, backend="eager", fullgraph=True),
    ):
        torch.testing.assert_close(run(x_natural), expected)
    for channels in (1, 4):
        with pytest.raises(
            ValueError, match=rf"^images have {channels} channels and the network takes 3: make the netw"
        ):
            normalize(x_natural[:, :1].expand(-1, channels, -1, -1))
