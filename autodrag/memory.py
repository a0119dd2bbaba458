"""Memory allocation settings of the process."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt."""


def keep_memory() -> None:
    """Keep freed memory in the process, if the C library is glibc.

    By default, glibc returns large buffers to the system and requests them again at every step. This took half of the
    time of a training step on a CPU. Only commands call this function, because a library must not change the settings
    of its host process.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
