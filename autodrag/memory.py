"""Memory of the process."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt."""


def keep_memory() -> None:
    """Let freed memory stay with the process, where the C library is glibc.

    By default it gives large buffers back to the system at once and asks for them anew at every step, page by page:
    half of a training step on a CPU was spent on that. Commands call this; a library must not, in a host's process.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
