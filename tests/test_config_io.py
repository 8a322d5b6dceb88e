"""Overrides as people type them, saved configurations, and pixel units."""

import json
from dataclasses import asdict, replace

import pytest

from fastadaad import recipes
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.config_io import override, read_config
from fastadaad.units import parse_pixels

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


@pytest.mark.parametrize("text", ["", "8/0", "8//255", "-8/255", "8/255/2", "nan", "inf", "eight", "8/255px"])
def test_what_is_no_radius_is_refused(text):
    with pytest.raises(ValueError, match="is not a radius in pixel units: write it as 8/255"):
        parse_pixels(text)


def test_overrides_change_what_they_name_and_nothing_else():
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


def test_null_takes_a_setting_away_and_the_last_override_of_a_setting_counts():
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
        ("student.colour=red", "student.colour"),
        ("zzz=3", "unknown setting zzz=3"),
        ("optim.epochs", "write section.field=value"),
        ("optim.epochs=many", "optim.epochs.*many"),
        ("data.flip=maybe", "data.flip.*maybe"),
        ("seed=1.5", "seed.*1.5"),
        ("inner.threat_model.norm=l3", "norm.*l2.*l3"),
        ("inner.threat_model.epsilon=8", "epsilon is 8.*8/255"),
        ("inner.step_size=fast", "'fast'.*8/255"),
        ("inner.step_size=0.9", "more than twice epsilon"),
        ("teacher=null", "adaad needs a teacher"),
        ("method=pgd-at", "write --method pgd-at instead"),
        ("evaluation.attacks=[natural,rays]", "attack 'rays'"),
        ("method_options.beta=6", "option 'beta'"),
        ("teacher.policy=often", "teacher policy 'often'.*refreshed"),
        ("teacher.policy=refreshed(5)", r"'refreshed\(5\)' cannot be read: write exact"),
        ("teacher.policy=refreshed(every=0)", "every is 0"),
        ("teacher.policy=refreshed(top=9)", "top belongs to linearized"),
        ("teacher.policy.every=8", "exact asks in every step"),
        ("precision.teacher=int8", "precision.teacher.*bf16"),
        ("layout=NHWC", "layout.*channels_last"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        override(DEMO, [text])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["exact", "refreshed", "refreshed(every=8)", "linearized(top=2,every=5)"])
def test_a_teacher_policy_is_set_by_its_text_and_read_back_from_the_saved_file(tmp_path, text):
    config = override(DEMO, [f"teacher.policy={text}"])
    assert config == replace(DEMO, teacher=replace(DEMO.teacher, policy=TeacherPolicy.parse(text)))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(config)))
    assert read_config(path) == config


def test_a_teacher_policys_settings_may_be_set_one_by_one_and_the_last_counts():
    overrides = ["teacher.policy=linearized(top=2,every=5)", "teacher.policy.every=4", "teacher.policy.top=1"]
    assert override(DEMO, overrides).teacher.policy == TeacherPolicy(kind="linearized", top=1, every=4)
    assert override(DEMO, [*overrides, "teacher.policy=refreshed"]).teacher.policy == TeacherPolicy(kind="refreshed")


def test_a_policy_is_refused_where_the_inner_loop_does_not_go_through_the_teacher():
    with pytest.raises(ValueError, match=r"inner loop of rslad.*teacher.policy=exact") as caught:
        override(recipes.get("demo", method="rslad"), ["teacher.policy=refreshed(every=8)"])
    assert "\n" not in str(caught.value)


def test_each_networks_precision_and_the_layout_are_set_for_themselves(tmp_path):
    config = override(DEMO, ["precision.teacher=bf16", "layout=channels_last"])
    assert config == replace(DEMO, precision=PrecisionConfig(teacher="bf16"), layout="channels_last")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(config)))
    assert read_config(path) == config


def test_a_file_saved_before_there_were_policies_means_what_it_meant(tmp_path):
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
    ],
)
def test_a_file_that_holds_no_configuration_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json does not hold a run's configuration") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config.json does not hold.*No such file"):
        read_config(tmp_path / "config.json")
