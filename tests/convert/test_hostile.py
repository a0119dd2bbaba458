"""Hostile files: none runs anything, and none takes memory or time out of proportion.

That nothing ran is shown three ways: the file that every payload would create is not there, no audit event of
a started process or of Python's own unpickler was raised, and the conversion ended with CheckpointError (or, for
files that are valid apart from their payload, with the right tensors). Memory is bounded by the system: address
space is limited to 256 MiB more than at the start, so a bomb would end in MemoryError.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodrag.convert import convert
from autodrag.errors import CheckpointError
from convert.sources import (
    TRAP,
    TRAP_CODE,
    nvidia_tensors,
    rosinality_tensors,
    standins,
    tensorflow_network,
    tensorflow_tensors,
    write_nvidia,
    write_rosinality,
    write_tensorflow,
)

SHELL = f"touch {TRAP}"
EXTRA_MEMORY = 256 * 2**20
SECONDS = 10.0
START = b"\x80\x04"
WATCHED = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"}
_seen: list[str] = []
_watching = False


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if _watching and event in WATCHED:
        _seen.append(event)


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a test in an empty folder, watched, with little memory to spare; then look for traces."""
    global _watching
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(TRAP).exists(), "the payload ran"


def attempt(source: Path) -> CheckpointError | None:
    """Convert under limits; the error, or None where the file was converted."""
    global _watching
    statm = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, hard))
    _seen.clear()
    start = time.process_time()
    _watching = True
    try:
        convert(source, source.parent / "out")
    except CheckpointError as error:
        return error
    finally:
        _watching = False
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert _seen == []
        assert time.process_time() - start < SECONDS
    return None


def refused(content: bytes) -> str:
    """The error's sentence for a file of this content."""
    source = Path("network.pkl")
    source.write_bytes(content)
    error = attempt(source.absolute())
    assert error is not None, "the file was accepted"
    assert not Path("out").exists()
    return str(error)


# --- a small pickle assembler ---------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def tup(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def call(module: str, attribute: str, *args: bytes) -> bytes:
    return name(module, attribute) + tup(*args) + pickle.REDUCE


def table(**items: bytes) -> bytes:
    pairs = b"".join(text(key) + value for key, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def number(value: int) -> bytes:
    data = value.to_bytes(15, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def blob(data: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", len(data)) + data


def file(body: bytes) -> bytes:
    return START + body + pickle.STOP


# --- names that would run something ---------------------------------------------------------------------------

CALLS: list[tuple[str, str, bytes]] = [
    ("os", "system", text(SHELL)),
    ("posix", "system", text(SHELL)),
    ("nt", "system", text(SHELL)),
    ("os", "popen", text(SHELL)),
    ("os", "execvp", text("touch")),
    ("subprocess", "Popen", text(SHELL)),
    ("subprocess", "check_output", text(SHELL)),
    ("builtins", "eval", text(TRAP_CODE)),
    ("builtins", "exec", text(TRAP_CODE)),
    ("builtins", "compile", text(TRAP_CODE)),
    ("builtins", "open", text(TRAP) + text("w")),
    ("builtins", "getattr", text("x") + text("__class__")),
    ("builtins", "__import__", text("antigravity")),
    ("__builtin__", "eval", text(TRAP_CODE)),
    ("importlib", "import_module", text("antigravity")),
    ("runpy", "run_path", text("evil.py")),
    ("runpy", "_run_code", text(TRAP_CODE)),
    ("code", "InteractiveInterpreter", b""),
    ("timeit", "timeit", text(TRAP_CODE)),
    ("pty", "spawn", text(SHELL)),
    ("socket", "create_connection", tup(text("127.0.0.1"), number(9))),
    ("shutil", "rmtree", text("/nowhere")),
    ("pathlib", "Path.touch", text(TRAP)),
    ("pickle", "loads", blob(b"cos\nsystem\n(S'touch x'\ntR.")),
    ("_pickle", "loads", blob(b"cos\nsystem\n(S'touch x'\ntR.")),
    ("marshal", "loads", blob(b"\xe3")),
    ("types", "FunctionType", b""),
    ("types", "CodeType", b""),
    ("functools", "partial", name("collections", "OrderedDict")),
    ("operator", "attrgetter", text("__class__")),
    ("operator", "methodcaller", text("system") + text(SHELL)),
    ("ctypes", "CDLL", text("libc.so.6")),
    ("torch", "load", text("evil.pt")),
    ("torch.serialization", "load", text("evil.pt")),
    ("torch.jit", "load", text("evil.pt")),
    ("torch.hub", "load", text("evil/evil")),
    ("torch.ops", "load_library", text("evil.so")),
    ("torch.utils.cpp_extension", "load", text("evil")),
    ("torch._utils", "_rebuild_parameter.__globals__", b""),
    ("torch.storage", "_load_from_bytes.__globals__", b""),
    ("numpy", "load", text("evil.npy")),
    ("numpy.testing._private.utils", "runstring", text(TRAP_CODE) + pickle.EMPTY_DICT),
    ("collections", "OrderedDict.__init__.__globals__", b""),
    ("torch_utils.persistence", "_src_to_module", text(TRAP_CODE)),
    ("dnnlib.util", "call_func_by_name", text("os.system")),
    ("dnnlib.tflib.network", "exec", text(TRAP_CODE)),
    ("training.networks", "Generator", b""),
    ("__main__", "payload", b""),
]


@pytest.mark.parametrize(("module", "attribute", "args"), CALLS, ids=[f"{m}.{a}" for m, a, _ in CALLS])
def test_a_call_is_refused_by_name(module: str, attribute: str, args: bytes) -> None:
    assert f"{module}.{attribute}" in refused(file(call(module, attribute, args)))


SOURCES: dict[str, Callable[[bytes], bytes]] = {
    "reduce": lambda pair: pair + tup(text(SHELL)) + pickle.REDUCE,
    "newobj": lambda pair: pair + tup(text(SHELL)) + pickle.NEWOBJ,
    "build": lambda pair: pair + pickle.EMPTY_TUPLE + pickle.NEWOBJ + table(x=text(SHELL)) + pickle.BUILD,
    "as a value": lambda pair: table(G_ema=pair),
    "as a key": lambda pair: pickle.EMPTY_DICT + pair + pickle.NONE + pickle.SETITEM,
    "nested": lambda pair: call("collections", "OrderedDict", tup(pair + tup(text(SHELL)) + pickle.REDUCE)),
    "as a storage": lambda pair: call("torch._utils", "_rebuild_tensor_v2", pair + pickle.EMPTY_TUPLE),
    "memoised": lambda pair: pair + pickle.BINPUT + b"\x00" + tup(text(SHELL)) + pickle.REDUCE,
    "popped": lambda pair: pair + tup(text(SHELL)) + pickle.REDUCE + pickle.POP + pickle.EMPTY_DICT,
}


@pytest.mark.parametrize("way", list(SOURCES))
@pytest.mark.parametrize("stacked", [False, True], ids=["GLOBAL", "STACK_GLOBAL"])
def test_every_way_to_reach_a_name_is_closed(way: str, stacked: bool) -> None:
    pair = text("os") + text("system") + pickle.STACK_GLOBAL if stacked else name("os", "system")
    assert "os.system" in refused(file(SOURCES[way](pair)))


OPCODES: dict[str, bytes] = {
    "INST": pickle.MARK + text(SHELL) + pickle.INST + b"os\nsystem\n",
    "OBJ": pickle.MARK + name("collections", "OrderedDict") + pickle.OBJ,
    "EXT1": pickle.EXT1 + b"\x01",
    "EXT4": pickle.EXT4 + struct.pack("<i", 1),
    "PERSID": pickle.PERSID + b"../../etc/passwd\n",
    "BINPERSID": text("storage") + pickle.BINPERSID,
    "NEWOBJ_EX": name("collections", "OrderedDict") + tup() + table() + pickle.NEWOBJ_EX,
    "NEXT_BUFFER": b"\x97",
    "DUP": pickle.EMPTY_LIST + pickle.DUP,
    "STRING": pickle.STRING + b"'x'\n",
    "LONG": pickle.LONG + b"9" * 100_000 + b"L\n",
    "call of a string": text("os.system") + tup(text(SHELL)) + pickle.REDUCE,
    "call of a call": call("collections", "OrderedDict") + tup(text(SHELL)) + pickle.REDUCE,
    "call of a record": call("builtins", "set") + tup(text(SHELL)) + pickle.REDUCE,
    "arguments not a tuple": name("collections", "OrderedDict") + text(SHELL) + pickle.REDUCE,
    "name not a text": number(1) + number(2) + pickle.STACK_GLOBAL,
    "state of a list": pickle.EMPTY_LIST + table(x=pickle.NONE) + pickle.BUILD,
    "items of a name": name("collections", "OrderedDict") + pickle.NONE + pickle.NONE + pickle.SETITEM,
    "nothing remembered": pickle.BINGET + b"\x07",
    "empty stack": pickle.TUPLE3,
    "no mark": pickle.TUPLE,
    "below the mark": number(1) + pickle.MARK + pickle.TUPLE1,
    "list as a key": pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.NONE + pickle.SETITEM,
    "odd items": pickle.EMPTY_DICT + pickle.MARK + pickle.NONE + pickle.SETITEMS,
    "not UTF-8": pickle.BINUNICODE + struct.pack("<I", 2) + b"\xff\xff",
    "protocol 9": b"\x80\x09" + pickle.NONE,
}


@pytest.mark.parametrize("case", list(OPCODES))
def test_broken_and_unknown_programs(case: str) -> None:
    refused(file(OPCODES[case]))


# --- programs that ask for too much ---------------------------------------------------------------------------


def doubling(make: bytes, levels: int = 200) -> bytes:
    """A value that contains the one before it twice: 2 ** levels once written out."""
    body = text("x") + pickle.MEMOIZE + pickle.POP
    for level in range(levels):
        twice = (pickle.BINGET + bytes([level])) * 2
        body += twice + make + pickle.MEMOIZE + pickle.POP
    return body + pickle.BINGET + bytes([levels])


SELF_MODULE = (
    name("torch.nn.modules.module", "Module")
    + tup()
    + pickle.NEWOBJ
    + pickle.BINPUT
    + b"\x00"
    + table(_modules=table(x=pickle.BINGET + b"\x00"), _parameters=table(), _buffers=table())
    + pickle.BUILD
)
SELF_NETWORK = (
    name("dnnlib.tflib.network", "Network")
    + tup()
    + pickle.NEWOBJ
    + pickle.BINPUT
    + b"\x00"
    + table(components=table(mapping=pickle.BINGET + b"\x00", synthesis=pickle.BINGET + b"\x00"))
    + pickle.BUILD
)
WIDE_MODULES = b"".join(
    # Each level lists the level below a hundred times.
    name("torch.nn.modules.module", "Module")
    + tup()
    + pickle.NEWOBJ
    + table(_modules=table(**({f"m{i}": pickle.BINGET + bytes([level - 1]) for i in range(100)} if level else {})))
    + pickle.BUILD
    + pickle.BINPUT
    + bytes([level])
    + pickle.POP
    for level in range(6)
)
HUGE = 2**62
NDARRAY = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), tup(number(0)), blob(b"b"))


def array(dtype: bytes, shape: bytes, data: bytes) -> bytes:
    return NDARRAY + tup(number(1), shape, dtype, pickle.NEWFALSE, blob(data)) + pickle.BUILD


def dtype(code: str, order: str = "<") -> bytes:
    described = tup(number(3), text(order), pickle.NONE, pickle.NONE, pickle.NONE, number(-1), number(-1))
    return call("numpy", "dtype", text(code), pickle.NEWFALSE, pickle.NEWTRUE) + described + pickle.BUILD


def tensorflow_with(value: bytes) -> bytes:
    """A (G, D, Gs) tuple with one variable."""

    def network(variables: bytes, components: bytes) -> bytes:
        state = table(version=number(4), static_kwargs=table(), components=components, variables=variables)
        return name("dnnlib.tflib.network", "Network") + tup() + pickle.NEWOBJ + state + pickle.BUILD

    def part(variables: bytes) -> bytes:
        return network(variables, table())

    one = pickle.EMPTY_LIST + tup(text("4x4/Conv/weight"), value) + pickle.APPEND
    whole = network(pickle.EMPTY_LIST, table(mapping=part(pickle.EMPTY_LIST), synthesis=part(one)))
    return tup(whole, whole, whole)


def nvidia_with(storage: bytes, shape: bytes, stride: bytes, offset: int = 0) -> bytes:
    """A G_ema with one tensor of this storage and shape."""
    hooks = call("collections", "OrderedDict")
    weight = call("torch._utils", "_rebuild_tensor_v2", storage, number(offset), shape, stride, pickle.NEWFALSE, hooks)
    path: bytes = table(_modules=table(), _parameters=table(weight=weight), _buffers=table())
    for child in ("conv1", "b4", "synthesis"):
        state = table(_modules=table(**{child: module(path)}), _parameters=table(), _buffers=table())
        path = state
    return table(G_ema=module(path))


def module(state: bytes) -> bytes:
    meta = table(type=text("class"), version=number(6), module_src=text(TRAP_CODE), state=state)
    return call("torch_utils.persistence", "_reconstruct_persistent_obj", meta)


def saved(count: int, data: bytes, announced: int | None = None) -> bytes:
    """A storage as torch.save writes it inside NVIDIA's pickles."""
    pid = tup(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(count), pickle.NONE)
    stream = b"".join(
        b"\x80\x02" + body + pickle.STOP
        for body in (
            number(0x1950A86A20F9469CFC6C),
            number(1001),
            table(little_endian=pickle.NEWTRUE),
            pid + pickle.BINPERSID,
            pickle.EMPTY_LIST + text("0") + pickle.APPEND,
        )
    )
    stream += struct.pack("<q", count if announced is None else announced) + data
    return call("torch.storage", "_load_from_bytes", blob(stream))


ONE_FLOAT = saved(1, b"\0\0\x80?")
BOMBS: dict[str, bytes] = {
    "doubling tuples": doubling(pickle.TUPLE2),
    "doubling tables": pickle.NONE
    + pickle.BINPUT
    + b"\0"
    + (pickle.POP + table(a=pickle.BINGET + b"\0", b=pickle.BINGET + b"\0") + pickle.BINPUT + b"\0") * 300,
    "doubling tuple as a key": pickle.EMPTY_DICT + doubling(pickle.TUPLE2) + pickle.NONE + pickle.SETITEM,
    "doubling activation": table(
        G_ema=module(
            table(
                _modules=table(
                    synthesis=module(
                        table(
                            _modules=table(),
                            _parameters=table(**{"b4.conv1.weight": ONE_FLOAT}),
                            activation=doubling(pickle.TUPLE2),
                        )
                    )
                )
            )
        )
    ),
    "memory of number 2**32 - 1": pickle.EMPTY_DICT + pickle.LONG_BINPUT + b"\xff\xff\xff\xff",
    "two million steps": (pickle.NONE + pickle.POP) * 1_000_000 + pickle.NONE,
    "a million sets": pickle.MARK + pickle.EMPTY_SET * 1_000_000,
    "a hundred thousand lists, each in the next": pickle.EMPTY_LIST * 100_001 + pickle.APPEND * 100_000,
    "as many tuples": pickle.NONE + pickle.TUPLE1 * 200_000,
    "as many calls": name("builtins", "set")
    + pickle.BINPUT
    + b"\0"
    + (pickle.BINGET + b"\0") * 60_000
    + (pickle.EMPTY_TUPLE + pickle.REDUCE)
    + (pickle.TUPLE1 + pickle.REDUCE) * 60_000,
    "a list copied through OrderedDict": (
        pickle.EMPTY_LIST
        + pickle.BINPUT
        + b"\0"
        + pickle.MARK
        + (pickle.EMPTY_LIST + pickle.NONE + pickle.APPEND) * 10_000
        + pickle.APPENDS
        + (name("collections", "OrderedDict") + pickle.BINGET + b"\0" + pickle.TUPLE1 + pickle.REDUCE) * 1_000
    ),
    "bytes of 2**62": pickle.BINBYTES8 + struct.pack("<Q", HUGE),
    "text of 2**62": pickle.BINUNICODE8 + struct.pack("<Q", HUGE),
    "text of 2**32 - 1": pickle.BINUNICODE + b"\xff\xff\xff\xff",
    "wide text": text("\U0001f43b" + "x" * (5 * 2**20)),
    "frame of 2**62": pickle.FRAME + struct.pack("<Q", HUGE) + pickle.NONE,
    "integer of 255 bytes": pickle.LONG1 + b"\xff" + b"\x7f" * 255,
    "integer of 2**31 bytes": pickle.LONG4 + b"\xff\xff\xff\x7f",
    "name of a megabyte": pickle.GLOBAL + b"x" * 2**20 + b"\nx\n",
    "modules in a circle": table(G_ema=SELF_MODULE),
    "networks in a circle": tup(SELF_NETWORK, SELF_NETWORK, SELF_NETWORK),
    "modules a hundred wide": WIDE_MODULES + table(G_ema=pickle.BINGET + b"\x05"),
    "array of 2**39 by 2**39": tensorflow_with(array(dtype("f4"), tup(number(2**39), number(2**39)), b"1234")),
    "array larger than its data": tensorflow_with(array(dtype("f4"), tup(number(1000)), b"1234")),
    "array of objects": tensorflow_with(array(dtype("O8", "|"), tup(number(1)), b"12345678")),
    "array of negative size": tensorflow_with(array(dtype("f4"), tup(number(-5)), b"1234")),
    "array of big-endian numbers": tensorflow_with(array(dtype("f4", ">"), tup(number(1)), b"1234")),
    "array without a state": tensorflow_with(NDARRAY),
    "array of a hundred axes": tensorflow_with(array(dtype("f4"), tup(*[number(1)] * 100), b"1234")),
    "tensor of stride 0": nvidia_with(ONE_FLOAT, tup(number(2**39)), tup(number(0))),
    "tensor beyond its storage": nvidia_with(ONE_FLOAT, tup(number(9)), tup(number(1))),
    "tensor before its storage": nvidia_with(ONE_FLOAT, tup(number(1)), tup(number(1)), offset=-1),
    "tensor after its storage": nvidia_with(ONE_FLOAT, tup(number(1)), tup(number(1)), offset=5),
    "tensor of negative stride": nvidia_with(ONE_FLOAT, tup(number(1)), tup(number(-1))),
    "tensor of sizes that are texts": nvidia_with(ONE_FLOAT, tup(text("x")), tup(text("x"))),
    "storage of 2**60 numbers": nvidia_with(saved(2**60, b""), tup(number(2**39)), tup(number(1))),
    "storage larger than announced": nvidia_with(saved(1, b"\0" * 4, announced=2**60), tup(number(1)), tup(number(1))),
    "storage cut short": nvidia_with(saved(4, b"\0" * 7), tup(number(4)), tup(number(1))),
    "storage with a call inside": nvidia_with(
        call("torch.storage", "_load_from_bytes", blob(file(call("os", "system", text(SHELL))))),
        tup(number(1)),
        tup(number(1)),
    ),
    "storage that is a list": nvidia_with(pickle.EMPTY_LIST, tup(number(1)), tup(number(1))),
    "storages inside storages": nvidia_with(
        call("torch.storage", "_load_from_bytes", blob(file(ONE_FLOAT))), tup(number(1)), tup(number(1))
    ),
    "long program inside a storage": nvidia_with(
        call("torch.storage", "_load_from_bytes", blob(file((pickle.NONE + pickle.POP) * 10**5))),
        tup(number(1)),
        tup(number(1)),
    ),
}


@pytest.mark.parametrize("case", list(BOMBS))
def test_bombs_are_bounded(case: str) -> None:
    refused(file(BOMBS[case]))


# --- payloads in otherwise valid files, and hostile archives ---------------------------------------------------


class Payload:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (SHELL,))


class State:
    """Pickles as an object whose __setstate__ would be called."""

    def __setstate__(self, state: object) -> None:
        Path(TRAP).touch()

    def __getstate__(self) -> dict[str, str]:
        return {"x": SHELL}


@pytest.mark.parametrize("payload", [Payload(), State()], ids=["reduce", "setstate"])
def test_payload_in_an_nvidia_network(tmp_path: Path, payload: object) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors(), attributes={"synthesis": {"extra": payload}})
    assert "nothing of it was run" in str(attempt(source))


def test_payload_in_a_tensorflow_network(tmp_path: Path) -> None:
    source = write_tensorflow(tmp_path / "n.pkl", tensorflow_tensors(), structure=Payload())
    assert "nothing of it was run" in str(attempt(source))


@pytest.mark.parametrize("legacy", [False, True])
def test_payload_in_a_torch_archive(tmp_path: Path, legacy: bool) -> None:
    tensors = {name: torch.tensor(t) for name, t in rosinality_tensors().items()}
    table = {"g_ema": tensors, "latent_avg": torch.zeros(8), "args": Payload()}
    torch.save(table, tmp_path / "n.pt", _use_new_zipfile_serialization=not legacy)
    assert "nothing of it was run" in str(attempt(tmp_path / "n.pt"))


def test_source_code_is_carried_and_ignored(tmp_path: Path) -> None:
    """Valid files whose every module carries a trap as its source: converted, and the trap not sprung."""
    assert attempt(write_nvidia(tmp_path / "n.pkl", nvidia_tensors())) is None
    (tmp_path / "out" / "generator.safetensors").unlink()
    assert attempt(write_tensorflow(tmp_path / "t.pkl", tensorflow_tensors())) is None


def test_a_network_may_not_stand_in_for_its_own_parts(tmp_path: Path) -> None:
    with standins() as names:
        network = tensorflow_network(names, tensorflow_tensors())
        network.components = {"mapping": network, "synthesis": network}
        (tmp_path / "n.pkl").write_bytes(pickle.dumps((network,) * 3, protocol=4))
    assert attempt(tmp_path / "n.pkl") is not None


def test_tensors_that_share_their_bytes(tmp_path: Path) -> None:
    """One storage under every name would let a small file ask for a large network."""
    tensors = {name: torch.tensor(t) for name, t in rosinality_tensors(64).items()}
    shared = torch.randn(max(t.numel() for t in tensors.values()))
    table = {name: t if "kernel" in name else shared[: t.numel()].view(t.shape) for name, t in tensors.items()}
    torch.save({"g_ema": table, "latent_avg": torch.zeros(8)}, tmp_path / "n.pt")
    assert "add up to more than the file" in str(attempt(tmp_path / "n.pt"))


def archive(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        for key, value in entries.items():
            target.writestr(f"archive/{key.replace('__', '/').replace('_', '.')}", value)
    return stream.getvalue()


def zipped_tensor(key: str, kind: str = "FloatStorage", count: int = 1) -> bytes:
    pid = tup(text("storage"), name("torch", kind), text(key), text("cpu"), number(count))
    weight = call(
        "torch._utils", "_rebuild_tensor_v2", pid + pickle.BINPERSID, number(0), tup(number(1)), tup(number(1))
    )
    return b"\x80\x02" + table(g_ema=table(**{"convs.0.x": weight})) + pickle.STOP


@pytest.mark.parametrize("key", ["../../../../etc/passwd", "/etc/passwd", "0", "archive/data.pkl", "\0", "x" * 10_000])
def test_archive_keys_are_not_paths(key: str) -> None:
    assert "lacks" in refused(archive(data_pkl=zipped_tensor(key)))


def test_archive_storage_of_an_unknown_kind() -> None:
    refused(archive(data_pkl=zipped_tensor("0", "QInt8Storage"), data__0=b"1234"))


def test_archive_storage_larger_than_its_entry() -> None:
    refused(archive(data_pkl=zipped_tensor("0", count=2**60), data__0=b"1234"))


def test_compressed_archive_is_no_zip_bomb() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", b"\0" * 2**26)
    assert "compressed" in refused(stream.getvalue())


def test_archive_with_a_huge_table_of_contents() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        for i in range(30_000):
            target.writestr(f"archive/data/{i:0100}", b"")
        target.writestr("archive/data.pkl", zipped_tensor("0"))
    assert "table of contents" in refused(stream.getvalue())


def test_archive_entry_beyond_the_file() -> None:
    data = bytearray(archive(data_pkl=zipped_tensor("0"), data__0=b"1234"))
    place = data.rindex(b"PK\x01\x02")
    data[place + 20 : place + 28] = struct.pack("<II", 2**31, 2**31)
    refused(bytes(data))


@pytest.mark.parametrize("kind", ["script", "numpy", "other"])
def test_other_archives_are_no_checkpoints(kind: str) -> None:
    if kind == "script":
        content = archive(data_pkl=zipped_tensor("0"), constants_pkl=b"", code__x_py=TRAP_CODE.encode())
    elif kind == "numpy":
        stream = io.BytesIO()
        np.savez(stream, x=np.zeros(3))
        content = stream.getvalue()
    else:
        content = archive(readme_txt=b"hello")
    assert "not a checkpoint" in refused(content)


def test_a_hostile_rosinality_file_still_names_its_fault(tmp_path: Path) -> None:
    source = write_rosinality(tmp_path / "n.pt", rosinality_tensors() | {"evil": np.zeros(3)}, None)
    assert "'evil'" in str(attempt(source))
