"""Tensors that depend on sizes alone, made once instead of at every call.

What a drag computes is small enough that making a filter or a grid of positions anew would be a good part of it; and a
CUDA graph cannot be recorded of a function that copies numbers from the host.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

MOST = 64
"""So many answers are kept of one function."""


class _Watch(threading.local):
    given: list[object] | None = None


_watch = _Watch()


@contextlib.contextmanager
def collected() -> Iterator[list[object]]:
    """All constants that are asked for meanwhile in this thread: what goes on reading them must keep them."""
    before, _watch.given = _watch.given, []
    try:
        yield _watch.given
    finally:
        _watch.given = before


def constant(function: Callable[P, T]) -> Callable[P, T]:
    """Keeps the tensors that a function makes of hashable arguments; nobody may write to them."""

    @functools.lru_cache(maxsize=MOST)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        # A tensor made in inference mode could take no part in training later, and one that is on a device because
        # somebody's `with torch.device(...)` asks for it would be on that device for everybody.
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():  # makes constants of them itself, and warns of a cache
            return function(*args, **kwargs)
        answer = kept(*args, **kwargs)  # type: ignore[arg-type]
        if _watch.given is not None:
            _watch.given.append(answer)
        return answer

    return call
