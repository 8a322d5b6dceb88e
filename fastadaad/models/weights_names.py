"""Translates the parameter names of third-party weights files into fastadaad's."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastadaad.runtime.untrusted_files import NESTED_WRAPPERS

# Entries that a network's weights may be nested under: plain weights before averaged weights.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "net", "student", "weights",
    "ema", "ema_state_dict", "state_dict_ema", "model_ema", "last", "best",
)  # fmt: skip
# Prefixes that module wrappers add: DataParallel, Lightning and others, torch.compile, our own TimmModel.
PREFIXES = re.compile(r"^(module\.|model\.|_orig_mod\.|network\.)+")
# nn.Sequential(normalisation, network).
POSITION = re.compile(r"^([01])\.(.+)")
# A normalisation at the front, as a layer or as buffers of the network. The lookahead keeps the time linear: \w*norm\w*
# alone matches a long name with n times "norm" in n ways.
NORMALIZATION = re.compile(r"(?:(?=\w*norm|preprocess)\w+\.)?(?:(mean|means|mu)|(std|stds|sds|sigma))")
# Tensors that no forward uses: the unused copy of block1 in RobustBench's WideResNet, the counter of averaged weights,
# the number of classes.
UNUSED = re.compile(r"sub_block1\..+|n_averaged|n_classes")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights of a file under fastadaad's names."""

    weights: dict[str, Tensor]
    entry: tuple[str, ...]
    """Names of the nested entries that lead to the weights; empty for a bare state dict."""
    unused: tuple[str, ...]
    """Names of the tensors that were left out because no network uses them."""


def without_prefixes(name: str) -> str:
    """Returns `name` without the prefixes that module wrappers add."""
    return PREFIXES.sub("", name)


def unwrap(content: Any) -> tuple[Any, tuple[str, ...]]:
    """Returns the innermost mapping under any nesting of WRAPPERS, and the names of the entries that lead to it."""
    entry: tuple[str, ...] = ()
    while isinstance(content, Mapping) and len(entry) < NESTED_WRAPPERS:
        name = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        content, entry = content[name], (*entry, name)
    return content, entry


def by_our_names(state_dict: Mapping[str, Tensor], entry: tuple[str, ...] = ()) -> Checkpoint:
    """Renames a state dict: prefixes and positions removed, normalisation under normalize.*, UNUSED tensors left out.

    Args:
        state_dict: Third-party names -> tensors.
        entry: Names of the entries that the state dict was nested under.

    Returns:
        The renamed weights.

    Raises:
        ValueError: Two names become one.
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
    """Returns True for the names of nn.Sequential(normalisation, network), or of its network alone."""
    matches = [POSITION.fullmatch(name) for name in map(without_prefixes, names) if not UNUSED.fullmatch(name)]
    networks = {match[1] for match in matches if match and not NORMALIZATION.fullmatch(without_prefixes(match[2]))}
    return all(matches) and len(networks) == 1
