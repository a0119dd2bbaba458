"""Hostile files: none runs code, and none takes memory or time out of proportion to its size.

Three checks show that nothing ran: the file that every payload would create does not exist; there was no audit event
of a started process or of Python's own unpickler; and the conversion ended with CheckpointError or, if the payload
is not part of the generator, with a generator. Address space is limited to 256 MiB above the start, so a bomb would
end in MemoryError.
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
    write_tensorflow,
)

SHELL = f"touch {TRAP}"
EXTRA_MEMORY = 256 * 2**20
SECONDS = 20.0  # CPU time; run-time type checks under pytest make a step 30 times slower
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
    """Run a test in an empty folder, then check that no payload created a file."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(TRAP).exists(), "the payload ran"


def attempt(source: Path) -> CheckpointError | None:
    """Convert with limits on time and memory. Returns the error, or None if the file was converted."""
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
    """The error message for a file with this content."""
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


# --- calls that would run code --------------------------------------------------------------------------------

CALLS: list[tuple[str, str, bytes]] = [
    ("os", "system", text(SHELL)),
    ("posix", "system", text(SHELL)),
    ("subprocess", "Popen", text(SHELL)),
    ("builtins", "eval", text(TRAP_CODE)),
    ("builtins", "open", text(TRAP) + text("w")),
    ("builtins", "getattr", text("x") + text("__class__")),
    ("builtins", "__import__", text("antigravity")),
    ("__builtin__", "eval", text(TRAP_CODE)),
    ("importlib", "import_module", text("antigravity")),
    ("socket", "create_connection", tup(text("127.0.0.1"), number(9))),
    ("pathlib", "Path.touch", text(TRAP)),
    ("pickle", "loads", blob(b"cos\nsystem\n(S'touch x'\ntR.")),
    ("types", "FunctionType", b""),
    ("functools", "partial", name("collections", "OrderedDict")),
    ("operator", "methodcaller", text("system") + text(SHELL)),
    ("torch", "load", text("evil.pt")),
    ("torch._utils", "_rebuild_parameter.__globals__", b""),
    ("collections", "OrderedDict.__init__.__globals__", b""),
    ("torch_utils.persistence", "_src_to_module", text(TRAP_CODE)),
    ("dnnlib.util", "call_func_by_name", text("os.system")),
    ("__main__", "payload", b""),
]


@pytest.mark.parametrize(("module", "attribute", "args"), CALLS, ids=[f"{m}.{a}" for m, a, _ in CALLS])
def test_calls_are_reported_and_not_executed(module: str, attribute: str, args: bytes) -> None:
    payload = call(module, attribute, args)
    for content in (payload, table(G_ema=payload)):
        assert f"a call of '{module}.{attribute}' (not executed)" in refused(file(content))


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "reduce": lambda pair: pair + tup(text(SHELL)) + pickle.REDUCE,
    "newobj": lambda pair: pair + tup(text(SHELL)) + pickle.NEWOBJ,
    "newobj_ex": lambda pair: pair + tup(text(SHELL)) + table() + pickle.NEWOBJ_EX,
    "build": lambda pair: pair + pickle.EMPTY_TUPLE + pickle.NEWOBJ + table(x=text(SHELL)) + pickle.BUILD,
    "as a key": lambda pair: pickle.EMPTY_DICT + pair + pickle.NONE + pickle.SETITEM,
    "nested": lambda pair: call("collections", "OrderedDict", tup(pair + tup(text(SHELL)) + pickle.REDUCE)),
    "result called": lambda pair: pair + tup(text(SHELL)) + pickle.REDUCE + tup(text(SHELL)) + pickle.REDUCE,
    "as a storage": lambda pair: call("torch._utils", "_rebuild_tensor_v2", pair + pickle.EMPTY_TUPLE),
    "memoised": lambda pair: pair + pickle.BINPUT + b"\x00" + tup(text(SHELL)) + pickle.REDUCE,
    "popped": lambda pair: pair + tup(text(SHELL)) + pickle.REDUCE + pickle.POP + pickle.EMPTY_DICT,
    "items": lambda pair: pair + pickle.EMPTY_TUPLE + pickle.REDUCE + text(SHELL) + pickle.NONE + pickle.SETITEM,
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("stacked", [False, True], ids=["GLOBAL", "STACK_GLOBAL"])
def test_all_opcodes_for_calls_are_inert(form: str, stacked: bool) -> None:
    pair = text("os") + text("system") + pickle.STACK_GLOBAL if stacked else name("os", "system")
    refused(file(FORMS[form](pair)))


OPCODES: dict[str, bytes] = {
    "INST": pickle.MARK + text(SHELL) + pickle.INST + b"os\nsystem\n",
    "OBJ": pickle.MARK + name("collections", "OrderedDict") + pickle.OBJ,
    "EXT1": pickle.EXT1 + b"\x01",
    "PERSID": pickle.PERSID + b"../../etc/passwd\n",
    "BINPERSID": text("storage") + pickle.BINPERSID,
    "NEXT_BUFFER": b"\x97",
    "LONG": pickle.LONG + b"9" * 100_000 + b"L\n",
    "call of a string": text("os.system") + tup(text(SHELL)) + pickle.REDUCE,
    "arguments not a tuple": name("collections", "OrderedDict") + text(SHELL) + pickle.REDUCE,
    "name not a text": number(1) + number(2) + pickle.STACK_GLOBAL,
    "items of a name": name("collections", "OrderedDict") + pickle.NONE + pickle.NONE + pickle.SETITEM,
    "unknown memo index": pickle.BINGET + b"\x07",
    "empty stack": pickle.TUPLE3,
    "no mark": pickle.TUPLE,
    "below the mark": number(1) + pickle.MARK + pickle.TUPLE1,
    "list as a key": pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.NONE + pickle.SETITEM,
    "odd items": pickle.EMPTY_DICT + pickle.MARK + pickle.NONE + pickle.SETITEMS,
    "not UTF-8": pickle.BINUNICODE + struct.pack("<I", 2) + b"\xff\xff",
    "protocol 9": b"\x80\x09" + pickle.NONE,
}


@pytest.mark.parametrize("case", list(OPCODES))
def test_invalid_programs(case: str) -> None:
    refused(file(OPCODES[case]))


# --- programs that need too much ---------------------------------------------------------------------------


def doubling(make: bytes, levels: int = 200) -> bytes:
    """A value that contains the previous value twice; its repr would have 2 ** levels items."""
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
    # Each level contains the level below a hundred times.
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


def array(dtype: bytes, shape: bytes, content: bytes = blob(b"1234")) -> bytes:
    return NDARRAY + tup(number(1), shape, dtype, pickle.NEWFALSE, content) + pickle.BUILD


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


def nvidia_with(
    storage: bytes,
    shape: bytes = tup(number(1)),
    stride: bytes = tup(number(1)),
    offset: int = 0,
    names: tuple[str, ...] = ("weight", "conv1", "b4", "synthesis"),
) -> bytes:
    """A G_ema with one tensor with the given storage, shape and name."""
    hooks = call("collections", "OrderedDict")
    weight = call("torch._utils", "_rebuild_tensor_v2", storage, number(offset), shape, stride, pickle.NEWFALSE, hooks)
    path: bytes = table(_modules=table(), _parameters=table(**{names[0]: weight}), _buffers=table())
    for child in names[1:]:
        state = table(_modules=table(**{child: module(path)}), _parameters=table(), _buffers=table())
        path = state
    return table(G_ema=module(path))


def module(state: bytes) -> bytes:
    meta = table(type=text("class"), version=number(6), module_src=text(TRAP_CODE), state=state)
    return call("torch_utils.persistence", "_reconstruct_persistent_obj", meta)


def nested(body: bytes) -> bytes:
    return call("torch.storage", "_load_from_bytes", blob(file(body)))


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
ENCODED = call("_codecs", "encode", pickle.BINGET + b"\0", text("latin1"))
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
    "a text encoded thirty thousand times": pickle.MARK + text("x" * 4096) + pickle.BINPUT + b"\0" + ENCODED * 30_000,
    "unknown objects without end": pickle.MARK + call("a", "B") * 70_000,
    "memo index 2**32 - 1": pickle.EMPTY_DICT + pickle.LONG_BINPUT + b"\xff\xff\xff\xff",
    "four hundred thousand steps": (pickle.NONE + pickle.POP) * 200_000 + pickle.NONE,
    "a million sets": pickle.MARK + pickle.EMPTY_SET * 1_000_000,
    "a hundred thousand lists, each in the next": pickle.EMPTY_LIST * 100_001 + pickle.APPEND * 100_000,
    "two hundred thousand tuples, each in the next": pickle.NONE + pickle.TUPLE1 * 200_000,
    "sixty thousand calls, each of the previous result": name("builtins", "set")
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
    "five thousand wide texts": pickle.MARK + text("\U0001f43b" + "x" * 4_000) * 5_000,
    "frame of 2**62": pickle.FRAME + struct.pack("<Q", HUGE) + pickle.NONE,
    "integer of 255 bytes": pickle.LONG1 + b"\xff" + b"\x7f" * 255,
    "integer of 2**31 bytes": pickle.LONG4 + b"\xff\xff\xff\x7f",
    "name of a megabyte": pickle.GLOBAL + b"x" * 2**20 + b"\nx\n",
    "tables in a circle": pickle.EMPTY_DICT
    + pickle.BINPUT
    + b"\0"
    + text("g_ema")
    + pickle.BINGET
    + b"\0"
    + pickle.SETITEM,
    "twenty thousand generators": table(**{f"g{i}.to_rgb1.bias": pickle.NONE for i in range(20_000)}),
    "constant without a shape": nvidia_with(ONE_FLOAT, tup(), tup(), names=("const", "b4", "synthesis")),
    "modules in a circle": table(G_ema=SELF_MODULE),
    "networks in a circle": tup(SELF_NETWORK, SELF_NETWORK, SELF_NETWORK),
    "modules a hundred wide": WIDE_MODULES + table(G_ema=pickle.BINGET + b"\x05"),
    "array of 2**39 by 2**39": tensorflow_with(array(dtype("f4"), tup(number(2**39), number(2**39)))),
    "array larger than its data": tensorflow_with(array(dtype("f4"), tup(number(1000)))),
    "array of objects": tensorflow_with(array(dtype("O8", "|"), tup(number(1)))),
    "array of negative size": tensorflow_with(array(dtype("f4"), tup(number(-5)))),
    "array of big-endian numbers": tensorflow_with(array(dtype("f4", ">"), tup(number(1)))),
    "array without a state": tensorflow_with(NDARRAY),
    "protocol-2 array larger than its text": tensorflow_with(
        array(dtype("f4"), tup(number(2000)), call("_codecs", "encode", text("\xff" * 4000), text("latin1")))
    ),
    "protocol-2 array of text that is not bytes": tensorflow_with(
        array(dtype("f4"), tup(number(2)), call("_codecs", "encode", text("\u20ac" * 4000), text("latin1")))
    ),
    "array of a hundred axes": tensorflow_with(array(dtype("f4"), tup(*[number(1)] * 100))),
    "tensor of stride 0": nvidia_with(ONE_FLOAT, tup(number(2**39)), tup(number(0))),
    "tensor beyond its storage": nvidia_with(ONE_FLOAT, tup(number(9))),
    "tensor before its storage": nvidia_with(ONE_FLOAT, offset=-1),
    "tensor after its storage": nvidia_with(ONE_FLOAT, offset=5),
    "tensor of negative stride": nvidia_with(ONE_FLOAT, stride=tup(number(-1))),
    "tensor of sizes that are texts": nvidia_with(ONE_FLOAT, tup(text("x")), tup(text("x"))),
    "storage of 2**60 numbers": nvidia_with(saved(2**60, b""), tup(number(2**39))),
    "storage larger than announced": nvidia_with(saved(1, b"\0" * 4, announced=2**60)),
    "storage cut short": nvidia_with(saved(4, b"\0" * 7), tup(number(4))),
    "storage with a call inside": nvidia_with(nested(call("os", "system", text(SHELL)))),
    "storage that is a list": nvidia_with(pickle.EMPTY_LIST),
    "storages inside storages": nvidia_with(nested(ONE_FLOAT)),
    "long program inside a storage": nvidia_with(nested((pickle.NONE + pickle.POP) * 10**5)),
}


@pytest.mark.parametrize("case", list(BOMBS))
def test_bombs_are_bounded(case: str) -> None:
    refused(file(BOMBS[case]))


# --- payloads in otherwise valid files, and hostile archives ---------------------------------------------------


class Payload:
    """Pickled as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (SHELL,))


class State:
    """Pickled as an object whose __setstate__ would be called."""

    def __setstate__(self, state: object) -> None:
        Path(TRAP).touch()

    def __getstate__(self) -> dict[str, str]:
        return {"x": SHELL}


PAYLOADS = pytest.mark.parametrize("payload", [Payload(), State()], ids=["reduce", "setstate"])


@PAYLOADS
@pytest.mark.parametrize("place", ["synthesis", "synthesis.b8.conv0", ""])
def test_payload_outside_the_generator_is_ignored(tmp_path: Path, payload: object, place: str) -> None:
    assert attempt(write_nvidia(tmp_path / "n.pkl", nvidia_tensors(), attributes={place: {"extra": payload}})) is None


@PAYLOADS
@pytest.mark.parametrize("table", ["_parameters", "_buffers", "_modules"])
def test_payload_in_the_generator_is_refused(tmp_path: Path, payload: object, table: str) -> None:
    attributes = {"synthesis.b8.conv0": {table: {"noise_const": payload}}}
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors(), attributes=attributes)
    message = str(attempt(source))
    assert "'synthesis.b8.conv0.noise_const' is a call of" in message and "(not executed)" in message


def test_payload_in_a_tensorflow_setting_is_refused(tmp_path: Path) -> None:
    source = write_tensorflow(tmp_path / "n.pkl", tensorflow_tensors(), nonlinearity=Payload())
    assert "nonlinearity = '(unreadable)'" in str(attempt(source))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["args", "g_ema"])
def test_payload_in_a_torch_archive(tmp_path: Path, legacy: bool, place: str) -> None:
    tensors: dict[str, object] = {name: torch.tensor(t) for name, t in rosinality_tensors().items()}
    if place == "g_ema":
        tensors["conv1.noise.weight"] = Payload()
    table = {"g_ema": tensors, "latent_avg": torch.zeros(8), "args": Payload()}
    torch.save(table, tmp_path / "n.pt", _use_new_zipfile_serialization=not legacy)
    error = attempt(tmp_path / "n.pt")
    assert (error is None) == (place == "args")
    assert error is None or "'g_ema.conv1.noise.weight' is a call of" in str(error)


def test_source_code_is_not_executed(tmp_path: Path) -> None:
    """Valid files in which the source code of every module is a trap."""
    assert attempt(write_nvidia(tmp_path / "n.pkl", nvidia_tensors())) is None
    (tmp_path / "out" / "generator.safetensors").unlink()
    assert attempt(write_tensorflow(tmp_path / "t.pkl", tensorflow_tensors())) is None


def test_recursive_network_is_refused(tmp_path: Path) -> None:
    with standins() as names:
        network = tensorflow_network(names, tensorflow_tensors())
        network.components = {"mapping": network, "synthesis": network}
        (tmp_path / "n.pkl").write_bytes(pickle.dumps((network,) * 3, protocol=4))
    assert attempt(tmp_path / "n.pkl") is not None


def test_tensors_that_share_their_bytes(tmp_path: Path) -> None:
    """Sharing one storage between all tensors would make a large network from a small file."""
    tensors = {name: torch.tensor(t) for name, t in rosinality_tensors(64).items()}
    shared = torch.randn(max(t.numel() for t in tensors.values()))
    table = {name: t if "kernel" in name else shared[: t.numel()].view(t.shape) for name, t in tensors.items()}
    torch.save({"g_ema": table, "latent_avg": torch.zeros(8)}, tmp_path / "n.pt")
    assert "larger than the file" in str(attempt(tmp_path / "n.pt"))


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
    return b"\x80\x02" + table(g_ema=table(**{"convs.0.conv.x": weight})) + pickle.STOP


@pytest.mark.parametrize("key", ["../../../../etc/passwd", "/etc/passwd", "0", "archive/data.pkl", "\0", "x" * 3_000])
def test_archive_keys_are_not_paths(key: str) -> None:
    assert "lacks" in refused(archive(data_pkl=zipped_tensor(key)))


@pytest.mark.parametrize(("kind", "count"), [("QInt8Storage", 1), ("FloatStorage", 2**60)])
def test_archive_storages_of_wrong_size(kind: str, count: int) -> None:
    refused(archive(data_pkl=zipped_tensor("0", kind, count), data__0=b"1234"))


def test_compressed_archive_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", b"\0" * 2**26)
    assert "compressed" in refused(stream.getvalue())


def test_archive_with_a_huge_central_directory() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        for i in range(30_000):
            target.writestr(f"archive/data/{i:0100}", b"")
        target.writestr("archive/data.pkl", zipped_tensor("0"))
    assert "central directory" in refused(stream.getvalue())


def test_archive_entry_beyond_the_file() -> None:
    data = bytearray(archive(data_pkl=zipped_tensor("0"), data__0=b"1234"))
    place = data.rindex(b"PK\x01\x02")
    data[place + 20 : place + 28] = struct.pack("<II", 2**31, 2**31)
    refused(bytes(data))
