"""`fastadaad pack` from the command line."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastadaad import cli
from fastadaad.cli import pack as command
from fastadaad.data import packing

NUM_IMAGES = {"train": 3, "val": 2}  # per class


@pytest.fixture(autouse=True)
def pets(tmp_path, monkeypatch) -> Path:
    """Writes a tree to the working directory, which is temporary."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split, num_images in NUM_IMAGES.items():
        for name in ("cat", "dog"):
            folder = Path("pets", split, name)
            folder.mkdir(parents=True)
            for number in range(num_images):
                pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return Path("pets")


@pytest.fixture
def run(capsys):
    """Returns run(*words) -> exit code, lines of stdout without the progress bar, stderr."""

    def run_main(*words: str) -> tuple[int, list[str], str]:
        code = cli.main(["pack", *words])
        captured = capsys.readouterr()
        lines = [line for line in captured.out.splitlines() if not re.search(r"images/s", line)]
        return code, lines, captured.err

    return run_main


def test_a_folder_is_packed_verified_and_recognised_as_complete(run):
    result = [
        "out: 6 training and 4 test images of 8x8 pixels in 2 classes, 0.0 MB",
        "to train from it: fastadaad train RECIPE data.name=packed data.root=out",
    ]
    assert run("pets", "out", "--image-size", "8", "--workers", "1") == (0, result, "")
    assert run("pets", "out", "--image-size", "8") == (0, ["out is complete already", *result], "")
    assert run("pets", "out", "--verify") == (0, ["out is complete: all checksums agree"], "")


def test_progress_is_shown_with_its_rate(capsys):
    assert cli.main(["pack", "pets", "out", "--image-size", "8"]) == 0
    assert re.search(r"packing out .* images/s", capsys.readouterr().out)


def test_center_share_sets_the_center_crop(run):
    assert run("pets", "whole", "--image-size", "5")[0] == 0
    assert run("pets", "center", "--image-size", "5", "--center-share", "0.5")[0] == 0
    first = np.fromfile("center/train_images.u8", np.uint8)[:75].reshape(5, 5, 3)
    assert np.array_equal(first, np.asarray(Image.open("pets/train/cat/0.png"))[3:8, 2:7])
    assert Path("whole/train_images.u8").read_bytes() != Path("center/train_images.u8").read_bytes()


def test_broken_files_stop_the_pack_or_are_skipped_and_listed(run, monkeypatch):
    for number in range(2):
        Path(f"pets/train/dog/{number}.png").write_bytes(b"")
    code, _, err = run("pets", "out", "--image-size", "8")
    assert code == 2
    assert err == (
        "fastadaad: pets/train/dog/0.png is empty: replace it, or add --skip-errors to leave such files out; "
        "then run the command again to resume\n"
    )
    code, lines, err = run("pets", "out", "--image-size", "8", "--skip-errors")
    assert (code, err) == (0, "")
    assert lines[0].startswith("out: 4 training and 4 test images")
    assert lines[1:4] == [
        "files that were left out: 2",
        "  pets/train/dog/0.png is empty",
        "  pets/train/dog/1.png is empty",
    ]
    monkeypatch.setattr(command, "NUM_SHOWN", 1)
    _, lines, _ = run("pets", "out", "--image-size", "8", "--skip-errors")
    assert lines[2:5] == [
        "files that were left out: 2",
        "  pets/train/dog/0.png is empty",
        "  and 1 more, see out/pack.json",
    ]


def test_damage_is_found_by_verify(run):
    assert run("pets", "out", "--image-size", "8")[0] == 0
    path = Path("out/test_images.u8")
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    code, _, err = run("pets", "out", "--verify")
    assert code == 2
    assert err == (
        "fastadaad: out/test_images.u8 is damaged in images 0 to 3: delete out and run fastadaad pack again\n"
    )


# The words of the command, and a part of the message.
MISTAKES = [
    (["pets", "out"], "--image-size is missing: give the side of the packed images in pixels, such as 64"),
    (["pets", "out", "--image-size", "8", "--center-share", "1.5"], "center_share is 1.5: it is a fraction, in (0, 1]"),
    (["pet", "out", "--image-size", "8"], "pet does not exist"),
    (["pets", "pets", "--image-size", "8"], "pets holds something else: give another OUT"),
    (["pets", "out", "--verify"], "out/pack.json does not exist"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_ends_with_one_line_and_exit_code_2(run, words, message):
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert err.startswith("fastadaad: ")
    assert err.count("\n") == 1


def test_an_interrupted_pack_is_reported_and_resumes(run, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "decode_resized", interrupt)
        code, _, err = run("pets", "out", "--image-size", "8")
    assert code == 130
    assert err == "fastadaad: interrupted; what was saved so far is complete\n"
    assert run("pets", "out", "--image-size", "8")[0] == 0
