"""Release files: round trips, and error messages for invalid files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from autodrag import release
from autodrag.errors import AutodragError, CheckpointError
from autodrag.release import load_tensors, save_tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small valid file of the kind "thing"."""
    path = tmp_path / "thing.safetensors"
    save_tensors(path, {"a": torch.arange(6.0).view(2, 3)}, kind="thing", config={"n": 1}, extra={"by": "test"})
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON header of a safetensors file and keep its data."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_round_trip_of_tensors_config_and_extra(file: Path) -> None:
    tensors, config, extra = load_tensors(file, kind="thing")
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
    assert (config, extra) == ({"n": 1}, {"by": "test"})
    assert [item.name for item in file.parent.iterdir()] == ["thing.safetensors"]


def test_fp16_storage_is_read_as_fp32(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, kind="x", config={}, dtype=torch.float16)
    tensors, _, _ = load_tensors(tmp_path / "x.safetensors", kind="x")
    assert tensors["a"].dtype == torch.float32


def test_views_of_a_tensor_and_file_mode(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"row": whole[1], "column": whole[:, 1]}, kind="x", config={})
    tensors, _, _ = load_tensors(path, kind="x")
    assert torch.equal(tensors["row"], whole[1])
    assert torch.equal(tensors["column"], whole[:, 1])
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_integer_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match=r"tensor 'a' is torch\.int64; only fp16, bf16 and fp32"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2, dtype=torch.int64)}, kind="x", config={})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tensors(tmp_path / "none.safetensors", kind="thing")


def test_another_kind(file: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a 'thing'; expected a 'generator'"):
        load_tensors(file, kind="generator")


def test_newer_format(file: Path) -> None:
    rewrite(file, lambda header: header["__metadata__"].update(autodrag_format="2"))
    with pytest.raises(CheckpointError, match="has format '2', but this version reads format 1; upgrade autodrag"):
        load_tensors(file, kind="thing")


def test_safetensors_from_other_software(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="autodrag did not write it; convert it"):
        load_tensors(tmp_path / "x.safetensors", kind="thing")


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncated_files(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(file, kind="thing")


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", 40000) + b"[" * 40000,
        struct.pack("<Q", 19) + b'{"__metadata__":{}} ',
        struct.pack("<Q", 7) + b'{"a":1}',
    ],
    ids=["length", "list", "binary", "nested", "surplus data", "no offsets"],
)
def test_hostile_headers(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(tmp_path / "x.safetensors", kind="thing")


def test_file_size_limit_is_checked_before_reading(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "MAX_FILE_BYTES", 10)
    with pytest.raises(CheckpointError, match="more than the limit of 10"):
        load_tensors(file, kind="thing")


def test_overlapping_extents(file: Path) -> None:
    rewrite(file, lambda header: header.update(b={"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}))
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(file, kind="thing")


def test_shape_that_does_not_match_its_extent(file: Path) -> None:
    rewrite(file, lambda header: header["a"].update(shape=[2**40, 2**40]))
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(file, kind="thing")


def test_other_dtypes(file: Path) -> None:
    rewrite(file, lambda header: header["a"].update(dtype="I32"))
    with pytest.raises(CheckpointError, match="tensor 'a' is I32, expected F16, BF16 or F32"):
        load_tensors(file, kind="thing")


def test_nan_values_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.tensor([1.0, float("nan")])}, kind="x", config={})
    with pytest.raises(CheckpointError, match="tensor 'a' contains NaN or infinite values"):
        load_tensors(tmp_path / "x.safetensors", kind="x")
