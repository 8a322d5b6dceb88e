"""The names that weights go by in other people's files, and ours for them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastadaad.runtime.file_limits import NESTED_WRAPPERS

# Entries under which a network's weights are nested, the plain ones before the averaged ones.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "net", "student", "weights",
    "ema", "ema_state_dict", "state_dict_ema", "model_ema", "last", "best",
)  # fmt: skip
# What wrappers of modules put before a name: DataParallel, Lightning and others, torch.compile, our own TimmModel.
PREFIXES = re.compile(r"^(module\.|model\.|_orig_mod\.|network\.)+")
# nn.Sequential(normalisation, network).
POSITION = re.compile(r"^([01])\.(.+)")
# A normalisation at the front, as a layer or as buffers of the network. Looked ahead for, as \w*norm\w* can match in as
# many ways as a long name has norms.
NORMALIZATION = re.compile(r"(?:(?=\w*norm|preprocess)\w+\.)?(?:(mean|means|mu)|(std|stds|sds|sigma))")
# Never part of a network's function: a copy of block1 that RobustBench's WideResNet has and does not use, the counter
# of averaged weights, the number of classes.
UNUSED = re.compile(r"sub_block1\..+|n_averaged|n_classes")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The weights in a file, by our names."""

    weights: dict[str, Tensor]
    entry: tuple[str, ...]
    """Where in the file they are nested."""
    unused: tuple[str, ...]
    """Names left out, since no network uses them."""


def without_prefixes(name: str) -> str:
    """`name` without the prefixes that wrappers of modules add."""
    return PREFIXES.sub("", name)


def unwrap(content: Any) -> tuple[Any, tuple[str, ...]]:
    """The innermost mapping under any nesting of WRAPPERS, and the names of the entries that lead to it."""
    entry: tuple[str, ...] = ()
    while isinstance(content, Mapping) and len(entry) < NESTED_WRAPPERS:
        name = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        content, entry = content[name], (*entry, name)
    return content, entry


def by_our_names(state_dict: Mapping[str, Tensor], entry: tuple[str, ...] = ()) -> Checkpoint:
    """Prefixes and positions taken off, the normalisation under normalize.*, and what is UNUSED left out.

    Raises ValueError where two names become one.
    """
    weights: dict[str, Tensor] = {}
    unused = []
    at_positions = _at_positions(state_dict)
    for name, tensor in state_dict.items():
        ours = without_prefixes(name)
        if at_positions:
            ours = without_prefixes(POSITION.sub(r"\2", ours))
        if UNUSED.fullmatch(ours):
            unused.append(name)
            continue
        normalization = NORMALIZATION.fullmatch(ours)
        if normalization:
            ours = "normalize.mean" if normalization[1] else "normalize.std"
            tensor = tensor.reshape(-1, 1, 1)
        if ours in weights:
            raise ValueError(f"{name} and another name both mean {ours}")
        weights[ours] = tensor
    return Checkpoint(weights=weights, entry=entry, unused=tuple(unused))


def _at_positions(names: Iterable[str]) -> bool:
    """Whether these are the names of nn.Sequential(normalisation, network), or of a network alone in such a one."""
    matches = [POSITION.fullmatch(name) for name in map(without_prefixes, names) if not UNUSED.fullmatch(name)]
    networks = {match[1] for match in matches if match and not NORMALIZATION.fullmatch(without_prefixes(match[2]))}
    return all(matches) and len(networks) == 1
