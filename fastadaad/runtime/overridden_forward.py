"""Another forward for some modules of a network, for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn


@contextmanager
def overridden_forward(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Calls forward(module, *arguments) in place of each module's own forward inside the context.

    Uses an instance attribute, which torch.compile traces and guards by the code of `forward`. Hooks still run.

    Args:
        modules: Modules to override.
        forward: Function of a module and the arguments of its forward.
    """
    modules = list(modules)
    before = [vars(module).get("forward") for module in modules]  # other libraries set the attribute too
    for module in modules:
        vars(module)["forward"] = MethodType(forward, module)
    try:
        yield
    finally:
        for module, previous in zip(modules, before, strict=True):
            del vars(module)["forward"]
            if previous is not None:
                vars(module)["forward"] = previous
