"""Conversion of images between files, arrays and tensors.

Convention: an image is HWC uint8 RGB at the API boundary and BCHW float in [-1, 1] internally. -1 maps to 0 and +1 to
255; values outside this range are clipped. A mask is (H, W) bool, True = may move.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.files import read_bounded, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


def to_uint8(images: Float[Tensor, "B 3 H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    """Convert BCHW float in [-1, 1] to BHWC uint8, rounded to the nearest value and clipped."""
    scaled = images.detach().float().mul(127.5).add(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_tensor(image: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "1 3 H W"]:
    """Convert HWC uint8 to (1, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().div(127.5).sub(1)


def read_image(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read a PNG, JPEG, WebP or BMP file as HWC uint8 RGB; see `decode_image`.

    Raises:
        AutodragError: the file does not exist or cannot be decoded as an image.
    """
    return decode_image(read_bounded(path, MAX_FILE_BYTES, "image"), repr(str(path)))


def decode_image(
    data: bytes,
    name: str,
    *,
    most: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    background: tuple[int, int, int] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode the first frame of an image file as HWC uint8 RGB, turned as its EXIF says.

    Grey, palette and CMYK become RGB; 16 bits become 8. Colour profiles are ignored. A transparent image is laid on
    `background` (RGB, 0..255); None drops its alpha. The format, one of `formats`, and the number of pixels, at most
    `most`, are checked before anything is decoded.

    Raises:
        AutodragError: not an image of these formats, too large, or truncated; it calls the image `name`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # notes on damaged metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=formats) as image:
                if image.width * image.height > most:
                    raise AutodragError(
                        f"image {name} has {image.width}x{image.height} px, more than the limit of {most} pixels"
                    )
                return _rgb(image, background)
    except AutodragError:
        raise
    except UnidentifiedImageError as error:
        raise AutodragError(f"{name} is not an image; expected {', '.join(formats)}") from error
    except Exception as error:  # decoders raise exceptions of many types for damaged files
        reason = str(error) or type(error).__name__
        raise AutodragError(f"image {name} cannot be decoded ({reason}); save it again") from error


def _rgb(image: Image, background: tuple[int, int, int] | None) -> np.ndarray:
    from PIL import Image, ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16-bit greyscale: Pillow would clip values above 255
        values = np.asarray(turned, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("it has 32-bit values, and 8 or 16 bits are supported")
        return np.repeat((values // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if turned.mode == "F":
        raise ValueError("it has floating-point values, and 8 or 16 bits are supported")
    if background is not None and turned.has_transparency_data:
        turned = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", turned.size, (*background, 255)), turned)
    return np.array(turned.convert("RGB"))


def read_mask(path: str | Path, image_size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Read an image of size `image_size` (H, W) as a mask: pixels brighter than 127 are True = may move."""
    image = read_image(path)
    if image.shape[:2] != tuple(image_size):
        raise AutodragError(
            f"mask {str(path)!r} is {image.shape[1]}x{image.shape[0]} px, "
            f"and the image is {image_size[1]}x{image_size[0]}; resize the mask"
        )
    return image.mean(axis=2) > 127


def write_png(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write an HWC uint8 RGB image as PNG, atomically."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def write_animation(path: str | Path, frames: Sequence[UInt8[np.ndarray, "H W 3"]], *, fps: float = 20) -> None:
    """Write frames of equal size as MP4 or GIF, atomically. The suffix of `path` selects the format.

    MP4 files use VP9, which browsers play, or MPEG-4 Part 2 if OpenCV was built without VP9. MP4 encoders require even
    sizes, so an odd width or height is padded by one pixel.
    """
    path = Path(path)
    if not frames:
        raise AutodragError(f"animation {str(path)!r} has no frames; at least one is needed")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise AutodragError(f"animation {str(path)!r} has frames of different sizes; all must be {frames[0].shape}")
    if path.suffix.lower() == ".gif":
        _write_gif(path, frames, fps)
    elif path.suffix.lower() == ".mp4":
        _write_mp4(path, frames, fps)
    else:
        raise AutodragError(f"animation {str(path)!r} has the suffix {path.suffix!r}; expected .mp4 or .gif")


def _write_gif(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    from PIL import Image

    # Median cut is 50 times slower, and its result differs from the octree palette by less than one grey level.
    method, dither = Image.Quantize.FASTOCTREE, Image.Dither.NONE
    first, *rest = (Image.fromarray(frame).quantize(256, method=method, dither=dither) for frame in frames)
    with replacing(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def _write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    import cv2

    height, width = frames[0].shape[:2]
    even = ((0, height % 2), (0, width % 2), (0, 0))
    size = (width + width % 2, height + height % 2)
    with replacing(path) as temporary:
        for codec in ("vp09", "mp4v"):
            writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*codec), fps, size)
            if writer.isOpened():
                break
            writer.release()
        else:
            raise AutodragError(
                f"animation {str(path)!r} cannot be written: this OpenCV has no MP4 encoder; "
                "install opencv-python with FFmpeg, or write a .gif"
            )
        for frame in frames:
            writer.write(np.ascontiguousarray(np.pad(frame, even, mode="edge")[:, :, ::-1]))
        writer.release()
        if not temporary.is_file():
            raise AutodragError(f"animation {str(path)!r} could not be written; is its folder writable?")
        if b"moov" not in temporary.read_bytes():  # the index, written last; the encoder reports no full disk
            raise AutodragError(
                f"animation {str(path)!r} was not written completely; the disk is probably full: free some space"
            )
