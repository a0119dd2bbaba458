"""Converting a file with modified bytes raises CheckpointError or writes a loadable generator."""

from __future__ import annotations

import contextlib
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autodrag.checkpoint import load_generator
from autodrag.convert import convert
from autodrag.convert.pickles import Range, unpickle
from autodrag.errors import CheckpointError
from convert.sources import (
    nvidia_tensors,
    rosinality_tensors,
    tensorflow_tensors,
    write_nvidia,
    write_rosinality,
    write_tensorflow,
)

SIZES: dict[str, Any] = {"base": 16, "most": 2, "w_dim": 2, "layers": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny valid file for each format and container, about 10 KB each."""
    folder = tmp_path_factory.mktemp("valid")
    average = np.zeros(2, np.float32)
    rosinality = rosinality_tensors(8, **SIZES)
    paths = {
        "nvidia": write_nvidia(folder / "a", nvidia_tensors(8, **SIZES)),
        "tensorflow": write_tensorflow(folder / "b", tensorflow_tensors(8, **SIZES)),
        "zip": write_rosinality(folder / "c", rosinality, average),
        "legacy": write_rosinality(folder / "d", rosinality, average, legacy=True),
    }
    for path in paths.values():
        convert(path, folder / f"out-{path.name}")
    return {kind: path.read_bytes() for kind, path in paths.items()}


def outcome(content: bytes) -> None:
    """Convert. Only success and CheckpointError pass the test."""
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "n", Path(name) / "out"
        source.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            convert(source, out)
            load_generator(out)


@pytest.mark.parametrize("kind", ["nvidia", "tensorflow", "zip", "legacy"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_changes(files: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    content = bytearray(files[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    outcome(bytes(content))


@pytest.mark.parametrize("kind", ["nvidia", "tensorflow", "zip", "legacy"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_truncation_insertion_and_deletion(files: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    content = files[kind]
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(start + 40, len(content))))
    inserted = data.draw(st.binary(max_size=20))
    outcome(content[:start] + inserted + (content[end:] if data.draw(st.booleans()) else b""))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_random_programs(body: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        unpickle(Range(io.BytesIO(b"\x80\x04" + body), 0, len(body) + 2))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_is_read_as_by_python(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol=protocol)
    read, end = unpickle(Range(io.BytesIO(content), 0, len(content)))
    assert read == value and end == len(content)
