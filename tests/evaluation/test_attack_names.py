"""Names of attacks: their families, their numbers of steps, and the modules that the check imports."""

import ast
from pathlib import Path

import pytest

import fastadaad.evaluation
from fastadaad.evaluation import attack_names
from fastadaad.evaluation.attack_names import AUTOATTACK_STAGES, FIXED_NAMES, check_attack_name, split_attack_name


@pytest.mark.parametrize(
    ("name", "family", "num_steps"),
    [
        *(("pgd20", "pgd", 20), ("pgd99999", "pgd", 99999), ("cw-linf", "cw-linf", 20), ("cw-linf7", "cw-linf", 7)),
        *(("pgd20-targeted", "pgd-targeted", 20), ("pgd7-targeted", "pgd-targeted", 7)),
        *(("cw", "cw", 1000), ("cw30", "cw", 30), *((name, name, None) for name in FIXED_NAMES)),
    ],
)
def test_a_name_is_a_family_and_a_number_of_steps(name, family, num_steps):
    assert split_attack_name(name) == (family, num_steps)
    check_attack_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "pgd", "pgd0", "pgd-3", "pgd100000", "PGD20", "cw-l20", "autoattack2", 20, None),
        *("pgd-targeted", "pgd20-target", "cw5-targeted", "cw-linf-targeted", "fgsm-targeted"),
    ],
)
def test_an_unknown_name_is_refused_with_the_names_to_choose_from(name):
    with pytest.raises(ValueError, match=rf"^unknown attack {name!r}: choose natural, fgsm, .*, square$"):
        check_attack_name(name)


def test_the_stages_have_the_order_of_the_standard_version():
    assert AUTOATTACK_STAGES == ("apgd-ce", "apgd-t", "fab-t", "square")


def test_checking_a_name_imports_neither_torch_nor_another_module_of_the_package():
    imported = set()
    for module in (fastadaad.evaluation, attack_names):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    assert imported == {"lazy_loader", "re"}


def test_every_public_name_can_be_imported():
    assert all(hasattr(fastadaad.evaluation, name) for name in fastadaad.evaluation.__all__)
    assert "evaluate" in dir(fastadaad.evaluation)
