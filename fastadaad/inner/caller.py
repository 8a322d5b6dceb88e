"""Input of other programs: wrapped networks, inference tensors, tensors on several devices."""

import inspect
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from fastadaad.ops import checks


def bare(network: nn.Module) -> nn.Module:
    """Returns the network inside the wrappers of torch.compile, DistributedDataParallel and DataParallel.

    The inner loop needs no wrapper: it trains no weights, so there is nothing to synchronise, and it compiles itself.
    """
    if isinstance(network, DataParallel | DistributedDataParallel):
        return bare(network.module)
    # torch.compile's wrapper is recognised by its attribute, as importing its class takes a second.
    compiled = getattr(network, "_orig_mod", None)
    return network if compiled is None else bare(compiled)


def usable(tensor: Tensor) -> Tensor:
    """Returns `tensor`, or a copy of an inference tensor, which autograd would refuse to save."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_networks(student: nn.Module, teacher: nn.Module | None) -> None:
    """Raises ValueError if a network is not a torch.nn.Module or is quantised; the teacher may be None."""
    for name, network in {"student": student, "teacher": teacher}.items():
        if name == "teacher" and network is None:
            continue
        if not isinstance(network, nn.Module):
            raise ValueError(f"{name} is a {type(network).__name__}: give a torch.nn.Module")
        check_not_quantized(name, network)


def check_not_quantized(name: str, network: nn.Module) -> None:
    """Raises ValueError for a network with integer weights, through which no gradient reaches the pixels."""
    for module in network.modules():
        kind = type(module)
        has_integers = any(
            not parameter.is_floating_point() or type(parameter.data).__module__.startswith("torchao")
            for parameter in module.parameters(recurse=False)
        )
        if has_integers or (kind.__module__.startswith("torch.ao.nn.") and ".quantized." in f"{kind.__module__}."):
            raise ValueError(
                f"{name} is quantised (layer {kind.__name__}), and no gradient passes its integers: give the "
                "network in torch.float32, before its quantisation"
            )


def check_generator(generator: Any) -> None:
    """Raises ValueError unless `generator` is a torch.Generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is a {type(generator).__name__}: give torch.Generator(device).manual_seed(...), or leave it out"
        )


def device_type(network: nn.Module) -> str:
    """Returns the type of the network's device; cpu for a network without tensors."""
    return device_of(network).type


def device_of(network: nn.Module) -> torch.device:
    """Returns the network's device; the CPU for a network without tensors."""
    tensor = _first_tensor(network)
    return torch.device("cpu") if tensor is None else tensor.device


def check_devices(student: nn.Module, teacher: nn.Module | None, x_natural: Tensor, labels: Tensor | None) -> None:
    """Checks that networks and batch are on one device; nothing is moved.

    Raises:
        ValueError: Two of the four are on different devices, which the message names, or all are on meta.
    """
    others = {"the student": _first_tensor(student), "the teacher": _first_tensor(teacher), "labels": labels}
    for name, tensor in others.items():
        if tensor is not None:
            checks.check_device("x_natural", x_natural, name, tensor)
    if x_natural.is_meta:
        raise ValueError("x_natural is on meta, which holds no numbers: move images and networks to a device that does")


def _first_tensor(network: nn.Module | None) -> Tensor | None:
    """Returns the first parameter or buffer; None without a network, or for one without tensors."""
    return None if network is None else next(chain(network.parameters(), network.buffers()), None)


def check_trainable(student: nn.Module, teacher: nn.Module | None, optimizer: Optimizer) -> None:
    """Checks that the updates of `optimizer` train the student and no parameter of the teacher.

    Raises:
        ValueError: No update reaches a parameter of the student, an update would change the teacher, an update needs a
            closure, or the student has sparse gradients.
    """
    _check_optimizer(optimizer)
    for layer in student.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse:
            raise ValueError(
                f"the student's {type(layer).__name__} has sparse gradients, which few optimizers and no exchange "
                "between ranks support: make it with sparse=False"
            )
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


def _check_optimizer(optimizer: Any) -> None:
    """Raises ValueError if `optimizer` is not an optimizer, or if its step needs a closure, as that of LBFGS does."""
    if not hasattr(optimizer, "param_groups") or not callable(getattr(optimizer, "step", None)):
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}: give a torch.optim.Optimizer of student.parameters(), such as "
            "torch.optim.SGD"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer {type(optimizer).__name__} computes the loss several times per step by a closure, which no "
            "step here gives it: use one without, such as torch.optim.SGD"
        )
