"""RobustBench's teachers: Swish WideResNets, a teacher by its name, and its reported accuracy."""

import pytest
import torch
import torch.nn.functional as F

from fastadaad import cli
from fastadaad.config_io import override
from fastadaad.models import load_model
from fastadaad.models.robust_teachers import NORMALIZATION, shortfall, teacher_settings
from fastadaad.recipes import get as recipe


def swish_logits(state: dict[str, torch.Tensor], x: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """RobustBench's DMWideResNet with Swish in eval mode, by plain functions on its names."""

    def swish_of_norm(name: str, value: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        value = F.batch_norm(value, mean, var, weight, bias, training=False, eps=1e-5)
        return value * torch.sigmoid(value)

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)))
    out = F.conv2d((x - mean) / std, state["init_conv.weight"], padding=1)
    for stage in range(3):
        for i in range(num_blocks):
            block, stride = f"layer.{stage}.block.{i}", 2 if stage and i == 0 else 1
            activated = swish_of_norm(f"{block}.batchnorm_0", out)
            padded = F.pad(activated, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
            inner = F.conv2d(padded, state[f"{block}.conv_0.weight"], stride=stride)
            inner = F.conv2d(swish_of_norm(f"{block}.batchnorm_1", inner), state[f"{block}.conv_1.weight"], padding=1)
            shortcut = state.get(f"{block}.shortcut.weight")
            out = inner + (out if shortcut is None else F.conv2d(activated, shortcut, stride=stride))
    out = F.avg_pool2d(swish_of_norm("batchnorm", out), 8).flatten(1)
    return F.linear(out, state["logits.weight"], state["logits.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_swish_teacher_is_robustbenchs_with_the_normalisation_of_its_program(prefix, tmp_path):
    generator = torch.Generator().manual_seed(0)
    names = {n: t for n, t in load_model("wrn-16-1-swish").state_dict().items() if not n.startswith("normalize")}
    state = {n: torch.rand(t.shape, generator=generator) * 0.4 + 0.1 for n, t in names.items() if t.dim()}
    state |= {n: t - 0.3 for n, t in state.items() if t.dim() == 4}  # convolutions of both signs
    counters = {n: t for n, t in names.items() if not t.dim()}
    torch.save({f"{prefix}{n}": t for n, t in (state | counters).items()}, tmp_path / "w.pt")
    mean, std = NORMALIZATION["cifar10"]
    model = load_model("wrn-16-1-swish", checkpoint=tmp_path / "w.pt", mean=mean, std=std).eval()
    x = torch.rand(2, 3, 32, 32, generator=generator)
    torch.testing.assert_close(model(x), swish_logits(state, x, 2), rtol=1e-4, atol=1e-4)


def test_a_teacher_by_its_name_needs_no_other_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"put RobustBench's file at Rebuffi.*models/cifar100/Linf/Rebuffi.*\.pt or"):
        teacher_settings("Rebuffi2021Fixing_28_10_cutmix_ddpm", "cifar100")
    with pytest.raises(ValueError, match="teacher Nobody2020 is not in the table of cifar10: see fastadaad teachers"):
        teacher_settings("Nobody2020", "cifar10")
    folder = tmp_path / "models" / "cifar100" / "Linf"
    folder.mkdir(parents=True)
    (folder / "Rebuffi2021Fixing_28_10_cutmix_ddpm.pt").touch()
    (tmp_path / "Chen2021LTD_WRN34_10.pt").touch()
    settings = teacher_settings("Rebuffi2021Fixing_28_10_cutmix_ddpm", "cifar100")
    teacher = override(recipe("cifar100-rn18"), settings).teacher
    assert (teacher.name, teacher.mean, teacher.std) == ("wrn-28-10-swish", *NORMALIZATION["cifar100"])
    assert teacher.checkpoint == "models/cifar100/Linf/Rebuffi2021Fixing_28_10_cutmix_ddpm.pt"
    words = ["train", "cifar10-rn18", "--teacher", "Chen2021LTD_WRN34_10", "--print-config"]
    assert cli.main(words) == 0
    assert teacher_settings("Chen2021LTD_WRN34_10", "cifar10")[0] == "teacher.name=wrn-34-10"


def test_a_teacher_clearly_below_its_reported_accuracy_is_named():
    name = "Chen2021LTD_WRN34_20"  # 86.03 % reported; a deviation on 256 images is 2.17 points
    assert shortfall(name, "cifar10", 0.80, 256) is None
    assert "86.03 % are reported" in shortfall(name, "cifar10", 0.79, 256)
    assert "79.0 % on 256 images are clearly fewer" in shortfall(name, "cifar10", 0.79, 256)
    assert shortfall("mine", "cifar10", 0.1, 256) is None
    assert shortfall(name, "cifar100", 0.1, 256) is None
