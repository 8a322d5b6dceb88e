"""What another program may bring along: wrappers around its networks, inference tensors, tensors on several devices."""

import sys
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from fastadaad.ops import checks


def bare(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of torch.compile, DistributedDataParallel and DataParallel.

    The inner loop needs none of them: it trains no weights, so there is nothing to synchronise, and it compiles itself.
    """
    if isinstance(network, DataParallel | DistributedDataParallel):
        return bare(network.module)
    # torch.compile's wrapper by its attribute, as importing its class takes a second.
    compiled = getattr(network, "_orig_mod", None)
    return network if compiled is None else bare(compiled)


def uncompiled(function: Callable) -> Callable:
    """`function` as it stands, where the caller has put what calls it under torch.compile.

    What is compiled on purpose inside stays compiled. Traced by torch.compile, student and teacher get the same twin.
    """
    # Where it is not imported nothing is compiled. To import it takes a second, and sets an environment variable.
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def usable(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy where it was made in inference mode and autograd would refuse to keep it."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_networks(student: nn.Module, teacher: nn.Module | None) -> None:
    """Raises ValueError for a function or anything else in the place of a network."""
    for name, network in {"student": student, "teacher": teacher}.items():
        if not isinstance(network, nn.Module) and not (name == "teacher" and network is None):
            raise ValueError(f"{name} is a {type(network).__name__}: give a torch.nn.Module")


def device_type(network: nn.Module) -> str:
    """Of the device that `network` is on; cpu where nothing in it is on one."""
    tensor = _first_tensor(network)
    return "cpu" if tensor is None else tensor.device.type


def check_devices(student: nn.Module, teacher: nn.Module | None, x_natural: Tensor, labels: Tensor | None) -> None:
    """Nothing is moved by itself. Raises ValueError where two of the four are on different devices, and names both.

    Also where all of them are on meta.
    """
    others = {"the student": _first_tensor(student), "the teacher": _first_tensor(teacher), "labels": labels}
    for name, tensor in others.items():
        if tensor is not None:
            checks.check_device("x_natural", x_natural, name, tensor)
    if x_natural.is_meta:
        raise ValueError("x_natural is on meta, which holds no numbers: move images and networks to a device that does")


def _first_tensor(network: nn.Module | None) -> Tensor | None:
    """None: there is no network, or nothing in it that is on a device."""
    return None if network is None else next(chain(network.parameters(), network.buffers()), None)


def check_trainable(student: nn.Module, teacher: nn.Module | None, optimizer: Optimizer) -> None:
    """Raises ValueError where no update can reach a parameter of `student`, or where one would reach the teacher."""
    trained = {parameter for parameter in student.parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("no parameter of the student requires a gradient: call student.requires_grad_(True)")
    if any(parameter.is_inference() for parameter in trained):
        raise ValueError(
            "the student was made under torch.inference_mode, where nothing can be trained: make it outside of it"
        )
    if trained.isdisjoint(parameter for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("the optimizer has no parameter of the student: make it of student.parameters()")
    if teacher is not None and not trained.isdisjoint(teacher.parameters()):
        raise ValueError(
            "student and teacher share parameters that would be trained: give the teacher its own by copy.deepcopy"
        )
