"""What the pages under docs promise: their examples run, their commands parse, their links lead somewhere."""

import copy
import re
from pathlib import Path

import pytest
import torch

from fastadaad import cli, load_model, methods, recipes
from fastadaad.inner_step import pixel_gradient, tape_vjp
from fastadaad.trainer import Trainer

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
EXAMPLES = {name: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for name, text in PAGES.items()}
COMMANDS = [
    line for text in PAGES.values() for line in re.findall(r"^    \$? ?fastadaad (.+)$", text, flags=re.MULTILINE)
]


def run_example(page: str) -> dict:
    namespace: dict = {}
    exec(compile(EXAMPLES[page][0], page, "exec"), namespace)
    return namespace


def test_there_are_two_pages_with_an_example():
    assert {name for name, examples in EXAMPLES.items() if examples} == {"methods.md", "models.md"}


def test_the_example_of_models_prints_the_parameters_of_the_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_example("models.md")
    expected = sum(parameter.numel() for parameter in load_model("wrn-10-1").parameters())
    assert capsys.readouterr().out == f"{expected}\n"


def test_the_example_method_is_what_its_docstrings_say(capsys, monkeypatch, tmp_path):
    namespace = run_example("methods.md")
    assert float(re.search(r"[0-9.]+", capsys.readouterr().out)[0]) > 0
    row, student, teacher = namespace["logit_matching"], namespace["student"].eval(), namespace["teacher"].eval()

    x = torch.rand(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    student64, teacher64 = (copy.deepcopy(network).double() for network in (student, teacher))
    value = (student64(x) - teacher64(x)).square().sum() / 2
    (expected,) = torch.autograd.grad(value, x)
    gradient = pixel_gradient(tape_vjp, (student, teacher), row.objective, x.detach().float(), None)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    x_natural, x_adv = torch.rand(4, 3, 32, 32), x.detach().float()
    loss = row.outer_loss(student, teacher, x_natural, x_adv)
    torch.testing.assert_close(loss.double(), value / 4, rtol=1e-4, atol=1e-6)

    monkeypatch.setitem(methods.METHODS, row.name, row)
    config = recipes.get("demo", method="logit-matching")
    assert Trainer(config, tmp_path).distiller.method == row


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_parses(command):
    assert cli.parse(command.split()).command == command.split()[0]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        assert (ROOT / "docs" / link).exists(), link


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", "11,173,962"), ("resnet34", "21,282,122"), ("preactresnet18", "11,172,170"),
        ("mobilenet-v2", "2,296,922"), ("wrn-28-10", "36,479,194"),
    ],
)  # fmt: skip
def test_parameter_counts_of_the_page_of_models(name, parameters):
    with torch.device("meta"):
        assert f"{sum(parameter.numel() for parameter in load_model(name).parameters()):,}" == parameters
    assert parameters in PAGES["models.md"]


def test_every_method_is_on_its_page():
    assert all(f"| `{name}` |" in PAGES["methods.md"] for name in methods.METHODS)
