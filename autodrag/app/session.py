"""One open image with its history: an editor, and the points, anchors and mask of each image.

Independent of HTTP. Methods run in worker threads, one at a time for each session (see `Service.run`). Only
`interrupt` may be called at any time from any thread.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from autodrag.app.config import AppConfig
from autodrag.app.frames import png, shrink
from autodrag.app.gate import Gate, Stopped, Stopwatch
from autodrag.app.models import EditOutcome, PointState, Scene, SessionState
from autodrag.edits import Edit, parse_edits
from autodrag.errors import AutodragError
from autodrag.images import decode_image
from autodrag.infer.editor import DragEditor
from autodrag.infer.task import DragResult

FOLDER = Path("session").resolve()
"""Stands for the folder of the uploaded files, because paths in an edit are names of uploaded files. It is not read."""
THUMB_PX = 96
"""Maximum width and height of thumbnails in the history."""
MAX_LATENT = 1e4
"""Largest absolute value of an uploaded latent. Values of real latents are around 1; float32 overflows at 1e38."""
REFERENCES = 8
"""Number of latest edits that keep their references, for `keep_references` after undo."""


@dataclass(frozen=True)
class Moment:
    """An image of the history with its scene."""

    number: int
    """Id, which is never reused in this session, even after it was restored from disk."""
    thumb: bytes
    """Small PNG."""
    scene: Scene
    outcome: EditOutcome | None = None
    """Result of the edit that led to the image."""


class Session:
    """An open image with its history; see the module."""

    def __init__(self, key: str, address: str, editor: DragEditor, gate: Gate, config: AppConfig) -> None:
        """Takes an editor without an image. Call `open`, `open_latent` or `adopt` next."""
        self.key, self.address, self.config, self._gate = key, address, config, gate
        self.editor = editor
        self.touched = time.monotonic()
        self.revision = 0
        self.saved = False
        self.moments: list[Moment] = []
        self.present = 0
        self._opened: tuple[int | None, float, int | None] = (None, 0.7, None)
        self._masks: OrderedDict[str, np.ndarray] = OrderedDict()
        self._stops: set[threading.Event] = set()
        # Browsers cache images by id. A session that is restored from disk has the same key, so that its ids must
        # differ from those before.
        self._first = self._next = time.time_ns() // 10**6

    # --- state ------------------------------------------------------------------------------------------

    @property
    def scene(self) -> Scene:
        """Points, anchors and mask of the present image."""
        return self.moments[self.present].scene

    @property
    def opened(self) -> tuple[int | None, float, int | None]:
        """Seed, psi and label of the opened image. The seed is None after a latent or a dropped edit."""
        return self._opened

    def state(self) -> SessionState:
        """The session without its pixels."""
        height, width = self.editor.image_size
        seed, psi, label = self._opened
        return SessionState(
            key=self.key,
            checkpoint=Path(self.editor.checkpoint).name,
            fingerprint=self.editor.fingerprint,
            width=width,
            height=height,
            classes=self.editor.generator.config.c_dim,
            can_predict=self.editor.can_predict,
            seed=seed,
            psi=psi,
            label=label,
            revision=self.revision,
            images=[moment.number for moment in self.moments],
            present=self.present,
            scene=self.scene,
            outcome=self.moments[self.present].outcome,
            saved=self.saved,
        )

    def image_of(self, number: int | None) -> UInt8[np.ndarray, "H W 3"]:
        """The image with an id, up to the present image; None: the present image."""
        if number is None or number == self.moments[self.present].number:
            return self.editor.image
        for index, moment in enumerate(self.moments[: self.present]):
            if moment.number == number:
                return self.editor.render(self.editor.past[index])
        raise AutodragError(f"image {number} is not in the history up to the present image")

    def thumb_of(self, number: int) -> bytes | None:
        """Small PNG of the image with an id; None if the image was discarded."""
        for moment in self.moments:
            if moment.number == number:
                return moment.thumb
        if self._first < number <= self._next:
            return None
        raise AutodragError(f"image {number} is not in the history")

    def mask(self, name: str | None) -> Bool[np.ndarray, "H W"] | None:
        """The uploaded mask with a name, True where the image may change."""
        if name is None:
            return None
        if name not in self._masks:
            raise AutodragError(f"mask {name[:100]!r} is not known to this session; upload it first")
        return self._masks[name]

    # --- opening ------------------------------------------------------------------------------------------------

    def open(self, editor: DragEditor, seed: int, psi: float, label: int | None) -> None:
        """Open a seed with `editor`, which may have another checkpoint."""
        editor.open(seed, psi, label)
        self._start(editor, (seed, psi, label))

    def open_latent(self, editor: DragEditor, path: Path) -> None:
        """Open a latent file."""
        editor.open(latent=path)
        check_latent(editor)
        self._start(editor, (None, 0.7, None))

    def adopt(
        self,
        editor: DragEditor,
        opened: tuple[int | None, float, int | None],
        images: list[np.ndarray],
        scenes: list[tuple[Scene, EditOutcome | None]],
        masks: dict[str, np.ndarray],
    ) -> None:
        """Replace the editor by one with a history.

        Args:
            opened: see `opened`.
            images, scenes: one for each state of the history, from the opened image on.
            masks: the masks that the scenes name.
        """
        self._start(editor, opened)
        editor.forget(self.config.history, REFERENCES)
        self._masks = OrderedDict(masks)
        self.moments = [
            self._moment(image, scene, outcome) for image, (scene, outcome) in zip(images, scenes, strict=True)
        ]
        self.present = len(self.moments) - 1

    # --- editing ------------------------------------------------------------------------------------------------

    def read(self, document: bytes | str | dict[str, Any]) -> Edit:
        """Parse an edit in the common schema and check it for this session and the limits of the server."""
        text = json.dumps(document) if isinstance(document, dict) else document
        check_size(text, self.config)
        edits = parse_edits(text, folder=FOLDER, where="the edit")
        if len(edits) != 1:
            raise AutodragError(f"the edit is a session of {len(edits)} edits; send one edit at a time")
        (edit,) = edits
        if edit.parameters.keep_references and len(edit.drags) != len(self.scene.points):
            raise AutodragError(
                f"keep_references needs the {len(self.scene.points)} points of the previous edit, "
                f"and this edit has {len(edit.drags)}; leave it out"
            )
        if edit.latent is not None:
            raise AutodragError("an edit over HTTP cannot name a latent file; upload the latent, then send the edit")
        if edit.fingerprint not in (None, self.editor.fingerprint):
            raise AutodragError(
                f"the edit was made for generator {edit.fingerprint!r}, and this one is {self.editor.fingerprint!r}"
            )
        return edit

    def preview(self, edit: Edit, start: DragResult | None, *, moving: bool) -> DragResult:
        """A fast result with the settings of the edit. Call it inside a turn.

        Args:
            start: the previous preview of the same points.
            moving: whether the pointer still moves; several points are then predicted in fewer rounds.
        """
        return self.editor.preview(
            edit.handles,
            edit.targets,
            self.mask(_mask_name(edit)),
            edit.anchors or None,
            start,
            method=edit.method,
            preset=edit.parameters.preset,
            moving=moving,
            **edit.parameters.overrides(),
        )

    def arm(self) -> threading.Event:
        """An event for a computation that is about to start; `interrupt` sets it. `disarm` it at the end."""
        stop = threading.Event()
        self._stops.add(stop)
        return stop

    def disarm(self, stop: threading.Event) -> None:
        """Release the event of a computation that has ended."""
        self._stops.discard(stop)

    def interrupt(self) -> None:
        """Stop waiting computations, and the running one after its current step. May be called from any thread."""
        for stop in list(self._stops):
            stop.set()
        self._gate.wake()

    def drag(self, edit: Edit, stop: threading.Event, watch: Callable[[DragResult], None] | None = None) -> DragResult:
        """Make an edit and append it to the history. If it fails, the session stays unchanged.

        Takes its own turn and lets other sessions compute between steps.

        Args:
            watch: called with each intermediate result.

        Raises:
            Stopped: `stop` was set before anything had changed.
        """
        name = _mask_name(edit)
        mask = self.mask(name)
        with self._gate.turn(stop):
            if edit.seed is None:
                editor, moments, opened = self.editor.branch(), self.moments[: self.present + 1], self._opened
            else:
                editor, opened = self.editor.sibling(), (edit.seed, edit.psi, edit.label)
                moments = [self._moment(editor.open(*opened), Scene(), None)]
            before = editor.latent
            clock = Stopwatch(self.config.edit_s)

            def step(state: DragResult) -> None:
                if stop.is_set() and torch.equal(state.layers.stack[-1].latent.cpu(), before):
                    raise Stopped
                if watch is not None:
                    watch(state)
                if clock.spent():
                    stop.set()
                with clock.paused():
                    self._gate.breathe()

            result = editor.drag(
                edit.handles,
                edit.targets,
                mask=mask,
                anchors=edit.anchors or None,
                method=edit.method,
                preset=edit.parameters.preset,
                keep_references=edit.parameters.keep_references,
                callback=step,
                stop=stop,
                **edit.parameters.overrides(),
            )
            if clock.spent():
                result = dataclasses.replace(result, reason="budget")
            moments = self._moments_after(moments, edit, name, result)
            # Nothing below can fail.
            self.editor, self.moments, self.present, self._opened = editor, moments, len(moments) - 1, opened
            self._forget_oldest()
            self._changed()
        return result

    def undo(self, steps: int = 1) -> None:
        """Undo a number of edits."""
        if steps > self.present:
            raise AutodragError(f"there are {self.present} edits to undo, not {steps}")
        for _ in range(steps):
            self.editor.undo()
        self._move(self.present - steps)

    def redo(self, steps: int = 1) -> None:
        """Redo a number of edits."""
        if steps > len(self.moments) - 1 - self.present:
            raise AutodragError(f"there are {len(self.moments) - 1 - self.present} edits to redo, not {steps}")
        for _ in range(steps):
            self.editor.redo()
        self._move(self.present + steps)

    def add_mask(self, name: str, data: bytes) -> None:
        """Store a mask: an encoded image of the size of the present image; pixels brighter than 127 may change."""
        height, width = self.editor.image_size
        image = decode_image(data, "the mask", most=height * width)
        if image.shape[:2] != (height, width):
            raise AutodragError(
                f"the mask is {image.shape[1]}x{image.shape[0]} px, and the image is {width}x{height}; resize the mask"
            )
        if name not in self._masks and len(self._masks) >= self.config.masks:
            in_use = {moment.scene.mask for moment in self.moments}
            spare = next((mask for mask in self._masks if mask not in in_use), next(iter(self._masks)))
            del self._masks[spare]
        self._masks[name] = image.mean(axis=2) > 127

    # --- internals -------------------------------------------------------------------------------------------------

    def _start(self, editor: DragEditor, opened: tuple[int | None, float, int | None]) -> None:
        self.editor, self._opened, self.present, self._masks = editor, opened, 0, OrderedDict()
        self.moments = [self._moment(editor.image, Scene(), None)]
        self._changed()

    def _moment(self, image: np.ndarray, scene: Scene, outcome: EditOutcome | None) -> Moment:
        self._next += 1
        return Moment(self._next, png(shrink(image, THUMB_PX)), scene, outcome)

    def _moments_after(self, moments: list[Moment], edit: Edit, mask: str | None, result: DragResult) -> list[Moment]:
        """The history after an edit of its last image; the scene of that image becomes the one of the edit."""
        before = moments[-1]
        asked = Scene(
            points=[PointState(handle=drag.handle, target=drag.target) for drag in edit.drags],
            anchors=list(edit.anchors),
            mask=mask,
        )
        return [
            *moments[:-1],
            Moment(before.number, before.thumb, asked, before.outcome),
            self._moment(result.image, scene_after(asked, result, self.editor.image_size), outcome_of(result)),
        ]

    def _forget_oldest(self) -> None:
        """Bound the history."""
        dropped = self.editor.forget(self.config.history, REFERENCES)
        if dropped:
            del self.moments[:dropped]
            self.present -= dropped
            self._opened = (None, self._opened[1], None)

    def _move(self, present: int) -> None:
        self.present = present
        self._changed()

    def _changed(self) -> None:
        self.revision += 1
        self.saved = False


def check_latent(editor: DragEditor) -> None:
    """Refuse the open image if its latent would overflow the generator."""
    largest = max(float(layer.latent.abs().max()) for layer in editor.layers.stack)
    if not largest <= MAX_LATENT:
        raise AutodragError(f"the latent has a value of size {largest:g}; expected at most {MAX_LATENT:g}")


def check_size(text: bytes | str, config: AppConfig) -> None:
    """Refuse an edit with too many bytes or points, before the slower validation of the schema."""
    if len(text) > config.message_bytes:
        raise AutodragError(f"the edit has {len(text)} bytes, more than this server's limit of {config.message_bytes}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return  # the parser of edits gives a better message
    for name in ("drags", "anchors"):
        values = document.get(name) if isinstance(document, dict) else None
        if isinstance(values, list) and len(values) > config.points:
            raise AutodragError(f"{len(values)} {name} are more than this server's limit of {config.points}")


def scene_after(asked: Scene, result: DragResult, image: tuple[int, int]) -> Scene:
    """The scene after an edit: handles at their tracked positions inside the image, the rest as in `asked`."""
    height, width = image
    points = []
    landmarks = result.landmark_distances or (None,) * len(result.points)
    for index, old in enumerate(asked.points):
        x, y = result.points[index].tolist()
        points.append(
            PointState(
                handle=(round(min(max(x, 0.0), width - 1.0), 3), round(min(max(y, 0.0), height - 1.0), 3)),
                target=old.target,
                distance=round(float(result.distances[index]), 3),
                confidence=round(float(result.confidences[index]), 3),
                lost=bool(result.lost[index]),
                landmark_distance=landmarks[index],
            )
        )
    return Scene(points=points, anchors=asked.anchors, mask=asked.mask)


def outcome_of(result: DragResult) -> EditOutcome:
    """The numbers of a result that the state shows."""
    return EditOutcome(method=result.method, steps=result.steps, seconds=round(result.seconds, 3), reason=result.reason)


def _mask_name(edit: Edit) -> str | None:
    return None if edit.mask is None else edit.mask.relative_to(FOLDER).as_posix()
