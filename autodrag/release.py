"""Release files: safetensors with the config as JSON and a format version in the metadata.

They are untrusted input: the size of the file and of its header is bounded, and every extent is compared with what is
there before a tensor is made. What the tensors are for, `autodrag.checkpoint` knows.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodrag.errors import AutodragError, CheckpointError
from autodrag.files import replacing

FORMAT = 1
MAX_HEADER_BYTES = 8 * 2**20
MAX_FILE_BYTES = 8 * 2**30
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    config: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors with their config, whole or not at all.

    Args:
        path: a `.safetensors` file; its folder is made where it is missing.
        tensors: name → floating-point tensor, of any device.
        kind: what the file holds ("generator", "landmarks", "latent", ...); `load_tensors` asks for it again.
        config: whatever rebuilds the network, as JSON values.
        extra: further JSON values (fingerprints, training facts).
        dtype: storage type (fp16, bf16 or fp32); None keeps each tensor's own.
    """
    from safetensors.torch import save_file

    metadata = {
        "autodrag_format": str(FORMAT),
        "kind": kind,
        "config": json.dumps(dict(config), allow_nan=False),
        "extra": json.dumps(dict(extra or {}), allow_nan=False),
    }
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().to("cpu", dtype).contiguous()
        if kept.dtype not in DTYPES.values():
            raise AutodragError(f"tensor {name!r} is {kept.dtype}; only fp16, bf16 and fp32 can be stored")
        if kept.untyped_storage().nbytes() != kept.nbytes:  # a part of something larger; safetensors wants it whole
            kept = kept.clone()
        stored[name] = kept
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors would leave it readable by its owner alone
        save_file(stored, temporary, metadata=metadata)
        temporary.chmod(mode)


def load_tensors(path: str | Path, *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read (tensors as fp32 on the CPU, config, extra) of a file that `save_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, of another kind or of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    config, extra = read_info(path, kind=kind)
    try:
        stored = load(path.read_bytes())
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise _corrupt(path, str(error)) from error
    tensors = {name: tensor.float() for name, tensor in stored.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise _corrupt(path, f"tensor {name!r} holds values that are not finite numbers")
    return tensors, config, extra


def read_info(path: str | Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (config, extra) alone, without the tensors; the header is checked as `load_tensors` checks it."""
    path = Path(path)
    metadata = _read_header(path)
    if "autodrag_format" not in metadata:
        raise CheckpointError(
            f"{str(path)!r} is a safetensors file, but not autodrag's; convert its source with `autodrag convert`"
        )
    if metadata["autodrag_format"] != str(FORMAT):
        raise CheckpointError(
            f"{str(path)!r} has format {metadata['autodrag_format']!r}, "
            f"and this version reads format {FORMAT}; upgrade autodrag"
        )
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{str(path)!r} holds a {metadata.get('kind')!r}, and a {kind!r} was expected")
    return _json_object(path, metadata, "config"), _json_object(path, metadata, "extra")


def _read_header(path: Path) -> dict[str, str]:
    """Check the size, header and tensor extents of a safetensors file; return its metadata."""
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} does not exist or is not a file; check the path")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if size > MAX_FILE_BYTES:
                raise CheckpointError(f"{str(path)!r} is {size} bytes, more than the limit of {MAX_FILE_BYTES}")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _corrupt(path, f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _corrupt(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, "its metadata is not a table of texts")
    end = 0
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
            raise _corrupt(path, f"tensor {name!r} has no extent")
        if entry.get("dtype") not in DTYPES:
            raise CheckpointError(f"{str(path)!r}: tensor {name!r} is {entry.get('dtype')}, expected F16, BF16 or F32")
        end = max(end, offsets[1])
    if end != size - 8 - length:
        raise _corrupt(path, f"its header describes {end} bytes of tensors and {size - 8 - length} are there")
    return metadata


def _json_object(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise _corrupt(path, f"its {key} is not JSON") from error
    if not isinstance(value, dict):
        raise _corrupt(path, f"its {key} is not a JSON object")
    return value


def _corrupt(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{str(path)!r} is corrupt or truncated ({why}); copy or convert it again")
