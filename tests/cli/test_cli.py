"""Command line: output, files, and messages about mistakes."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import save_teacher, tiny_run

from fastadaad import cli, load_model, methods, recipes
from fastadaad.config_io import read_config
from fastadaad.data import load_dataset
from fastadaad.models import shipped
from fastadaad.run_config import ModelConfig
from fastadaad.runtime.compile import compile_cache
from fastadaad.runtime.torch_settings import VARIABLES
from fastadaad.training import trainer as trainer_module

COMMANDS = cli.COMMANDS


@pytest.fixture(autouse=True)
def tiny_recipes(monkeypatch, tmp_path):
    """Registers the recipes `tiny` and `tiny-teacher`, and changes to a temporary working directory."""
    monkeypatch.chdir(tmp_path)
    teacher = save_teacher(tmp_path / "teacher.safetensors")

    def tiny(method: str = "adaad"):
        """For tests."""
        return tiny_run(method=method, teacher=teacher)

    def tiny_teacher(method: str = "pgd-at"):
        """For tests."""
        return tiny_run(recipe="tiny-teacher", method=method, student=ModelConfig(name=teacher.name))

    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny)
    monkeypatch.setitem(recipes.RECIPES, "tiny-teacher", tiny_teacher)


@pytest.fixture
def run(capsys):
    """Returns run(*words) -> exit code, stdout, stderr."""

    def run_main(*words: str) -> tuple[int, str, str]:
        try:
            code = cli.main(words)
        except SystemExit as stop:  # argparse leaves this way
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_main


def accuracies(path) -> list[tuple[str, str, float]]:
    with open(path, newline="") as file:
        return [(row["model"], row["attack"], float(row["accuracy"])) for row in csv.DictReader(file)]


def test_a_run_is_trained_and_evaluated_and_a_second_evaluation_agrees(run, tmp_path):
    code, out, err = run("train", "tiny", "--run-folder", "my-run", "optim.epochs=1", "inner.step_size=10/255")
    assert (code, err) == (0, "")
    assert "operations on " in out
    assert out.startswith("run folder: my-run\n")
    assert out.endswith("run folder: my-run\n")
    config = read_config(tmp_path / "my-run" / "config.json")
    assert (config.optim.epochs, config.inner.step_size) == (1, 10 / 255)
    trained = accuracies("my-run/results.csv")
    assert [row[:2] for row in trained] == [("adaad", "natural"), ("adaad", "pgd2")]

    assert run("evaluate", "my-run", "--csv", "again.csv")[0] == 0
    assert [row[1:] for row in accuracies("again.csv")] == [row[1:] for row in trained]

    weights = "my-run/best.safetensors"
    code, out, _ = run("evaluate", weights, "--recipe", "tiny", "--attacks", "pgd2,fgsm", "--csv", "file.csv")
    assert code == 0
    assert [row[1] for row in accuracies("file.csv")] == ["pgd2", "fgsm"]
    assert accuracies("file.csv")[0][2] == trained[1][2]
    assert "best.safetensors" in out
    _, out, _ = run("evaluate", "my-run", "--attacks", "natural", "-n", "99999", "--epsilon", "8/255")
    assert "evaluation.num_images is 99,999: the test set has 360 images, all used" in " ".join(out.split())
    assert "epsilon 8/255" in " ".join(out.split())


@pytest.mark.slow
def test_an_evaluation_in_shards_agrees_with_a_whole_one(run, tmp_path):
    assert run("train", "tiny", "--run-folder", "my-run", "optim.epochs=1")[0] == 0
    given = ["evaluate", "my-run", "--attacks", "natural,pgd2,cw5", "-n", "101", "--epsilon", "16/255"]
    assert run(*given, "--json", "whole.json")[0] == 0
    assert run(*given, "--json", "shards.json", "--shard", "all/3", "--state", "kept")[0] == 0
    whole, shards = (json.loads((tmp_path / name).read_text())["attacks"] for name in ("whole.json", "shards.json"))
    assert [row["attack"] for row in whole] == ["natural", "pgd2", "cw5"]
    assert {(row["num_images"], row["epsilon"], row["norm"]) for row in [*whole, *shards]} == {(101, 16 / 255, "linf")}
    for name in (0, 2):  # without random starts, which are drawn for each batch
        assert shards[name]["accuracy"] == pytest.approx(whole[name]["accuracy"])
    assert list((tmp_path / "kept").iterdir())

    num_images = 0
    for shard in range(3):
        assert run(*given, "--json", "one.json", "--shard", f"{shard}/3", "--state", "kept")[0] == 0
        num_images += json.loads((tmp_path / "one.json").read_text())["attacks"][0]["num_images"]
    assert num_images == 101

    assert run(*given, "--norm", "l2", "--json", "l2.json")[0] == 0
    assert json.loads((tmp_path / "l2.json").read_text())["attacks"][0]["norm"] == "l2"
    code, _, err = run("evaluate", "my-run", "--shard", "3/3")
    assert (code, "'3/3' is not a shard: write 0/2 and 1/2, or all/2" in err) == (2, True)


def test_a_network_is_attacked_by_the_images_of_another_file(run):
    weights = str(Path(shipped.__file__).parent / "demo-teacher.safetensors")
    given = ["evaluate", weights, "--recipe", "tiny", "student.name=cnn-72-s1", "-n", "60", "--epsilon", "0.2"]
    measured = {}
    # cnn-72-s1 and cnn-72 have the same weights, so a file stands for cnn-72: a weaker surrogate than the network.
    for name, words in {"white": [], "transfer": ["--examples-of", weights]}.items():
        code, out, err = run(*given, "--attacks", "natural,fgsm", "--csv", f"{name}.csv", *words)
        assert (code, err) == (0, "")
        measured[name] = {attack: accuracy for _, attack, accuracy in accuracies(f"{name}.csv")}
    assert "adversarial images of another network" in out
    assert measured["transfer"]["natural"] == measured["white"]["natural"]
    assert measured["transfer"]["fgsm"] > measured["white"]["fgsm"]
    for words, message in (
        (["--attacks", "cw5"], "attack cw5 asks the network that it attacks"),
        (["--corruptions", "digits-c"], "leave out --examples-of"),
    ):
        code, _, err = run(*given[:-2], *words, "--examples-of", weights)
        assert (code, message in err, err.count("\n")) == (2, True, 1)


@pytest.mark.slow
def test_corrupted_test_images_are_classified_as_in_a_plain_loop(run, tmp_path):
    """Two corruptions of the 360 test digits, of which the first 100 are evaluated, whole and in shards."""
    dataset, rng = load_dataset("digits"), np.random.default_rng(0)
    num_images = len(dataset.test_labels)
    (tmp_path / "digits-c").mkdir()
    labels = np.tile(dataset.test_labels.numpy(), 5)
    corrupted = {}
    for name in ("own", "fog"):
        noise = rng.integers(0, 250, (5 * num_images, *dataset.test_images.shape[1:]))
        images = np.minimum(np.tile(dataset.test_images.numpy(), (5, 1, 1, 1)) + noise, 255).astype(np.uint8)
        corrupted[name] = images
        np.save(tmp_path / "digits-c" / f"{name}.npy", images)
    np.save(tmp_path / "digits-c" / "labels.npy", labels.astype(np.uint8))

    weights = str(Path(shipped.__file__).parent / "demo-teacher.safetensors")
    given = ["evaluate", weights, "--recipe", "tiny", "student.name=cnn-72-s1", "-n", "100"]
    code, out, err = run(*given, "--corruptions", "digits-c", "--csv", "c.csv")
    assert (code, err) == (0, "")

    network = load_model("cnn-72-s1", checkpoint=weights, in_channels=1)
    expected = {}
    for name in ("fog", "own"):
        for severity in range(5):
            rows = slice(severity * num_images, severity * num_images + 100)
            x = torch.from_numpy(corrupted[name][rows]).permute(0, 3, 1, 2).float() / 255
            with torch.no_grad():
                right = network.eval()(x).argmax(1) == torch.from_numpy(labels[rows])
            expected[f"{name}-{severity + 1}"] = right.double().mean().item()
    assert len(set(expected.values())) > 1
    measured = {attack: accuracy for _, attack, accuracy in accuracies("c.csv")}
    assert list(measured) == list(expected)
    assert measured == pytest.approx(expected)
    assert f"{100 * np.mean(list(expected.values())):.1f}" in out.split("mean of 2")[1].splitlines()[0].split()[-2]
    assert "not the benchmark's mean, as the folder lacks gaussian_noise, " in out

    assert run(*given, "--corruptions", "digits-c", "--csv", "shards.csv", "--shard", "all/3")[0] == 0
    assert {attack: accuracy for _, attack, accuracy in accuracies("shards.csv")} == pytest.approx(expected)
    code, _, err = run(*given, "--corruptions", "digits-c", "--attacks", "pgd2", "--epsilon", "0.1")
    assert (code, err.endswith("measures accuracy without an attack: leave out --attacks, --epsilon\n")) == (2, True)
    code, _, err = run(*given, "--corruptions", "nowhere")
    assert (code, "nowhere holds no corruptions" in err) == (2, True)


def test_the_default_run_folder_is_below_runs(run, tmp_path):
    assert run("train", "tiny", "--method", "pgd-at", "optim.epochs=1", "seed=3")[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("_tiny_pgd-at_seed3")


def test_print_config_shows_the_settings_and_trains_nothing(run, tmp_path):
    code, out, _ = run(
        "train", "tiny", "optim.epochs=5", "--print-config", "seed=4", "--method", "pgd-at", "log_every=9"
    )
    assert code == 0
    config = json.loads(out)
    assert (config["optim"]["epochs"], config["seed"], config["method"], config["log_every"]) == (5, 4, "pgd-at", 9)
    assert not (tmp_path / "runs").exists()


def test_print_config_shows_policy_precision_layout_and_mode(run):
    settings = ("teacher.policy=linearized(top=2,every=5)", "precision.teacher=bf16", "layout=contiguous")
    code, out, _ = run("train", "tiny", *settings, "--print-config")
    config = json.loads(out)
    assert code == 0
    assert config["teacher"]["policy"] == {"kind": "linearized", "every": 5, "top": 2}
    assert config["precision"] == {"student": "auto", "teacher": "bf16"}
    assert (config["layout"], config["mode"]) == ("contiguous", "auto")


def table_lines(path) -> list[tuple[str, ...]]:
    with open(path, newline="") as file:
        return [(row["student"], row["method"], row["seed"], row["attack"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_compare_trains_each_student_method_and_seed_and_evaluates_the_teacher(run):
    words = ("--students", "cnn-2-s1,cnn-4-s1", "--methods", "pgd-at,adaad", "--seeds", "0,1", "--run-folder", "all")
    code, out, err = run("compare", "tiny", *words, "optim.epochs=1", "--attacks", "natural,fgsm")
    assert (code, err) == (0, "")
    lines = [("cnn-6-s1", "teacher", "0")]
    for student in ("cnn-2-s1", "cnn-4-s1"):
        lines += [(student, method, seed) for method in ("pgd-at", "adaad") for seed in "01"]
    assert table_lines("all/results.csv") == [(*line, attack) for line in lines for attack in ("natural", "fgsm")]
    assert "over 2 seeds" in out
    for picture in ("curves.png", "table.png"):
        assert Path("all", picture).read_bytes().startswith(b"\x89PNG")
    for path in Path("all/experiments").glob("cnn-*/config.json"):
        config = read_config(path)
        assert path.parent.name.startswith(f"{config.student.name}_{config.method}_seed_{config.seed}_")
        assert config.optim.epochs == 1


@pytest.fixture
def trainings(monkeypatch) -> list[tuple[int, int, str]]:
    """Records epochs, threads and folder of each training in a process of two threads, and ends it there."""
    found = []

    def train(self):
        found.append((self.config.optim.epochs, torch.get_num_threads(), str(self.folder)))
        raise ValueError("enough")

    before = torch.get_num_threads()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    monkeypatch.setattr(trainer_module.Trainer, "train", train)
    yield found
    torch.set_num_threads(before)


@pytest.mark.parametrize(("words", "expected"), [([], 5), (["optim.epochs=2"], 2)])
def test_a_quick_comparison_trains_five_epochs_in_a_folder_of_its_own(run, trainings, words, expected):
    assert run("compare", "tiny", "--quick", *words)[2] == "fastadaad: enough\n"
    ((epochs, threads, folder),) = trainings
    assert (epochs, threads) == (expected, 1)
    assert folder.startswith("runs/compare-tiny-quick/experiments/")


def test_a_training_on_digits_uses_one_thread_and_leaves_the_process_two(run, trainings):
    run("train", "tiny")
    assert [threads for _, threads, _ in trainings] == [1]
    assert torch.get_num_threads() == 2


def test_compare_from_scratch_trains_the_teacher_and_distils_from_it(run):
    options = ("--methods", "adaad", "--from-scratch", "--run-folder", "all")
    overrides = ("optim.epochs=1", "teacher.checkpoint=null")
    assert run("compare", "tiny", *options, *overrides)[0] == 0
    (student,) = (read_config(path) for path in Path("all/experiments").glob("*_adaad_*/config.json"))
    teacher = Path(student.teacher.checkpoint)
    assert teacher.name == "best.safetensors"
    assert read_config(teacher.parent / "config.json").recipe == "tiny-teacher"


@pytest.mark.slow
def test_compare_takes_the_recipe_as_an_option_and_all_methods(run):
    words = ("--recipe", "tiny", "--methods", "all", "--run-folder", "all", "optim.epochs=1", "--attacks", "natural")
    assert run("compare", *words)[0] == 0
    assert [line[1] for line in table_lines("all/results.csv")] == ["teacher", *methods.METHODS]


def test_sweep_epsilon_trains_at_each_radius_and_evaluates_at_one(run):
    words = ("--epsilons", "0.2,10/255", "--run-folder", "all", "optim.epochs=1", "--attacks", "natural,fgsm")
    code, _, err = run("sweep-epsilon", "tiny", *words)
    assert (code, err) == (0, "")
    configs = [read_config(path) for path in Path("all/experiments").glob("*/config.json")]
    inner = sorted((config.inner.threat_model.epsilon, config.inner.step_size) for config in configs)
    assert inner == [(10 / 255, pytest.approx(5 / 255)), (0.2, pytest.approx(0.1))]  # tiny: half the radius
    with open("all/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["epsilon"]) for row in rows if row["attack"] == "fgsm"] == [
        ("teacher", "0.1"),
        ("adaad at 10/255", "0.1"),
        ("adaad at 0.2", "0.1"),
    ]
    assert Path("all/epsilon.png").read_bytes().startswith(b"\x89PNG")


def test_recipes_lists_all(run):
    code, out, _ = run("recipes")
    assert code == 0
    assert all(name in out for name in ("demo", "fashion-mnist", "cifar10-rn18"))


def test_doctor_names_versions_and_the_backend_of_each_operation(run):
    code, out, _ = run("doctor")
    assert code == 0
    for word in ("torch", "NVIDIA DALI", "kl_grad", "crop_flip"):
        assert word in out


# The words of the command, and a part of the message.
MISTAKES = [
    (["train", "dem"], "unknown recipe 'dem': did you mean demo?"),
    (["train", "fashon-mnist"], "unknown recipe 'fashon-mnist': did you mean fashion-mnist?"),
    (["train", "abacus"], "unknown recipe 'abacus': fastadaad recipes lists all"),
    (["train"], "no recipe is named: see fastadaad recipes"),
    (["trian", "demo"], "unknown command 'trian': did you mean train?"),
    (["fly"], "unknown command 'fly': fastadaad --help lists all"),
    (["train", "demo", "--epochs", "3"], "unrecognized arguments: --epochs 3: did you mean optim.epochs=3?"),
    (["train", "demo", "--batch-size=64"], "did you mean data.batch_size=64?"),
    (["train", "demo", "optim.lr=0.1"], "unknown setting optim.lr=0.1: did you mean optim.learning_rate?"),
    (["train", "demo", "device=gpu"], "try device=cuda"),
    (["recipes", "optim.epochs=3"], "unrecognized arguments: optim.epochs=3"),
    (["doctor", "optim.epochs=3"], "name one with --max-batch RECIPE"),
    (["train", "demo", "optim.epoch=3"], "unknown setting optim.epoch=3: did you mean optim.epochs?"),
    (["train", "demo", "optim.epochs=soon"], "optim.epochs"),
    (["train", "demo", "--print-config", "soon"], "'soon' is not an override"),
    (["train", "demo", "inner.threat_model.epsilon=8"], "8/255"),
    (["train", "demo", "--method", "adad"], "unknown method 'adad'"),
    (["train", "demo-teacher", "--method", "adaad"], "method adaad needs a teacher"),
    (["train", "tiny", "device=abacus"], "device 'abacus' cannot be used"),
    (["train", "tiny", "device=gpu"], "try device=cuda"),
    (["train", "tiny", "device=cpu", "precision.student=tf32"], "precision tf32 exists on CUDA devices only"),
    (["train", "demo", "optim.lr=3"], "did you mean optim.learning_rate?"),
    (["train", "fashon-mnist"], "did you mean fashion-mnist?"),
    (["train", "demo", "--epochs", "3"], "did you mean optim.epochs=3?"),
    (["train", "tiny", "data.name=digit"], "data set 'digit' is unknown"),
    (["train", "tiny", "student.name=resnet19"], "did you mean resnet18"),
    (["train", "tiny", "teacher.checkpoint=null"], "teacher cnn-6-s1 has no weights: set teacher.checkpoint=FILE"),
    (["train", "tiny", "teacher.checkpoint=no.pt"], "no.pt does not exist"),
    (["train", "tiny", "teacher.checkpoint=shipped:no"], "shipped:no is not part of this package"),
    (["train", "tiny", "teacher.name=cnn-8-s1"], "does not fit"),
    (["train", "tiny", "data.name=cifar10", "data.root=empty"], "data.download=true"),
    (["train", "tiny", "data.batch_size=4000"], "batch_size"),
    (["train", "tiny", "--run-folder", "full"], "full exists already: give another --run-folder"),
    (["train", "tiny", "--run-folder", "full/file"], "exists already"),
    (["evaluate", "no-such-run"], "no-such-run does not exist"),
    (["evaluate", "full"], "full/config.json does not hold a run's configuration"),
    (["evaluate", "full/file"], "--recipe tells its data set and network"),
    (["evaluate", "full/file", "--recipe", "tiny"], "file"),
    (["evaluate", "teacher.safetensors", "--recipe", "tiny", "--attacks", "pgd"], "unknown attack 'pgd'"),
    (["evaluate", "teacher.safetensors", "--recipe", "tiny", "--attacks", ","], "attacks is empty"),
    (["evaluate", "teacher.safetensors", "--recipe", "tiny"], "does not fit SmallCNN"),
    (["compare", "demo-teacher"], "recipe demo-teacher has no teacher to compare with"),
    (["compare", "tiny", "--methods", "pgd-at,adad"], "unknown method 'adad'"),
    (["compare"], "no recipe is named"),
    (["compare", "tiny", "--students", "cnn-4-s1,resnet19"], "did you mean resnet18"),
    (["sweep-epsilon", "tiny"], "required: --epsilons"),
    (["sweep-epsilon", "tiny", "--epsilons", "8"], "8/255"),
    (["sweep-epsilon", "tiny", "--epsilons", "0.1,x"], "'x' is not a radius in pixel units"),
    (["compare", "tiny", "--seeds", "a"], "'a' is not a list of seeds: write them as 0,1"),
    (["compare", "tiny", "teacher.checkpoint=null"], "teacher cnn-6-s1 has no weights"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_ends_with_one_line_and_exit_code_2(run, tmp_path, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("not weights")
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert err.startswith("fastadaad")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert not (tmp_path / "runs").exists()  # found before any training


def test_weights_with_nan_give_no_accuracy(run, tmp_path):
    """NaN in every logit was an accuracy of one class, with exit code 0."""
    weights = load_file("teacher.safetensors")
    weights[next(name for name in weights if name.endswith("weight"))].fill_(math.nan)
    save_file(weights, "nan.safetensors")
    words = ("--recipe", "tiny", "student.name=cnn-6-s1", "-n", "4", "--attacks", "natural,pgd2", "--csv", "nan.csv")
    code, out, err = run("evaluate", "nan.safetensors", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "the model returns NaN or inf (attack natural): its weights are damaged" in err
    assert "%" not in out
    assert not (tmp_path / "nan.csv").exists()


def test_traceback_lets_the_exception_through(run):
    with pytest.raises(ValueError, match="unknown recipe"):
        run("--traceback", "train", "dem")


def test_a_training_that_lost_a_worker_ends_with_one_line_and_exit_code_75(run, monkeypatch):
    def lose_a_worker(*arguments) -> None:
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")

    monkeypatch.setattr(trainer_module.Trainer, "train", lose_a_worker)
    code, _, err = run("train", "tiny")
    assert code == 75
    assert re.fullmatch(r"fastadaad: a process that reads data has died \(.*killed.*\), .*: resume the run .*\n", err)


def test_damaged_code_of_torch_compile_is_named(run, monkeypatch):
    folder = compile_cache()

    def load_damaged(*arguments) -> None:
        raise RuntimeError(f"ImportError: {folder}/r2/main.so: invalid ELF header\n\nSet TORCHDYNAMO_VERBOSE=1 for the")

    monkeypatch.setattr(trainer_module.Trainer, "train", load_damaged)
    code, _, err = run("train", "tiny")
    line = f"{folder} holds damaged code of torch.compile (ImportError: {folder}/r2/main.so: invalid ELF header)"
    assert (code, err) == (2, f"fastadaad: {line}: delete the folder\n")
    monkeypatch.setattr(trainer_module.Trainer, "train", lambda *arguments: [][0])
    with pytest.raises(IndexError):
        run("train", "tiny")


def test_an_interrupted_command_ends_with_exit_code_130(run, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module, "Trainer", interrupt)
    code, _, err = run("train", "tiny")
    assert code == 130
    assert err.count("\n") == 1


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS)], ids=lambda words: "".join(words) or "fastadaad"
)
def test_help_fits_a_screen_and_gives_an_example(run, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run(*command, "--help")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) <= (24 if command else 11 + len(COMMANDS))  # the list of commands has a line for each
    assert max(map(len, lines)) <= columns
    assert "example: fastadaad " in out


def test_the_examples_of_the_help_are_commands_that_parse(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in COMMANDS:
        example = run(name, "--help")[1].split("example: fastadaad ")[1]
        assert cli.parse(example.split()).command == name


@pytest.mark.slow
def test_python_m_fastadaad_is_the_command():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastadaad", "train", "dem"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_bare_call_prints_the_help(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 0
    assert "fastadaad train demo" in capsys.readouterr().out
