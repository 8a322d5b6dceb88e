"""Translates the parameter names of third-party weights files into fastadaad's."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastadaad.models.weights_values import channel_values, holds_tensors
from fastadaad.runtime.untrusted_files import NESTED_WRAPPERS

# Entries that a network's weights may be nested under: plain weights before averaged weights.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "net", "student", "weights",
    "ema", "ema_state_dict", "state_dict_ema", "model_ema", "last", "best", "rmodel",
)  # fmt: skip
# MAIR's entry: the normalisation lies beside it, as mean and std.
NORMALIZED_WRAPPER = "rmodel"
# Prefixes that module wrappers add: DataParallel, Lightning and others, torch.compile, our own TimmModel.
PREFIXES = re.compile(r"^(?:module\.|model\.|_orig_mod\.|network\.)+")
# Names of a network among the modules of a larger one, a LightningModule for example; `attacker` is robustness's.
NETWORK = re.compile(
    rf"(?:{PREFIXES.pattern[1:]})?"
    r"((?:student|teacher)(?:_model|_net|_network)?|net|backbone|attacker|ema|ema_model|model_ema)\.(?=.)"
)
# nn.Sequential(normalisation, network).
POSITION = re.compile(r"^([01])\.(.+)")
# A normalisation at the front, as a layer or as buffers of the network. The lookahead keeps the time linear: \w*norm\w*
# alone matches a long name with n times "norm" in n ways.
NORMALIZATION = re.compile(r"(?:(?=\w*norm|preprocess)\w+\.)?(?:(mean|means|mu|new_mean)|(std|stds|sds|sigma|new_std))")
# Tensors that no forward uses: the unused copy of block1 in RobustBench's WideResNet, the counter of averaged weights,
# the number of classes.
UNUSED = re.compile(r"sub_block1\..+|n_averaged|n_classes")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """State dict of a file with the file's names."""

    tensors: dict[str, Tensor]
    entry: tuple[str, ...] = ()
    """Names of the nested entries that lead to the state dict."""
    beside: tuple[str, ...] = ()
    """Names of the values beside the weights, which are not read."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights of a file under fastadaad's names."""

    weights: dict[str, Tensor]
    entry: tuple[str, ...] = ()
    """Names of the nested entries that lead to the weights; empty for a bare state dict."""
    unused: tuple[str, ...]
    """Names of the tensors that were left out because no network uses them."""
    beside: tuple[str, ...] = ()
    """Names of the values beside the weights, which are not read."""
    prefixes: tuple[str, ...] = ()
    """Prefixes of the names that belong to one of several modules, as in a LightningModule."""


def without_prefixes(name: str) -> str:
    """Returns `name` without the prefixes that module wrappers add."""
    return PREFIXES.sub("", name)


def unwrap(content: Any, prefix: str | None = None) -> tuple[Contents | None, str | None]:
    """Finds the innermost mapping under any nesting of WRAPPERS.

    Args:
        content: Values of a file.
        prefix: Name of an entry that is read in place of the first of WRAPPERS, or a prefix of parameter names.

    Returns:
        The state dict, or None if it is missing, and the prefix if no entry has this name.

    Raises:
        ValueError: mean or std beside MAIR's weights are not numbers.
    """
    entry: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    normalization: dict[str, Tensor] = {}
    while isinstance(content, Mapping) and len(entry) < NESTED_WRAPPERS:
        names = WRAPPERS if prefix is None else (prefix, *WRAPPERS)
        name = next((name for name in names if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        prefix = None if name == prefix else prefix
        if name == NORMALIZED_WRAPPER:
            normalization = _normalization_beside(content)
        beside += tuple(key for key in content if isinstance(key, str) and key not in (name, *normalization))
        content, entry = content[name], (*entry, name)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return None, prefix
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in content.items() if name not in tensors}
    if any(map(holds_tensors, others.values())) or (others and not tensors):
        return None, prefix
    if not any(NORMALIZATION.fullmatch(without_prefixes(name)) for name in tensors):
        tensors = {**normalization, **tensors}
    return Contents(tensors=tensors, entry=entry, beside=(*beside, *others)), prefix


def _normalization_beside(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns mean and std [C, 1, 1] of MAIR's files; an empty dict if either is missing."""
    given = {name: content.get(name) for name in ("mean", "std")}
    if any(value is None for value in given.values()):
        return {}
    try:
        found = {name: channel_values(value) for name, value in given.items()}
    except ValueError as error:
        raise ValueError(f"mean or std beside {NORMALIZED_WRAPPER} is {error}") from error
    if not (found["std"] > 0).all():
        raise ValueError(f"std beside {NORMALIZED_WRAPPER} is not positive")
    return found


def under_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors of one network of a file, without its prefix.

    Args:
        tensors: State dict of several networks.
        prefix: First names of the network's tensors, as they are in the file or without the prefixes of wrappers.

    Returns:
        The network's tensors; a normalisation beside the network belongs to it if it has none of its own.

    Raises:
        ValueError: No name begins with the prefix.
    """
    start = prefix.rstrip(".") + "."
    for names in ({name: name for name in tensors}, {name: without_prefixes(name) for name in tensors}):
        found = {own.removeprefix(start): tensors[name] for name, own in names.items() if own.startswith(start)}
        if found:
            parent = start[: start.rstrip(".").rfind(".") + 1]
            beside = {own.removeprefix(parent): tensors[name] for name, own in names.items() if own.startswith(parent)}
            return _with_normalization(found, beside)
    firsts = list(dict.fromkeys(name.partition(".")[0] for name in tensors))
    raise ValueError(f"no name begins with {start}: the first names are {', '.join(firsts[:4])}")


def narrowed(tensors: Mapping[str, Tensor], prefix: str | None = None) -> Iterator[Mapping[str, Tensor]]:
    """Yields the whole state dict, then its only network without its prefix, then the only network in that.

    Equal copies of a network count once. A normalisation beside the network belongs to it if it has none of its own.

    Args:
        tensors: State dict.
        prefix: Prefix that was removed from the names, for the message.

    Yields:
        State dicts, each with shorter names than the one before.

    Raises:
        SeveralNetworksError: The tensors belong to several networks.
    """
    yield tensors
    parent = f"{prefix.rstrip('.')}." if prefix else ""
    for _ in range(NESTED_WRAPPERS):
        prefixes, networks = _networks(tensors)
        rest = networks.pop("", {})
        if not networks:
            return
        if _only_normalization(rest):
            first, *others = networks.values()
            if not all(_equal(first, other) for other in others):
                raise SeveralNetworksError(parent + name for name in prefixes.values())
            tensors, parent = _with_normalization(first, rest), f"{parent}{next(iter(prefixes.values()))}."
        elif all(_equal(rest, network) for network in networks.values()):
            tensors = rest
        else:
            # The rest is a network too if all its names have a wrapper's prefix; otherwise it may be any layer.
            layers = [name for name in rest if not _only_normalization([name])]
            wrapped = [match[0].rstrip(".") for match in map(PREFIXES.match, layers) if match]
            if len(networks) > 1 or len(wrapped) == len(layers):
                raise SeveralNetworksError(parent + name for name in (*wrapped[:1], *prefixes.values()))
            return
        yield tensors


class SeveralNetworksError(ValueError):
    """The tensors of a file belong to several networks.

    Args:
        prefixes: Prefixes of the networks.
    """

    def __init__(self, prefixes: Iterable[str]):
        self.prefixes = tuple(prefixes)
        super().__init__(", ".join(self.prefixes))


def _networks(tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, dict[str, Tensor]]]:
    """Returns the full prefix and the tensors of each network by its name; tensors of no network are under ""."""
    prefixes: dict[str, str] = {}
    networks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = NETWORK.match(name)
        if match:
            prefixes.setdefault(match[1], match[0].rstrip("."))
            networks.setdefault(match[1], {})[name[match.end() :]] = tensor
        else:
            networks.setdefault("", {})[name] = tensor
    return prefixes, networks


def _only_normalization(names: Iterable[str]) -> bool:
    return all(NORMALIZATION.fullmatch(name) or UNUSED.fullmatch(name) for name in map(without_prefixes, names))


def _with_normalization(network: dict[str, Tensor], beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the normalisation among the tensors `beside` to a network without one."""
    if any(NORMALIZATION.fullmatch(without_prefixes(name)) for name in network):
        return network
    return network | {name: value for name, value in beside.items() if NORMALIZATION.fullmatch(without_prefixes(name))}


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Returns True for two networks with the same names in our form and equal tensors."""
    first, second = by_our_names(one).weights, by_our_names(other).weights
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def by_our_names(state_dict: Mapping[str, Tensor]) -> Checkpoint:
    """Renames a state dict: prefixes and positions removed, normalisation under normalize.*, UNUSED tensors left out.

    Args:
        state_dict: Third-party names -> tensors.

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
    prefixes, _ = _networks(state_dict)
    return Checkpoint(weights=weights, unused=tuple(unused), prefixes=tuple(prefixes.values()))


def _at_positions(names: Iterable[str]) -> bool:
    """Returns True for the names of nn.Sequential(normalisation, network), or of its network alone."""
    matches = [POSITION.fullmatch(name) for name in map(without_prefixes, names) if not UNUSED.fullmatch(name)]
    networks = {match[1] for match in matches if match and not NORMALIZATION.fullmatch(without_prefixes(match[2]))}
    return all(matches) and len(networks) == 1
