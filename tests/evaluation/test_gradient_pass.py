"""A pass of a gradient attack: compiled, on survivors alone, decided by the network, with a checked folded copy."""

import logging
from collections.abc import Iterator

import pytest
import torch
from networks import NUM_CLASSES, images_and_labels, tiny_network, trained_network
from plain import cross_entropy, inner_loop
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader, TensorDataset

from fastadaad import InnerMaximizer
from fastadaad.config import PrecisionConfig, ThreatModel
from fastadaad.evaluation import evaluate, gradient_pass, parse_attack
from fastadaad.evaluation.attacks import GradientAttack, SearchSettings
from fastadaad.evaluation.batches import known_num_images
from fastadaad.evaluation.gradient_pass import GradientPass
from fastadaad.evaluation.survival import Keeper, attack_survivors
from fastadaad.inner import compile_choice
from fastadaad.inner.compile_choice import compile_seconds, forward_flops, is_worth_compiling

NUM_IMAGES, BATCH_SIZE, EPSILON = 46, 8, 12 / 255
X_NATURAL, LABELS = images_and_labels(NUM_IMAGES)
LINF = ThreatModel(epsilon=EPSILON)
MODEL = trained_network(X_NATURAL, LABELS).eval()
IMAGES = X_NATURAL, LABELS


def robust_by_a_plain_loop(num_steps: int, num_restarts: int) -> Tensor:
    """Returns True for each image that is right before PGD and after every restart, all images attacked."""
    robust = MODEL(X_NATURAL).argmax(1) == LABELS
    for seed in range(num_restarts):
        generator, x_adv = torch.Generator().manual_seed(seed), []
        for x_natural, labels in zip(X_NATURAL.split(BATCH_SIZE), LABELS.split(BATCH_SIZE), strict=True):
            start = x_natural + torch.empty_like(x_natural).uniform_(-EPSILON, EPSILON, generator=generator)
            settings = {"norm": "linf", "epsilon": EPSILON, "step_size": EPSILON / 4, "num_steps": num_steps}
            x_adv.append(inner_loop(cross_entropy(MODEL, labels), x_natural, start.clamp(0, 1), **settings))
        robust &= MODEL(torch.cat(x_adv)).argmax(1) == LABELS
    return robust


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_restarts_on_survivors_alone_count_as_restarts_on_all_images(num_restarts):
    robust = robust_by_a_plain_loop(4, num_restarts)
    (pgd,) = evaluate(MODEL, IMAGES, "pgd4", threat_model=LINF, restarts=num_restarts, batch_size=BATCH_SIZE)
    assert pgd.accuracy == robust.double().mean().item()


def robust_to_plain_targeted_pgd(model: nn.Module, x_all: Tensor, y_all: Tensor, *, num_targets: int, restarts: int):
    """Returns True for each image that is right before and after each search, all images towards all their targets."""
    robust = model(x_all).argmax(1) == y_all
    settings = {"norm": "linf", "epsilon": EPSILON, "step_size": EPSILON / 4, "num_steps": 4}
    for seed in range(restarts):
        generator = torch.Generator().manual_seed(seed)
        for first in range(0, len(y_all), BATCH_SIZE):
            x, y = x_all[first : first + BATCH_SIZE], y_all[first : first + BATCH_SIZE]
            ranking = model(x).argsort(dim=1, descending=True).tolist()
            wrong = [[j for j in classes if j != label] for classes, label in zip(ranking, y.tolist(), strict=True)]
            for rank in range(num_targets):
                targets = torch.tensor([classes[rank] for classes in wrong])
                start = x + torch.empty_like(x).uniform_(-EPSILON, EPSILON, generator=generator)

                def closeness(x_adv: Tensor, targets: Tensor = targets) -> Tensor:
                    return model(x_adv).log_softmax(1)[torch.arange(len(targets)), targets].sum()

                x_adv = inner_loop(closeness, x, start.clamp(0, 1), **settings)
                robust[first : first + BATCH_SIZE] &= model(x_adv).argmax(1) == y
    return robust


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_a_targeted_attack_is_a_plain_loop_towards_every_other_class(num_restarts):
    robust = robust_to_plain_targeted_pgd(MODEL, X_NATURAL, LABELS, num_targets=NUM_CLASSES - 1, restarts=num_restarts)
    options = {"threat_model": LINF, "restarts": num_restarts, "batch_size": BATCH_SIZE}
    (pgd,) = evaluate(MODEL, IMAGES, "pgd4-targeted", **options)
    assert pgd.accuracy == robust.double().mean().item()
    assert 0 < pgd.accuracy < (MODEL(X_NATURAL).argmax(1) == LABELS).double().mean()


def test_of_many_classes_the_nine_most_likely_are_targets():
    torch.manual_seed(0)
    model = nn.Sequential(MODEL, nn.Linear(NUM_CLASSES, 14)).eval()
    labels = model(X_NATURAL).topk(2, dim=1).indices[:, 0]
    robust = robust_to_plain_targeted_pgd(model, X_NATURAL, labels, num_targets=9, restarts=1)
    (pgd,) = evaluate(model, (X_NATURAL, labels), "pgd4-targeted", threat_model=LINF, batch_size=BATCH_SIZE)
    assert pgd.accuracy == robust.double().mean().item()
    goals = parse_attack("pgd4-targeted").stages[0][1].goals(model, X_NATURAL, labels)
    assert len(goals) == 9
    assert all((goal != labels).all() for goal in goals)


@pytest.mark.slow
def test_a_compiled_targeted_attack_breaks_the_same_images(monkeypatch):
    """Its last search is padded. Without Inductor, which is tested with an untargeted attack."""
    compile_, counter = torch.compile, CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=counter, **options))
    eager, compiled = (
        evaluate(MODEL, IMAGES, "pgd4-targeted", threat_model=LINF, batch_size=BATCH_SIZE, mode=mode)[0].accuracy
        for mode in ("eager", "compiled")
    )
    assert compiled == eager
    assert counter.frame_count == 1


def test_images_that_are_wrong_before_the_attack_are_not_attacked(monkeypatch):
    searched = []
    search = InnerMaximizer.search

    def counting(maximizer: InnerMaximizer, x_natural: Tensor, *args, **kwargs):
        searched.append(len(x_natural))
        return search(maximizer, x_natural, *args, **kwargs)

    monkeypatch.setattr(InnerMaximizer, "search", counting)
    evaluate(MODEL, IMAGES, "pgd4", threat_model=LINF, restarts=2, batch_size=BATCH_SIZE)
    right, once = (MODEL(X_NATURAL).argmax(1) == LABELS).sum(), robust_by_a_plain_loop(4, 1).sum()
    assert sum(searched) == right + once < 2 * NUM_IMAGES


@pytest.mark.slow
def test_a_compiled_attack_breaks_the_same_images_in_one_graph_for_all_batch_sizes(monkeypatch):
    counter = CompileCounterWithBackend("inductor")
    maximizer = GradientAttack.maximizer

    def counted(*args) -> InnerMaximizer:
        monkeypatch.setattr(
            torch, "compile", lambda function, **options: compile_(function, backend=counter, **options)
        )
        return maximizer(*args)

    compile_ = torch.compile
    monkeypatch.setattr(GradientAttack, "maximizer", counted)
    (pgd,) = evaluate(MODEL, IMAGES, "pgd4", threat_model=LINF, mode="compiled", batch_size=BATCH_SIZE)
    assert pgd.accuracy == robust_by_a_plain_loop(4, 1).double().mean().item()
    sizes = {int((MODEL(x).argmax(1) == y).sum()) for x, y in zip(X_NATURAL.split(8), LABELS.split(8), strict=True)}
    assert len(sizes) > 1
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("num_images", "multiple", "expected"), [(46, 0, "compiled"), (46, 1e9, "eager"), (None, 0, "eager")]
)
def test_auto_compiles_a_long_attack_of_known_length_and_logs_it(monkeypatch, caplog, num_images, multiple, expected):
    monkeypatch.setattr(compile_choice, "LEAST_MULTIPLE", multiple)
    attack = parse_attack("pgd4").stages[0][1]
    one_pass = GradientPass("pgd4", attack, MODEL, LINF, SearchSettings(), num_images)
    with caplog.at_level(logging.INFO, logger="fastadaad"):
        assert one_pass._new_maximizer(X_NATURAL, LABELS, 1).mode == expected
    # Three layers with weights, at three seconds each.
    assert [record.message for record in caplog.records] == (
        ["pgd4: compiling, up to 9 s the first time"] if expected == "compiled" else []
    )


def test_the_length_of_an_attack_is_counted_in_flops(monkeypatch):
    # Two convolutions at 8x8 and 3x3 pixels and a linear layer, two FLOPs per multiplication and addition.
    flops = 2 * (6 * 3 * 9 * 64 + 12 * 6 * 9 * 9 + NUM_CLASSES * 48)
    assert forward_flops(MODEL, X_NATURAL) == flops
    cpu = torch.device("cpu")
    threshold = compile_choice.RATE["cpu"] * compile_choice.LEAST_MULTIPLE * compile_seconds([MODEL])
    assert [is_worth_compiling(scale * threshold, [MODEL], cpu) for scale in (0.99, 1.01)] == [False, True]


def test_known_numbers_of_images():
    class Counted:
        def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([IMAGES])

        def __len__(self) -> int:
            return NUM_IMAGES

    pairs = TensorDataset(*IMAGES)
    for data in (IMAGES, [*IMAGES], pairs, DataLoader(pairs, batch_size=4), Counted()):
        assert known_num_images(data) == NUM_IMAGES
    assert known_num_images(lambda: [IMAGES]) is None


@pytest.mark.parametrize("mode", ["graph", "fast"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f"mode is '{mode}': choose eager, compiled or auto"):
        evaluate(MODEL, IMAGES, "pgd1", mode=mode)


class Rounded(torch.autograd.Function):
    """Rounds in the forward pass and passes the gradient on, which torch.fx loses."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class Straight(nn.Module):
    """Network behind straight-through rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained_network(X_NATURAL, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(Rounded.apply(x))


def test_a_last_layer_of_zeros_hides_no_lost_gradient():
    model = Straight().eval()
    last = model.network[-1]
    weight = last.weight.detach().clone()
    with torch.no_grad():
        last.weight.zero_()
    with pytest.warns(UserWarning, match="another pixel gradient"):
        evaluate(model, IMAGES, "pgd1", threat_model=LINF)
    with torch.no_grad():
        last.weight.copy_(weight)
    natural, pgd, cw = evaluate(model, IMAGES, ["natural", "pgd4", "cw20"], threat_model=LINF, fold=False)
    (checked,) = evaluate(model, IMAGES, "pgd4", threat_model=LINF)
    assert checked.accuracy == pgd.accuracy < natural.accuracy
    (checked,) = evaluate(model, IMAGES, "cw20", threat_model=LINF)
    assert (checked.accuracy, checked.notes) == (
        cw.accuracy,
        ("batch-norm was not folded: the folded network has another pixel gradient",),
    )


SIGN = {"value": -1.0}


class ReadsAGlobal(nn.Module):
    """Network that a dictionary outside of it turns upside down."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained_network(X_NATURAL, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(SIGN["value"] * x)


def test_a_change_that_no_copy_can_see_is_noticed(monkeypatch):
    model = ReadsAGlobal().eval()
    evaluate(model, IMAGES, "pgd1", threat_model=LINF)  # makes the copy
    monkeypatch.setitem(SIGN, "value", 1.0)
    natural, pgd, cw = evaluate(model, IMAGES, ["natural", "pgd4", "cw20"], threat_model=LINF, fold=False)
    with pytest.warns(UserWarning, match="have the networks' own sign: .*; pgd4 runs on the network itself"):
        (checked,) = evaluate(model, IMAGES, "pgd4", threat_model=LINF)
    assert checked.accuracy == pgd.accuracy < natural.accuracy
    with pytest.warns(UserWarning, match="cw20 runs on the network itself"):
        (checked,) = evaluate(model, IMAGES, "cw20", threat_model=LINF)
    assert (checked.accuracy, checked.notes) == (cw.accuracy, ("the folded copy has other pixel gradients",))


def test_the_network_itself_decides_which_images_survive():
    """Attacks another network: what breaks it need not break the network that is evaluated."""
    other = tiny_network(7).eval()
    attack = parse_attack("cw5").stages[0][1]
    x_adv = attack.adversarial_images(other, LINF, X_NATURAL, LABELS, [])
    survival = attack_survivors(
        MODEL, other, parse_attack("cw5"), LINF, X_NATURAL, LABELS,
        precision=PrecisionConfig(), batch_size=NUM_IMAGES, generators=[], keeper=Keeper(None, "cw5", None),
        progress=lambda stage, num_images: None,
    )  # fmt: skip
    right = MODEL(X_NATURAL).argmax(1) == LABELS
    survives = right & (MODEL(x_adv).argmax(1) == LABELS)
    assert survival.survives == survives.tolist()
    assert survives.sum() > (right & (other(x_adv).argmax(1) == LABELS)).sum()


def test_a_search_in_bf16_is_judged_in_fp32(monkeypatch):
    seen, correct = [], gradient_pass.correct

    def recorded(model: nn.Module, x: Tensor, *args) -> Tensor:
        seen.append((model, x.dtype, model(x).dtype))
        return correct(model, x, *args)

    monkeypatch.setattr(gradient_pass, "correct", recorded)
    (low,) = evaluate(MODEL, IMAGES, "pgd4", threat_model=LINF, precision="bf16")
    assert seen == 2 * [(MODEL, torch.float32, torch.float32)]
    (full,) = evaluate(MODEL, IMAGES, "pgd4", threat_model=LINF)
    assert abs(low.accuracy - full.accuracy) <= 2 / NUM_IMAGES
