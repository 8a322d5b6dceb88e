"""Overrides from the command line, saved configurations, and pixel units."""

import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fastadaad import recipes
from fastadaad.config import PrecisionConfig, TeacherPolicy, parse_pixels
from fastadaad.config_io import override, read_config
from fastadaad.runtime.untrusted_files import CONFIG_BYTES

DEMO = recipes.get("demo")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 2 / 255 ", 2 / 255),
        ("0.031", 0.031),
        (".5/255", 0.5 / 255),
        ("1e-3", 0.001),
        (0.25, 0.25),
    ],
)
def test_pixel_units(text, value):
    assert parse_pixels(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "8/0", "8//255", "-8/255", "8/255/2", "nan", "inf", "eight", "8/255px", "1e400", "8/1e400", "1e308/1e-308"],
)
def test_an_invalid_radius_is_refused(text):
    with pytest.raises(ValueError, match="is not a radius in pixel units: write it as 8/255"):
        parse_pixels(text)


def test_overrides_change_the_named_settings_and_nothing_else():
    changed = override(
        DEMO,
        [
            "inner.threat_model.epsilon=8/255",
            "inner.step_size=2/255",
            "optim.epochs=3",
            "optim.learning_rate=1e-2",
            "teacher.checkpoint=some=file.pt",
            "evaluation.attacks=[natural,pgd5]",
            "method_options.kl_reduction=mean",
            "early_stop_epochs=4",
            "seed=7",
        ],
    )
    threat_model = replace(DEMO.inner.threat_model, epsilon=8 / 255)
    assert changed == replace(
        DEMO,
        inner=replace(DEMO.inner, threat_model=threat_model, step_size=2 / 255),
        optim=replace(DEMO.optim, epochs=3, learning_rate=0.01),
        teacher=replace(DEMO.teacher, checkpoint="some=file.pt"),
        evaluation=replace(DEMO.evaluation, attacks=("natural", "pgd5")),
        method_options=DEMO.method_options | {"kl_reduction": "mean"},
        early_stop_epochs=4,
        seed=7,
    )


def test_null_removes_a_setting_and_the_last_override_of_a_setting_counts():
    demo = recipes.get("demo", method="pgd-at")
    changed = override(demo, ["teacher=null", "optim.ema_decay=0", "seed=1", "seed=2"])
    assert changed == replace(demo, teacher=None, optim=replace(demo.optim, ema_decay=0.0), seed=2)
    assert override(DEMO, []) == DEMO


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.epoch=3", "unknown setting optim.epoch=3: did you mean optim.epochs"),
        ("optim.learning_rat=3", "did you mean optim.learning_rate"),
        ("inner.epsilon=8/255", "did you mean inner.threat_model.epsilon"),
        ("epochs=3", "did you mean optim.epochs"),
        ("student.colour=red", "unknown setting student.colour=red: did you mean"),
        ("zzz=3", "unknown setting zzz=3: fastadaad train RECIPE --print-config shows all settings"),
        ("optim.epochs", "write section.field=value"),
        ("optim.epochs=many", "^optim.epochs is 'many': give a whole number$"),
        ("optim.epochs=", "^optim.epochs is '': give a whole number$"),
        ("data.flip=maybe", "^data.flip is 'maybe': give true or false$"),
        ("seed=1.5", "^seed is '1.5': give a whole number$"),
        (f"seed={2**63}", f"^seed is '{2**63}': give a whole number$"),
        ("seed=" + "9" * 5000, r"^seed is '9{12}\.{3}9{13}': give a whole number$"),
        ("data.num_samples=few", "^data.num_samples is 'few': give a whole number or null$"),
        ("optim.learning_rate=inf", r"^optim.learning_rate is 'inf': give a finite number$"),
        ("optim.learning_rate=nan", "^optim.learning_rate is 'nan': give a finite number$"),
        ("optim.learning_rate=1" + 400 * "0", r"^optim.learning_rate is '10*\.{3}0*': give a finite number$"),
        ("optim.milestones=half", r"^optim.milestones is 'half': give a list \[a finite number, ...\]$"),
        ("seed=null", "seed is null: give a value, or leave it out"),
        ("data.padding=~", "data.padding is null"),
        ("optim=null", "optim is null"),
        ("method_options.adversarial_weight=null", "method_options.adversarial_weight is null"),
        ("method_options.adversarial_weight=half", "adversarial_weight is 'half': give a number"),
        ("method_options.adversarial_weight=[1]", r"adversarial_weight is \('1',\): give a number"),
        ("method_options.adversarial_weight=true", "adversarial_weight is True: give a number"),
        ("method_options.clean_statistics=1", "clean_statistics is 1: give true or false"),
        ("method_options.kl_reduction=3", "kl_reduction is 3: give a string"),
        ("inner.threat_model.norm=l3", "^inner.threat_model.norm is 'l3': give linf or l2$"),
        ("inner.start=zero", "^inner.start is 'zero': give gaussian, gaussian-clipped, .* or natural or null$"),
        ("inner.threat_model.epsilon=8", "epsilon is 8.*8/255"),
        ("inner.step_size=fast", "'fast'.*8/255"),
        ("inner.step_size=0.9", "more than epsilon.*inner.step_size"),
        ("teacher=null", "adaad needs a teacher"),
        ("method=pgd-at", "write --method pgd-at instead"),
        ("evaluation.attacks=[natural,rays]", "attack 'rays'"),
        ("method_options.beta=6", "option 'beta'"),
        ("teacher.policy=often", "teacher policy 'often'.*refreshed"),
        ("teacher.policy=refreshed(5)", r"'refreshed\(5\)' cannot be read: write exact"),
        ("teacher.policy=refreshed(every=0)", "every is 0"),
        ("teacher.policy=refreshed(top=9)", "top belongs to linearized"),
        ("teacher.policy.every=8", "exact queries the teacher in every step"),
        ("precision.teacher=int8", "^precision.teacher is 'int8': give auto, fp32, tf32, bf16 or fp16$"),
        ("layout=NHWC", "layout.*channels_last"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        override(DEMO, [text])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["exact", "refreshed", "refreshed(every=8)", "linearized(top=2,every=5)"])
def test_a_teacher_policy_is_set_by_a_string_and_read_back_from_the_saved_file(tmp_path, text):
    config = override(DEMO, [f"teacher.policy={text}"])
    assert config == replace(DEMO, teacher=replace(DEMO.teacher, policy=TeacherPolicy.parse(text)))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(config)))
    assert read_config(path) == config


def test_settings_of_a_teacher_policy_may_be_set_one_by_one_and_the_last_counts():
    overrides = ["teacher.policy=linearized(top=2,every=5)", "teacher.policy.every=4", "teacher.policy.top=1"]
    assert override(DEMO, overrides).teacher.policy == TeacherPolicy(kind="linearized", top=1, every=4)
    assert override(DEMO, [*overrides, "teacher.policy=refreshed"]).teacher.policy == TeacherPolicy(kind="refreshed")


def test_a_policy_is_refused_if_the_inner_loop_does_not_go_through_the_teacher():
    with pytest.raises(ValueError, match=r"inner loop of rslad.*teacher.policy=exact") as caught:
        override(recipes.get("demo", method="rslad"), ["teacher.policy=refreshed(every=8)"])
    assert "\n" not in str(caught.value)


def test_precision_of_a_network_and_layout_are_set_one_by_one(tmp_path):
    config = override(DEMO, ["precision.teacher=bf16", "layout=channels_last"])
    assert config == replace(DEMO, precision=PrecisionConfig(teacher="bf16"), layout="channels_last")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(config)))
    assert read_config(path) == config


def test_a_file_without_the_settings_of_later_versions_is_read_with_their_defaults(tmp_path):
    saved = asdict(DEMO)
    for name in ("precision", "layout"):
        del saved[name]
    del saved["teacher"]["policy"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved))
    assert read_config(path) == DEMO


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_saved_configuration_reads_back_the_same(tmp_path, name):
    config = override(recipes.get(name), ["inner.threat_model.epsilon=1/3", "seed=3"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(config)))
    assert read_config(path) == config


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe\x00",
        json.dumps(asdict(DEMO)).encode()[:-9],
        json.dumps(asdict(DEMO) | {"colour": "red"}).encode(),
        json.dumps(asdict(DEMO) | {"log_every": 0}).encode(),
        json.dumps(asdict(DEMO) | {"mode": "fast"}).encode(),
        json.dumps(asdict(DEMO) | {"rank_timeout_s": 10**400}).encode(),
        json.dumps(asdict(DEMO) | {"inner": asdict(DEMO.inner) | {"lower": -math.inf}}).encode(),
    ],
)
def test_an_invalid_configuration_file_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json does not hold a run's configuration: ") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; give the folder of another run, or repair this file")


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=f"^{path} does not hold a run's configuration: No such file or directory; "):
        read_config(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_folders_pipes_and_devices_are_refused_unread(tmp_path, make):
    """Reading would wait for a pipe for ever, and never reach the end of a device."""
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(ValueError, match="it is no file, but a folder, a pipe or a device"):
        read_config(path)


CODE = "planted_module.Planted"


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Plants a module that logs its import and the calls of its class; returns the path of the log."""
    log = tmp_path / "ran"
    note = f"open({str(log)!r}, 'a').write"
    (tmp_path / "planted_module.py").write_text(
        f"{note}('imported')\n\nclass Planted:\n    def __init__(self, **options):\n        {note}('called')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield log
    sys.modules.pop("planted_module", None)


def test_the_planted_module_logs_when_it_runs(ran):
    import planted_module

    planted_module.Planted()
    assert ran.read_text() == "importedcalled"


SPEC = {"class_path": CODE, "init_args": {}}
BOMB = "{a: &a [x,x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], c: [*b,*b,*b,*b,*b,*b,*b,*b,*b]}"
TAG = "!!python/object/apply:planted_module.Planted []"
SECTIONS = ["data", "student", "teacher", "method_options", "inner", "inner.threat_model", "optim"]


@pytest.mark.parametrize(
    "text", [CODE, json.dumps(SPEC), TAG, "data.json", BOMB], ids=["name", "spec", "tag", "file", "bomb"]
)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_cannot_be_set_to_a_value(ran, monkeypatch, section, text):
    """Tries the name of a file, too."""
    monkeypatch.chdir(ran.parent)
    (ran.parent / "data.json").write_text('{"name": "cifar10"}')
    with pytest.raises(ValueError, match=f"^{section} is a section: set its fields one by one"):
        override(DEMO, [f"{section}={text}"])
    assert not ran.exists()


@pytest.mark.parametrize("field", ["class_path", "init_args.x", "__class__", "help", "dict_kwargs.x"])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_takes_no_class(ran, section, field):
    """Checks both messages: fields of method_options are refused by the method."""
    with pytest.raises(ValueError, match=f"unknown setting {section}.{field}=|has no option '{field}'"):
        override(DEMO, [f"{section}.{field}={CODE}"])
    assert not ran.exists()


# The last value would take a regular expression with backtracking 2**100 attempts.
COMPOSED = [
    *(json.dumps(SPEC), f" \t{json.dumps(SPEC)}", f"[\t{json.dumps(SPEC)}]", TAG, f"[{TAG}]", BOMB, "[" * 100_000),
    f"[{100 * ' ,'}!]",
]


@pytest.mark.parametrize(
    "value", [*COMPOSED, "&a 3", "*a", "- 3", "a: b", "[[1]]", "!!int 3"], ids=range(len(COMPOSED) + 6)
)
@pytest.mark.parametrize("name", ["seed", "optim.milestones", "method_options.kl_reduction", "evaluation.attacks"])
def test_a_composed_value_is_refused(ran, tmp_path, name, value):
    with pytest.raises(ValueError, match=r"\w") as caught:
        override(DEMO, [f"{name}={value}"])
    assert len(str(caught.value)) < 1100
    assert "\n" not in str(caught.value)
    for planted in (value, [value], [[3]], [{"class_path": CODE}]):
        with pytest.raises(ValueError, match=r"config.json does not hold a run's configuration: "):
            read_config(saved_with(tmp_path, name, planted))
    assert not ran.exists()


@pytest.mark.parametrize("value", COMPOSED, ids=range(len(COMPOSED)))
@pytest.mark.parametrize("name", ["data.root", "teacher.checkpoint"])
def test_a_string_setting_is_taken_verbatim_and_other_types_are_refused(ran, tmp_path, name, value):
    section, field = name.split(".")
    assert asdict(override(DEMO, [f"{name}={value}"]))[section][field] == value
    assert asdict(read_config(saved_with(tmp_path, name, value)))[section][field] == value
    for planted in ([value], [[3]], {"class_path": CODE}, 3, True):
        with pytest.raises(ValueError, match=f"configuration: {name} is .*: give a string or null; "):
            read_config(saved_with(tmp_path, name, planted))
    assert not ran.exists()


def saved_with(folder: Path, name: str, value: object) -> Path:
    """Writes the demo's configuration with another value of one setting; returns the path."""
    saved = asdict(DEMO)
    *sections, field = name.split(".")
    (saved[sections[0]] if sections else saved)[field] = value
    path = folder / "config.json"
    path.write_text(json.dumps(saved))
    return path


@pytest.mark.parametrize("value", [SPEC, {"kl_reduction": SPEC}, CODE, [SPEC], "data.json", [CODE]], ids=str)
@pytest.mark.parametrize("section", ["data", "student", "teacher", "method_options", "optim"])
def test_a_saved_configuration_that_names_code_is_refused(ran, monkeypatch, section, value):
    monkeypatch.chdir(ran.parent)
    (ran.parent / "data.json").write_text('{"name": "cifar10"}')
    path = ran.parent / "config.json"
    path.write_text(json.dumps(asdict(DEMO) | {section: value}))
    with pytest.raises(ValueError, match=r"config.json does not hold .*(is a section|unknown setting|give )") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize("text", ["/a b/ünï[1]{2}.pt", "shipped:demo-teacher", "c:\\a", "~/a#b", "-x", "a=b & !c *"])
def test_special_characters_of_a_string_are_kept(tmp_path, text):
    config = override(DEMO, [f"data.root={text}", f"teacher.checkpoint={text}"])
    assert (config.data.root, config.teacher.checkpoint) == (text, text)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(config)))
    assert read_config(path) == config


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, '{"seed": ' + "9" * 5000 + "}"], ids=["[", "{", "9"]
)
def test_a_deep_or_long_file_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config.json does not hold a run's configuration: "):
        read_config(path)


def test_a_file_above_the_size_limit_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(DEMO)) + " " * CONFIG_BYTES)
    with pytest.raises(ValueError, match=rf"it has \d+ bytes and at most {CONFIG_BYTES} are read"):
        read_config(path)
