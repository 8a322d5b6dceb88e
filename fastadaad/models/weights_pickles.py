"""Follows the operations of a pickle without running them: each call with its arguments, and what the result costs.

torch.load(weights_only=True) limits the functions that a pickle calls, not their arguments: `_codecs.encode` with the
codec `hex`, nested, doubles its text each time, and with `punycode` it takes quadratic time. Here a call must have the
form in which torch.save writes it (CALLS); every other one is refused.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import IO, Any

import torch

from fastadaad.runtime.untrusted_files import KEYS, SMALL_KEY, TENSORS, UNPACKED_RATIO, VALUES

MAX_PROTOCOL = 3  # weights_only warns of later protocols and knows none of their calls
WORD = 64  # letters of the longest name of a codec, device or type; longer texts count one value more per WORD letters
METHODS = frozenset(dir(OrderedDict))  # attributes of these names would hide the methods of a state dict
# Operations that weights_only knows, by the kind of value that they put onto the stack.
PLAIN = {
    "NONE": "none", "NEWTRUE": "bool", "NEWFALSE": "bool", "BININT": "int", "BININT1": "int", "BININT2": "int",
    "LONG1": "int", "BINFLOAT": "float", "BINUNICODE": "text", "SHORT_BINSTRING": "text", "GLOBAL": "global",
    "EMPTY_TUPLE": "tuple", "EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set",
}  # fmt: skip
# Operations that take values from the stack, and their number; None: those after a mark.
ITEMS = {
    "TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None,
}  # fmt: skip


class ForbiddenCallError(ValueError):
    """A pickle calls something that weights do not need; the message is the name of the callable."""


class Value:
    """A value of a pickle, known by its kind and, if a call may depend on it, its content.

    Args:
        kind: A kind of PLAIN, "storage", or the name of the function that returns it.
        content: Text, number, name of a global, items of a tuple, or elements of a storage.
        cost: Number of values in it; a list or dict may grow.
    """

    __slots__ = ("content", "cost", "hides_methods", "is_encoded", "kind", "other_keys", "other_pairs")

    def __init__(self, kind: str, content: Any = None, cost: int = 1) -> None:
        self.kind, self.content, self.cost = kind, content, cost
        self.hides_methods = self.is_encoded = False
        self.other_keys = self.other_pairs = 0
        """Items of a list or keys of a dict that are no texts or small numbers; items that are no pairs with such a key
        first."""

    @property
    def items(self) -> tuple["Value", ...]:
        """Items of a tuple."""
        return self.content or ()

    def is_key(self) -> bool:
        """Returns True for a string and for a small number, whose hashes do not collide by intention."""
        return self.kind == "text" or (self.kind == "int" and 0 <= self.content < SMALL_KEY)

    def is_word(self) -> bool:
        """Returns True for a short text."""
        return self.kind == "text" and len(self.content) <= WORD


def _is_whole(value: Value) -> bool:
    return value.kind == "int" and value.content >= 0


def _are_whole(value: Value) -> bool:
    return value.kind in ("tuple", "torch.Size") and all(map(_is_whole, value.items))


def _no_hooks(value: Value) -> bool:
    return value.kind == "collections.OrderedDict" and value.cost == 1


def _is_tensor(arguments: Sequence[Value]) -> bool:
    """Checks (storage, offset, size, stride[, requires_grad, hooks[, metadata]]).

    Raises:
        ValueError: The tensor exceeds its storage, which torch would enlarge.
    """
    if len(arguments) not in (4, 6, 7) or arguments[0].kind != "storage":
        return False
    storage, offset, size, stride, *rest = arguments
    if not (_is_whole(offset) and _are_whole(size) and _are_whole(stride)):
        return False
    sizes, strides = ([number.content for number in each.items] for each in (size, stride))
    if len(sizes) != len(strides):
        return False
    if all(sizes):
        last = offset.content + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if last >= storage.content:
            raise ValueError(f"a tensor has element {last} of a storage of {storage.content}")
    kinds = [value.kind for value in rest]
    return not rest or (kinds[0] == "bool" and _no_hooks(rest[1]) and kinds[2:] in ([], ["dict"]))


def _is_parameter(arguments: Sequence[Value]) -> bool:
    """Checks (tensor, requires_grad, hooks[, state])."""
    kinds = [value.kind for value in arguments]
    return (
        len(arguments) in (3, 4)
        and kinds[0].startswith("torch._utils._rebuild_tensor")
        and kinds[1] == "bool"
        and _no_hooks(arguments[2])
        and kinds[3:] in ([], ["dict"], ["tuple"])
    )


def _anything(arguments: Sequence[Value]) -> bool:
    return True


def _kinds(*choices: Sequence[str]) -> Callable[[Sequence[Value]], bool]:
    return lambda arguments: tuple(value.kind for value in arguments) in choices


def _encoded(arguments: Sequence[Value]) -> bool:
    """Checks (text, "latin1"), as Python writes bytes: each text once, except those of one letter, which it shares."""
    if [value.kind for value in arguments] != ["text", "text"] or arguments[1].content != "latin1":
        return False
    text = arguments[0]
    is_first, text.is_encoded = not text.is_encoded, True
    return is_first or len(text.content) <= 1


# Function -> check of its arguments. weights_values.py replaces those that are neither torch's nor plain containers.
CALLS: dict[str, Callable[[Sequence[Value]], bool]] = {
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _kinds((), ("list",)),  # with a list in Python 2
    "collections.Counter": _kinds((), ("dict",)),
    "collections.defaultdict": _kinds((), ("none",), ("global",)),
    "builtins.set": _kinds(("list",)),
    "builtins.complex": _kinds(("float", "float")),
    "builtins.bytes": _kinds(()),
    "torch.Size": lambda arguments: len(arguments) == 1 and _are_whole(arguments[0]),
    "torch.device": lambda arguments: bool(arguments) and arguments[0].is_word() and all(map(_is_whole, arguments[1:])),
    "torch._utils._rebuild_tensor": _is_tensor,
    "torch._utils._rebuild_tensor_v2": _is_tensor,
    "torch._utils._rebuild_parameter": _is_parameter,
    "torch._utils._rebuild_parameter_with_state": _is_parameter,
    "argparse.Namespace": _kinds(()),
    "numpy.dtype": lambda arguments: bool(arguments) and arguments[0].is_word(),
    **{f"numpy.{core}.multiarray.scalar": _anything for core in ("core", "_core")},  # before numpy 2, and since
    **{f"numpy.{core}.multiarray._reconstruct": _anything for core in ("core", "_core")},
    **{
        f"{module}.{kind}{system}Path": _anything
        for module in ("pathlib", "pathlib._local")  # the second one in Python 3.13
        for kind in ("", "Pure")
        for system in ("", "Posix", "Windows")
    },
}  # fmt: skip
# Types and functions that a pickle may name but not call: types of numbers and storages, defaults of a defaultdict.
NAMES = frozenset(
    {
        *(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
        *(f"{kind.__module__}.{kind.__name__}" for kind in torch._storage_classes if kind.__name__.endswith("Storage")),
        *(f"builtins.{name}" for name in ("list", "dict", "tuple", "int", "float", "bool", "str")),
        "numpy.ndarray",
    }
) - {"torch.storage.UntypedStorage", "torch.storage.TypedStorage"}
PYTHON_2 = {"long": "int", "unicode": "str"}
# Functions whose results get a state, besides OrderedDict.
WITH_STATE = (
    "argparse.Namespace",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
)
DICTS = ("dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter")
STORAGE = ["text", "global", "text", "text", "int"]


def check_pickle(stream: IO[bytes], max_elements: int) -> None:
    """Follows one pickle to its end.

    Args:
        stream: Pickle, which is read up to its end.
        max_elements: Number of elements that one storage may have.

    Raises:
        ForbiddenCallError: It calls a function that weights do not need, or with other arguments.
        ValueError: It does not describe values as torch.save does, or would take too much time or memory.
    """
    pickle = _Pickle(max_elements)
    for operation, argument, _ in pickletools.genops(stream):
        pickle.follow(operation.name, argument)


def _known_global(argument: str) -> str:
    """Returns the dotted name in an operation GLOBAL. Raises ForbiddenCallError for one that weights do not need."""
    module, _, name = argument.partition(" ")
    if module == "__builtin__":  # of Python 2
        module, name = "builtins", PYTHON_2.get(name, name)
    full = f"{module}.{name}"
    if full not in CALLS and full not in NAMES:
        raise ForbiddenCallError(full)
    return full


def _is_pair(value: Value) -> bool:
    """Returns True for a list or tuple that begins with a string or small number."""
    return value.kind in ("list", "tuple") and bool(value.content) and value.content[0].is_key()


class _Pickle:
    """Stack and memory of an unpickler, with a description of each value.

    A value that is held twice counts twice: a tuple that holds the tuple before it twice, nested sixty times, takes 400
    bytes in a file; hashing it takes years.
    """

    def __init__(self, max_elements: int) -> None:
        self._max_elements = max_elements
        self._stack: list[Value | None] = []
        """None is a mark."""
        self._remembered: dict[int, Value] = {}
        self._with_items: dict[str, Callable[[list[Value]], None]]
        self._with_items = {"TUPLE": self._put_tuple, "APPEND": self._append, "SETITEM": self._set}
        self._others = {"NEWOBJ": self._new, "REDUCE": self._call, "BUILD": self._build, "BINPERSID": self._storage}
        self._cost, self._allowed, self._other_keys, self._num_tensors = 0, VALUES, 0, 0

    def follow(self, name: str, argument: Any) -> None:
        """Follows one operation. Raises as check_pickle."""
        if name in PLAIN:
            self._put_plain(name, argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._remembered[argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._remembered[argument])
        elif name == "MARK":
            self._stack.append(None)
        elif name == "PROTO" and argument <= MAX_PROTOCOL:
            pass
        elif name in ITEMS:
            number = ITEMS[name]
            self._with_items[name.rstrip("S123")](self._pop_to_mark() if number is None else self._pop_many(number))
        elif name in self._others:
            self._others[name]()
        elif name != "STOP":
            raise ValueError(f"it is a pickle of protocol {argument}" if name == "PROTO" else f"it has {name}")

    def _put_plain(self, name: str, argument: Any) -> None:
        kind, weight = PLAIN[name], 1
        if kind == "global":
            argument = _known_global(argument)
        elif kind == "text":
            weight += len(argument) // WORD
        self._allowed += UNPACKED_RATIO * weight
        self._stack.append(Value(kind, argument, weight))

    def _top(self) -> Value:
        value = self._stack[-1]
        if value is None:
            raise ValueError("it remembers a mark")
        return value

    def _pop(self) -> Value:
        value = self._top()
        self._stack.pop()
        return value

    def _pop_many(self, number: int) -> list[Value]:
        return [self._pop() for _ in range(number)][::-1]

    def _pop_to_mark(self) -> list[Value]:
        values: list[Value] = []
        while (value := self._stack.pop()) is not None:
            values.append(value)
        return values[::-1]

    def _count(self, held: Sequence[Value]) -> int:
        """Counts the values that an operation visits. Raises ValueError above VALUES plus UNPACKED_RATIO per value."""
        cost = sum(value.cost for value in held)
        self._cost += cost
        self._allowed += UNPACKED_RATIO
        if self._cost > self._allowed:
            raise ValueError(f"reading it visits more than {self._allowed} values, most of them repeatedly")
        return cost

    def _count_keys(self, number: int) -> None:
        self._other_keys += number
        if self._other_keys > KEYS:
            raise ValueError(f"more than {KEYS} keys are neither texts nor small numbers, and could collide")

    def _put_tuple(self, items: Sequence[Value]) -> None:
        self._stack.append(Value("tuple", tuple(items), 1 + self._count(items)))

    def _append(self, items: Sequence[Value]) -> None:
        target = self._top()
        if target.kind != "list":
            raise ValueError(f"it appends to a {target.kind}")
        target.cost += self._count(items)
        target.other_keys += sum(not item.is_key() for item in items)
        target.other_pairs += sum(not _is_pair(item) for item in items)
        if target.content is None and items:
            target.content = (items[0],)  # a list as a pair of Python 2

    def _set(self, items: Sequence[Value]) -> None:
        target = self._top()
        if target.kind not in DICTS:
            raise ValueError(f"it sets items of a {target.kind}")
        target.cost += self._count(items)
        keys = items[::2]
        other = sum(not key.is_key() for key in keys)
        target.other_keys += other
        self._count_keys(other)
        target.hides_methods |= any(key.kind != "text" or key.content in METHODS for key in keys)

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if function.kind != "global" or arguments.kind != "tuple":
            raise ValueError("it calls a value")
        name, given = function.content, arguments.items
        if name not in CALLS or not CALLS[name](given):
            raise ForbiddenCallError(
                name if name not in CALLS else f"{name} with other arguments than torch.save writes"
            )
        if name in ("collections.Counter", "builtins.set") and given:
            self._count_keys(given[0].other_keys)
        if name == "collections.OrderedDict" and given:
            self._count_keys(given[0].other_pairs)
        self._num_tensors += name.startswith("torch._utils._rebuild_tensor")
        if self._num_tensors > TENSORS:
            raise ValueError(f"it describes more than {TENSORS} tensors")
        content = given[0].content if name == "torch.Size" else None
        self._stack.append(Value(name, content, 1 + self._count(given)))

    def _new(self) -> None:
        if [value and value.content for value in self._stack[-2:]] != ["argparse.Namespace", None]:
            raise ForbiddenCallError("__new__ of a class that weights do not need")
        self._call()

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        self._count([state])
        if target.kind == "collections.OrderedDict":
            if state.kind == "dict" and not state.hides_methods:
                return
        elif target.kind in WITH_STATE:
            return
        raise ValueError(f"it gives a {target.kind} another state than torch.save does")

    def _storage(self) -> None:
        """Follows ("storage", type, key, device, number of elements), in old files with None at the end."""
        described = self._pop()
        fields = described.items
        kinds = [value.kind for value in fields]
        if described.kind != "tuple" or kinds not in (STORAGE, [*STORAGE, "none"]) or fields[0].content != "storage":
            raise ValueError("it does not describe a storage as torch.save does")
        if not fields[1].content.endswith("Storage"):
            raise ForbiddenCallError(fields[1].content)
        num_elements = fields[4].content
        if not 0 <= num_elements <= self._max_elements:
            raise ValueError(f"one storage claims {num_elements} elements, the file has {self._max_elements} bytes")
        self._stack.append(Value("storage", num_elements))
