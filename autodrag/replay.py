"""A function of tensors as a CUDA graph: thousands of small kernels are started at once instead of one by one.

A transformer on a hundred tokens, or the synthesis of one image, keeps a GPU idle for most of the time, while Python
asks for one kernel after another. A graph remembers what was asked for, and asks again, for tensors of the same shapes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from autodrag.constant import collected

MOST = 8
"""So many graphs are kept; each holds what its function needs in memory."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    answer: Tensors
    constants: list[object]
    """What else it reads, and nobody else may keep."""


class Replays:
    """Graphs of functions, by their names and the shapes of their inputs. Any thread may call, on the same stream.

    A shape that comes for the first time is computed as ever, since recording a graph costs several such calls.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, _Graph | None] = {}
        self._lock = threading.Lock()
        self._pool: object = None

    def __reduce__(self) -> tuple[type[Replays], tuple[()]]:
        """A copy begins without graphs: they read the tensors that they were recorded with."""
        return Replays, ()

    def clear(self) -> None:
        """Forgets all graphs, as is needed where the functions' own tensors are replaced."""
        with self._lock:
            self._known.clear()

    def call(self, name: Hashable, function: Callable[..., Tensors], *inputs: Tensor) -> Tensors:
        """What `function` gives for inputs on a GPU, without gradients; it must not read any tensor's value.

        name: tells it from the other functions that are called here.
        """
        device = inputs[0].device
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = (name, device, autocast, *((x.shape, x.dtype) for x in inputs))
        with self._lock:
            if key not in self._known:
                while len(self._known) >= MOST:
                    del self._known[next(iter(self._known))]
                self._known[key] = None
                return function(*inputs)
            known = self._known.pop(key)
            if known is None:
                known = self._record(function, inputs)
            self._known[key] = known  # now the last to be forgotten
            for held, given in zip(known.inputs, inputs, strict=True):
                held.copy_(given)
            known.graph.replay()
            return tuple(x.clone() for x in known.answer)

    def _record(self, function: Callable[..., Tensors], inputs: Tensors) -> _Graph:
        """A graph of the function, after one call that loads its kernels.

        Graphs compute in the same memory, which only their answers keep: these are copied before the next is replayed.
        """
        on = torch.is_autocast_enabled("cuda")
        # Tensors of inference mode could not be written to outside of it; what autocast keeps, it also throws away.
        with (
            torch.cuda.device(inputs[0].device),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=on, cache_enabled=False),
            collected() as constants,
        ):
            held = tuple(x.clone() for x in inputs)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                function(*held)
            torch.cuda.current_stream().wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
                answer = function(*held)
        return _Graph(graph, held, answer, constants)
