"""A cache for constant tensors such as filters and coordinate grids.

A CUDA graph cannot record a function that copies values from the host, so these tensors must exist before. On a CPU the
cache has no measurable effect on the time of a drag.
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

CACHE_SIZE = 64
"""Number of cached results per function."""


class _Collector(threading.local):
    constants: list[object] | None = None


_collector = _Collector()


@contextlib.contextmanager
def collected() -> Iterator[list[object]]:
    """Collect all constants that this thread requests inside the context.

    A CUDA graph must hold these references, because the cache may drop a tensor that the graph still reads.
    """
    outer, _collector.constants = _collector.constants, []
    try:
        yield _collector.constants
    finally:
        _collector.constants = outer


def constant(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: cache the tensors that a function computes from hashable arguments. Callers must not modify them."""

    @functools.lru_cache(maxsize=CACHE_SIZE)
    def cached(*args: P.args, **kwargs: P.kwargs) -> T:
        # Cached tensors must not depend on the context of the first call: inference tensors cannot be used in
        # training, and a `with torch.device(...)` block would choose the device for all later callers.
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():  # torch.compile folds constants itself and warns about lru_cache
            return function(*args, **kwargs)
        result = cached(*args, **kwargs)  # type: ignore[arg-type]
        if _collector.constants is not None:
            _collector.constants.append(result)
        return result

    return call
