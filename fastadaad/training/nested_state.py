"""A nested state as tensors and plain JSON: dicts, lists, numbers, texts, None, and tensors anywhere among them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# In the JSON a tensor is a dict with this one key, whose value is its name.
_TENSOR = "<tensor>"


def split_tensors(state: Any, name: str = "state") -> tuple[Any, dict[str, Tensor]]:
    """`state` with each tensor replaced by a reference, and the tensors by their dotted names.

    Keys of dicts become texts and tuples become lists, as JSON has them. Raises TypeError for anything but what this
    module's first line names.
    """
    if isinstance(state, Tensor):
        return {_TENSOR: name}, {name: state}
    if isinstance(state, Mapping):
        parts = {str(key): split_tensors(value, f"{name}.{key}") for key, value in state.items()}
        return {key: plain for key, (plain, _) in parts.items()}, _united(tensors for _, tensors in parts.values())
    if isinstance(state, (list, tuple)):
        items = [split_tensors(value, f"{name}.{index}") for index, value in enumerate(state)]
        return [plain for plain, _ in items], _united(tensors for _, tensors in items)
    if state is None or isinstance(state, (bool, int, float, str)):
        return state, {}
    raise TypeError(f"{name} is a {type(state).__name__}, which a checkpoint cannot hold")


def join_tensors(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of split_tensors, apart from keys and tuples. Raises KeyError for a tensor that is not there."""
    if isinstance(plain, dict):
        if set(plain) == {_TENSOR}:
            return tensors[plain[_TENSOR]]
        return {key: join_tensors(value, tensors) for key, value in plain.items()}
    return [join_tensors(value, tensors) for value in plain] if isinstance(plain, list) else plain


def _united(parts: Any) -> dict[str, Tensor]:
    return {name: tensor for tensors in parts for name, tensor in tensors.items()}
