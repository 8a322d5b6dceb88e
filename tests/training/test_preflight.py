"""Checks before the first step of a run: their findings, and that they change nothing."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastadaad import ThreatModel, recipes
from fastadaad.models.robust_teachers import RobustTeacher
from fastadaad.run_config import RunConfig
from fastadaad.training.build import build_student, build_teacher
from fastadaad.training.data import TrainingData, training_data
from fastadaad.training.preflight import check_before_training

CPU = torch.device("cpu")
CONFIG: RunConfig = recipes.get("demo")  # its teacher classifies nearly all images correctly


class Logits(nn.Module):
    """Network whose logits `change` replaces."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> object:
        assert not self.training
        return self.change(self.network(x))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return training_data(CONFIG, CPU)


@pytest.fixture(scope="module")
def networks(data) -> tuple[nn.Module, nn.Module]:
    return build_student(CONFIG, data, CPU), build_teacher(CONFIG.teacher, data, CPU)


def check(data, student, teacher, *, config=CONFIG, teacher_check=0) -> None:
    check_before_training(replace(config, teacher_check=teacher_check), data, student, teacher)


@pytest.fixture
def messages_of_check(caplog) -> Callable[..., list[str]]:
    """check(), which returns the messages that it logs."""

    def check_and_return_messages(*arguments, **options) -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO", logger="fastadaad"):
            check(*arguments, **options)
        return caplog.messages

    return check_and_return_messages


def refusal(*arguments, **options) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        check(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_teacher_is_logged_in_one_line_with_both_accuracies(data, networks, messages_of_check):
    (line,) = messages_of_check(data, *networks, teacher_check=30)
    assert line.startswith("teacher cnn-72-s1: 100.0 % natural accuracy on 30 validation images, ")
    assert "under pgd10 with linf epsilon 0.15" in line
    (line,) = messages_of_check(replace(data, validation=None), *networks, teacher_check=30)
    assert "natural accuracy on 30 training images" in line
    few = training_data(replace(CONFIG, data=replace(CONFIG.data, validation_size=20)), CPU)
    (line,) = messages_of_check(few, *networks, teacher_check=10_000)
    assert "natural accuracy on 20 validation images" in line  # the whole split
    assert messages_of_check(data, *networks, teacher_check=0) == []
    assert messages_of_check(data, networks[0], None, teacher_check=256) == []


def test_all_ranks_measure_the_teacher_on_the_same_random_images(data, networks):
    """The first images of a set that is sorted by class all belong to one class."""
    by_class = data.validation.labels.argsort(stable=True)
    validation = copy.copy(data.validation)
    for name in ("samples", "labels", "_samples", "_labels"):
        setattr(validation, name, getattr(validation, name)[by_class])
    always_seven = Logits(networks[1], lambda logits: logits * 0 + torch.eye(10)[int(validation.labels[0])])
    lines = [
        refusal(replace(data, validation=split), networks[0], always_seven, teacher_check=64)
        for split in (validation, validation.shard(1, 2))
    ]
    assert lines[0] == lines[1]


@pytest.mark.filterwarnings("ignore:.*batch-norm was not folded")
def test_a_teacher_is_measured_on_unaugmented_training_images(data, networks):
    evaluated: list[Tensor] = []
    teacher = copy.deepcopy(networks[1])
    teacher.register_forward_pre_hook(lambda network, images: evaluated.append(images[0].clone()))
    check(replace(data, validation=None), networks[0], teacher, teacher_check=30)
    natural = next(images for images in evaluated if len(images) == 30)
    originals = {image.numpy().tobytes() for image in data.train.images.permute(0, 3, 1, 2).float().div(255)}
    assert {image.contiguous().numpy().tobytes() for image in natural} <= originals


def test_checks_change_no_pipeline_network_or_generator(data, networks):
    student, teacher = (copy.deepcopy(network).train() for network in networks)
    before = [copy.deepcopy(network.state_dict()) for network in (student, teacher)]
    batches = [next(data.train.epoch(epoch)) for epoch in (0, 1)]
    position = torch.get_rng_state()
    check(data, student, teacher, teacher_check=32)
    assert torch.equal(torch.get_rng_state(), position)
    for network, expected in zip((student, teacher), before, strict=True):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    for epoch, batch in enumerate(batches):
        assert all(map(torch.equal, next(data.train.epoch(epoch)), batch))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda logits: logits.roll(1, dims=1), "classes are in another order"),
        (lambda logits: logits * 0, "normalisation is missing"),
        (lambda logits: logits.flip(0), "these are not its weights"),
    ],
    ids=["shifted classes", "one class for all", "of other images"],
)
@pytest.mark.parametrize("with_validation", [True, False])
def test_a_teacher_at_chance_is_refused(data, networks, change, cause, with_validation):
    data = data if with_validation else replace(data, validation=None)
    message = refusal(data, networks[0], Logits(networks[1], change), teacher_check=100)
    assert message.startswith("teacher cnn-72-s1 has ")
    assert "chance level is 10.0 %" in message
    assert cause in message
    assert message.endswith("train from it anyway with --teacher-check 0")


@pytest.mark.filterwarnings("ignore:Logits. batch-norm was not folded")
def test_chance_level_ends_three_standard_deviations_above_guessing(data, networks, messages_of_check):
    num_images = 100
    assert 10 + 3 * math.sqrt(num_images * 0.1 * 0.9) == pytest.approx(19)

    def right_on(num_right: int) -> nn.Module:
        """Returns the demo's teacher, which is right on all these images, with shifted classes on all but num_right."""
        is_wrong = (torch.arange(num_images) >= num_right)[:, None]
        return Logits(networks[1], lambda logits: logits.roll(1, dims=1).where(is_wrong[: len(logits)], logits))

    assert "19.0 % natural accuracy" in refusal(data, networks[0], right_on(19), teacher_check=num_images)
    (line,) = messages_of_check(data, networks[0], right_on(20), teacher_check=num_images)
    assert "20.0 % natural accuracy" in line


@pytest.mark.filterwarnings("ignore:Logits. batch-norm was not folded")
def test_a_teacher_of_robustbench_below_its_reported_accuracy_is_a_warning(
    data, networks, messages_of_check, monkeypatch
):
    name = CONFIG.teacher.checkpoint
    row = RobustTeacher(name, "digits", "cnn-72-s1", 98.0, 70.0)
    monkeypatch.setattr("fastadaad.models.robust_teachers.ROBUST_TEACHERS", (row,))
    worse = Logits(networks[1], lambda logits: logits.where(torch.arange(len(logits))[:, None] % 2 == 0, -logits))
    assert len(messages_of_check(data, *networks, teacher_check=30)) == 1
    assert f"98.00 % are reported for {name}" in messages_of_check(data, networks[0], worse, teacher_check=30)[1]


def test_one_image_is_too_few_to_refuse_a_teacher(data, networks, messages_of_check):
    never_right = Logits(networks[1], lambda logits: logits.roll(1, dims=1))
    assert len(messages_of_check(data, networks[0], never_right, teacher_check=1)) == 1


# Fault in the logits of a network, and words of its error message.
BAD_LOGITS = {
    "more classes": (lambda logits: torch.cat([logits, logits], dim=1), "has 20 classes and data set digits has 10"),
    "fewer classes": (lambda logits: logits[:, :9], "has 9 classes and data set digits has 10"),
    "NaN": (lambda logits: logits * torch.nan, "returns NaN or inf: its weights are damaged"),
    "inf": (lambda logits: logits / 0, "returns NaN or inf"),
    "a map of logits": (
        lambda logits: logits[..., None, None],
        r"logits of shape [16, 10, 1, 1]: let it return [B, N]",
    ),
    "a tuple": (lambda logits: (logits, logits), "returns tuple: let it return its logits [B, N] alone"),
}


@pytest.mark.parametrize("fault", BAD_LOGITS)
@pytest.mark.parametrize("name", ["student", "teacher"])
def test_a_network_whose_logits_do_not_fit_the_data_set_is_refused(data, networks, fault, name):
    change, words = BAD_LOGITS[fault]
    changed = [
        Logits(n, change) if role == name else n for role, n in zip(("student", "teacher"), networks, strict=True)
    ]
    message = refusal(data, *changed)
    assert message.startswith(f"{name} cnn-")
    assert words in message


def with_batch(data: TrainingData, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> TrainingData:
    """Returns `data` with changed training batches."""
    train = copy.copy(data.train)
    train.epoch = lambda epoch: (change(*batch) for batch in data.train.epoch(epoch))
    return replace(data, train=train)


# Fault in the first batch, and words of its error message.
BATCHES = {
    "0..255": (lambda x, y: (255 * x, y), "pixels from 0 to 255, outside [0, 1]: divide them by 255"),
    "normalised": (lambda x, y: ((x - 0.5) / 0.2, y), "normalise inside the network"),
    "a little above 1": (lambda x, y: (x * 1.001, y), "outside [0, 1]: clamp them"),
    "bytes": (lambda x, y: ((255 * x).byte(), y), "x_natural is torch.uint8: give pixels in [0, 1]"),
    "halves": (lambda x, y: (x.half(), y), "pixels must be torch.float32"),
    "NaN": (lambda x, y: (x.where(x < 1, torch.nan), y), "x_natural holds NaN"),
    "three channels": (lambda x, y: (x.expand(-1, 3, -1, -1), y), "has 3 channels and its images have 1"),
    "no channels": (lambda x, y: (x[:, 0], y), "x_natural has shape [64, 8, 8]: give images [B, C, H, W]"),
    "labels from 1": (lambda x, y: (x, y + 1), "labels hold 10, outside 0..9"),
    "one-hot labels": (lambda x, y: (x, torch.eye(10)[y]), "labels have shape [64, 10]: give class numbers [B]"),
    "floating labels": (lambda x, y: (x, y.float()), "labels are torch.float32: give class numbers as torch.int64"),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_malformed_batch_is_refused(data, networks, kind):
    change, words = BATCHES[kind]
    message = refusal(with_batch(data, change), *networks)
    assert message.startswith("data set digits: ")
    assert words in message


@pytest.mark.parametrize("label", [-1, 10])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_one_label_outside_the_classes_is_found(data, networks, split, label):
    pipeline = copy.copy(getattr(data, split))
    pipeline.labels = pipeline.labels.clone()
    pipeline.labels[17] = label
    name = {"train": "training"}.get(split, split)
    message = refusal(replace(data, **{split: pipeline}), *networks)
    assert message.startswith(f"data set digits has the {name} label {label}, outside 0..9: number its classes from 0")


@pytest.mark.parametrize("name", ["padding", "cutout"])
def test_an_augmentation_that_may_blacken_a_whole_image_is_refused(data, networks, name):
    """The digits have 8x8 pixels."""
    check(data, *networks, config=replace(CONFIG, data=replace(CONFIG.data, **{name: 7})))
    config = replace(CONFIG, data=replace(CONFIG.data, **{name: 8}))
    message = refusal(data, *networks, config=config)
    assert message.startswith(
        f"data.{name} is 8, and images of 8 pixels may become all black by it: choose less than 8"
    )


@pytest.mark.parametrize("section", ["inner", "evaluation"])
def test_an_l2_radius_above_the_largest_distance_of_two_images_is_refused(data, networks, section, messages_of_check):
    def with_radius(epsilon: float) -> RunConfig:
        changed = replace(getattr(CONFIG, section), threat_model=ThreatModel(norm="l2", epsilon=epsilon))
        return replace(CONFIG, **{section: changed})

    assert messages_of_check(data, *networks, config=with_radius(8.0)) == []  # 64 pixels are at most 8 apart
    assert "write 9/255 for a radius in 0..255" in refusal(data, *networks, config=with_radius(9.0))
