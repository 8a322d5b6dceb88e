"""Convolutions that cuDNN fuses with what follows them, on a CUDA device."""

import pytest
import torch

from fastadaad import InnerConfig, InnerMaximizer, load_model
from fastadaad.runtime import epilogues
from fastadaad.runtime.epilogues import convolution_relu

pytestmark = pytest.mark.real_gpu("cuDNN's own kernels")

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


@pytest.mark.parametrize("with_other", [False, True], ids=["", "sum"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_fused_convolution_is_right(dtype: torch.dtype, with_other: bool):
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        tensor = torch.randn(shape, generator=generator, device="cuda", dtype=dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    x, weight, bias = normal(8, 64, 16, 16), normal(32, 64, 3, 3), normal(32)
    other = normal(8, 32, 8, 8) if with_other else None
    shape = [2, 2], [1, 1], [1, 1], 1
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        out = torch.ops.fastadaad.convolution_relu(x, weight, bias, other, *shape)
    exact = convolution_relu(*(None if one is None else one.cpu().double() for one in (x, weight, bias, other)), *shape)
    assert out.is_contiguous(memory_format=torch.channels_last)
    error = (out.cpu().double() - exact).abs().max()
    assert error <= ROUNDING[dtype] * exact.abs().max()


def test_a_fused_search_finds_the_adversarial_images_of_an_eager_one(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(epilogues, "worth_fusing", lambda *arguments: asked.append(arguments) or True)
    torch.manual_seed(0)
    student, teacher = load_model("resnet18").cuda(), load_model("wrn-10-1").cuda().eval()
    x_natural = torch.rand(8, 3, 32, 32, device="cuda")
    eager, fused = (
        InnerMaximizer(student, teacher, mode=mode, precision="fp32", inner=InnerConfig(num_steps=1))(
            x_natural, generator=torch.Generator("cuda").manual_seed(0)
        )
        for mode in ("eager", "compiled")
    )
    assert len(asked) > 16  # the convolutions of ResNet-18 and of the teacher
    assert (eager == fused).float().mean() > 0.999
