"""The pickles of `torch.save`, read without unpickling: nothing that a file names is ever called.

A pickle is a program. Here its opcodes are interpreted one by one: a class or function that pickle
would import and call stays a name, the few names that torch writes for plain tensors each stand for
a value built here, and every other name and opcode is refused.
"""

import dataclasses
import pickletools
import struct
from typing import IO, Any

from bertjax.errors import InputError
from bertjax.pretrained.reader import FLOATS

# Name of torch's storage class -> numpy's name of its elements' type.
_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_OLD_TENSOR = "torch._utils._rebuild_tensor"
_TENSOR_OF_OTHER_TYPE = "torch._utils._rebuild_tensor_v3"
_PARAMETER = "torch._utils._rebuild_parameter"
_KNOWN = {_ORDERED_DICT, _TENSOR, _OLD_TENSOR, _PARAMETER, *_STORAGES}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of elements in the file.

    Attributes:
      dtype: numpy's name of their type.
      key: which of the file's runs.
      start: its first element there.
      size: number of elements.
    """

    dtype: str
    key: str
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    """What pickle would import."""

    name: str


def interpret(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Return what the pickle at the file's position describes, and the storages that it names.

    Dicts of any kind become plain ones, without their attributes; tensors become `Tensor`s.
    Containers may be shared and even hold themselves: do not walk them.

    Args:
      file: in memory, so that no length given in it can ask for more than is there.

    Raises:
      InputError: a damaged pickle, or one that asks for anything but plain tensors in containers.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        return machine.stack.pop(), machine.storages
    except InputError:
        raise
    except (ValueError, LookupError, OverflowError, struct.error) as error:
        raise InputError(f"damaged pickle ({error})") from error


class _Machine:
    """The stack and the memo of a pickle, and what each opcode does to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Run one opcode; LookupError where the stack or the memo lacks what it takes."""
        stack = self.stack
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _LITERALS:
            stack.append(argument)
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode == "MARK":
            self._below_marks.append(stack)
            self.stack = []
        elif opcode in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode == "TUPLE":
            items = self._pop_to_mark()
            self.stack.append(tuple(items))
        elif opcode == "EMPTY_LIST":
            stack.append([])
        elif opcode == "EMPTY_DICT":
            stack.append({})
        elif opcode in ("APPEND", "APPENDS"):
            items = self._pop(1) if opcode == "APPEND" else self._pop_to_mark()
            self._top(list).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if opcode == "SETITEM" else self._pop_to_mark()
            _set_items(self._top(dict), zip(items[::2], items[1::2], strict=True))
        elif opcode == "GLOBAL":
            stack.append(_find(*argument.split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            stack.append(_find(*self._pop(2)))
        elif opcode == "REDUCE":
            stack.append(_build(*self._pop(2)))
        elif opcode == "BINPERSID":
            storage = _storage(stack.pop())
            if self.storages.setdefault(storage.key, storage).dtype != storage.dtype:
                raise InputError("the pickle has one storage with elements of two types")
            stack.append(storage)
        elif opcode == "BUILD":  # attributes of an OrderedDict, such as a state dict's versions
            stack.pop()
            self._top(dict)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise InputError(f"the pickle uses {opcode}, which no file of plain tensors needs")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise LookupError("the stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self._below_marks.pop()
        return items

    def _top(self, kind: type) -> Any:
        top = self.stack[-1]
        if type(top) is not kind:
            raise InputError(f"the pickle changes a {_kind(top)} as if it were a {kind.__name__}")
        return top


def _find(module: Any, name: Any) -> _Global:
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "an object"
    if full == _TENSOR_OF_OTHER_TYPE:
        raise InputError(
            "holds a tensor of a type such as float8, but weights are read as "
            f"{', '.join(FLOATS)} alone: write the model as one of these"
        )
    if full not in _KNOWN:
        raise InputError(
            f"asks to run {full!a}, which is no part of a plain state dict, so it is not read; "
            "save model.state_dict() in its place"
        )
    return _Global(full)


def _set_items(target: dict[Any, Any], items: Any) -> None:
    for item in items:
        match item:
            case [str() | int() as key, value]:
                target[key] = value
            case _:
                raise InputError("the pickle has a dict whose keys are no names")


def _build(function: Any, arguments: Any) -> Any:
    """Return what a known function would for these arguments."""
    match function, arguments:
        case _Global(name=name), () if name == _ORDERED_DICT:
            return {}
        case _Global(name=name), ([*pairs],) if name == _ORDERED_DICT:  # as Python 2 wrote it
            items: dict[Any, Any] = {}
            _set_items(items, pairs)
            return items
        case (
            _Global(name=name),
            (Storage() as storage, int(offset), tuple(shape), tuple(strides), *rest),
        ) if (name, len(rest)) in ((_TENSOR, 2), (_OLD_TENSOR, 0)):
            if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)):
                raise InputError("the pickle has a tensor with an impossible shape")
            return Tensor(storage, offset, shape, strides)
        case _Global(name=name), (Tensor() as tensor, _, _) if name == _PARAMETER:
            return tensor
    called = function.name if isinstance(function, _Global) else f"a {_kind(function)}"
    raise InputError(f"the pickle calls {called} with arguments that torch does not give it")


def _storage(identity: Any) -> Storage:
    """Return the storage that a persistent id names."""
    match identity:
        case ("storage", _Global(name=name), str(key), str(), int(size), *rest) if (
            name in _STORAGES
        ):
            match rest:
                case [] | [None]:
                    return Storage(_STORAGES[name], key, 0, size)
                case [(str(), int(start), int(view_size))] if (
                    start >= 0 and 0 <= view_size <= size - start
                ):
                    return Storage(_STORAGES[name], key, start, view_size)
    raise InputError("the pickle refers to something that is no storage of plain numbers")


def _kind(value: Any) -> str:
    return type(value).__name__.strip("_")
