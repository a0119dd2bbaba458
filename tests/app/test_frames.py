"""Messages are unpacked as they were packed; the present image is lossless."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autodrag.app.frames import moving, pack, png, shrink, unpack


def decode(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(
    header=st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.lists(st.booleans()))), image=st.binary()
)
def test_a_message_comes_apart_as_it_was_put_together(header: dict[str, Any], image: bytes) -> None:
    assert unpack(pack(header, image)) == (header, image)


def test_the_present_image_is_bit_for_bit() -> None:
    image = noise(33, 20)
    assert np.array_equal(decode(png(image)), image)


def test_frames_of_a_motion_are_lossless_while_small_and_light_when_large() -> None:
    small, large = noise(64, 64), np.repeat(np.repeat(noise(32, 32), 16, 0), 16, 1)
    assert np.array_equal(decode(moving(small)), small)
    assert moving(large)[:2] == b"\xff\xd8" and decode(moving(large)).shape == large.shape


def test_shrinking_keeps_the_shape_and_leaves_small_images_alone() -> None:
    assert shrink(noise(64, 32), 16).shape == (16, 8, 3)
    small = noise(10, 12)
    assert shrink(small, 16) is small
