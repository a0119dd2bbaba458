"""Files for the client: the image with its session, the annotated image, the latent, and the history as a film."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from autodrag.app import archive, picture
from autodrag.app.frames import png
from autodrag.app.gate import Gate
from autodrag.app.models import Scene
from autodrag.app.session import Session
from autodrag.checkpoint import save_code
from autodrag.images import write_animation
from autodrag.infer.draw import annotate

FRAMES = 180
"""Approximate maximum number of frames of a film."""
PER_EDIT = 20
"""Maximum number of frames of one edit."""
REST = 10
"""Number of identical frames at the start and at the end."""
FILM_PX = {"mp4": 512, "gif": 320}
"""Minimum width and height of the frames, px; smaller images are enlarged."""


def picture_file(session: Session) -> bytes:
    """PNG of the present image that carries its latent, and its session if it has edits. Call it inside a turn."""
    contents = {"latent": latent(session)}
    if session.moment.position:
        contents["session"] = archive.export(session)[0]
    return picture.embed(png(session.editor.image), **contents)


def annotated(session: Session) -> bytes:
    """PNG of the present image with its points and its mask."""
    scene = session.scene
    mask = session.mask(scene.mask)
    picture = annotate(
        session.editor.image,
        handles=[point.handle for point in scene.points],
        targets=[point.target for point in scene.points],
        anchors=scene.anchors or None,
        mask=mask,
    )
    return png(picture)


def latent(session: Session) -> bytes:
    """The code of the present image as a safetensors file."""
    seed, psi, label = session.opened
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latent.safetensors"
        origin = {"seed": seed, "psi": psi, "label": label}
        save_code(path, session.editor.layers, {"generator": session.editor.fingerprint, **origin})
        return path.read_bytes()


def film(session: Session, suffix: Literal["mp4", "gif"], gate: Gate) -> bytes:
    """The history up to the present image; each edit is interpolated linearly between the latents before and after it.

    Call it inside a turn; other sessions may compute between its frames.
    """
    frames: list[UInt8[np.ndarray, "H W 3"]] = []
    past = session.editor.past
    least = FILM_PX[suffix]

    def draw(image: np.ndarray, handles: list[tuple[float, float]], targets: list[tuple[float, float]]) -> None:
        frames.append(annotate(image, handles=handles, targets=targets, least=least))
        gate.breathe()

    still = session.editor.render(past[0])
    draw(still, [], [])
    frames += frames[-1:] * (REST - 1)
    opening = session.moment.opening
    steps = {moment.position: moment for moment in reversed(session.moments) if moment.opening is opening}
    edits = len(past) - 1
    count = max(2, min(PER_EDIT, FRAMES // max(1, edits)))
    for index in range(edits):
        asked, reached = steps[index + 1].asked or Scene(), steps[index + 1].scene
        starts = [point.handle for point in asked.points]
        ends = [point.handle for point in reached.points]
        targets = [point.target for point in asked.points]
        for step in range(1, count + 1):
            share = step / count
            blended = past[index].toward(past[index + 1], share)
            points = [
                (a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])) for a, b in zip(starts, ends, strict=True)
            ]
            draw(session.editor.render(blended), points, targets)
    draw(session.editor.image, [], [])
    frames += frames[-1:] * (REST - 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"history.{suffix}"
        write_animation(path, frames)
        return path.read_bytes()
