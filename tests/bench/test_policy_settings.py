"""Settings of the teacher policies' tables: each a valid and distinct training."""

from dataclasses import replace

import pytest

from bench import cifar10
from bench.policy_settings import CIFAR10, LONG, SHORT, TABLES, Setting
from fastadaad import methods
from fastadaad.config import TeacherPolicy
from fastadaad.run_config import RunConfig, TeacherConfig
from fastadaad.training.fingerprint import training_facts


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_each_setting_is_a_distinct_training_with_a_valid_policy(table):
    facts = [str(training_facts(table.config(setting, seed=0))) for setting in table.settings]
    assert len(set(facts)) == len(table.settings)
    policies = [setting.policy for setting in table.settings]
    assert [str(TeacherPolicy.parse(policy)) for policy in policies] == policies


def test_exact_and_pgd_at_are_students_of_the_cifar10_table():
    """One training serves both tables."""
    cells = cifar10.cells_of(["rescnn-32"], ["adaad", "pgd-at"], [0], CIFAR10.overrides)
    of_methods = [training_facts(replace(cell.config, teacher=_used(cell.config))) for cell in cells]
    of_policies = [training_facts(CIFAR10.config(setting, seed=0)) for setting in CIFAR10.settings[:2]]
    assert of_policies == of_methods


def _used(config: RunConfig) -> TeacherConfig | None:
    return config.teacher if methods.get(config.method).needs_teacher else None


def test_only_the_teacher_has_another_precision():
    setting = Setting(policy="refreshed(every=8)", teacher_precision="bf16")
    config = SHORT.config(setting, seed=3)
    assert (config.precision.student, config.precision.teacher, config.seed) == ("fp32", "bf16", 3)


def test_overrides_of_a_call_come_after_those_of_a_setting():
    shrinking = next(setting for setting in LONG.settings if setting.overrides)
    config = LONG.config(shrinking, 0, ("inner.num_steps=2", "inner.step_factors=[1,2]"))
    assert config.inner.step_factors == (1.0, 2.0)


def test_the_name_says_all_that_differs():
    assert Setting(policy="refreshed", teacher_precision="bf16").name == "refreshed, teacher bf16"
    assert Setting(note="3 shrinking steps").name == "exact, 3 shrinking steps"
    assert Setting(method="pgd-at").name == "pgd-at"
