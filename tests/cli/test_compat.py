"""compat: translation of the flags of the AdaAD authors' program, and a run of the result."""

import csv
import json
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastadaad import cli, methods, recipes
from fastadaad.cli.authors_program import DEFAULTS, OPTIONS, SETTINGS, translate
from fastadaad.cli.compat import FLAGS, REMEDIES
from fastadaad.config_io import override
from fastadaad.data import datasets
from fastadaad.data.dataset import Dataset
from fastadaad.data.datasets.source import Source
from fastadaad.methods.options import MethodOptions
from fastadaad.models import MODEL_NAMES, load_model
from fastadaad.models.weights_writing import save_weights
from fastadaad.run_config import RunConfig

LTD = "teacher_models/CIFAR10/wideresnet34_20/Chen2021LTD_34_20.pt"
MADRY = (
    "teacher_models/CIFAR10/wideresnet34_10/Madry-eps(0.031)-step_eps(0.008)-num_steps(10)-bs(128)-lr_max(0.1)-"
    "lr_sche(piecewise)-total_epochs(110)/best_PGD10_acc_model.pth"
)
LTD_100 = "teacher_models/CIFAR100/wideresnet34_10/Chen2021LTD.pt"


def translated(line: str) -> tuple[str, RunConfig, list[str]]:
    """Returns the words of the train command, its configuration, and the flags without effect."""
    arguments = cli.parse(["compat", *shlex.split(line)])
    given = {flag: getattr(arguments, flag) for flag in (*FLAGS, "warmup_lr") if getattr(arguments, flag) is not None}
    words, without_effect = translate(given, arguments.overrides)
    train = cli.parse(["train", *words])
    return shlex.join(words), override(recipes.get(train.recipe, method=train.method), train.overrides), without_effect


def setting(config: RunConfig, name: str) -> Any:
    value = asdict(config)
    for part in name.split("."):
        value = value[part]
    return value


def equal(value: Any, expected: Any) -> bool:
    return value == expected or (isinstance(expected, float) and value == pytest.approx(expected))


PROGRAM_DEFAULTS = {
    "recipe": "cifar10-rn18", "data.name": "cifar10", "data.batch_size": 128, "student.name": "resnet18",
    "inner.threat_model.epsilon": 16 / 255, "inner.threat_model.norm": "linf", "inner.step_size": 4 / 255,
    "inner.num_steps": 10, "optim.optimizer": "sgd", "optim.epochs": 200, "optim.learning_rate": 0.1,
    "optim.momentum": 0.9, "optim.weight_decay": 5e-4, "optim.schedule": "piecewise", "optim.milestones": (0.5, 0.75),
    "optim.warmup": 0.0, "seed": 42, "device": "auto", "evaluation.threat_model.epsilon": 8 / 255,
}  # fmt: skip

# A command of the program, and the settings that differ from PROGRAM_DEFAULTS.
COMMANDS = {
    "": {
        "method": "pgd-at", "inner.start": "gaussian-clipped",
        "method_options": {"statistics": ("adversarial", "natural")},
    },
    "--method Plain_Clean": {
        "method": "pgd-at", "inner.threat_model.epsilon": 0, "inner.step_size": 0, "inner.num_steps": 1,
        "method_options": {"statistics": ("adversarial",)},
    },
    "--method AdaAD --teacher_model Chen2021LTD_WRD34_20 --epsilon 8 --step_size 2": {
        "method": "adaad", "method_options": {"kl_reduction": "mean"}, "teacher.name": "wrn-34-20",
        "teacher.checkpoint": LTD, "inner.threat_model.epsilon": 8 / 255, "inner.step_size": 2 / 255,
        "inner.start": None,
    },
    "--method AdaAD --AdaAD_alpha 0.8 --teacher_model wideresnet34_10 teacher.checkpoint=mine.pth": {
        "method": "adaad", "method_options": {"kl_reduction": "mean", "adversarial_weight": 0.8},
        "teacher.name": "wrn-34-10", "teacher.checkpoint": "mine.pth",
    },
    "--method AdaAD_with_IAD1 --IAD_begin 30 --IAD_alpha 0.9 --IAD_beta 0.2 --temp 20 --gpu_id 3": {
        "method": "adaiad", "device": "cuda:3",
        "method_options": {
            "introspection_begin": 30, "teacher_weight": 0.9, "introspection_power": 0.2, "temperature": 20,
            "statistics": ("natural", "adversarial", "natural-introspective", "natural"),
        },
    },
    "--dataset CIFAR100 --model mobilenetV2 --method AdaAD --teacher_model Chen2021WRN34_10 --seed 7": {
        "recipe": "cifar100-mnv2", "data.name": "cifar100", "student.name": "mobilenet-v2", "method": "adaad",
        "method_options": {"kl_reduction": "batchmean"}, "teacher.name": "wrn-34-10", "teacher.checkpoint": LTD_100,
        "seed": 7,
    },
    "--dataset TinyImageNet --model wideresnet28_10 --method RSLAD --teacher_model t.safetensors data.root=DATA": {
        "recipe": "tiny-imagenet-rn18", "data.name": "tiny-imagenet", "data.root": "DATA", "method": "rslad",
        "student.name": "wrn-28-10", "teacher.checkpoint": "t.safetensors", "optim.weight_decay": 2e-4,
        "method_options": {"statistics": ("adversarial", "natural"), "kl_reduction": "mean", "loss_scale": 10.0},
    },
    "--method AdaAD --model vgg16 --optim Adam --lr_max 0.001 evaluation.attacks=natural,pgd10": {
        "method": "adaad", "student.name": "vgg16", "optim.optimizer": "adam", "optim.learning_rate": 0.001,
        "teacher.name": "wrn-34-10", "teacher.checkpoint": MADRY, "evaluation.attacks": ("natural", "pgd10"),
    },
    "--method ARD --teacher_model t.pt --weight_decay 1e-3": {
        "method": "ard", "optim.weight_decay": 1e-3, "inner.start": "uniform-unclipped", "inner.student_eval": False,
        "method_options": {"statistics": ("adversarial", "natural"), "kl_reduction": "mean"},
    },
    "--epochs 110 --bs 64 --lr_max 0.05 --momentum 0.8 --weight_decay 2e-4 --num-steps 7": {
        "method": "pgd-at", "optim.epochs": 110, "data.batch_size": 64, "optim.learning_rate": 0.05,
        "optim.momentum": 0.8, "optim.weight_decay": 2e-4, "inner.num_steps": 7,
        "optim.milestones": (100 / 110, 105 / 110),
    },
    "--epochs 60 --lr_schedule cosine --warmup_lr": {
        "method": "pgd-at", "optim.epochs": 60, "optim.schedule": "cosine", "optim.milestones": (),
        "optim.warmup": 0.25,
    },
    "--lr_schedule constant --warmup_lr --warmup_lr_epochs 10 optim.warmup=0 log_every=5": {
        "method": "pgd-at", "optim.schedule": "constant", "optim.milestones": (), "optim.warmup": 0.0, "log_every": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_becomes_its_settings(line):
    _, config, _ = translated(line)
    expected = PROGRAM_DEFAULTS | COMMANDS[line]
    found = {name: setting(config, name) for name in expected}
    assert {name: value for name, value in found.items() if not equal(value, expected[name])} == {}


@pytest.mark.parametrize(
    ("text", "epsilon"), [("8", 8 / 255), ("8/255", 8 / 255), ("0.031", 0.031), ("1", 1 / 255), ("16", 16 / 255)]
)
def test_integer_radii_are_in_0_to_255_and_others_in_0_to_1(text, epsilon):
    _, config, _ = translated(f"--epsilon {text} --step_size 1/255")
    assert config.inner.threat_model.epsilon == pytest.approx(epsilon, rel=1e-12)
    _, config, _ = translated(f"--epsilon 0.5 --step_size {text}")
    assert config.inner.step_size == pytest.approx(epsilon, rel=1e-12)


SPELLINGS = {
    "dataset": {"cifar10": ["CIFAR10", "cifar10", "CIFAR-10"], "tiny-imagenet": ["TinyImageNet", "Tiny_Image"]},
    "method": {
        "adaad": ["AdaAD", "adaad"], "adaiad": ["AdaIAD", "AdaAD_with_IAD1"], "pgd-at": ["PGD-AT", "PGD_AT", "pgdat"],
        "adaad+igdm": ["AdaAD+IGDM"],
    } | {name: [name.upper()] for name in methods.METHODS},
    "model": {
        "mobilenet-v2": ["mobilenet_V2", "mobilenetV2", "MobileNet-V2"], "resnet18": ["resnet18", "ResNet18"],
        "wrn-34-10": ["wideresnet34_10", "WRN-34-10", "wrn34_10"], "timm/resnet10t": ["timm/resnet10t"],
        "cnn-4-s1": ["cnn-4-s1"],
    } | {name: [name] for name in MODEL_NAMES},
}  # fmt: skip
NAMES = {"dataset": "data.name", "method": "method", "model": "student.name"}


@pytest.mark.parametrize("flag", SPELLINGS)
def test_names_are_understood_in_common_spellings(flag):
    for name, spellings in SPELLINGS[flag].items():
        for spelling in spellings:
            _, config, _ = translated(f"--{flag} {spelling} teacher.checkpoint=FILE")
            assert setting(config, NAMES[flag]) == name, spelling


@pytest.mark.parametrize("name", ["t.pth.tar", "runs/t.ckpt", "t.bin", "T.SAFETENSORS", "t.pt", "a.b/t.PTH"])
def test_a_teacher_with_the_suffix_of_weights_is_a_file(name):
    _, config, _ = translated(f"--method RSLAD --teacher_model {name}")
    assert config.teacher.checkpoint == name


def test_a_teacher_file_of_another_network_is_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "t.safetensors", load_model("wrn-10-1"))
    line = "--method AdaAD --teacher_model t.safetensors"
    assert translated(line)[1].teacher.name == "wrn-10-1"
    assert translated(f"{line} teacher.name=resnet18")[1].teacher.name == "resnet18"
    shipped = translated("--dataset digits --method AdaAD --teacher_model shipped:demo-teacher")[1].teacher
    assert shipped.name == "cnn-72-s1"  # cnn-72 has the same weights: the recipe decides


def test_the_programs_data_folder_is_looked_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert translated("")[1].data.root is None
    (tmp_path / "data" / "CIFAR10" / "cifar-10-batches-py").mkdir(parents=True)
    assert translated("")[1].data.root == "data/CIFAR10"
    assert translated("data.root=DATA")[1].data.root == "DATA"
    assert translated("--dataset CIFAR100")[1].data.root is None


def test_a_gpu_that_this_machine_lacks_is_replaced_by_the_cpu_in_one_line(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = run("compat --gpu_id 0 --print-config")
    assert code == 0
    assert json.loads(out)["device"] == "auto"
    assert err.splitlines()[0] == "--gpu_id 0: this machine has no GPU that torch can use, so the run is on the CPU"


def test_the_printed_command_has_each_difference_from_the_recipe_once():
    words, _, _ = translated("--method AdaAD --teacher_model Chen2021LTD_WRN34_20 --epochs 200 --bs 128 seed=3")
    assert words == (
        "cifar10-rn18 --method adaad inner.threat_model.epsilon=16/255 inner.step_size=4/255 "
        f"teacher.checkpoint={LTD} seed=3"
    )


def test_flags_without_effect_on_a_method_are_named():
    _, config, without_effect = translated("--method RSLAD --temp 20 --AdaAD_alpha 1.0 --IAD_begin 60")
    assert without_effect == ["AdaAD_alpha", "temp", "IAD_begin"]
    assert config.method_options == {"statistics": ("adversarial", "natural"), "kl_reduction": "mean"}
    assert translated("--optim Adam --momentum 0.5")[2] == ["momentum"]
    assert translated("--optim Adam --momentum 0.5")[1].optim.momentum == 0.9
    assert translated("--method Plain_Madry --teacher_model wideresnet34_10")[2] == ["teacher_model"]
    assert translated("--method AdaIAD --temp 20 --teacher_model wideresnet34_10")[2] == []


def test_the_programs_defaults_for_its_losses_equal_method_options():
    """Allows compat to leave out the options that the command line does not have."""
    program = {"AdaAD_alpha": 1.0, "temp": 30.0, "IAD_begin": 60, "IAD_alpha": 1.0, "IAD_beta": 0.1}
    assert {flag: getattr(MethodOptions(), name) for flag, (name, _) in OPTIONS.items()} == program


def test_each_flag_is_handled_in_one_place():
    by_name = {"dataset", "model", "method", "teacher_model", "optim", "lr_schedule", "warmup_lr_epochs"}
    assert set(FLAGS) == by_name | set(SETTINGS) | set(OPTIONS)
    assert set(DEFAULTS) <= set(FLAGS)
    assert not set(FLAGS) & set(REMEDIES)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Returns run(line) -> exit code, stdout, stderr; changes to a temporary folder."""
    monkeypatch.chdir(tmp_path)

    def run_main(line: str) -> tuple[int, str, str]:
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as stop:  # argparse leaves this way
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_main


TINY = (
    "--dataset digits --model cnn-4-s1 --method AdaAD --teacher_model shipped:demo-teacher --epsilon 26 --step_size 13 "
    "--num_steps 2 --epochs 2 --bs 32 --lr_max 0.2 data.num_samples=600 evaluation.num_images=100 "
    'evaluation.attacks=["natural"] evaluation.validation_attack=pgd2'
)


@pytest.mark.slow
def test_compat_trains_as_the_command_that_it_prints(run):
    code, out, err = run(f"compat {TINY} --run-folder ours --teacher-check 50")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("fastadaad train ")]
    assert line.endswith("--run-folder ours --teacher-check 50")
    assert run(line.removeprefix("fastadaad ").replace("ours", "again"))[0] == 0
    losses = {}
    for folder in ("ours", "again"):
        with open(Path(folder, "metrics.csv"), newline="") as file:
            losses[folder] = [row["train_loss"] for row in csv.DictReader(file)]
    assert losses["ours"] == losses["again"]
    assert float(losses["ours"][-1]) < float(losses["ours"][0])
    weights, again = (load_file(Path(folder, "last.safetensors")) for folder in ("ours", "again"))
    assert all(torch.equal(weights[name], again[name]) for name in load_model("cnn-4-s1", in_channels=1).state_dict())
    code, out, _ = run(f"compat {TINY} --run-folder ours -r")
    assert code == 0
    assert "--resume" in out


def cifar_shaped(name: str, num_classes: int, source: Source) -> Dataset:
    """60 training and 20 test images of 32x32 pixels, whose class is their brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % num_classes
    images = torch.randint(0, 100, (80, 32, 32, 3), generator=generator) + 15 * (labels % 10).view(-1, 1, 1, 1)
    images = images.to(torch.uint8)
    return Dataset(
        name=name,
        train_images=images[:60],
        train_labels=labels[:60],
        test_images=images[60:],
        test_labels=labels[60:],
        class_names=tuple(map(str, range(num_classes))),
    )


# Each method and data set of the program's main.py, with its flags.
PROGRAM_RUNS = [
    "--method Plain_Madry --epsilon 8 --step_size 2 --gpu_id 0",
    "--method Plain_Clean --lr_schedule cosine",
    "--method AdaAD --teacher_model teacher.pth --epsilon 8 --step_size 2 --AdaAD_alpha 1.0",
    "--method AdaAD_with_IAD1 --teacher_model teacher.pth --IAD_begin 0 --IAD_alpha 1.0 --IAD_beta 0.1 --temp 30",
    "--dataset CIFAR100 --method AdaAD --teacher_model teacher.pth --optim Adam --lr_max 0.001",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("line", PROGRAM_RUNS)
def test_a_command_of_the_program_is_translated_trained_and_evaluated(run, tmp_path, monkeypatch, line):
    num_classes = 100 if "CIFAR100" in line else 10
    name = f"cifar{num_classes}"
    monkeypatch.setitem(datasets.DATASETS, name, partial(cifar_shaped, name, num_classes))
    torch.save({"net": load_model("rescnn-4", num_classes).state_dict()}, tmp_path / "teacher.pth")
    small = (
        "--model cnn-4 --num_steps 1 --epochs 1 --bs 20 data.validation_size=20 evaluation.attacks=natural,fgsm "
        "evaluation.validation_attack=natural --teacher-check 0 --run-folder run"
    )
    code, out, _ = run(f"compat {line} {small}")
    assert code == 0
    with open(tmp_path / "run" / "results.csv", newline="") as file:
        assert {row["attack"] for row in csv.DictReader(file)} == {"natural", "fgsm"}
    assert "fastadaad train" in out


def test_print_config_prints_only_settings_to_stdout_and_trains_nothing(run, tmp_path):
    code, out, err = run("compat --method RSLAD --temp 20 --epochs 5 --print-config --download teacher.checkpoint=T")
    assert code == 0
    config = json.loads(out)
    assert (config["optim"]["epochs"], config["method"], config["data"]["download"]) == (5, "rslad", True)
    assert err.splitlines()[0] == "--temp has no effect on this method"
    assert err.splitlines()[1].startswith("fastadaad train cifar10-rn18 --method rslad ")
    assert not list(tmp_path.iterdir())


MISTAKES = [
    ("--dataset MNIST", "--dataset MNIST is unknown: choose one of digits,"),
    ("--method ADAM", "--method ADAM is unknown: choose one of adaad,"),
    ("--method AdaAD+Foo", "unknown method 'adaad+foo'"),
    ("--model resnet19 --method Plain_Madry data.name=digits", "model 'resnet19' is unknown: did you mean resnet18"),
    ("--method AdaAD data.name=digits", "best_PGD10_acc_model.pth does not exist"),
    ("--optim Adagrad", "--optim Adagrad is unknown: choose one of sgd, adam"),
    ("--gpu_id 0,1", "--gpu_id is '0,1': give the number of one GPU"),
    ("--epsilon 300", "epsilon is"),
    ("--epsilon 8 --step_size 9", "step_size"),
    ("--epsilon eight", "'eight' is not a radius in pixel units"),
    ("--lr_schedule linear", "linear"),
    ("--warmup_lr --warmup_lr_epochs soon", "--warmup_lr_epochs is 'soon': give a number of 1 or more"),
    ("--epochs many", "optim.epochs"),
    ("--bs", "expected one argument"),
    ("--epochz 3", "unrecognized arguments: --epochz: did you mean --epochs?"),
    ("--stepsize 2", "unrecognized arguments: --stepsize: did you mean --step"),
    ("--warp_speed 9", "unrecognized arguments: --warp_speed"),
    ("optim.epoch=3", "unknown setting optim.epoch=3: did you mean optim.epochs?"),
    *[(f"--{flag} 1", f"--{flag} is not taken: {remedy}") for flag, remedy in REMEDIES.items()],
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_ends_with_one_line_and_exit_code_2(run, tmp_path, line, message):
    code, _, err = run(f"compat {line}")
    assert code == 2
    assert message in err
    assert err.startswith("fastadaad")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
