"""The only reader of pickles. It builds plain data and calls nothing, so no code that a file carries can run.

A pickle is a program for a small stack machine (opcodes: CPython's Lib/pickletools.py, PEP 307, 3154, 574).
Python's own machine imports and calls whatever the program names. This one
- knows only the opcodes that protocols 2 to 5 write for the formats we convert,
- accepts only the global names listed below, and never imports them,
- keeps every call as a `Record` (what would have been called, and with what) for the converters to read,
- leaves long bytes in the file, as a `Range`, so that memory is spent only on tensors that are asked for,
- bounds its steps and its text.
"""

from __future__ import annotations

import io
import pickle  # for the names of its opcodes only
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autodrag.errors import CheckpointError

MAX_STEPS = 250_000  # NVIDIA's pickle of G, D, G_ema and augmentation at 1024 px takes some 43,000
MAX_TEXT = 4 * 2**20  # bytes of text, all together; real files carry some 100 KB of source code
MAX_INTEGER = 16  # bytes; the largest integer of these formats is torch's magic number, 10 bytes
_CHUNK = 64 * 1024

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_ALLOWED: dict[str, frozenset[str]] = {
    "collections": frozenset({"OrderedDict"}),
    "builtins": frozenset({"set"}),
    "__builtin__": frozenset({"set"}),
    "_codecs": frozenset({"encode"}),
    "argparse": frozenset({"Namespace"}),
    "torch": frozenset({*(f"{kind}Storage" for kind in _STORAGES), *_DTYPES, "Size", "device"}),
    "torch.storage": frozenset({"_load_from_bytes", "UntypedStorage"}),
    "torch._utils": frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    "dnnlib": frozenset({"EasyDict"}),
    "dnnlib.util": frozenset({"EasyDict"}),
    "dnnlib.tflib.network": frozenset({"Network"}),
    "torch_utils.persistence": frozenset({"_reconstruct_persistent_obj"}),
} | {
    f"numpy.{core}.{module}": names
    for core in ("core", "_core")
    for module, names in {
        "multiarray": frozenset({"_reconstruct", "scalar"}),
        "numeric": frozenset({"_frombuffer"}),
    }.items()
}
_TABLES = {("collections", "OrderedDict"), ("dnnlib", "EasyDict"), ("dnnlib.util", "EasyDict")}


@dataclass(frozen=True)
class Range:
    """`length` bytes of an open file, from byte `start`; nothing is read until asked for."""

    file: io.BufferedIOBase
    start: int
    length: int

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`; a CheckpointError where the range ends before."""
        self._check(offset, count)
        self.file.seek(self.start + offset)
        data = self.file.read(count)
        if len(data) != count:
            raise truncated(self.start + offset)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` without a second copy."""
        self._check(offset, len(buffer))
        self.file.seek(self.start + offset)
        if self.file.readinto(buffer) != len(buffer):
            raise truncated(self.start + offset)

    def part(self, offset: int, count: int) -> Range:
        """A part of this range, checked to lie in it."""
        self._check(offset, count)
        return Range(self.file, self.start + offset, count)

    def _check(self, offset: int, count: int) -> None:
        if offset < 0 or count < 0 or offset + count > self.length:
            raise truncated(self.start + self.length)


@dataclass(frozen=True)
class Global:
    """A name that the pickle would import. It stays a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record:
    """What a pickle would build by calling `source` with `args`, and the state it would then give it."""

    __slots__ = ("args", "source", "state")

    def __init__(self, source: Global, args: tuple[Any, ...]) -> None:
        self.source = source
        self.args = args
        self.state: Any = None


def truncated(position: int) -> CheckpointError:
    """The error for data that stops early."""
    return CheckpointError(
        f"the data ends at byte {position} in the middle of a value, so the file is truncated or damaged; "
        "download it again"
    )


def unpickle(
    data: Range,
    position: int = 0,
    persistent: Callable[[Any], Any] | None = None,
    *,
    max_steps: int = MAX_STEPS,
) -> tuple[Any, int]:
    """Read the pickle at `position` of `data`, running nothing.

    Args:
        data: the bytes it lies in.
        position: where it starts.
        persistent: turns a persistent id (torch's reference to a storage) into a value; None refuses them.
        max_steps: how many opcodes it may have.

    Returns:
        (value, position after the pickle). The value consists of None, bool, int, float, str, list, tuple,
        dict, Range (bytes), Global, Record and what `persistent` returns. It may contain itself, so whoever
        walks it must bound the walk.

    Raises:
        CheckpointError: the data is no pickle, is truncated, or names anything that is not allowed here.
    """
    machine = _Machine(data, position, persistent)
    try:
        return machine.run(max_steps), machine.position
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        # An empty stack or a wrong kind of operand: the program itself is broken.
        raise CheckpointError(
            f"damaged pickle near byte {data.start + machine.position}; download the file again"
        ) from error


_SET = Global("builtins", "set")


class _Machine:
    """The stack machine. One method reads bytes, one loop interprets them."""

    def __init__(self, data: Range, position: int, persistent: Callable[[Any], Any] | None) -> None:
        self.data = data
        self.position = position
        self.persistent = persistent
        self.buffer, self.buffer_start = b"", position
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.text_left = MAX_TEXT

    def run(self, max_steps: int) -> Any:
        stack = self.stack
        for _ in range(max_steps):
            match self.take(1):
                case pickle.BINGET:
                    stack.append(self.recall(self.unsigned(1)))
                case pickle.LONG_BINGET:
                    stack.append(self.recall(self.unsigned(4)))
                case pickle.MEMOIZE:
                    self.memo[len(self.memo)] = stack[-1]
                case pickle.BINPUT:
                    self.memo[self.unsigned(1)] = stack[-1]
                case pickle.LONG_BINPUT:
                    self.memo[self.unsigned(4)] = stack[-1]
                case pickle.SHORT_BINUNICODE:
                    stack.append(self.text(self.unsigned(1)))
                case pickle.BINUNICODE:
                    stack.append(self.text(self.unsigned(4)))
                case pickle.BINUNICODE8:
                    stack.append(self.text(self.unsigned(8)))
                case pickle.SHORT_BINBYTES:
                    stack.append(self.blob(self.unsigned(1)))
                case pickle.BINBYTES:
                    stack.append(self.blob(self.unsigned(4)))
                case pickle.BINBYTES8 | pickle.BYTEARRAY8:
                    stack.append(self.blob(self.unsigned(8)))
                case pickle.BININT1:
                    stack.append(self.unsigned(1))
                case pickle.BININT2:
                    stack.append(self.unsigned(2))
                case pickle.BININT:
                    stack.append(int.from_bytes(self.take(4), "little", signed=True))
                case pickle.LONG1:
                    stack.append(self.integer(self.unsigned(1)))
                case pickle.BINFLOAT:
                    stack.append(struct.unpack(">d", self.take(8))[0])
                case pickle.NONE:
                    stack.append(None)
                case pickle.NEWTRUE:
                    stack.append(True)
                case pickle.NEWFALSE:
                    stack.append(False)
                case pickle.MARK:
                    self.marks.append(len(stack))
                case pickle.EMPTY_TUPLE:
                    stack.append(())
                case pickle.TUPLE:
                    stack.append(tuple(self.since_mark()))
                case pickle.TUPLE1:
                    stack.append(tuple(self.last(1)))
                case pickle.TUPLE2:
                    stack.append(tuple(self.last(2)))
                case pickle.TUPLE3:
                    stack.append(tuple(self.last(3)))
                case pickle.EMPTY_LIST:
                    stack.append([])
                case pickle.EMPTY_DICT:
                    stack.append({})
                case pickle.EMPTY_SET:
                    stack.append(Record(_SET, ()))
                case pickle.APPEND:
                    self.extend(self.last(1))
                case pickle.APPENDS:
                    self.extend(self.since_mark())
                case pickle.SETITEM:
                    self.update(self.last(2))
                case pickle.SETITEMS:
                    self.update(self.since_mark())
                case pickle.ADDITEMS:
                    self.since_mark()  # no converter asks what a set holds
                case pickle.GLOBAL:
                    stack.append(_allowed(self.line(), self.line()))
                case pickle.STACK_GLOBAL:
                    module, name = self.last(2)
                    stack.append(_allowed(module, name))
                case pickle.REDUCE | pickle.NEWOBJ:
                    source, args = self.last(2)
                    stack.append(self.record(source, args))
                case pickle.BUILD:
                    (state,) = self.last(1)
                    if isinstance(stack[-1], Record):
                        stack[-1].state = state
                    elif not isinstance(stack[-1], dict):  # a table may carry attributes; nobody needs them
                        raise TypeError
                case pickle.BINPERSID:
                    if self.persistent is None:
                        raise CheckpointError("a persistent id where the format has none; it was not followed")
                    stack.append(self.persistent(stack.pop()))
                case pickle.PROTO:
                    version = self.unsigned(1)
                    if not 2 <= version <= 5:
                        raise CheckpointError(f"pickle protocol {version}; protocols 2 to 5 can be read")
                case pickle.FRAME:
                    if self.unsigned(8) > self.data.length - self.position:
                        raise truncated(self.data.start + self.data.length)
                case pickle.POP:
                    stack.pop()
                case pickle.POP_MARK:
                    self.since_mark()
                case pickle.STOP:
                    return stack.pop()
                case code:
                    raise CheckpointError(
                        f"opcode {code!r} at byte {self.data.start + self.position - 1}, which no network "
                        "format uses; the file is damaged or hostile, and nothing of it was run"
                    )
        raise CheckpointError(f"more than {max_steps:,} steps, far more than any network needs; not read on")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        begin = self.position - self.buffer_start
        if begin + count > len(self.buffer):
            left = self.data.length - self.position
            if count > left:
                raise truncated(self.data.start + self.data.length)
            self.buffer = self.data.read(self.position, min(max(count, _CHUNK), left))
            self.buffer_start, begin = self.position, 0
        self.position += count
        return self.buffer[begin : begin + count]

    def unsigned(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def integer(self, count: int) -> int:
        if count > MAX_INTEGER:
            raise CheckpointError(f"an integer of {count} bytes; at most {MAX_INTEGER} are read")
        return int.from_bytes(self.take(count), "little", signed=True)

    def text(self, count: int) -> str:
        self.text_left -= count
        if self.text_left < 0:
            raise CheckpointError(f"more than {MAX_TEXT // 2**20} MiB of text; no network holds so much")
        return self.take(count).decode("utf-8", "surrogatepass")

    def blob(self, count: int) -> Range:
        """Bytes stay in the file: skip them and remember where they are."""
        part = self.data.part(self.position, count)
        self.position += count
        return part

    def line(self) -> str:
        characters = bytearray()
        while (character := self.take(1)) != b"\n":
            characters += character
            if len(characters) > 255:
                raise CheckpointError("a global name longer than 255 bytes; the file is damaged or hostile")
        return characters.decode("utf-8")

    def recall(self, index: int) -> Any:
        if index not in self.memo:
            raise CheckpointError(f"damaged pickle: there is no remembered value {index}; download it again")
        return self.memo[index]

    def last(self, count: int) -> list[Any]:
        """Take the top `count` values; a mark may not lie among them."""
        floor = len(self.stack) - count
        if floor < (self.marks[-1] if self.marks else 0):
            raise IndexError
        values = self.stack[floor:]
        del self.stack[floor:]
        return values

    def since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        if mark > len(self.stack):
            raise IndexError
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError
        self.stack[-1].extend(values)

    def update(self, pairs: list[Any]) -> None:
        if len(pairs) % 2 or not isinstance(self.stack[-1], dict):
            raise TypeError
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Plain keys only: hashing nested tuples can take time exponential in the file's size.
            if key is not None and not isinstance(key, (str, int, float)):
                raise CheckpointError(f"a table key of type {type(key).__name__}; network formats use names")
            self.stack[-1][key] = value

    @staticmethod
    def record(source: Any, args: Any) -> Any:
        """What a call would have returned, as inert data."""
        if not isinstance(source, Global) or not isinstance(args, tuple):
            raise CheckpointError("a call of something that is not a plain name; nothing of the file was run")
        if (source.module, source.name) in _TABLES:
            if args:  # copying a list that the pickle remembered could multiply it
                raise CheckpointError(f"{source} is given contents in a way that no network format does")
            return {}
        return Record(source, args)


def _allowed(module: Any, name: Any) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    # Layers of other networks in the same file are kept as records, like everything else.
    if name in _ALLOWED.get(module, ()) or (module.startswith("torch.nn.modules.") and name.isidentifier()):
        return Global(module, name)
    raise CheckpointError(
        f"the pickle refers to {f'{module}.{name}'[:100]!r}, which no StyleGAN2 format needs; "
        "the file is not a StyleGAN2 checkpoint or is hostile, and nothing of it was run"
    )
