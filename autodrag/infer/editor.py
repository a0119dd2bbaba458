"""The editor object: load a checkpoint once, then open images and drag them many times.

    editor = DragEditor.load("checkpoints/critters")
    image = editor.open(seed=7)                                   # HWC uint8 RGB
    result = editor.drag(handles=[[60, 70]], targets=[[80, 66]])
    result.image, result.latent, result.distances, result.seconds

It owns the state: the open image and the history of its edits. The work is done by `autodrag.infer.drag.run_drag`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.acceleration import accelerate
from autodrag.checkpoint import fingerprint, load_editor, load_generator, load_landmarks
from autodrag.edits import DEFAULT_CHECKPOINT, Edit, Parameters, PointPair, Preset, Source, read_edits
from autodrag.errors import AutodragError
from autodrag.images import read_mask, to_uint8
from autodrag.infer.drag import DragSettings, choose_method, choose_settings, run_drag, warm_up
from autodrag.infer.history import History, State
from autodrag.infer.measure import measure_drag
from autodrag.infer.open_image import OpenImage, opened_code, tracked_blocks
from autodrag.infer.task import Control, Drag, DragResult, PointsLike
from autodrag.infer.trust import Calibration, load_calibration, settle
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.layers import Layers
from autodrag.nets.stylegan2 import Generator
from autodrag.points import Size

if TYPE_CHECKING:
    from autodrag.nets.landmarks import LandmarkNet


PREVIEW_S = 0.1
"""Time budget of a preview by the refiner, seconds."""
MOVING_ROUNDS = 3
"""Maximum number of predictions of a preview of several points while the pointer moves."""


class DragEditor:
    """Opens images of one generator and drags their points, with undo, redo and sessions.

    Not thread-safe, except that another thread may set the `stop` event of a running drag. Siblings (`sibling`) share
    the networks and may run in different threads.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        learned: LearnedEditor | None = None,
        landmarks: LandmarkNet | None = None,
        calibration: Calibration | None = None,
        checkpoint: str = DEFAULT_CHECKPOINT,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Takes ownership of a generator, which is moved to the device and frozen. Usually called by `load`.

        Args:
            learned: predictor and regularizer trained on this generator; None: the refiner makes all edits.
            landmarks: net that measures drags independently; None: no landmark distances.
            calibration: of the tracker's uncertainty; None: that of critters.
            checkpoint: the name of the checkpoint in saved edits.
            device: None: CUDA where it is available.
            dtype: None or float32; bfloat16 runs convolutions in bf16.
        """
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise AutodragError(f"dtype {dtype} is not supported; expected torch.float32 or torch.bfloat16")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.fingerprint = fingerprint(generator.state_dict())
        self.generator = generator.to(self.device).freeze()
        self.learned = None if learned is None else accelerate(learned.to(self.device))
        self.landmarks = None if landmarks is None else landmarks.to(self.device).eval()
        self.calibration = calibration or Calibration()
        self.checkpoint = checkpoint
        self._dtype = dtype
        self._latent_basis: LatentBasis | None = None
        self._history = History()
        self._image: np.ndarray | None = None
        self._open: OpenImage | None = None
        if self.learned is not None:
            average = self.generator.mapping.w_avg.expand(1, self.generator.config.latent_layers, -1)
            with self._precision():
                warm_up(OpenImage.of(self.generator, average, self.learned))

    @classmethod
    def load(
        cls,
        folder: str | Path = DEFAULT_CHECKPOINT,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> DragEditor:
        """Load a checkpoint folder; only its generator is required.

        Raises:
            CheckpointError: unknown or broken, or with a predictor that belongs to another generator or lacks its
                regularizer.
        """
        generator, identity = load_generator(folder)
        return cls(
            generator,
            learned=load_editor(folder, identity),
            landmarks=load_landmarks(folder),
            calibration=load_calibration(folder, identity),
            checkpoint=str(folder),
            device=device,
            dtype=dtype,
        )

    @property
    def image_size(self) -> Size:
        """(height, width) of the images in px."""
        return self.generator.config.image_size

    @property
    def can_predict(self) -> bool:
        """Whether the checkpoint has a predictor."""
        return self.learned is not None

    @property
    def latent(self) -> Float[Tensor, "1 L D"]:
        """W+ of the present image, on the CPU. After edits with masks, of its uppermost layer; see `layers`."""
        return self.layers.stack[-1].latent.cpu()

    @property
    def layers(self) -> Layers:
        """The code of the present image."""
        return self._history.present.layers

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The present image, HWC uint8 RGB."""
        if self._image is None:
            with torch.inference_mode(), self._precision():
                opened = self._opened()
                self._image = to_uint8(opened.synthesis.image(opened.latent, opened.features))[0]
        return self._image

    def open(
        self,
        seed: int | None = None,
        psi: float = 0.7,
        label: int | None = None,
        latent: Tensor | str | Path | None = None,
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Open an image; the previous image and its history are discarded.

        Args:
            seed: 0 to 2**32 - 1; gives the same image as NVIDIA's code.
            psi: truncation; 1: none, 0: the average image. Unused with `latent`.
            label: class of a conditional generator.
            latent: W+ (1, L, D), or a `latent.safetensors` file, instead of a seed.
        """
        start = opened_code(
            self.generator, seed=seed, psi=psi, label=label, latent=latent, fingerprint=self.fingerprint
        )
        path = Path(latent) if isinstance(latent, (str, Path)) else None
        self._history.open(start.to(self.device), Source.of(seed=seed, psi=psi, label=label, latent=path))
        self._image = self._open = None
        return self.image

    def drag(
        self,
        handles: PointsLike,
        targets: PointsLike,
        mask: Bool[np.ndarray, "H W"] | None = None,
        anchors: PointsLike | None = None,
        method: str = "auto",
        preset: Preset = "default",
        budget_s: float | None = None,
        callback: Callable[[DragResult], None] | None = None,
        stop: threading.Event | None = None,
        keep_references: bool = False,
        **settings: Any,
    ) -> DragResult:
        """Move the content at `handles` to `targets`; the result becomes the present image.

        Args:
            handles, targets: N points (x, y) in px of the image, integers at pixel centres, y down.
            mask: (H, W), True where the image may change; None: everywhere. Outside, nothing changes.
            anchors: M points that must stay.
            method: `predict`: the predictor. `refine`: the refiner. `both`: the predictor, then the refiner for points
                that have not arrived. `auto`: `both` with a predictor, otherwise `refine`.
            preset: settings of the refiner: `default`, or `draggan`, the published loop.
            budget_s: time limit, seconds.
            callback: called with each intermediate result of the refiner, in this thread.
            stop: set it from another thread to end the drag after the current step.
            keep_references: track the appearance from the previous drag instead of the present image.
            settings: other fields of `Parameters`: steps, rounds, lr, space, edit_layers, feature_block, stop_px,
                outside.

        Raises:
            NothingToDo: every handle already lies on its target.
            AutodragError: points, mask, anchors or settings that cannot be used; the image is not changed.
        """
        parameters = Parameters.of(preset=preset, budget_s=budget_s, keep_references=keep_references, **settings)
        state = self._history.present
        if keep_references and state.references is None:
            raise AutodragError("keep_references needs a drag before this one; drag once without it")
        references = state.references if keep_references else None
        task = self._task(handles, targets, mask, anchors, parameters)
        task = dataclasses.replace(task, references=references)
        chosen = self._settings(parameters, method)
        control = Control(budget_s, stop, callback)
        before = self.image
        with self._precision():
            result = run_drag(self._opened(), task, chosen, control, self._basis())
            edited = OpenImage(result.synthesis.moved(result.latent), self.learned, result.features)
            blocks = tracked_blocks(self.generator.config)
            result = settle(self._opened(), edited, task, result, self.calibration, blocks)
        result = dataclasses.replace(
            result,
            latent=result.latent.detach().cpu(),
            landmark_distances=measure_drag(self.landmarks, before, result.image, result.handles, result.targets),
        )
        self._commit(task, parameters, result, mask)
        return result

    def preview(
        self,
        handles: PointsLike,
        targets: PointsLike,
        mask: Bool[np.ndarray, "H W"] | None = None,
        anchors: PointsLike | None = None,
        start: DragResult | None = None,
        *,
        method: str = "auto",
        preset: Preset = "default",
        moving: bool = False,
        **settings: Any,
    ) -> DragResult:
        """The fast result of a drag of the present image, for a moving pointer; image and history are not changed.

        If `method` predicts, the prediction from the present image, without refinement. Otherwise the refiner works
        for `PREVIEW_S` seconds and continues from `start`, the previous preview of the same handles.

        Args:
            start: the previous preview of the same handles; None: start from the present image.
            method, preset, settings: as `drag`.
            moving: whether the pointer still moves; several points then get at most `MOVING_ROUNDS` predictions.

        Raises:
            NothingToDo, AutodragError: as `drag`.
        """
        parameters = Parameters.of(preset=preset, **settings)
        opened, task = self._opened(), self._task(handles, targets, mask, anchors, parameters)
        chosen = self._settings(parameters, method)
        if chosen.method != "refine":
            chosen = dataclasses.replace(chosen, method="predict")
            if moving and self._limits_rounds(task):
                rounds = min(MOVING_ROUNDS, chosen.predictor.rounds or MOVING_ROUNDS)
                chosen = dataclasses.replace(chosen, predictor=dataclasses.replace(chosen.predictor, rounds=rounds))
        elif start is not None and start.references is not None:
            opened = OpenImage.of(self.generator, start.layers)
            task = self._task(start.points, targets, mask, anchors, parameters)
            task = dataclasses.replace(task, references=start.references)
        control = Control(PREVIEW_S if chosen.method == "refine" else None)
        with self._precision():
            return run_drag(opened, task, chosen, control, self._basis())

    def apply(
        self,
        edit: Edit,
        *,
        callback: Callable[[DragResult], None] | None = None,
        stop: threading.Event | None = None,
    ) -> DragResult:
        """Open the image that an edit names, if it names one, and drag."""
        choose_method(edit.method, can_predict=self.can_predict, checkpoint=self.checkpoint)
        if edit.fingerprint not in (None, self.fingerprint):
            raise AutodragError(
                f"the edit was made for generator {edit.fingerprint!r}, and {self.checkpoint!r} is "
                f"{self.fingerprint!r}; name the right checkpoint"
            )
        if edit.seed is not None or edit.latent is not None:
            self.open(edit.seed, edit.psi, edit.label, edit.latent)
        elif not self._history:
            raise AutodragError("the edit names neither a seed nor a latent, and no image is open; give it a seed")
        parameters = edit.parameters
        return self.drag(
            edit.handles,
            edit.targets,
            mask=None if edit.mask is None else read_mask(edit.mask, self.image_size),
            anchors=edit.anchors or None,
            method=edit.method,
            preset=parameters.preset,
            callback=callback,
            stop=stop,
            keep_references=parameters.keep_references,
            outside=parameters.outside,
            **parameters.overrides(),
        )

    def undo(self) -> UInt8[np.ndarray, "H W 3"]:
        """Go back to the image before the last drag."""
        self._history.undo()
        self._image = self._open = None
        return self.image

    def redo(self) -> UInt8[np.ndarray, "H W 3"]:
        """Take back the last undo."""
        self._history.redo()
        self._image = self._open = None
        return self.image

    def save_session(self, path: str | Path) -> None:
        """Write the edits that led to the present image; masks and an opened latent go beside the file."""
        self._history.save(Path(path), checkpoint=self.checkpoint, fingerprint=self.fingerprint)

    def load_session(self, path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
        """Replay a session: the same checkpoint on the same kind of machine gives the same image."""
        for edit in read_edits(path):
            self.apply(edit)
        return self.image

    # --- for servers: several editors, histories -------------------------------------------------------------------

    def sibling(self) -> DragEditor:
        """Another editor that shares the networks and has its own image and history.

        Siblings may work in different threads at the same time, because the networks are only read.
        """
        other = copy.copy(self)
        other._history, other._image, other._open = History(), None, None
        return other

    def branch(self) -> DragEditor:
        """A sibling with the same image and history; drags of one do not change the other."""
        other = copy.copy(self)
        other._history = self._history.copy()
        return other

    @property
    def past(self) -> tuple[Layers, ...]:
        """The images from the opened one to the present one."""
        return self._history.past

    @property
    def position(self) -> int:
        """Number of edits between the opened image and the present one."""
        return self._history.position

    @property
    def edits(self) -> list[Edit]:
        """The edits up to the present image. They name neither a mask nor the opened image."""
        return self._history.edits

    def go_to(self, position: int) -> None:
        """Undo or redo until `position` edits are in force. The image is rendered at its next use."""
        if position != self._history.position:
            self._history.go_to(position)
            self._image = self._open = None

    def release(self) -> None:
        """Free the rendered image and its features. They are computed again at the next use."""
        self._image = self._open = None

    @property
    def undone(self) -> int:
        """How many edits `redo` can still bring back."""
        return self._history.undone

    def forget(self, keep: int, references: int) -> int:
        """Drop old edits to limit the memory of the history; returns the number of dropped edits.

        The last `keep` edits stay, and the last `references` of them keep the appearance of their handles for
        `keep_references`. The image before the first remaining edit becomes the opened one.
        """
        return self._history.forget(keep, references)

    def restore(self, edits: Sequence[Edit], past: Sequence[Layers]) -> UInt8[np.ndarray, "H W 3"]:
        """Restore a history without computing it again.

        Args:
            edits: as `read_edits` gives them.
            past: the opened image, then one for each edit, as `past` gave them.
        """
        if len(past) != len(edits) + 1:
            raise AutodragError(f"{len(past)} images do not belong to {len(edits)} edits; expected {len(edits) + 1}")
        masks = [None if edit.mask is None else read_mask(edit.mask, self.image_size) for edit in edits]
        self._history.restore(edits, [layers.to(self.device) for layers in past], masks)
        self._image = self._open = None
        return self.image

    def render(self, code: Float[Tensor, "1 L D"] | Layers) -> UInt8[np.ndarray, "H W 3"]:
        """The image of any code of this generator; the open image stays."""
        code = code.to(self.device)
        with torch.no_grad(), self._precision():
            image = OpenImage.of(self.generator, code)
            return to_uint8(image.rendered.picture)[0]

    # --- internals -------------------------------------------------------------------------------------------------

    def _opened(self) -> OpenImage:
        """The present image with everything that is computed once for it."""
        layers = self._history.present.layers
        if self._open is None or self._open.layers.stack != layers.stack:
            self._open = OpenImage.of(self.generator, layers, self.learned)
        return self._open

    def _task(
        self,
        handles: PointsLike,
        targets: PointsLike,
        mask: np.ndarray | None,
        anchors: PointsLike | None,
        parameters: Parameters,
    ) -> Drag:
        return Drag.of(
            handles,
            targets,
            self.image_size,
            mask=mask,
            outside=parameters.outside,
            anchors=anchors,
            device=self.device,
        )

    def _limits_rounds(self, task: Drag) -> bool:
        """Whether fewer rounds make a prediction faster; the paper's variant makes one round only."""
        return len(task.handles) > 1 and self.learned is not None and self.learned.predictor.config.variant != "paper"

    def _settings(self, parameters: Parameters, method: str) -> DragSettings:
        chosen = choose_method(method, can_predict=self.can_predict, checkpoint=self.checkpoint)
        if method == "auto" and parameters.preset == "draggan":
            chosen = "refine"
        return choose_settings(parameters, chosen, self.generator.config)

    def _commit(self, task: Drag, parameters: Parameters, result: DragResult, mask: np.ndarray | None) -> None:
        """Append a result to the history, with its rounds and steps instead of its budget, which cannot be replayed."""
        pairs = zip(result.handles.tolist(), result.targets.tolist(), strict=True)
        edit = Edit.of(
            drags=tuple(PointPair(handle=a, target=b) for a, b in pairs),
            anchors=() if task.anchors is None else tuple(task.anchors.double().tolist()),
            method=result.method,
            parameters=parameters.replaced(
                budget_s=None,
                steps=None if result.method == "predict" else result.steps,
                rounds=result.rounds or None,
            ),
        )
        kept = None if mask is None else np.array(mask)
        self._open = OpenImage(result.synthesis.moved(result.latent), self.learned, result.features)
        self._history.push(State(self._open.layers, edit, kept, result.references))
        self._image = result.image

    def _precision(self) -> AbstractContextManager[Any]:
        if self._dtype in (None, torch.float32):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def _basis(self) -> LatentBasis:
        """Standard coordinates of the generator's latents, computed at the first drag."""
        if self._latent_basis is None:
            self._latent_basis = LatentBasis.of(self.generator)
        return self._latent_basis
