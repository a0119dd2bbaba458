"""Read pickles as inert data. Nothing is imported or called, so no code in a file can run.

A pickle is a program for a stack machine (opcodes: CPython's Lib/pickletools.py, PEP 307, 3154 and 574). Python's
machine imports and calls the names in the program. This machine represents a name as a `Global` and a call as a
`Record` instead. The converters look for the records that they know and ignore all others.

Memory is bounded: long bytes and text stay in the file as a `Range`, and the number of steps and the total length of
short text are limited.
"""

from __future__ import annotations

import codecs
import io
import pickle  # only for the names of its opcodes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autodrag.errors import CheckpointError

MAX_STEPS = 500_000  # NVIDIA's pickle of G, D, G_ema and augmentation at 1024 px takes about 43,000
MAX_TEXT = 16 * 2**20  # maximum total length of short text, bytes
SHORT_TEXT = 4096  # bytes; longer text, such as source code, is not decoded
MAX_LINE = 1024  # maximum length of a global name, bytes
_CHUNK = 64 * 1024
_TABLES = {"collections.OrderedDict", "dnnlib.EasyDict", "dnnlib.util.EasyDict"}


@dataclass(frozen=True)
class Range:
    """`length` bytes of an open file, starting at byte `start`. Creating a range reads nothing."""

    file: io.BufferedIOBase
    start: int
    length: int

    def read(self, offset: int, count: int) -> bytes:
        """Read `count` bytes from `offset`. Raises CheckpointError if the range is too short."""
        self._check(offset, count)
        self.file.seek(self.start + offset)
        data = self.file.read(count)
        if len(data) != count:
            raise truncated(self.start + offset)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` without another copy."""
        self._check(offset, len(buffer))
        self.file.seek(self.start + offset)
        if self.file.readinto(buffer) != len(buffer):
            raise truncated(self.start + offset)

    def part(self, offset: int, count: int) -> Range:
        """The range of `count` bytes at `offset`, which must lie within this range."""
        self._check(offset, count)
        return Range(self.file, self.start + offset, count)

    def _check(self, offset: int, count: int) -> None:
        if offset < 0 or count < 0 or offset + count > self.length:
            raise truncated(self.start + self.length)


@dataclass(frozen=True)
class Global:
    """A name that Python would import."""

    module: str
    attribute: str

    def __str__(self) -> str:
        return f"{self.module}.{self.attribute}"


class Record:
    """A call that Python would make: its function or class, its arguments, and the state set afterwards."""

    __slots__ = ("args", "source", "state")

    def __init__(self, source: Global | Record, args: tuple[Any, ...]) -> None:
        self.source = source
        self.args = args
        self.state: Any = None

    @property
    def name(self) -> str:
        """Dotted name of the function or class; empty for a call of another call's result."""
        return str(self.source) if isinstance(self.source, Global) else ""

    def __str__(self) -> str:
        return f"a call of {self.name[:100]!r} (not executed)" if self.name else "a nested call (not executed)"


_SET = Global("builtins", "set")
_REFERENCE = Global("pickle", "persistent_load")


def reference(pid: Any) -> Record:
    """The record of a persistent id, a reference to data outside the pickle."""
    return Record(_REFERENCE, (pid,))


def truncated(position: int) -> CheckpointError:
    """The error for data that ends too early."""
    return CheckpointError(
        f"the data ends at byte {position} in the middle of a value, so the file is truncated or damaged; "
        "download it again"
    )


class Latin1Range(Range):
    """Bytes that pickle protocol 2 wrote as UTF-8 text, one character per byte.

    `length` is the length of the text, an upper bound of the number of bytes.
    """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with decoded bytes, in chunks. `offset` must be 0, as it is for arrays."""
        assert offset == 0
        decoder = codecs.getincrementaldecoder("utf-8")()
        filled = 0
        for start in range(0, self.length, _CHUNK):
            try:
                decoded = decoder.decode(self.read(start, min(_CHUNK, self.length - start))).encode("latin-1")
            except UnicodeError as error:
                raise CheckpointError("damaged array: its text does not encode bytes; download it again") from error
            count = min(len(decoded), len(buffer) - filled)
            buffer[filled : filled + count] = decoded[:count]
            filled += count
        if filled < len(buffer):
            raise truncated(self.start + self.length)


def unpickle(
    data: Range,
    position: int = 0,
    persistent: Callable[[Any], Any] = reference,
    *,
    max_steps: int = MAX_STEPS,
) -> tuple[Any, int]:
    """Read the pickle at `position` of `data` as inert data.

    Args:
        data: bytes that contain the pickle.
        position: first byte of the pickle.
        persistent: converts a persistent id (torch's reference to a storage) to a value.
        max_steps: maximum number of opcodes.

    Returns:
        (value, position after the pickle). The value consists of None, bool, int, float, str, list, tuple, dict with
        plain keys, Range (bytes, long text or a long integer), Global, Record and results of `persistent`. A value
        may contain itself, so a walk through it must be bounded.

    Raises:
        CheckpointError: the data is not a pickle, is truncated, or is too large.
    """
    machine = _Machine(data, position, persistent)
    try:
        return machine.run(max_steps), machine.position
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        # An empty stack, an unknown memo index or an operand of a wrong type: the program is broken.
        raise CheckpointError(
            f"damaged pickle near byte {data.start + machine.position}; download the file again"
        ) from error


class _Machine:
    def __init__(self, data: Range, position: int, persistent: Callable[[Any], Any]) -> None:
        self.data = data
        self.position = position
        self.persistent = persistent
        self.buffer, self.buffer_start = b"", position
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.text_left = MAX_TEXT

    def run(self, max_steps: int) -> Any:
        operations = self.operations()
        for _ in range(max_steps):
            start = self.position - self.buffer_start
            code = self.buffer[start : start + 1]  # equals take(1), but without a function call per step
            if code:
                self.position += 1
            else:
                code = self.take(1)
            if code == pickle.STOP:
                return self.last(1)[0]
            operation = operations.get(code)
            if operation is None:
                raise CheckpointError(
                    f"opcode {code!r} at byte {self.data.start + self.position - 1}, which pickle protocols 2 to 5 "
                    "do not write into files; download the file again"
                )
            operation()
        raise CheckpointError(
            f"its pickle takes more than {max_steps:,} steps; save the generator alone and convert that file"
        )

    def operations(self) -> dict[bytes, Callable[[], Any]]:
        """Map opcodes to their effects on the stack."""
        push, unsigned, memo = self.stack.append, self.unsigned, self.memo
        return {
            pickle.NONE: lambda: push(None),
            pickle.NEWTRUE: lambda: push(True),
            pickle.NEWFALSE: lambda: push(False),
            pickle.BININT: lambda: push(int.from_bytes(self.take(4), "little", signed=True)),
            pickle.BININT1: lambda: push(unsigned(1)),
            pickle.BININT2: lambda: push(unsigned(2)),
            pickle.LONG1: lambda: push(int.from_bytes(self.take(unsigned(1)), "little", signed=True)),
            pickle.LONG4: lambda: push(self.skip(unsigned(4))),
            pickle.BINFLOAT: lambda: push(struct.unpack(">d", self.take(8))[0]),
            pickle.SHORT_BINUNICODE: lambda: push(self.text(unsigned(1))),
            pickle.BINUNICODE: lambda: push(self.text(unsigned(4))),
            pickle.BINUNICODE8: lambda: push(self.text(unsigned(8))),
            pickle.SHORT_BINSTRING: lambda: push(self.text(unsigned(1), "latin-1")),  # text or bytes of Python 2
            pickle.BINSTRING: lambda: push(self.text(unsigned(4), "latin-1")),
            pickle.SHORT_BINBYTES: lambda: push(self.skip(unsigned(1))),
            pickle.BINBYTES: lambda: push(self.skip(unsigned(4))),
            pickle.BINBYTES8: lambda: push(self.skip(unsigned(8))),
            pickle.BYTEARRAY8: lambda: push(self.skip(unsigned(8))),
            pickle.EMPTY_TUPLE: lambda: push(()),
            pickle.TUPLE1: lambda: push(tuple(self.last(1))),
            pickle.TUPLE2: lambda: push(tuple(self.last(2))),
            pickle.TUPLE3: lambda: push(tuple(self.last(3))),
            pickle.TUPLE: lambda: push(tuple(self.since_mark())),
            pickle.EMPTY_LIST: lambda: push([]),
            pickle.APPEND: lambda: self.extend(self.last(1)),
            pickle.APPENDS: lambda: self.extend(self.since_mark()),
            pickle.EMPTY_DICT: lambda: push({}),
            pickle.SETITEM: lambda: self.update(self.last(2)),
            pickle.SETITEMS: lambda: self.update(self.since_mark()),
            pickle.EMPTY_SET: lambda: push(Record(_SET, ())),
            pickle.ADDITEMS: lambda: self.extend(self.since_mark()),
            pickle.FROZENSET: lambda: push(Record(_SET, tuple(self.since_mark()))),
            pickle.GLOBAL: lambda: push(_name(self.line(), self.line())),
            pickle.STACK_GLOBAL: lambda: push(_name(*self.last(2))),
            pickle.REDUCE: lambda: push(_call(*self.last(2))),
            pickle.NEWOBJ: lambda: push(_call(*self.last(2))),
            pickle.NEWOBJ_EX: lambda: push(_call(*self.last(3)[:2])),
            pickle.BUILD: self.build,
            pickle.BINPERSID: lambda: push(self.persistent(*self.last(1))),
            pickle.BINGET: lambda: push(memo[unsigned(1)]),
            pickle.LONG_BINGET: lambda: push(memo[unsigned(4)]),
            pickle.BINPUT: lambda: memo.__setitem__(unsigned(1), self.stack[-1]),
            pickle.LONG_BINPUT: lambda: memo.__setitem__(unsigned(4), self.stack[-1]),
            pickle.MEMOIZE: lambda: memo.__setitem__(len(memo), self.stack[-1]),
            pickle.MARK: lambda: self.marks.append(len(self.stack)),
            pickle.POP: lambda: self.last(1),
            pickle.POP_MARK: self.since_mark,
            pickle.PROTO: self.check_protocol,
            pickle.FRAME: lambda: self.data.part(self.position, unsigned(8)),
        }

    def check_protocol(self) -> None:
        version = self.unsigned(1)
        if not 2 <= version <= 5:
            raise CheckpointError(f"pickle protocol {version}; save the file again with protocol 2 to 5")

    def build(self) -> None:
        (state,) = self.last(1)
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state

    def take(self, count: int) -> bytes:
        """Read the next `count` bytes."""
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

    def skip(self, count: int) -> Range:
        """Skip `count` bytes and return their range."""
        part = self.data.part(self.position, count)
        self.position += count
        return part

    def text(self, count: int, encoding: str = "utf-8") -> str | Range:
        if count > SHORT_TEXT:
            return self.skip(count)
        self.text_left -= count
        if self.text_left < 0:
            raise CheckpointError(
                f"its pickle holds more than {MAX_TEXT // 2**20} MiB of text; "
                "save the generator alone and convert that file"
            )
        return self.take(count).decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")

    def line(self) -> str:
        window = self.data.read(self.position, min(MAX_LINE, self.data.length - self.position))
        line, end, _ = window.partition(b"\n")
        if not end:
            raise TypeError
        self.position += len(line) + 1
        return line.decode("utf-8")

    def last(self, count: int) -> list[Any]:
        """Pop the top `count` values, which must lie above the last mark."""
        floor = len(self.stack) - count
        if floor < (self.marks[-1] if self.marks else 0):
            raise IndexError
        values = self.stack[floor:]
        del self.stack[floor:]
        return values

    def since_mark(self) -> list[Any]:
        return self.last(len(self.stack) - self.marks.pop())

    def extend(self, values: list[Any]) -> None:
        """Add items to a list. Items of other containers are ignored."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Record):
            raise TypeError

    def update(self, pairs: list[Any]) -> None:
        """Add items to a dict. Only plain keys are stored, because hashing nested tuples can take exponential time."""
        table = self.stack[-1]
        if len(pairs) % 2 or not isinstance(table, (dict, Record)):
            raise TypeError
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(table, dict) and isinstance(key, (str, int, float)):
                table[key] = value


def _name(module: Any, attribute: Any) -> Global:
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise TypeError
    return Global(module, attribute)


def _call(source: Any, args: Any) -> Any:
    """The record of a call. Calling a dict class without arguments gives an empty dict."""
    if not isinstance(source, (Global, Record)) or not isinstance(args, tuple):
        raise TypeError
    return {} if not args and isinstance(source, Global) and str(source) in _TABLES else Record(source, args)
