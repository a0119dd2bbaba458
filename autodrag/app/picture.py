"""PNG files that carry the latent and the session of their image, in text chunks as the PNG standard describes them.

Such a file is untrusted input: sizes, order and checksums of its chunks are checked, and only two texts are read. The
readers of latents and sessions then check the contents.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib

from autodrag.errors import AutodragError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORDS = {"latent": b"autodrag-latent", "session": b"autodrag-session"}
MAX_CHUNKS = 4096
MAX_TEXT = 4 * 2**20
"""Maximum size of one text in its base64 form, bytes."""


def embed(png: bytes, **contents: bytes) -> bytes:
    """Add contents, named as in `KEYWORDS`, to a PNG. A content that is too large is left out."""
    end = len(png) - 12
    assert png.startswith(SIGNATURE) and png[end + 4 : end + 8] == b"IEND"
    chunks = []
    for name, content in contents.items():
        text = base64.b64encode(content)
        if len(text) <= MAX_TEXT:
            body = b"tEXt" + KEYWORDS[name] + b"\0" + text
            chunks.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    return png[:end] + b"".join(chunks) + png[end:]


def extract(data: bytes) -> dict[str, bytes]:
    """The contents that `embed` added; empty if there are none.

    Raises:
        AutodragError: not a PNG, or a PNG that is damaged.
    """
    if not data.startswith(SIGNATURE):
        raise AutodragError("the picture is not a PNG; drop a PNG that this editor exported")
    names = {keyword: name for name, keyword in KEYWORDS.items()}
    found: dict[str, bytes] = {}
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            raise _damaged("it is cut off")
        (length,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + length]
        position += 12 + length
        if position > len(data):
            raise _damaged("it is cut off")
        if body[:4] == b"IEND":
            return found
        keyword, _, text = body[4:90].partition(b"\0")
        if body[:4] != b"tEXt" or keyword not in names:
            continue
        if struct.unpack_from(">I", data, position - 4)[0] != zlib.crc32(body):
            raise _damaged("a checksum is wrong")
        if names[keyword] in found:
            raise _damaged(f"it holds two texts {keyword.decode()}")
        text = body[4 + len(keyword) + 1 :]
        if len(text) > MAX_TEXT:
            raise _damaged(f"a text has more than {MAX_TEXT} bytes")
        try:
            found[names[keyword]] = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise _damaged("a text is not base64") from error
    raise _damaged(f"it has more than {MAX_CHUNKS} chunks")


def _damaged(reason: str) -> AutodragError:
    return AutodragError(f"the PNG is damaged ({reason}); export it again")
