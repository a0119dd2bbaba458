"""Draws docs/drag.webp, the animation of the README: images that follow a moving pointer.

    python docs/drag_animation.py

Every frame is what the browser editor shows while a pointer moves: a preview of the drag from the handle to the
pointer. The small dot is where the tracker finds the dragged point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from autodrag import DragEditor
from autodrag.infer.draw import enlarge
from autodrag.infer.measure import detect_landmarks

PANEL_PX = 256
FRAMES = 72
FPS = 18
ARROW = ((0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (13, 12))
"""Outline of a pointer whose tip is (0, 0), px of a panel."""


@dataclass(frozen=True)
class Scene:
    """An image and the closed path of a pointer that drags one of its landmarks."""

    seed: int
    landmark: str
    path: tuple[float, float, int, int]
    """Amplitudes in x and y as shares of the image width, and the number of oscillations of each in the animation."""

    def displacement(self, time: float) -> tuple[float, float]:
        """Displacement of the pointer from the handle at a time in [0, 1), as shares of the image width."""
        width, height, across, down = self.path
        return width * math.sin(2 * math.pi * across * time), height * math.sin(2 * math.pi * down * time)


SCENES = (
    Scene(28, "nose", (0.15, 0.05, 1, 2)),
    Scene(26, "chin", (0.04, 0.08, 2, 1)),
    Scene(3, "mouth_left", (0.05, 0.05, 1, 2)),
)


def panel(image: np.ndarray, pointer: tuple[float, float], point: tuple[float, float]) -> Image.Image:
    """The image (HWC uint8) enlarged to PANEL_PX, with a pointer and the tracked point, both in px of the image."""
    canvas = Image.fromarray(enlarge(image, PANEL_PX)).resize((PANEL_PX, PANEL_PX), Image.Resampling.LANCZOS)
    scale = PANEL_PX / image.shape[1]
    (x, y), (px, py) = (((u + 0.5) * scale, (v + 0.5) * scale) for u, v in (point, pointer))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill="#e62828", outline="white", width=1)
    draw.polygon([(px + u, py + v) for u, v in ARROW], fill="white", outline="black", width=1)
    return canvas


def frames(editor: DragEditor, scene: Scene) -> list[Image.Image]:
    """One panel per frame."""
    image = editor.open(scene.seed)
    assert editor.landmarks is not None
    names = editor.landmarks.config.names
    x, y = detect_landmarks(editor.landmarks, image)[names.index(scene.landmark)].tolist()
    panels, preview, side = [], None, image.shape[1]
    for k in range(FRAMES):
        dx, dy = scene.displacement((k + 0.5) / FRAMES)
        pointer = (x + dx * side, y + dy * side)
        preview = editor.preview([(x, y)], [pointer], start=preview, moving=True)
        found = tuple(preview.points[0].tolist())
        panels.append(panel(preview.image, pointer, (found[0], found[1])))
    return panels


def main() -> None:
    """Draw the panels of all scenes side by side."""
    torch.manual_seed(0)
    editor = DragEditor.load("checkpoints/critters", device="cpu")
    strips = []
    for panels in zip(*(frames(editor, scene) for scene in SCENES), strict=True):
        strip = Image.new("RGB", (len(panels) * (PANEL_PX + 8) - 8, PANEL_PX), "white")
        for number, picture in enumerate(panels):
            strip.paste(picture, (number * (PANEL_PX + 8), 0))
        strips.append(strip)
    options = {"append_images": strips[1:], "duration": round(1000 / FPS), "loop": 0, "quality": 80, "method": 6}
    strips[0].save(Path(__file__).with_name("drag.webp"), save_all=True, **options)


if __name__ == "__main__":
    main()
