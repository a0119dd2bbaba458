"""Acceleration of frozen networks for inference.

`accelerate` precomputes tensors that depend only on the weights, converts convolution weights to channels-last, and
enables CUDA graphs on a GPU. A CUDA graph launches thousands of small kernels at once instead of one by one from
Python. Acceleration is optional and does not change the results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from autodrag.constant import collected

MAX_GRAPHS = 8
"""Maximum number of cached graphs per network. Each graph holds the memory that its function needs."""

NetT = TypeVar("NetT", bound=nn.Module)
Tensors = tuple[Tensor, ...]


def accelerate(net: NetT) -> NetT:
    """Freeze a network (evaluation mode, no parameter gradients), accelerate it in place and return it.

    The weights must not change afterwards. Call this function again after moving the network to another device.
    """
    net.eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(module, Precomputing):
            module.precompute()
        if isinstance(module, Replayable):
            module.graphs = Graphs()
    return net


class Precomputing(nn.Module):
    """A module that can precompute tensors that depend only on its weights."""

    def precompute(self) -> None:
        """Compute these tensors from the current weights."""
        raise NotImplementedError


class Replayable(nn.Module):
    """A network that runs some of its functions as CUDA graphs after `accelerate`."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: Graphs | None = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        if self.graphs is not None:  # _apply replaces the tensors that the graphs read
            self.graphs.clear()
        return super()._apply(fn, recurse)

    def replay(self, name: Hashable, function: Callable[..., Tensors], *inputs: Tensor) -> Tensors:
        """Outputs of `function`. A CUDA graph is replayed on a GPU without gradients; otherwise the function is called.

        Args:
            name: identifies the function within this network.
            function: a function of its inputs and the network's tensors. It must not read tensor values in Python.
        """
        if self.graphs is None or not inputs[0].is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return function(*inputs)
        return self.graphs.call(name, function, *inputs)


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors
    constants: list[object]
    """Cached tensors that the graph reads; the graph keeps them alive."""


class Graphs:
    """CUDA graphs by function name and input shapes. Threads may share them if they use the same stream.

    The first call with new shapes runs the function directly. Recording takes as long as several calls, so a graph is
    recorded only at the second call.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._lock = threading.Lock()
        self._pool: object = None

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        """Copy without graphs, because recorded graphs read the tensors of the original network."""
        return Graphs, ()

    def clear(self) -> None:
        """Delete all graphs."""
        with self._lock:
            self._graphs.clear()

    def call(self, name: Hashable, function: Callable[..., Tensors], *inputs: Tensor) -> Tensors:
        """Outputs of `function` for inputs on a GPU, without gradients."""
        device = inputs[0].device
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = (name, device, autocast, *((x.shape, x.dtype) for x in inputs))
        with self._lock:
            if key not in self._graphs:
                while len(self._graphs) >= MAX_GRAPHS:
                    del self._graphs[next(iter(self._graphs))]
                self._graphs[key] = None
                return function(*inputs)
            recorded = self._graphs.pop(key)
            if recorded is None:
                recorded = self._record(function, inputs)
            self._graphs[key] = recorded  # most recently used last
            for own, given in zip(recorded.inputs, inputs, strict=True):
                own.copy_(given)
            recorded.graph.replay()
            return tuple(x.clone() for x in recorded.outputs)

    def _record(self, function: Callable[..., Tensors], inputs: Tensors) -> _Graph:
        """Record a graph of the function, after one warm-up call that loads its kernels.

        All graphs share one memory pool, so their outputs must be copied before the next replay.
        """
        enabled = torch.is_autocast_enabled("cuda")
        # Inference mode is disabled because its tensors cannot be written to outside of it. Autocast's weight cache is
        # disabled because autocast frees the cached copies, which the graph would still read.
        with (
            torch.cuda.device(inputs[0].device),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=enabled, cache_enabled=False),
            collected() as constants,
        ):
            own = tuple(x.clone() for x in inputs)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                function(*own)
            torch.cuda.current_stream().wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
                outputs = function(*own)
        return _Graph(graph, own, outputs, constants)
