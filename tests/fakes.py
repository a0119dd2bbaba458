"""Stand-ins for what is slow, shared by several tests."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from autodrag.infer.refine import Origin, RefineConfig, RefineResult, StepState
from torch import Tensor

from autodrag.nets.stylegan2 import Generator


class FakeRefiner:
    """Moves the latent by a fixed amount a step and says that every point arrived half a pixel away."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, generator: Generator, latent: Tensor, handles: Tensor, targets: Tensor, **options: Any
    ) -> RefineResult:
        """As `autodrag.infer.refine.refine`; `calls` remembers the arguments."""
        config: RefineConfig = options["config"]
        self.calls.append({"latent": latent, "handles": handles, "targets": targets, **options})
        steps = min(config.steps, 5)
        count = len(handles)
        confidences, lost = torch.full((count,), 0.9), torch.zeros(count, dtype=torch.bool)
        moved, points = latent, handles
        for step in range(steps + 1):
            moved = latent + 0.1 * step * float(handles.sum()) / 100
            points = handles + step / max(1, steps) * (targets + torch.tensor([0.5, 0.0]) - handles)
            if options["callback"] is not None:
                state = StepState(
                    step=step,
                    points=points,
                    distances=(points - targets).norm(dim=1),
                    confidences=confidences,
                    lost=lost,
                    loss=0.0,
                    seconds=0.0,
                    latent=moved,
                    render=lambda moved=moved: generator(moved),  # type: ignore[misc]
                )
                options["callback"](state)
        return RefineResult(
            latent=moved,
            points=points,
            distances=(points - targets).norm(dim=1),
            confidences=confidences,
            lost=lost,
            steps=steps,
            seconds=0.1,
            reason="arrived",
            references=Origin(latent, handles),
        )


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float], *modules: ModuleType) -> None:
    """Give modules a `time.monotonic` of their own.

    The real one is everybody's: an event loop in another thread that reads another clock sleeps for hours.
    """
    for module in modules:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
