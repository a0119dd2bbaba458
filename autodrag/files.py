"""Files are written whole or not at all, and read only up to a stated size."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autodrag.errors import AutodragError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    The temporary name keeps the suffix of `path`, because image and video writers choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and Infinity are refused, because they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bounded(path: str | Path, limit: int, what: str) -> bytes:
    """Read a file of at most `limit` bytes; `what` names its kind in errors ("image", "mask")."""
    path = Path(path)
    if not path.is_file():
        raise AutodragError(f"{what} {str(path)!r} does not exist; check the path")
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise AutodragError(f"{what} {str(path)!r} cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise AutodragError(f"{what} {str(path)!r} is larger than the limit of {limit / 2**20:.3g} MiB")
    return data
