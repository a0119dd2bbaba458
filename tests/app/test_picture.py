"""PNG files that carry a latent and a session: what was embedded is extracted, and damaged files are refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from autodrag.app import picture
from autodrag.app.frames import png
from autodrag.errors import AutodragError

PICTURE = png(np.zeros((4, 4, 3), np.uint8))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(*chunks: bytes) -> bytes:
    return PICTURE[:-12] + b"".join(chunks) + PICTURE[-12:]


def test_contents_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert picture.extract(PICTURE) == {}
    contents = {"latent": bytes(range(256)) * 200, "session": b"{}"}
    assert picture.extract(picture.embed(PICTURE, **contents)) == contents
    monkeypatch.setattr(picture, "MAX_TEXT", 100)
    assert picture.extract(picture.embed(PICTURE, **contents)) == {"session": b"{}"}, "a large content is left out"


def test_other_texts_are_ignored() -> None:
    assert picture.extract(with_chunks(chunk(b"tEXt", b"Title\0x"), chunk(b"iTXt", b"autodrag-latent\0"))) == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a PNG"),
        (b"\xff\xd8\xff", "not a PNG"),
        (PICTURE[:-4], "cut off"),
        (PICTURE[:20], "cut off"),
        (PICTURE[:-12] + b"\xff\xff\xff\xffIDAT", "cut off"),
        (with_chunks(chunk(b"tEXt", b"autodrag-latent\0AA==")[:-1] + b"\0"), "checksum"),
        (with_chunks(chunk(b"tEXt", b"autodrag-latent\0???")), "base64"),
        (with_chunks(*[chunk(b"tEXt", b"autodrag-latent\0AA==")] * 2), "two texts"),
        (with_chunks(chunk(b"tEXt", b"autodrag-latent\0" + b"A" * (4 * 2**20 + 4))), "more than"),
        (with_chunks(*[chunk(b"tEXt", b"")] * 5000), "chunks"),
    ],
)
def test_a_damaged_file_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(AutodragError, match=words):
        picture.extract(data)
