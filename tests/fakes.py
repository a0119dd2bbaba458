"""Fakes for slow components, shared by several tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from autodrag.infer.drag import RefinerConfig
from autodrag.infer.open_image import OpenImage
from autodrag.infer.task import Control, Drag, DragResult, References, Start, renderer
from autodrag.nets.latent_space import LatentBasis


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a refiner."""

    image: OpenImage
    drag: Drag
    config: RefinerConfig
    control: Control
    start: Start | None


class FakeRefiner:
    """Moves the latent by a fixed amount per step and reports all points half a pixel from their targets."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def locate(
        self,
        image: OpenImage,
        drag: Drag,
        config: RefinerConfig,
        basis: LatentBasis,
        control: Control,
        start: Start | None = None,
    ) -> DragResult:
        """Replaces `autodrag.infer.locate.locate`; `calls` records the arguments."""
        return self._run(Call(image, drag, config, control, start))

    def draggan(
        self, image: OpenImage, drag: Drag, config: RefinerConfig, control: Control, start: Start | None = None
    ) -> DragResult:
        """Replaces `autodrag.infer.draggan.draggan`; `calls` records the arguments."""
        return self._run(Call(image, drag, config, control, start))

    def _run(self, call: Call) -> DragResult:
        self.calls.append(call)
        image, drag = call.image, call.drag
        latent = image.latent if call.start is None else call.start.latent
        handles = drag.handles if call.start is None else call.start.points
        steps = min(call.config.steps, 5)

        def result(step: int) -> DragResult:
            moved = latent + 0.1 * step * float(drag.handles.sum()) / 100
            end = drag.targets + drag.targets.new_tensor([0.5, 0.0])
            points = handles + step / max(1, steps) * (end - handles)
            return DragResult(
                latent=moved,
                synthesis=image.synthesis,
                handles=drag.handles.double().numpy(),
                targets=drag.targets.double().numpy(),
                points=points.double().numpy(),
                distances=(points - drag.targets).norm(dim=1).double().numpy(),
                confidences=np.full(len(points), 0.9),
                lost=np.zeros(len(points), dtype=bool),
                method="refine",
                steps=step,
                seconds=0.1,
                reason="arrived" if step == steps else "steps",
                references=drag.references or References(image.layers, drag.handles),
                render=renderer(image.synthesis, moved, image.synthesis.features(moved, block=0)),
            )

        for step in range(steps + 1):
            if call.control.callback is not None:
                with torch.no_grad():
                    call.control.callback(result(step))
        with torch.no_grad():
            return result(steps)


def sure_cues(before: OpenImage, after: OpenImage, drag: Drag, points: np.ndarray, blocks: slice) -> np.ndarray:
    """As `autodrag.infer.trust.cues_of`, of a tracker that is sure of its points."""
    left = np.hypot(*(points - drag.targets.double().numpy()).T) / before.synthesis.config.image_size[0]
    return np.stack([np.full(len(points), 0.9), left, np.zeros(len(points))], axis=1)


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float], *modules: ModuleType) -> None:
    """Replace `time.monotonic` in the given modules only.

    Patching `time` itself would affect event loops in other threads, which could then sleep for hours.
    """
    for module in modules:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
