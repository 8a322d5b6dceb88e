"""Low precision of the networks in the inner loop, the gradient scale of fp16, and torch's switches for TF32."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from networks import images_and_labels, student_and_teacher, tiny_network
from plain import fraction_equal, mean_kl
from searches import pixel_gradient
from torch import Tensor

from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.inner import maximizer as maximizer_module
from fastadaad.inner.folded_cache import Form, folded_copy
from fastadaad.inner.search import tape_vjp, traceable_vjp
from fastadaad.methods.objectives import KL_TO_TEACHER, kl_of_both
from fastadaad.runtime.precision import (
    FP16_GRADIENT_SCALE,
    STRICT_FP32,
    description,
    gradient_scale,
    resolved,
    tensor_cores,
)

INNER = InnerConfig(threat_model=ThreatModel(epsilon=16 / 255), step_size=4 / 255, num_steps=5, start="natural")
CUDA = torch.device("cuda")

# Least fraction of pixel gradients that have the sign of fp32.
AGREEMENT = {"bf16": 0.99, "fp16": 0.998}


def grad_x(precision: str, scale: float, networks=None, vjp=tape_vjp, objective=KL_TO_TEACHER) -> Tensor:
    """Returns the pixel gradient of the objective with both networks in this precision."""
    networks = networks or student_and_teacher()
    x, _ = images_and_labels(32)
    folded = [folded_copy(network, x, Form(precision=precision, layout="contiguous")) for network in networks]
    return pixel_gradient(vjp, folded, objective, x, gradient_scale=scale)


def fraction_of_zeros(x: Tensor) -> float:
    return (x == 0).double().mean().item()


def sign_agreement(x: Tensor, y: Tensor) -> float:
    return (x.sign() == y.sign()).double().mean().item()


@pytest.mark.parametrize("precision", AGREEMENT)
@pytest.mark.parametrize("vjp", [tape_vjp, traceable_vjp])
def test_the_signs_of_the_pixel_gradient_are_nearly_those_of_fp32(precision, vjp):
    scale = gradient_scale(PrecisionConfig(student=precision, teacher=precision))
    low = grad_x(precision, scale, vjp=vjp)
    assert low.dtype == torch.float32
    in_full = grad_x("fp32", 1.0)
    assert sign_agreement(low, in_full) >= AGREEMENT[precision]
    assert not torch.equal(low, in_full)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("policy", ["exact", "refreshed(every=2)", "linearized(every=3)"])
def test_the_kl_reached_in_low_precision_is_nearly_that_in_fp32(precision, policy):
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels(32)
    options = {"inner": INNER, "teacher_policy": TeacherPolicy.parse(policy), "layout": "contiguous"}
    in_full = InnerMaximizer(student, teacher, **options)(x_natural)
    low = PrecisionConfig(student=precision, teacher=precision)
    x_adv = InnerMaximizer(student, teacher, precision=low, **options)(x_natural)
    assert x_adv.dtype == torch.float32
    assert not torch.equal(x_adv, in_full)
    reached, wanted = mean_kl(student, teacher, x_adv), mean_kl(student, teacher, in_full)
    assert reached > 0.98 * wanted > 1.2 * mean_kl(student, teacher, x_natural)


def test_each_network_has_its_own_precision():
    x_natural, _ = images_and_labels(32)
    found = []
    for student_precision, teacher_precision in itertools.product(["fp32", "bf16"], repeat=2):
        precision = PrecisionConfig(student=student_precision, teacher=teacher_precision)
        maximizer = InnerMaximizer(*student_and_teacher(), inner=INNER, precision=precision, layout="contiguous")
        with maximizer.networks(x_natural) as networks:
            dtypes = [{buffer.dtype for buffer in network.buffers()} for network in networks]
        for dtype, name in zip(dtypes, (student_precision, teacher_precision), strict=True):
            assert (torch.bfloat16 in dtype) == (name == "bf16")
        found.append(maximizer(x_natural))
    for one, other in itertools.combinations(found, 2):
        assert 0.9 < fraction_equal(one, other) < 1


def confident(logits: tuple, target: None) -> tuple:
    """Scales the gradients of AdaAD's objective to their size when both networks are nearly sure of the same class."""
    value, gradients = kl_of_both(logits, target)
    return value, tuple(1e-6 * gradient for gradient in gradients)


def test_gradients_too_small_for_fp16_survive_with_the_scale():
    """The smallest fp16 number is 6e-8."""
    objective = replace(KL_TO_TEACHER, logit_gradients=confident)
    exact = grad_x("fp32", 1.0, objective=objective)
    without, with_scale = (grad_x("fp16", scale, objective=objective) for scale in (1.0, FP16_GRADIENT_SCALE))
    assert fraction_of_zeros(exact) == 0
    assert fraction_of_zeros(without) > 0.8
    assert fraction_of_zeros(with_scale) < 0.01
    assert sign_agreement(with_scale, exact) > 0.95


@pytest.mark.parametrize("vjp", [tape_vjp, traceable_vjp])
def test_the_scale_changes_nothing_if_no_number_is_small(vjp):
    """The scale is a power of two, and the gradient is divided by it at the end."""
    assert math.log2(FP16_GRADIENT_SCALE).is_integer()
    assert torch.equal(grad_x("fp32", FP16_GRADIENT_SCALE, vjp=vjp), grad_x("fp32", 1.0, vjp=vjp))


def test_no_gradient_of_the_usual_size_becomes_infinite_with_the_scale():
    network = tiny_network(1)
    with torch.no_grad():
        network[-1].weight.mul_(20)
    assert grad_x("fp16", FP16_GRADIENT_SCALE, [network, tiny_network(2, channels=8)]).isfinite().all()


@pytest.mark.parametrize(
    ("student", "teacher", "scale"),
    [("fp32", "fp32", 1.0), ("bf16", "fp32", 1.0), ("fp16", "fp32", 1024.0), ("fp32", "fp16", 1024.0)],
)
def test_the_scale_is_for_fp16_only_and_the_search_uses_it(student, teacher, scale, monkeypatch):
    seen = []
    own_search = maximizer_module.Search

    def record(**values):
        seen.append(values["gradient_scale"])
        return own_search(**values)

    monkeypatch.setattr(maximizer_module, "Search", record)
    precision = PrecisionConfig(student=student, teacher=teacher)
    assert gradient_scale(precision) == scale
    InnerMaximizer(*student_and_teacher(), inner=INNER, precision=precision)(images_and_labels()[0])
    assert seen == [scale]


def test_a_student_in_train_mode_is_refused_in_low_precision():
    inner = InnerConfig(student_eval=False)
    for precision in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"student_eval is False.*cannot be {precision}, set it to fp32") as caught:
            InnerMaximizer(*student_and_teacher(), inner=inner, precision=PrecisionConfig(student=precision))
        assert "\n" not in str(caught.value)
    InnerMaximizer(*student_and_teacher(), inner=inner, precision=PrecisionConfig(teacher="bf16"))


def pair(precision: PrecisionConfig) -> tuple[str, str]:
    return precision.student, precision.teacher


@pytest.fixture
def gpu(monkeypatch):
    """Networks count as networks on a GPU with tensor cores; values are those of the CPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(maximizer_module, "device_of", lambda network: CUDA)


@pytest.mark.parametrize(
    ("device", "capability", "auto"),
    [("cuda", (8, 0), "bf16"), ("cuda:1", (12, 0), "bf16"), ("cuda", (7, 5), "fp32"), ("cpu", (8, 0), "fp32")],
)
def test_auto_is_bf16_on_a_gpu_with_tensor_cores_and_fp32_elsewhere(device, capability, auto, monkeypatch):
    device = torch.device(device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", {device: capability}.__getitem__)
    assert pair(resolved(PrecisionConfig(), device)) == (auto, auto)
    without_fold = ("fp32" if auto == "fp32" else "tf32",) * 2
    assert pair(resolved(PrecisionConfig(), device, student_folds=False, teacher_folds=False)) == without_fold
    for explicit in ("fp32", "bf16", "fp16", *(["tf32"] if device.type == "cuda" else [])):
        given = PrecisionConfig(student=explicit, teacher=explicit)
        assert resolved(given, device, student_folds=False) == given
    assert pair(resolved(PrecisionConfig(teacher="fp32"), device)) == (auto, "fp32")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("bf16", "bf16")),
        ({"precision": "fp32"}, ("fp32", "fp32")),
        ({"precision": PrecisionConfig(teacher="fp32")}, ("bf16", "fp32")),
        ({"fold": False}, ("tf32", "tf32")),
        ({"inner": InnerConfig(student_eval=False)}, ("tf32", "bf16")),
    ],
    ids=str,
)
def test_the_search_holds_the_resolved_precision_and_uses_it(settings, expected):
    networks = student_and_teacher()
    found = InnerMaximizer(*networks, **{"inner": INNER, "layout": "contiguous", **settings})
    assert pair(found.precision) == expected
    assert f"precision={'/'.join(expected)})" in repr(found)
    explicit = PrecisionConfig(student=expected[0], teacher=expected[1])
    again = InnerMaximizer(*networks, **{"inner": INNER, "layout": "contiguous", **settings, "precision": explicit})
    x_natural, _ = images_and_labels()
    assert torch.equal(*(search(x_natural, generator=torch.Generator().manual_seed(0)) for search in (found, again)))


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_tf32_is_refused_where_it_would_be_fp32(network):
    with pytest.raises(ValueError, match="precision tf32 exists on CUDA devices only, not on cpu: choose fp32"):
        resolved(PrecisionConfig(**{network: "tf32"}), torch.device("cpu"))


@pytest.mark.usefixtures("gpu")
def test_auto_runs_a_network_that_cannot_be_folded_in_tf32_and_warns():
    student, teacher = student_and_teacher()
    student.register_forward_hook(lambda *_: None)
    search = InnerMaximizer(student, teacher, inner=INNER)
    x_natural, _ = images_and_labels()
    with pytest.warns(UserWarning, match="has hooks.*; the inner loop runs it unfolded, in tf32 instead of bf16"):
        search(x_natural)
    with search.networks(x_natural) as networks:
        assert networks[0] is student
        assert torch.bfloat16 in {buffer.dtype for buffer in networks[1].buffers()}
    with pytest.raises(ValueError, match="precision bf16 needs a folded network"):
        InnerMaximizer(student, teacher, inner=INNER, precision="bf16")(x_natural)


@pytest.mark.usefixtures("gpu")
def test_a_training_step_tells_the_resolved_precision():
    student, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    distiller = Distiller(student, teacher, inner=INNER, optimizer=optimizer)
    result = distiller.step(*images_and_labels())
    assert pair(distiller.precision) == pair(result.precision) == ("bf16", "bf16")
    assert distiller.arithmetic == "student bf16, teacher bf16 (first convolutions fp32)"  # the images are on the CPU
    assert "precision=bf16/bf16" in repr(distiller)
    assert result.loss.dtype == result.x_adv.dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "has_teacher", "text"),
    [
        (("fp32", "fp32"), True, "student fp32, teacher fp32"),
        (("bf16", "fp32"), True, "student bf16, teacher fp32 (first convolutions fp32)"),
        (("bf16", "fp16"), True, "student bf16, teacher fp16 (first convolutions TF32)"),
        (("bf16", "tf32"), True, "student bf16, teacher tf32 (first convolutions TF32)"),
        (("fp32", "bf16"), False, "student fp32"),
    ],
)
def test_the_precision_in_use_is_described_in_one_phrase(precision, has_teacher, text):
    config = PrecisionConfig(student=precision[0], teacher=precision[1])
    assert description(config, CUDA, has_teacher=has_teacher) == text
    assert description(config, torch.device("cpu"), has_teacher=has_teacher) == text.replace("TF32", "fp32")


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def switches() -> list[str]:
    return [MATMUL.fp32_precision, CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision]


def readable(read) -> bool | None:
    """Returns allow_tf32, or None if torch refuses to read it."""
    try:
        return read()
    except RuntimeError:
        return None


def older_names() -> list[bool | None]:
    return [readable(lambda: MATMUL.allow_tf32), readable(lambda: CUDNN.allow_tf32)]


@pytest.fixture
def torchs_own_switches():
    yield
    MATMUL.allow_tf32, CUDNN.allow_tf32 = False, True
    MATMUL.fp32_precision = "none"


def by_older_names() -> None:
    MATMUL.allow_tf32, CUDNN.allow_tf32 = True, False


def by_newer_names() -> None:
    MATMUL.fp32_precision = "tf32"
    CUDNN.conv.fp32_precision = "ieee"


@pytest.mark.usefixtures("torchs_own_switches")
@pytest.mark.parametrize("user_sets", [lambda: None, by_older_names, by_newer_names], ids=["none", "older", "newer"])
@pytest.mark.parametrize(
    ("precision", "allowed"),
    [
        (STRICT_FP32, False),
        (PrecisionConfig(student="bf16", teacher="fp16"), True),
        (PrecisionConfig(student="bf16", teacher="fp32"), False),
        (PrecisionConfig(teacher="tf32"), True),
        (PrecisionConfig(student="tf32"), True),
    ],
    ids=str,
)
def test_tf32_is_on_if_a_network_is_in_tf32_and_the_switches_are_restored(precision, allowed, user_sets):
    user_sets()
    before, before_older = switches(), older_names()
    with tensor_cores(precision, CUDA):
        assert older_names() == [allowed, allowed]
        assert (MATMUL.fp32_precision == "tf32") is allowed
        assert (CUDNN.conv.fp32_precision == "tf32") is allowed
        with tensor_cores(STRICT_FP32, CUDA):
            assert older_names() == [False, False]
        assert older_names() == [allowed, allowed]
    assert switches() == before
    if None not in before_older:
        assert older_names() == before_older


@pytest.mark.usefixtures("torchs_own_switches")
def test_the_switches_are_restored_after_an_exception_and_unchanged_for_other_devices():
    before = switches()
    with pytest.raises(RuntimeError, match="planted"), tensor_cores(PrecisionConfig(student="tf32"), CUDA):
        raise RuntimeError("planted")
    assert switches() == before
    with tensor_cores(PrecisionConfig(student="tf32"), torch.device("cpu")):
        assert switches() == before
