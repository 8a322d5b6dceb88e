"""Networks and images of users: they train as in a plain loop, or are refused in one line."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Branching, images_and_labels, student_and_teacher, tiny_network
from plain import fraction_equal, inner_loop, kl_to_teacher
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel, adaad_inner_loss, methods

SETTINGS = {"epsilon": 16 / 255, "step_size": 4 / 255, "num_steps": 4}
INNER = InnerConfig(threat_model=ThreatModel(epsilon=16 / 255), step_size=4 / 255, num_steps=4, start="natural")


def plain_losses(student: nn.Module, teacher: nn.Module, x_natural: Tensor, num_steps: int) -> list[float]:
    """AdaAD in plain torch, with a pass of x_natural for batch-norm, as in the authors' program."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    teacher.eval()
    losses = []
    for _ in range(num_steps):
        student.eval()
        x_adv = inner_loop(kl_to_teacher(student, teacher), x_natural, x_natural, norm="linf", **SETTINGS)
        student.train()
        optimizer.zero_grad()
        with torch.no_grad():
            student(x_natural)
        loss = F.kl_div(student(x_adv).log_softmax(1), teacher(x_adv).softmax(1).detach(), reduction="batchmean")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Shared(nn.Module):
    """One convolution and one batch-norm called twice, and another layer with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(n, 6, 3, padding=1) for n in (3, 6, 6))
        self.third.weight = self.second.weight
        self.norm, self.classify = nn.BatchNorm2d(6), nn.Linear(6 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.norm(self.second(x)))
        return self.classify(F.relu(self.third(self.second(x))).flatten(1))


class Casting(nn.Module):
    """Network in bf16 with fp32 input and output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.bfloat16()).float()


def with_layers(normalise: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Applies `normalise` to the second convolution and to the last layer of a network."""

    def changed(network: nn.Module) -> nn.Module:
        normalise(network[3])
        normalise(network[-1])
        return network

    return changed


def frozen_below(network: nn.Module) -> nn.Module:
    network[:3].requires_grad_(False)
    return network


NETWORKS = {
    "weight_norm": with_layers(parametrizations.weight_norm),
    "spectral_norm": with_layers(parametrizations.spectral_norm),
    "weight_norm by hooks": with_layers(torch.nn.utils.weight_norm),
    "frozen layers": frozen_below,
    "shared layers": lambda network: Shared(),
    "bf16 inside": Casting,
    "channels last": lambda network: network.to(memory_format=torch.channels_last),
}


@pytest.mark.filterwarnings("ignore:.*(was not folded|is deprecated)")
@pytest.mark.parametrize("which", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("make", NETWORKS)
def test_odd_networks_train_as_in_a_plain_loop(make, which):
    x_natural, _ = images_and_labels()

    def pair() -> list[nn.Module]:
        torch.manual_seed(0)
        networks = list(student_and_teacher())
        networks[which] = NETWORKS[make](networks[which])
        return networks

    student, teacher = pair()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    distiller = Distiller(student, teacher, inner=INNER, optimizer=optimizer)
    losses = [distiller.step(x_natural).loss.item() for _ in range(3)]
    assert losses == pytest.approx(plain_losses(*pair(), x_natural, num_steps=3), rel=1e-3)
    assert losses[2] < losses[0]


IMAGES = {
    "that require a gradient": lambda x: x.clone().requires_grad_(),
    "with gaps": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "transposed": lambda x: x.transpose(2, 3),
    "expanded from grey": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "of one": lambda x: x[:1],
}


@pytest.mark.parametrize("images", IMAGES)
def test_odd_images_train_as_in_a_plain_loop_and_stay_unchanged(images):
    x_natural, expected = IMAGES[images](images_and_labels()[0]), IMAGES[images](images_and_labels()[0]).detach()
    networks = student_and_teacher()
    distiller = Distiller(*networks, inner=INNER, optimizer=torch.optim.SGD(networks[0].parameters(), 0.05, 0.9))
    losses = [distiller.step(x_natural).loss.item() for _ in range(3)]
    assert losses == pytest.approx(plain_losses(*student_and_teacher(), expected, num_steps=3), rel=1e-3)
    assert torch.equal(x_natural, expected)
    assert x_natural.grad is None


class FirstPixels(nn.Module):
    """Network without parameters and buffers."""

    def forward(self, x: Tensor) -> Tensor:
        return 5 * x.flatten(1)[:, :5].square()


def test_a_network_without_tensors_is_attacked():
    _, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    x_adv = InnerMaximizer(FirstPixels(), teacher, inner=INNER)(x_natural)
    value = kl_to_teacher(FirstPixels(), copy.deepcopy(teacher).eval())
    assert fraction_equal(x_adv, inner_loop(value, x_natural, x_natural, norm="linf", **SETTINGS)) >= 0.999


class InPlace(nn.Module):
    """Normalises its input in place."""

    def __init__(self, network: nn.Module, *, normalise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.normalise = network, normalise

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.normalise(x))


class Detached(Branching):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


# Change of student and teacher, and a part of the message.
MISTAKES = {
    "function": (lambda s, t: (s, t.forward), "teacher is a method: give a torch.nn.Module"),
    "no student": (lambda s, t: (None, t), "student is a NoneType: give a torch.nn.Module"),
    "in place": (
        lambda s, t: (InPlace(s, normalise=lambda x: x.sub_(0.5)), t), "InPlace changes the images that it is given",
    ),
    "idempotent in place": (
        lambda s, t: (s, InPlace(t, normalise=lambda x: x.clamp_(0.1, 0.9))), "InPlace changes the images",
    ),
    "no_grad": (lambda s, t: (Detached(s), t), "have no gradient to its images: leave torch.no_grad and detach out"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detached. batch-norm was not folded")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_networks_that_cannot_be_searched_are_named_and_the_images_stay_unchanged(mistake):
    change, words = MISTAKES[mistake]
    x_natural, _ = images_and_labels()
    before = x_natural.clone()
    with pytest.raises(ValueError, match=r".") as caught:
        InnerMaximizer(*change(*student_and_teacher()), inner=INNER)(x_natural)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(x_natural, before)


class DetachedLogits(Detached):
    """Like Detached, but traceable by torch.fx."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).detach()


@pytest.mark.filterwarnings("ignore:.*was not folded")
@pytest.mark.parametrize("detached", [Detached, DetachedLogits])
def test_a_teacher_without_gradient_is_accepted_if_the_search_needs_no_gradient_of_it(detached):
    student, teacher = student_and_teacher()
    batch = images_and_labels()
    expected = InnerMaximizer(student, teacher, method="rslad", inner=INNER)(*batch)
    x_adv = InnerMaximizer(student, detached(teacher), method="rslad", inner=INNER)(*batch)
    assert fraction_equal(x_adv, expected) >= 0.999
    with pytest.raises(ValueError, match="the logits of a network have no gradient to its images"):
        InnerMaximizer(student, detached(teacher), inner=INNER)(*batch)


def test_an_outer_loss_takes_no_teacher_in_train_mode():
    """A train() of a module that holds both networks sets the teacher to train mode."""
    both = nn.ModuleList(student_and_teacher()).train()
    x_natural, _ = images_and_labels()
    with pytest.raises(ValueError, match=r"^teacher is in train mode and .*: call teacher.eval\(\)$"):
        methods.get("adaad").outer_loss(*both, x_natural, x_natural)
    assert methods.get("pgd-at").outer_loss(*both, *[x_natural] * 2, torch.zeros(16, dtype=torch.long)) > 0


class Auxiliary(Branching):
    """Returns a second output in train mode, like GoogLeNet."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


@pytest.mark.filterwarnings("ignore:Auxiliary. batch-norm was not folded")
def test_a_student_that_returns_more_in_train_mode_is_named():
    student, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    distiller = Distiller(Auxiliary(student), teacher, inner=INNER, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"^student returns tuple: let it return its logits \[B, N\] alone$"):
        distiller.step(images_and_labels()[0])


@pytest.mark.filterwarnings("ignore:Sequential. batch-norm was not folded")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_in_another_dtype_than_the_images_are_named_with_the_remedy(dtype):
    student, teacher = student_and_teacher()
    with pytest.raises(ValueError, match=rf"its weights are {dtype}, use teacher\.float\(\), and precision for its"):
        InnerMaximizer(student, teacher.to(dtype), inner=INNER)(images_and_labels()[0])


def test_networks_and_images_on_meta_are_refused():
    student, teacher = (network.to("meta") for network in student_and_teacher())
    x_natural, _ = images_and_labels()
    with pytest.raises(ValueError, match=r"^x_natural is on meta, which holds no numbers: move"):
        InnerMaximizer(student, teacher, inner=INNER)(x_natural.to("meta"))


def test_the_drop_in_function_warns_if_a_network_is_in_another_mode_than_the_authors_leave_it_in():
    """Their function leaves the student in train mode and the teacher in eval mode."""
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    with pytest.warns(UserWarning, match=r"teacher_model is not in eval mode .*: call teacher_model.eval\(\)"):
        adaad_inner_loss(student.train(), teacher.train(), x_natural)
    with pytest.warns(UserWarning, match=r"model is not in train mode .*: call model.train\(\)"):
        adaad_inner_loss(student.eval(), teacher.eval(), x_natural)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adaad_inner_loss(student.train(), teacher.eval(), x_natural)


def test_an_optimizer_that_misses_the_student_or_reaches_the_teacher_is_refused():
    student, teacher = student_and_teacher()
    of_student, of_teacher = (torch.optim.SGD(network.parameters(), lr=0.1) for network in (student, teacher))
    with pytest.raises(ValueError, match="the optimizer has no parameter of the student: make it of"):
        Distiller(student, teacher, inner=INNER, optimizer=of_teacher)
    half = nn.Sequential(*student[:8], tiny_network(3)[-1])
    for other in (student, half, nn.DataParallel(half)):
        with pytest.raises(ValueError, match=r"share parameters .*: give the teacher its own by copy\.deepcopy"):
            Distiller(student, other, inner=INNER, optimizer=of_student)
    student[:6].requires_grad_(False)
    x_natural, _ = images_and_labels()
    distiller = Distiller(student, half, inner=INNER, optimizer=of_student)
    assert distiller.step(x_natural).loss > distiller.step(x_natural).loss


@pytest.mark.parametrize("method", ["adaad", "saad"])
def test_a_step_on_no_images_is_refused(method):
    student, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    distiller = Distiller(student, teacher, method=method, inner=INNER, optimizer=optimizer)
    with pytest.raises(ValueError, match="x_natural holds no images: leave"):
        distiller.step(*images_and_labels(0))


def test_a_student_that_was_moved_after_the_distiller_was_made_is_named():
    student, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    distiller = Distiller(student, teacher, inner=INNER, optimizer=optimizer)
    distiller._nonfinite.counts = distiller._nonfinite.counts.to("meta")
    with pytest.raises(ValueError, match=r"^x_natural is on cpu, and the student was on meta when .*: move the"):
        distiller.step(images_and_labels()[0])
