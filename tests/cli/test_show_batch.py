"""The picture of a batch: it shows the images that the training step gets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import save_teacher, tiny_run

from fastadaad import cli
from fastadaad.cli import batch_picture as show_batch
from fastadaad.cli.batch_picture import plot_batch, shown_batch
from fastadaad.run_config import TeacherConfig
from fastadaad.training.data import training_data
from fastadaad.training.trainer import Trainer

CPU = torch.device("cpu")


def test_the_batch_is_the_first_of_the_training_and_x_adv_is_in_the_ball(tmp_path):
    config = tiny_run(method="adaad", teacher=save_teacher(tmp_path / "teacher.safetensors"))
    data = training_data(config, CPU)
    batch = shown_batch(config, data, num_images=5)
    x_natural, labels = next(data.train.epoch(0))
    assert torch.equal(batch.x_natural, x_natural[:5])
    assert batch.labels == [str(label) for label in labels[:5].tolist()]
    assert 0.05 < (batch.x_adv - batch.x_natural).abs().max() <= 0.1 + 1e-6
    assert batch.epsilon == pytest.approx((batch.x_adv - batch.x_natural).abs().max().item())
    student = Trainer(config, tmp_path).state.student.eval()
    assert batch.student_classes == [str(index) for index in student(batch.x_adv).argmax(1).tolist()]
    assert not torch.equal(shown_batch(config, data, 5, epoch=1).x_natural, batch.x_natural)


def test_a_mixed_batch_is_shown_with_the_weights_of_its_classes():
    config = tiny_run()
    config = replace(config, data=replace(config.data, mixup=1.0))
    data = training_data(config, CPU)
    batch = shown_batch(config, data, num_images=8)
    _, labels = next(data.train.epoch(0))
    for text, label in zip(batch.labels, labels, strict=False):
        shown = [part.split(" ") for part in text.split(", ")]
        assert 0.89 < sum(float(weight) for _, weight in shown) < 1.01
        assert len(shown) == (label >= 0.1).sum()
        assert all(label[int(name)].item() == pytest.approx(float(weight), abs=0.01) for name, weight in shown)
    assert batch.x_adv is not None


def test_without_a_teacher_only_natural_images_are_shown():
    config = tiny_run()
    config = replace(config, method="adaad", teacher=TeacherConfig(name="cnn-6-s1"))
    batch = shown_batch(config, training_data(config, CPU), 3)
    assert (len(batch.x_natural), batch.x_adv, batch.student_classes) == (3, None, None)


def drawn_pixels(monkeypatch, tmp_path, batch) -> dict[str, list[np.ndarray]]:
    """Returns the pixels that plot_batch gives to imshow, by the name of the row."""
    drawn: dict[str, list[np.ndarray]] = {}
    original = show_batch._draw

    def draw(axes, image):
        original(axes, image)
        row = axes.get_subplotspec().rowspan.start
        drawn.setdefault(("natural", "adversarial", "difference")[row], []).append(axes.images[0].get_array().data)

    monkeypatch.setattr(show_batch, "_draw", draw)
    plot_batch(tmp_path / "batch.png", batch, "title")
    return drawn


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_has_a_column_per_image_and_scales_the_difference(monkeypatch, tmp_path, channels):
    x_natural = torch.full((2, channels, 4, 4), 0.5)
    delta = torch.zeros_like(x_natural)
    delta[0], delta[1, 0, 0, 0] = 0.1, -0.1
    batch = show_batch.ShownBatch(
        x_natural=x_natural,
        labels=["cat", "dog"],
        x_adv=x_natural + delta,
        student_classes=["dog", "dog"],
        epsilon=0.1,
    )
    drawn = drawn_pixels(monkeypatch, tmp_path, batch)
    assert [len(images) for images in drawn.values()] == [2, 2, 2]
    assert drawn["natural"][0].shape == ((4, 4, 3) if channels == 3 else (4, 4))
    np.testing.assert_allclose(drawn["difference"][0], 1, atol=1e-5)  # +epsilon is white
    np.testing.assert_allclose(drawn["difference"][1].flat[0], 0, atol=1e-5)  # -epsilon is black
    np.testing.assert_allclose(drawn["difference"][1].flat[-1], 0.5)  # no difference is grey
    with Image.open(tmp_path / "batch.png") as image:
        assert image.width > 300
        assert image.height > 500


def test_the_command_draws_a_recipe_and_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["show-batch", "demo", "data.padding=2", "--images", "3"]) == 0
    assert (tmp_path / "batch.png").read_bytes().startswith(b"\x89PNG")
    Trainer(tiny_run(), tmp_path / "run").train()
    assert cli.main(["show-batch", "run", "-o", "run.png"]) == 0
    assert (tmp_path / "run.png").exists()
    assert "drawn: run.png" in capsys.readouterr().out


def test_a_recipe_without_teacher_weights_names_the_remedy(tmp_path, capsys):
    weightless = ["show-batch", "demo", "teacher.checkpoint=null", "-o", str(tmp_path / "b.png")]
    assert cli.main(weightless) == 0
    assert "set teacher.checkpoint=FILE" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_an_invalid_number_of_images_is_refused(number, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["show-batch", "demo", "--images", number])
    assert error.value.code == 2
    assert "not a number of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(("difference", "text"), [(0.1, "0.1"), (8 / 255 + 2e-7, "8/255"), (0.1875, "0.1875")])
def test_the_difference_has_the_unit_of_its_radius(difference, text):
    assert show_batch._radius(difference) == text
