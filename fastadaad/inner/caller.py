"""Input of other programs: wrapped networks, inference tensors, tensors on several devices."""

from itertools import chain

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
    """Raises ValueError if a network is not a torch.nn.Module; the teacher may be None."""
    for name, network in {"student": student, "teacher": teacher}.items():
        if not isinstance(network, nn.Module) and not (name == "teacher" and network is None):
            raise ValueError(f"{name} is a {type(network).__name__}: give a torch.nn.Module")


def device_type(network: nn.Module) -> str:
    """Returns the type of the network's device; cpu for a network without tensors."""
    tensor = _first_tensor(network)
    return "cpu" if tensor is None else tensor.device.type


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
        ValueError: No update reaches a parameter of the student, or an update would change the teacher.
    """
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
