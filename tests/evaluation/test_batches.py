"""Kinds of data that evaluate accepts, against a plain loop, and the errors of all others."""

import numpy
import pytest
import torch
from networks import images_and_labels, trained_network
from plain import cross_entropy, inner_loop
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fastadaad.config import ThreatModel
from fastadaad.evaluation import evaluate
from fastadaad.evaluation.batches import batches_of

NUM_IMAGES, BATCH_SIZE = 22, 8  # the last batch is smaller
X_NATURAL, LABELS = images_and_labels(NUM_IMAGES)
PAIRS = TensorDataset(X_NATURAL, LABELS)
LINF = ThreatModel(epsilon=12 / 255)
ATTACKS = ("natural", "pgd3", "cw5")


MODEL = trained_network(X_NATURAL, LABELS).eval()


def batches():
    return zip(X_NATURAL.split(BATCH_SIZE), LABELS.split(BATCH_SIZE), strict=True)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


class Samples(Dataset):
    """Samples of any kind."""

    def __init__(self, *samples: object) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> object:
        return self.samples[index]


KINDS = {
    "loader": DataLoader(PAIRS, batch_size=BATCH_SIZE),
    "dataset": PAIRS,
    "dataset with integer labels": Samples(*zip(X_NATURAL, LABELS.tolist(), strict=True)),
    "stream": Stream(),
    "pair": (X_NATURAL, LABELS),
    "list of two tensors": [X_NATURAL, LABELS],
    "function": batches,
}


def natural_and_pgd3_by_a_plain_loop(seed: int) -> tuple[float, float]:
    """Counts the images that are classified correctly, before and after three steps of epsilon / 4."""
    epsilon, generator = LINF.epsilon, torch.Generator().manual_seed(seed)
    num_correct = num_robust = 0
    for x_natural, labels in batches():
        start = x_natural + torch.empty_like(x_natural).uniform_(-epsilon, epsilon, generator=generator)
        settings = {"norm": "linf", "epsilon": epsilon, "step_size": epsilon / 4, "num_steps": 3}
        x_adv = inner_loop(cross_entropy(MODEL, labels), x_natural, start.clamp(0, 1), **settings)
        correct = MODEL(x_natural).argmax(1) == labels
        num_correct += correct.sum().item()
        num_robust += (correct & (MODEL(x_adv).argmax(1) == labels)).sum().item()
    return num_correct / NUM_IMAGES, num_robust / NUM_IMAGES


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_accuracies_of_a_plain_loop(kind):
    results = evaluate(MODEL, KINDS[kind], ATTACKS, threat_model=LINF, seed=5, batch_size=BATCH_SIZE)
    expected = natural_and_pgd3_by_a_plain_loop(seed=5)
    assert expected[0] > expected[1] > 0
    assert tuple(result.accuracy for result in results[:2]) == expected
    (cw5,) = evaluate(MODEL, batches, ["cw5"], threat_model=LINF, seed=5)
    assert results[2].accuracy == cw5.accuracy
    assert {result.num_images for result in results} == {NUM_IMAGES}


def test_a_dataset_and_a_pair_are_batched_in_order():
    for data in (PAIRS, (X_NATURAL, LABELS)):
        read = list(batches_of(data, torch.device("cpu"), BATCH_SIZE)())
        assert [len(labels) for _, labels in read] == [8, 8, 6]
        assert torch.equal(torch.cat([x_natural for x_natural, _ in read]), X_NATURAL)
        assert torch.equal(torch.cat([labels for _, labels in read]), LABELS)


def test_a_batch_has_500_images_by_default():
    pair = X_NATURAL[:1].expand(1001, -1, -1, -1), LABELS[:1].expand(1001)
    sizes = []
    evaluate(MODEL, pair, "natural", progress=lambda stage, num_images: sizes.append(num_images))
    assert sizes == [500, 500, 1]


def test_the_defaults_are_natural_and_pgd20_in_8_255():
    results = evaluate(MODEL, (X_NATURAL, LABELS))
    assert [(result.attack, result.norm, result.epsilon) for result in results] == [
        ("natural", "linf", 8 / 255),
        ("pgd20", "linf", 8 / 255),
    ]
    expected = evaluate(MODEL, lambda: [(X_NATURAL, LABELS)], ["natural", "pgd20"], threat_model=ThreatModel())
    assert [result.accuracy for result in results] == [result.accuracy for result in expected]


def test_a_string_is_one_attack():
    (result,) = evaluate(MODEL, (X_NATURAL, LABELS), "fgsm", threat_model=LINF)
    (expected,) = evaluate(MODEL, (X_NATURAL, LABELS), ["fgsm"], threat_model=LINF)
    assert (result.attack, result.accuracy) == ("fgsm", expected.accuracy)


@pytest.mark.parametrize("kind", ["loader", "dataset", "pair"])
def test_batches_are_moved_to_the_device_of_the_model(kind):
    for x_natural, labels in batches_of(KINDS[kind], torch.device("meta"), BATCH_SIZE)():
        assert (x_natural.device.type, labels.device.type) == ("meta", "meta")
    for x_natural, labels in batches_of(batches, torch.device("meta"), BATCH_SIZE)():
        assert (x_natural.device.type, labels.device.type) == ("cpu", "cpu")


def test_a_loader_that_shuffles_gives_the_same_accuracy_in_attacks_without_a_random_start():
    shuffled = DataLoader(PAIRS, batch_size=BATCH_SIZE, shuffle=True)
    attacks = ["natural", "fgsm", "cw5"]
    expected = evaluate(MODEL, (X_NATURAL, LABELS), attacks, threat_model=LINF)
    results = evaluate(MODEL, shuffled, attacks, threat_model=LINF)
    assert [result.accuracy for result in results] == [result.accuracy for result in expected]


def test_a_loader_that_shuffles_resumes_nothing_and_is_refused(tmp_path):
    shuffled = DataLoader(PAIRS, batch_size=BATCH_SIZE, shuffle=True)
    with pytest.raises(
        ValueError, match=r"^state needs images in a fixed order.*: use a DataLoader with shuffle=False$"
    ):
        evaluate(MODEL, shuffled, "cw5", state=tmp_path)
    evaluate(MODEL, KINDS["loader"], "cw5", state=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_images_may_come_in_inference_mode():
    with torch.inference_mode():
        pair = X_NATURAL.clone(), LABELS.clone()
        results = evaluate(MODEL, pair, ATTACKS, threat_model=LINF)
    expected = evaluate(MODEL, (X_NATURAL, LABELS), ATTACKS, threat_model=LINF)
    assert [result.accuracy for result in results] == [result.accuracy for result in expected]


def test_a_model_without_parameters_is_evaluated():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the mean of each channel as its logit
    (result,) = evaluate(model, (X_NATURAL, LABELS % 3), "natural")
    assert result.accuracy == (X_NATURAL.mean((2, 3)).argmax(1) == LABELS % 3).double().mean().item()


def normalized(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.25


BAD = {
    "a list of batches": (list(batches()), "data is a list: give a DataLoader, a torch Dataset, a pair"),
    "no data": (None, "data is a NoneType: give a DataLoader"),
    "images alone": (X_NATURAL, "data is a Tensor: give a DataLoader"),
    "arrays": ((X_NATURAL.numpy(), LABELS), r"x_natural is a ndarray: give a tensor, such as torch.as_tensor"),
    "array labels": ((X_NATURAL, numpy.zeros(NUM_IMAGES)), "labels is a ndarray: give a tensor"),
    "uint8 images": (((255 * X_NATURAL).byte(), LABELS), r"x_natural is torch.uint8: .*x_natural.float\(\) / 255"),
    "images in 0..255": ((255 * X_NATURAL, LABELS), r"pixels from .* outside \[0, 1\]: divide them by 255"),
    "normalised images": ((normalized(X_NATURAL), LABELS), "normalise inside the network"),
    "one-hot labels": ((X_NATURAL, nn.functional.one_hot(LABELS)), r"give class numbers \[B\], such as labels.argmax"),
    "a column of labels": ((X_NATURAL, LABELS[:, None]), r"labels have shape \[22, 1\]: .*such as labels.squeeze\(1\)"),
    "labels of fewer images": ((X_NATURAL, LABELS[1:]), r"labels have shape \[21\] for 22 images: give one per image"),
    "float labels": ((X_NATURAL, LABELS.float()), "give class numbers as torch.int64"),
    "no images": ((X_NATURAL[:0], LABELS[:0]), "no images to evaluate on"),
    "an empty dataset": (Samples(), "no images to evaluate on"),
    "three tensors per batch": (
        DataLoader(TensorDataset(X_NATURAL, LABELS, LABELS)),
        r"data gives a list of 3 as a batch: give \(x_natural \[B, C, H, W\], labels \[B\]\)",
    ),
    "labels outside the classes": ((X_NATURAL, LABELS + 1), r"labels hold 5, outside 0\.\.4"),
    "samples in a dict": (Samples({"image": X_NATURAL[0]}), r"data gives a dict as a sample: give \(image \[C, H, W\]"),
    "images as arrays": (Samples((X_NATURAL[0].numpy(), 1)), r"an image of data is a ndarray: .*ToTensor\(\)"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("attack", ["natural", "cw5"])
def test_other_data_is_refused_in_one_line_with_a_remedy(case, attack):
    data, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(MODEL, data, attack, threat_model=LINF)
    assert "\n" not in str(caught.value)


def test_a_batch_size_of_zero_and_swapped_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^batch_size is 0: it must be 1 or more$"):
        evaluate(MODEL, PAIRS, "natural", batch_size=0)
    with pytest.raises(
        ValueError, match=r"^model is a TensorDataset: give a torch.nn.Module, and the images after it$"
    ):
        evaluate(PAIRS, MODEL, "natural")


def changed_later(change) -> list:
    """Changes the labels of the second of two batches."""
    return [(X_NATURAL[:8], LABELS[:8]), (X_NATURAL[8:], change(LABELS[8:]))]


# Labels that gave an accuracy above 1, or any accuracy at all, as a comparison with them is broadcast.
LABELS_OF_A_FUNCTION = {
    "a column": (lambda labels: labels[:, None], r"labels have shape \[14, 1\]: .*labels\.squeeze\(1\)"),
    "one for all": (lambda labels: labels[:1], r"labels have shape \[1\] for 14 images: give one per image"),
    "one-hot": (nn.functional.one_hot, r"labels have shape \[14, 5\]: .*labels\.argmax\(1\)"),
    "floats": (Tensor.float, "labels are torch.float32: give class numbers as torch.int64"),
    "none": (lambda labels: None, r"^labels are None: give class numbers \[B\] as torch\.int64$"),
    "too large": (lambda labels: labels + 1, r"labels hold 5, outside 0\.\.4"),
    "negative": (lambda labels: labels - 9, r"labels hold -\d, outside 0\.\.4"),
}


@pytest.mark.parametrize("case", LABELS_OF_A_FUNCTION)
@pytest.mark.parametrize("attack", ["natural", "pgd1", "cw5"])
def test_the_labels_of_every_batch_of_a_function_are_checked(case, attack):
    change, message = LABELS_OF_A_FUNCTION[case]
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(MODEL, lambda: changed_later(change), attack, threat_model=LINF)
    assert "\n" not in str(caught.value)


def test_the_advice_for_a_column_of_labels_gives_the_accuracy_of_a_plain_count():
    (result,) = evaluate(MODEL, (X_NATURAL, LABELS[:, None].squeeze(1)), "natural")
    assert result.accuracy == (MODEL(X_NATURAL).argmax(1) == LABELS).sum().item() / NUM_IMAGES


def test_a_function_returns_batches():
    with pytest.raises(
        ValueError, match=r"^data returns a NoneType: let it return the batches, such as lambda: batches"
    ):
        evaluate(MODEL, lambda: None, "natural")
    with pytest.raises(ValueError, match=r"^data gives a Tensor as a batch"):
        evaluate(MODEL, lambda: (X_NATURAL, LABELS), "natural")


def test_a_used_up_iterator_is_named():
    with pytest.raises(ValueError, match=r"^data is a zip: give a DataLoader"):
        evaluate(MODEL, batches(), ["natural", "fgsm"])
    once = batches()
    with pytest.raises(ValueError, match=r"^data gives 0 images to one attack and 22 to the first: .*a new iterator"):
        evaluate(MODEL, lambda: once, ["natural", "fgsm"])


def test_restarts_and_seeds_that_run_no_attack_are_refused():
    """Zero restarts gave the natural accuracy."""
    for settings, message in (
        ({"restarts": 0}, "^restarts is 0: it must be 1 or more$"),
        ({"restarts": 1.5}, "^restarts is 1.5: it must be an integer$"),
        ({"seed": "x"}, "^seed is 'x': it must be an integer$"),
        ({"threat_model": 0.1}, r"^threat_model is a float: give a ThreatModel"),
        ({"layout": "x"}, "^layout is 'x': choose"),
        ({"fold": "x"}, "^fold is 'x': it must be True or False$"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(MODEL, (X_NATURAL, LABELS), "pgd1", **settings)
