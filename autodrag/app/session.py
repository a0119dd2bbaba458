"""One person's work: images that were opened, their edits, and the points, anchors and mask of each step.

All of them are one history of steps. A step opens an image, edits it, or changes the scene of the present image.

Independent of HTTP. Methods run in worker threads, one at a time for each session (see `Service.run`). Only
`interrupt` may be called at any time from any thread.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from autodrag.app.config import AppConfig
from autodrag.app.frames import mask_png, png, shrink
from autodrag.app.gate import Gate, Stopped, Stopwatch
from autodrag.app.models import EditOutcome, Scene, SceneRequest, SessionState
from autodrag.app.scene import arranged, check_scene, outcome_of, scene_after, scene_of
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

Source = tuple[int | None, float, int | None]
"""Seed, psi and label of an opened image. The seed is None after a latent or a dropped edit."""


@dataclass(eq=False)
class Opening:
    """An image that was opened. Its editor has the edits of this image; an edit replaces the editor by a branch."""

    editor: DragEditor
    source: Source


@dataclass(frozen=True)
class Moment:
    """The state after a step of the history."""

    number: int
    """Id of the image, which is never reused in this session, even after it was restored from disk."""
    thumb: bytes
    """Small PNG of the image."""
    opening: Opening
    position: int
    """Number of edits between the opened image and this one."""
    scene: Scene
    asked: Scene | None = None
    """Scene of the edit, if the step was an edit."""
    outcome: EditOutcome | None = None
    """Result of the edit that led to the image."""


class Session:
    """A history of steps; see the module."""

    def __init__(self, key: str, address: str, editor: DragEditor, gate: Gate, config: AppConfig) -> None:
        """Takes an editor without an image. Call `open`, `open_latent` or `resume` next."""
        self.key, self.address, self.config, self._gate = key, address, config, gate
        self._blank = editor
        self.touched = time.monotonic()
        self.revision = 0
        self.saved_revision = 0
        """The revision that is saved on disk; 0: none."""
        self.moments: list[Moment] = []
        self.present = 0
        self._masks: OrderedDict[str, bytes] = OrderedDict()
        self._stops: set[threading.Event] = set()
        # Browsers cache images by id. A session that is restored from disk has the same key, so that its ids must
        # differ from those before.
        self._first = self._next = time.time_ns() // 10**6

    # --- state ------------------------------------------------------------------------------------------

    @property
    def moment(self) -> Moment:
        """The present state."""
        return self.moments[self.present]

    @property
    def editor(self) -> DragEditor:
        """Editor of the present image."""
        return self.moment.opening.editor if self.moments else self._blank

    @property
    def scene(self) -> Scene:
        """Points, anchors and mask of the present image."""
        return self.moment.scene

    @property
    def opened(self) -> Source:
        """Seed, psi and label of the opened image. The seed is None after a latent or a dropped edit."""
        return self.moment.opening.source

    def state(self) -> SessionState:
        """The session without its pixels."""
        height, width = self.editor.image_size
        seed, psi, label = self.opened
        opening = self.moment.opening
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
            opened=next(moment.number for moment in self.moments if moment.opening is opening),
            edits=self.moment.position,
            scene=self.scene,
            outcome=self.moment.outcome,
            saved=self.saved_revision == self.revision,
        )

    def image_of(self, number: int | None) -> UInt8[np.ndarray, "H W 3"]:
        """The image with an id, up to the present image; None: the present image."""
        if number is None or number == self.moment.number:
            return self.editor.image
        for moment in self.moments[: self.present]:
            if moment.number == number:
                editor = moment.opening.editor
                return editor.render(editor.past[moment.position])
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
        pixels = decode_image(self.mask_file(name), "the mask").mean(axis=2) > 127
        height, width = self.editor.image_size
        if pixels.shape != (height, width):
            raise AutodragError(
                f"mask {name!r} is {pixels.shape[1]}x{pixels.shape[0]} px, and the image is {width}x{height}; "
                "upload another"
            )
        return pixels

    def mask_file(self, name: str) -> bytes:
        """PNG of the uploaded mask with a name; white may change."""
        if name not in self._masks:
            raise AutodragError(f"mask {name[:100]!r} is not known to this session; upload it first")
        return self._masks[name]

    # --- steps --------------------------------------------------------------------------------------------------

    def open(self, editor: DragEditor, seed: int, psi: float, label: int | None) -> None:
        """Open a seed with `editor`, which may have another checkpoint."""
        editor.open(seed, psi, label)
        self._append(self._opening(editor, (seed, psi, label)))

    def open_latent(self, editor: DragEditor, path: Path) -> None:
        """Open a latent file."""
        editor.open(latent=path)
        check_latent(editor)
        self._append(self._opening(editor, (None, 0.7, None)))

    def adopt(
        self,
        opening: Opening,
        images: list[np.ndarray],
        scenes: list[tuple[Scene, Scene | None, EditOutcome | None]],
        masks: dict[str, np.ndarray],
    ) -> None:
        """Append an image with its edits, which were made elsewhere.

        Args:
            images: the opened image, and one for each edit.
            scenes: for each image its scene, the scene of its edit, and the result of its edit.
            masks: the masks that the scenes name, True where the image may change.
        """
        self._masks.update({name: mask_png(mask) for name, mask in masks.items()})
        self._append(
            *(
                self._moment(image, opening, position, *scene)
                for position, (image, scene) in enumerate(zip(images, scenes, strict=True))
            )
        )

    def resume(self, moments: Sequence[Moment], present: int, masks: dict[str, bytes]) -> None:
        """Append a history that was saved, and make its step `present` the present state."""
        self._masks.update(masks)
        numbers: dict[int, int] = {}
        for moment in moments:
            if moment.number not in numbers:
                self._next += 1
                numbers[moment.number] = self._next
        self._append(*(dataclasses.replace(moment, number=numbers[moment.number]) for moment in moments))
        self._go(max(0, self.present - (len(moments) - 1 - present)))

    def arrange(self, scene: SceneRequest) -> None:
        """Set points, anchors and mask of the present image, as a step; no step if nothing differs."""
        check_scene(scene, self.config, self.editor.image_size)
        self.mask(scene.mask)
        moment = self.moment
        unseen = scene.revision is not None and scene.revision < self.revision
        wanted = arranged(scene, moment.scene, moment.asked if unseen else None)
        if wanted != moment.scene:
            self._append(dataclasses.replace(moment, scene=wanted))

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
            outside=edit.parameters.outside,
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
            opening, editor, steps = self.moment.opening, self.editor.branch(), []
            if edit.seed is not None:
                source = (edit.seed, edit.psi, edit.label)
                editor = editor.sibling()
                editor.open(*source)
                steps = [self._opening(editor, source)]
                opening = steps[0].opening
            clock = Stopwatch(self.config.edit_s)

            def step(state: DragResult) -> None:
                if stop.is_set() and torch.equal(state.latent, state.synthesis.latent):
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
                outside=edit.parameters.outside,
                **edit.parameters.overrides(),
            )
            if clock.spent():
                result = dataclasses.replace(result, reason="budget")
            asked = scene_of(edit, name)
            scene = scene_after(asked, result, self.editor.image_size)
            steps.append(self._moment(result.image, opening, editor.position, scene, asked, outcome_of(result)))
            # Nothing below can fail.
            opening.editor = editor
            self._append(*steps)
        return result

    def undo(self, steps: int = 1) -> None:
        """Undo a number of steps."""
        if steps > self.present:
            raise AutodragError(f"there are {self.present} steps to undo, not {steps}")
        self._go(self.present - steps)

    def redo(self, steps: int = 1) -> None:
        """Redo a number of steps."""
        if steps > len(self.moments) - 1 - self.present:
            raise AutodragError(f"there are {len(self.moments) - 1 - self.present} steps to redo, not {steps}")
        self._go(self.present + steps)

    def add_mask(self, name: str, data: bytes) -> None:
        """Store a mask: an encoded image of the size of the present image; pixels brighter than 127 may change."""
        height, width = self.editor.image_size
        image = decode_image(data, "the mask", most=height * width)
        if image.shape[:2] != (height, width):
            raise AutodragError(
                f"the mask is {image.shape[1]}x{image.shape[0]} px, and the image is {width}x{height}; resize the mask"
            )
        unused = [mask for mask in self._masks if mask not in self.masks_in_use()]
        for mask in unused[: max(0, len(unused) + 1 - self.config.masks)]:
            del self._masks[mask]
        self._masks[name] = mask_png(image.mean(axis=2) > 127)

    def masks_in_use(self) -> set[str]:
        """Names of the masks of the history."""
        scenes = [scene for moment in self.moments for scene in (moment.scene, moment.asked) if scene is not None]
        return {scene.mask for scene in scenes if scene.mask is not None}

    # --- internals -------------------------------------------------------------------------------------------------

    def _opening(self, editor: DragEditor, source: Source) -> Moment:
        return self._moment(editor.image, Opening(editor, source), 0, Scene())

    def _moment(self, image: np.ndarray, opening: Opening, position: int, scene: Scene, *rest: Any) -> Moment:
        self._next += 1
        return Moment(self._next, png(shrink(image, THUMB_PX)), opening, position, scene, *rest)

    def _append(self, *moments: Moment) -> None:
        """Append steps after the present one; steps that were undone are discarded."""
        self.moments = [*self.moments[: self.present + 1], *moments]
        self.present = len(self.moments) - 1
        self._move_editors()
        self._forget_oldest()
        self.revision += 1

    def _forget_oldest(self) -> None:
        """Bound the history."""
        surplus = max(0, len(self.moments) - 1 - self.config.history)
        self.moments = self.moments[surplus:]
        self.present -= surplus
        for opening in {id(moment.opening): moment.opening for moment in self.moments}.values():
            editor = opening.editor
            first = min(moment.position for moment in self.moments if moment.opening is opening)
            dropped = editor.forget(editor.position - first, REFERENCES)
            if dropped:
                opening.source = (None, opening.source[1], None)
                self.moments = [
                    dataclasses.replace(moment, position=moment.position - dropped)
                    if moment.opening is opening
                    else moment
                    for moment in self.moments
                ]

    def _go(self, present: int) -> None:
        self.present = present
        self._move_editors()
        self.revision += 1

    def _move_editors(self) -> None:
        """Move each editor to its last step up to the present one. Only the present image stays in memory."""
        last = {id(moment.opening): moment for moment in self.moments[: self.present + 1]}
        for moment in last.values():
            moment.opening.editor.go_to(moment.position)
            if moment.opening is not self.moment.opening:
                moment.opening.editor.release()


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


def _mask_name(edit: Edit) -> str | None:
    return None if edit.mask is None else edit.mask.relative_to(FOLDER).as_posix()
