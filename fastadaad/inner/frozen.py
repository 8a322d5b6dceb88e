"""Networks that neither learn nor change mode for a while, in one thread at a time."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

_locks: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()


@contextmanager
def one_thread(*networks: nn.Module | None) -> Iterator[None]:
    """Waits for other threads with any of `networks`, which a search freezes or copies, then keeps them out."""
    locks = {id(network): _locks.setdefault(network, threading.RLock()) for network in networks if network is not None}
    with ExitStack() as stack:
        for _, lock in sorted(locks.items()):  # in one order, so that two threads do not wait for each other
            stack.enter_context(lock)
        yield


@contextmanager
def frozen(*networks: nn.Module, evaluation: bool = True) -> Iterator[None]:
    """Switches off `requires_grad` of all parameters of `networks` inside the context.

    The mode of each module and the `requires_grad` of each parameter are restored afterwards, also after an exception.

    Args:
        *networks: Networks to freeze.
        evaluation: Put every module into eval mode too.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    parameters = [
        (parameter, parameter.requires_grad)
        for network in networks
        for parameter in network.parameters()
        if not parameter.is_inference()  # its requires_grad cannot be restored, and no gradient reaches it
    ]
    try:
        for module, _ in modes:
            module.training = module.training and not evaluation
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)
