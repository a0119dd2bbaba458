"""Release files: safetensors with a format version and the config as JSON in the metadata.

Release files are untrusted input. The sizes of the file and its header are limited, and the tensor extents are compared
with the file size before tensors are loaded. `autodrag.checkpoint` builds networks from the tensors.
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
    """Write tensors with their config, atomically.

    Args:
        path: a `.safetensors` file; its folder is created if it is missing.
        tensors: floating-point tensors by name, on any device.
        kind: type of the content ("generator", "landmarks", "latent", ...), checked by `load_tensors`.
        config: the network's config, as JSON values.
        extra: further JSON values (fingerprints, training facts).
        dtype: storage type (fp16, bf16 or fp32); None keeps the dtype of each tensor.
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
        converted = tensor.detach().to("cpu", dtype).contiguous()
        if converted.dtype not in DTYPES.values():
            raise AutodragError(f"tensor {name!r} is {converted.dtype}; only fp16, bf16 and fp32 can be stored")
        if converted.untyped_storage().nbytes() != converted.nbytes:  # safetensors refuses views of larger storages
            converted = converted.clone()
        stored[name] = converted
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors creates files that only their owner can read
        save_file(stored, temporary, metadata=metadata)
        temporary.chmod(mode)


def load_tensors(path: str | Path, *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read (tensors as fp32 on the CPU, config, extra) from a file written by `save_tensors`.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt, or has another kind or format version.
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
            raise _corrupt(path, f"tensor {name!r} contains NaN or infinite values")
    return tensors, config, extra


def read_info(path: str | Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (config, extra) without the tensors. The header is checked as in `load_tensors`."""
    path = Path(path)
    metadata = _read_header(path)
    if "autodrag_format" not in metadata:
        raise CheckpointError(
            f"{str(path)!r} is a safetensors file, but autodrag did not write it; convert it with `autodrag convert`"
        )
    if metadata["autodrag_format"] != str(FORMAT):
        raise CheckpointError(
            f"{str(path)!r} has format {metadata['autodrag_format']!r}, "
            f"but this version reads format {FORMAT}; upgrade autodrag"
        )
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{str(path)!r} holds a {metadata.get('kind')!r}; expected a {kind!r}")
    return _json_object(path, metadata, "config"), _json_object(path, metadata, "extra")


def _read_header(path: Path) -> dict[str, str]:
    """Check the size, header and tensor extents of a safetensors file, and return its metadata."""
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
        raise _corrupt(path, "its metadata is not a mapping of strings")
    end = 0
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
            raise _corrupt(path, f"tensor {name!r} has no valid data_offsets")
        if entry.get("dtype") not in DTYPES:
            raise CheckpointError(f"{str(path)!r}: tensor {name!r} is {entry.get('dtype')}, expected F16, BF16 or F32")
        end = max(end, offsets[1])
    if end != size - 8 - length:
        raise _corrupt(path, f"its header describes {end} bytes of tensors, but the file has {size - 8 - length}")
    return metadata


def _json_object(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise _corrupt(path, f"its {key} is not JSON") from error
    if not isinstance(value, dict):
        raise _corrupt(path, f"its {key} is not a JSON object")
    return value


def _corrupt(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{str(path)!r} is corrupt or truncated ({reason}); copy or convert it again")
