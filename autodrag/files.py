"""Atomic writing of files, and reading with a size limit."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autodrag.errors import AutodragError

FULL = ("No space left on device", "Disk quota exceeded", "StorageFull", "code: 28")
"""Error texts for a full disk from writers that do not raise OSError (safetensors, torch)."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. On success the file replaces `path`; on failure it is removed.

    The temporary name keeps the suffix of `path`, because image and video writers select the format by suffix.

    Raises:
        AutodragError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        if is_disk_full(error):
            raise AutodragError(f"{str(path)!r} cannot be written: the disk is full; free some space") from error
        raise
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error was caused by a full disk or an exhausted quota."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(text in str(error) for text in FULL)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError for NaN and Infinity, which are not valid JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bounded(path: str | Path, limit: int, kind: str) -> bytes:
    """Read a file of at most `limit` bytes; `kind` names it in errors ("image", "mask")."""
    path = Path(path)
    if not path.is_file():
        raise AutodragError(f"{kind} {str(path)!r} does not exist; check the path")
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise AutodragError(f"{kind} {str(path)!r} cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise AutodragError(f"{kind} {str(path)!r} is larger than the limit of {limit / 2**20:.3g} MiB")
    return data
