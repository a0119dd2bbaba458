"""Messages to the page: one binary message holds an image and a header that describes it.

    4 bytes   length of the header, little-endian
    header    JSON
    image     PNG, or JPEG for the large images of a motion

The present image is always PNG, so that undo gives the same image bit for bit. Frames of a motion are PNG up to
`LOSSLESS_PX` pixels, because PNG then takes a fraction of a millisecond, and JPEG above.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

LOSSLESS_PX = 256 * 256
JPEG_QUALITY = 88


def png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """HWC uint8 RGB as PNG."""
    return _encode(".png", _bgr(image), [cv2.IMWRITE_PNG_COMPRESSION, 1])


def mask_png(mask: Bool[np.ndarray, "H W"]) -> bytes:
    """A mask as a grey PNG; white where the image may change."""
    return _encode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def moving(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A frame of a motion: PNG if the image is small, otherwise JPEG."""
    if image.shape[0] * image.shape[1] <= LOSSLESS_PX:
        return png(image)
    return _encode(".jpg", _bgr(image), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def shrink(image: UInt8[np.ndarray, "H W 3"], most: int) -> UInt8[np.ndarray, "h w 3"]:
    """Scale an image to at most `most` px of height and width; smaller images stay unchanged."""
    share = most / max(image.shape[:2])
    if share >= 1:
        return image
    size = (max(1, round(image.shape[1] * share)), max(1, round(image.shape[0] * share)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def pack(header: dict[str, Any], image: bytes) -> bytes:
    """One binary message."""
    text = json.dumps(header, allow_nan=False).encode()
    return struct.pack("<I", len(text)) + text + image


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and image of a message of `pack`."""
    (length,) = struct.unpack_from("<I", message)
    header: dict[str, Any] = json.loads(message[4 : 4 + length])
    return header, message[4 + length :]


def _bgr(image: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
    return np.ascontiguousarray(image[:, :, ::-1])


def _encode(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, image, options)
    assert done
    return data.tobytes()
