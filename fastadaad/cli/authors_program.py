"""Translates the AdaAD authors' command line into a recipe and overrides.

A flag that is not given has the program's default, not the recipe's: among others a radius of 16 and steps of 4 in
0..255. For other methods than the program's own, passes, scale and weight decay are the recipe's. Two things of the
program have no setting here: it trains on all images and chooses the best epoch on the test set, and its learning rate
changes from epoch to epoch.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fastadaad import methods, recipes
from fastadaad.config_io import override
from fastadaad.models import canonical_name
from fastadaad.models.shipped import PREFIX, checkpoint_path
from fastadaad.run_config import RunConfig

DEFAULTS = {
    "dataset": "CIFAR10", "model": "resnet18", "method": "Plain_Madry", "teacher_model": "wideresnet34_10",
    "epsilon": "16", "num_steps": "10", "step_size": "4", "epochs": "200", "bs": "128", "optim": "SGD",
    "lr_max": "0.1", "lr_schedule": "piecewise", "seed": "42", "warmup_lr_epochs": "15",
}  # fmt: skip

# Names of the program, in the form of _plain(), that differ from ours; our names are understood too.
DATASETS = {"tinyimage": "tiny-imagenet"}
METHODS = {"plainmadry": "pgd-at", "plainclean": "pgd-at", "adaadwithiad1": "adaiad"}
# Settings that turn our row into the program's method. Its Madry_PGD starts as its AdaAD does, and clips the start.
METHOD_SETTINGS = {
    "plainmadry": {"inner.start": "gaussian-clipped"},
    "plainclean": {
        "inner.threat_model.epsilon": "0", "inner.step_size": "0", "inner.num_steps": "1",
        "method_options.statistics": "[adversarial]",
    },
}  # fmt: skip
OPTIMIZERS = {"sgd": "sgd", "adam": "adam"}
# Network and file of the teachers, by their names in the program and in RobustBench; the file is the program's path.
_MADRY = (
    "wrn-34-10",
    "teacher_models/CIFAR10/wideresnet34_10/Madry-eps(0.031)-step_eps(0.008)-num_steps(10)-bs(128)-lr_max(0.1)-"
    "lr_sche(piecewise)-total_epochs(110)/best_PGD10_acc_model.pth",
)
_WRN_34_20 = ("wrn-34-20", "teacher_models/CIFAR10/wideresnet34_20/Chen2021LTD_34_20.pt")
_WRN_34_10 = ("wrn-34-10", "teacher_models/CIFAR100/wideresnet34_10/Chen2021LTD.pt")
TEACHERS = {
    "wideresnet3410": _MADRY,
    "chen2021ltdwrd3420": _WRN_34_20,
    "chen2021ltdwrn3420": _WRN_34_20,
    "chen2021wrn3410": _WRN_34_10,
    "chen2021ltdwrn3410": _WRN_34_10,
}
# Folders in which the program looks for its data, relative to the present one, and a name that each then holds.
DATA_FOLDERS = {
    "cifar10": ("data/CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("data/CIFAR100", "cifar-100-python"),
}
WEIGHT_FILES = (".pt", ".pth", ".pth.tar", ".pt.tar", ".ckpt", ".bin", ".safetensors")
# Fractions of the run at which the piecewise schedule divides the learning rate, by the number of epochs; the program
# knows 110 and 200 epochs only.
MILESTONES = {"110": [100 / 110, 105 / 110]}
OTHER_MILESTONES = [0.5, 0.75]


class TrainCommand(NamedTuple):
    """Words after `fastadaad train`, and the given flags that have no effect."""

    words: list[str]
    without_effect: list[str]


def translate(given: Mapping[str, str], overrides: Sequence[str] = ()) -> TrainCommand:
    """Translates the program's flags into words after `fastadaad train`.

    Args:
        given: Flags of the program, by name without dashes.
        overrides: Settings as section.field=value, which have the last word.

    Returns:
        The words, without settings that the recipe has already, and the flags without effect.

    Raises:
        ValueError: A value has no meaning here.
    """
    flags = {**DEFAULTS, **given}
    data = _known("dataset", flags["dataset"], [recipe().data.name for recipe in recipes.RECIPES.values()], DATASETS)
    base, plus, addition = flags["method"].partition("+")
    method = _known("method", base, methods.METHODS, METHODS) + plus + addition.lower()
    student = canonical_name(flags["model"])
    recipe = _recipe(data, student)
    settings = {"student.name": student} | _data_root(data)
    settings |= _optimizer(flags["optim"])
    for flag, (name, value) in SETTINGS.items():
        if flag in flags and not (flag == "momentum" and settings["optim.optimizer"] == "adam"):
            settings[name] = value(flags[flag])
    settings |= _schedule(flags) | METHOD_SETTINGS.get(_plain(base), {})
    if methods.get(method).needs_teacher:
        is_named = any(text.startswith("teacher.name=") for text in overrides)
        settings |= _teacher(flags["teacher_model"], recipe, is_named=is_named)
    used = {flag: name for flag, (name, of_methods) in OPTIONS.items() if method.partition("+")[0] in of_methods}
    settings |= {f"method_options.{name}": given[flag] for flag, name in used.items() if flag in given}
    changed = _changes(recipes.get(recipe, method=method), settings, overrides)
    without_effect = [flag for flag in OPTIONS if flag in given and flag not in used]
    if "momentum" in given and settings["optim.optimizer"] == "adam":
        without_effect.append("momentum")
    if "teacher_model" in given and not methods.get(method).needs_teacher:
        without_effect.append("teacher_model")
    return TrainCommand([recipe, "--method", method, *changed, *overrides], without_effect)


def pixel_units(text: str) -> str:
    """Converts whole numbers, which are in 0..255 as in the program; 8/255 and 0.031 are in [0, 1] already."""
    return f"{text}/255" if re.fullmatch(r"[0-9]+", text) else text


def device_name(text: str) -> str:
    """Returns the device name of one GPU. Raises ValueError for anything but a number."""
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError(f"--gpu_id is {text!r}: give the number of one GPU, or device=cpu instead")
    return f"cuda:{text}"


# Flag -> setting, and the conversion of its value.
SETTINGS: dict[str, tuple[str, Callable[[str], str]]] = {
    "epsilon": ("inner.threat_model.epsilon", pixel_units),
    "step_size": ("inner.step_size", pixel_units),
    "num_steps": ("inner.num_steps", str),
    "epochs": ("optim.epochs", str),
    "bs": ("data.batch_size", str),
    "lr_max": ("optim.learning_rate", str),
    "momentum": ("optim.momentum", str),
    "weight_decay": ("optim.weight_decay", str),
    "seed": ("seed", str),
    "gpu_id": ("device", device_name),
}
# Flag -> option of a loss, and the methods it is for. The program's defaults are those of our rows.
OPTIONS = {
    "AdaAD_alpha": ("adversarial_weight", ("adaad",)),
    "temp": ("temperature", ("adaiad", "iad", "ard", "akd")),
    "IAD_begin": ("introspection_begin", ("adaiad", "iad")),
    "IAD_alpha": ("teacher_weight", ("adaiad", "iad")),
    "IAD_beta": ("introspection_power", ("adaiad", "iad")),
}


def _plain(name: str) -> str:
    return re.sub(r"[_-]", "", name.lower())


def _known(flag: str, text: str, names: Iterable[str], aliases: Mapping[str, str]) -> str:
    """Returns our name for a name in the program's spelling or in ours."""
    known = {**{_plain(name): name for name in names}, **aliases}
    if _plain(text) not in known:
        raise ValueError(f"--{flag} {text} is unknown: choose one of {', '.join(dict.fromkeys(known.values()))}")
    return known[_plain(text)]


def _data_root(data: str) -> dict[str, str]:
    """Setting of the data folder, if the program would find its data here."""
    folder, content = DATA_FOLDERS.get(data, ("", ""))
    return {"data.root": folder} if folder and (Path(folder) / content).is_dir() else {}


def _teacher(text: str, recipe: str, *, is_named: bool) -> dict[str, str]:
    """Settings of the teacher: network and file of a known name, a file of weights, or a network.

    The network of a file is recognised by its weights, unless `is_named`, a setting already names it.
    """
    teacher = recipes.get(recipe).teacher
    if _plain(text) in TEACHERS and (TEACHERS[_plain(text)] != _MADRY or recipes.get(recipe).data.name == "cifar10"):
        return dict(zip(("teacher.name", "teacher.checkpoint"), TEACHERS[_plain(text)], strict=True))
    if not text.startswith(PREFIX) and not text.lower().endswith(WEIGHT_FILES):
        return {"teacher.name": canonical_name(text)}
    network = {} if is_named else _network_of(checkpoint_path(text), None if teacher is None else teacher.name)
    return {"teacher.checkpoint": text} | network


def _network_of(path: Path, expected: str | None) -> dict[str, str]:
    """Setting of the network of a weights file, if the file is here and its network is another than `expected`."""
    if not path.is_file():
        return {}
    from fastadaad.models.recognition import recognize
    from fastadaad.models.weights_reading import read_state_dict

    names = [network.name for network in recognize(read_state_dict(path))]
    return {"teacher.name": names[0]} if names and expected not in names else {}


def _optimizer(text: str) -> dict[str, str]:
    return {"optim.optimizer": _known("optim", text, OPTIMIZERS, {})}


def _schedule(flags: Mapping[str, str]) -> dict[str, str]:
    """Settings of the learning-rate schedule."""
    milestones = MILESTONES.get(flags["epochs"], OTHER_MILESTONES) if flags["lr_schedule"] == "piecewise" else []
    settings = {"optim.schedule": flags["lr_schedule"], "optim.milestones": json.dumps(milestones)}
    if "warmup_lr" in flags:
        settings["optim.warmup"] = repr(_count(flags, "warmup_lr_epochs") / _count(flags, "epochs"))
    return settings


def _count(flags: Mapping[str, str], flag: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", flags[flag]):
        raise ValueError(f"--{flag} is {flags[flag]!r}: give a number of 1 or more")
    return int(flags[flag])


def _recipe(data: str, student: str) -> str:
    """Returns the recipe for this data set and student, or the first one for this data set."""
    configs = {name: recipe() for name, recipe in recipes.RECIPES.items()}
    of_data = [name for name, config in configs.items() if config.data.name == data]
    return next((name for name in of_data if configs[name].student.name == student), of_data[0])


def _changes(config: RunConfig, settings: Mapping[str, str], overrides: Sequence[str]) -> list[str]:
    """Returns the settings that change the recipe's config and that no override changes again."""
    words = {name: f"{name}={value}" for name, value in settings.items()}
    for override_ in overrides:
        words.pop(override_.partition("=")[0], None)
    changed = override(config, [*words.values(), *overrides])
    return [word for name, word in words.items() if _value(changed, name) != _value(config, name)]


def _value(config: RunConfig, name: str) -> Any:
    """Value of the setting section.field; None for an option that the recipe leaves to the method."""
    value: Any = asdict(config)
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
