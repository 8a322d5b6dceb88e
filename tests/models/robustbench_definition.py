"""RobustBench's WideResNet, written again: the names of its tensors, and its forward from a state dict."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def wide_resnet_shapes(num_blocks: int, width: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of WideResNet(depth=6 num_blocks + 4, widen_factor=width, sub_block1=False)."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3)}

    def add_bn(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) if part != "num_batches_tracked" else () for part in BN})

    channels = 16
    for stage, out in ((1, 16 * width), (2, 32 * width), (3, 64 * width)):
        for i in range(num_blocks):
            block = f"block{stage}.layer.{i}"
            add_bn(f"{block}.bn1", channels)
            shapes[f"{block}.conv1.weight"] = (out, channels, 3, 3)
            add_bn(f"{block}.bn2", out)
            shapes[f"{block}.conv2.weight"] = (out, out, 3, 3)
            if channels != out:
                shapes[f"{block}.convShortcut.weight"] = (out, channels, 1, 1)
            channels = out
    add_bn("bn1", channels)
    return shapes | {"fc.weight": (num_classes, channels), "fc.bias": (num_classes,)}


def wide_resnet_logits(state: Mapping[str, Tensor], x: Tensor, num_blocks: int) -> Tensor:
    """Eval-mode logits of the state dict at x [B, 3, H, W], after (x - mu) / sigma if the state has them."""

    def bn_relu(name: str, value: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(value, mean, var, weight, bias, training=False, eps=1e-5))

    if "mu" in state:
        x = (x - state["mu"]) / state["sigma"]
    out = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for i in range(num_blocks):
            block, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
            pre = bn_relu(f"{block}.bn1", out)
            inner = bn_relu(f"{block}.bn2", F.conv2d(pre, state[f"{block}.conv1.weight"], stride=stride, padding=1))
            inner = F.conv2d(inner, state[f"{block}.conv2.weight"], padding=1)
            shortcut = state.get(f"{block}.convShortcut.weight")
            out = inner + (out if shortcut is None else F.conv2d(pre, shortcut, stride=stride))
    out = bn_relu("bn1", out).mean(dim=(2, 3))
    return F.linear(out, state["fc.weight"], state["fc.bias"])
