"""Public names of the package: exports, imports without torch, and spellings of other libraries."""

import inspect
import subprocess
import sys
import typing

import pytest
import torch
from networks import images_and_labels, student_and_teacher

import fastadaad
from fastadaad import Distiller, InnerConfig, InnerMaximizer, PrecisionConfig, TeacherPolicy, ThreatModel
from fastadaad.cli import COMMANDS

RUN = """
import sys
from fastadaad.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["recipes"], ["methods"], *[[name, "--help"] for name in COMMANDS]],
    ids=" ".join,
)
def test_a_command_that_only_prints_does_not_import_torch(words):
    result = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


@pytest.mark.parametrize("module", ["fastadaad", "fastadaad.recipes", "fastadaad.config_io", "fastadaad.methods.table"])
def test_settings_are_imported_without_torch(module):
    """The number of modules stands for the time, which no test can measure on a busy machine."""
    program = f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "matplotlib"} & set(imported)
    assert len(imported) < 250


@pytest.mark.slow
def test_a_run_that_imports_torch_is_noticed():
    result = subprocess.run([sys.executable, "-c", RUN, "teachers"], capture_output=True, text=True)
    assert "torch was imported" in result.stderr


def test_every_exported_name_exists_and_is_listed():
    for name in fastadaad.__all__:
        assert getattr(fastadaad, name) is not None
    assert set(fastadaad.__all__) <= set(dir(fastadaad))
    with pytest.raises(AttributeError, match="Distillery"):
        _ = fastadaad.Distillery


@pytest.mark.parametrize(
    "function",
    [
        *(Distiller, Distiller.step, InnerMaximizer, InnerMaximizer.search, fastadaad.Trainer, fastadaad.Trainer.train),
        *(fastadaad.evaluate, fastadaad.train, fastadaad.adaad_inner_loss, fastadaad.load_model, InnerConfig),
    ],
)
def test_the_types_of_a_public_signature_are_exported(function):
    exported = [getattr(module, name) for module in (fastadaad, fastadaad.methods) for name in module.__all__]
    target = function.__init__ if inspect.isclass(function) else function
    types = set()
    waiting = list(typing.get_type_hints(inspect.unwrap(target)).values())
    while waiting:
        hint = waiting.pop()
        waiting += typing.get_args(hint)
        if inspect.isclass(hint) and hint.__module__.startswith("fastadaad"):
            types.add(hint)
    assert [found for found in types if found not in exported] == []


def test_strings_of_the_command_line_work_in_python():
    student, teacher = student_and_teacher()
    short = InnerMaximizer(
        student,
        teacher,
        inner={"epsilon": "8/255", "step_size": "2/255", "num_steps": 3},
        teacher_policy="refreshed(every=2)",
        precision="bf16",
    )
    long = InnerMaximizer(
        student,
        teacher,
        inner=InnerConfig(threat_model=ThreatModel(epsilon=8 / 255), step_size=2 / 255, num_steps=3),
        teacher_policy=TeacherPolicy(kind="refreshed", every=2),
        precision=PrecisionConfig(student="bf16", teacher="bf16"),
    )
    assert (short.inner, short.teacher_policy, short.precision) == (long.inner, long.teacher_policy, long.precision)
    x_natural, _ = images_and_labels()
    found = [maximizer(x_natural, generator=torch.Generator().manual_seed(0)) for maximizer in (short, long)]
    assert torch.equal(*found)
    assert (found[0] - x_natural).abs().max() <= 8 / 255 + 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThreatModel(eps=8 / 255), "ThreatModel has no setting 'eps': did you mean epsilon?"),
        (lambda: ThreatModel(p="linf"), "ThreatModel has no setting 'p': did you mean norm?"),
        (lambda: InnerConfig(steps=20), "InnerConfig has no setting 'steps': did you mean num_steps?"),
        (lambda: InnerConfig(alpha=2 / 255), "InnerConfig has no setting 'alpha': did you mean step_size?"),
        (
            lambda: InnerConfig(epsilon=8 / 255),
            "InnerConfig has no setting 'epsilon': did you mean threat_model=ThreatModel(epsilon=...)?",
        ),
        (lambda: InnerConfig(num_step=3), "InnerConfig has no setting 'num_step': did you mean num_steps?"),
        (lambda: TeacherPolicy(qqq=3), "TeacherPolicy has no setting 'qqq': its settings are kind, every, top"),
    ],
)
def test_the_spelling_of_another_library_gets_a_hint(make, message):
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": {"epsilon": "8/256px"}}, "'8/256px' is not a radius in pixel units: write it as 8/255 or 0.031"),
        ({"precision": "int8"}, "precision.student is 'int8': choose auto, fp32, tf32, bf16 or fp16"),
        (
            {"teacher_policy": "often"},
            "teacher policy 'often' is unknown: choose exact, refreshed, directional or linearized",
        ),
    ],
)
def test_a_wrong_string_is_one_line(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        InnerMaximizer(*student_and_teacher(), **settings)
    assert str(caught.value) == message


def test_one_default_mode():
    defaults = [inspect.signature(maker).parameters["mode"].default for maker in (Distiller, InnerMaximizer)]
    assert defaults == ["auto", "auto"]


def test_reprs_show_the_settings():
    student, teacher = student_and_teacher()
    text = repr(Distiller(student, teacher, optimizer=torch.optim.SGD(student.parameters(), lr=0.1), precision="bf16"))
    for setting in ("method=adaad", "mode=eager", "epsilon=8/255", "num_steps=10", "bf16/bf16", "optimizer=SGD"):
        assert setting in text
