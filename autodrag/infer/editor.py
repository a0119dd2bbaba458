"""The editor object: a checkpoint loaded once, images opened and dragged many times.

    editor = DragEditor.load("checkpoints/critters")
    image = editor.open(seed=7)                                   # HWC uint8 RGB
    result = editor.drag(handles=[[60, 70]], targets=[[80, 66]])
    result.image, result.latent, result.distances, result.seconds

It owns the state that an algorithm should not have: the open image, and the history of the edits made to it. The work
is done by `autodrag.infer.drag.drag`, a plain function.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.checkpoint import fingerprint, has_predictor, load_generator, load_landmarks, load_learned
from autodrag.edits import DEFAULT_CHECKPOINT, Edit, Method, Parameters, PointPair, Preset, Source, read_edits
from autodrag.errors import AutodragError
from autodrag.images import read_mask, to_uint8
from autodrag.infer.checks import PointsLike, check_anchors, check_drags, check_mask, check_parameters
from autodrag.infer.drag import REFINE, Outcome, Refine, choose_method, no_predictor, warm_up
from autodrag.infer.drag import drag as run_drag
from autodrag.infer.history import History, State
from autodrag.infer.measure import measure_drag
from autodrag.infer.opening import opened_latent
from autodrag.infer.predict import LearnedNets
from autodrag.infer.refine import RefineConfig, StepState, feature_block
from autodrag.infer.result import DragResult, Preview
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.points import Size

if TYPE_CHECKING:
    from autodrag.nets.landmarks import LandmarkNet


PREVIEW_S = 0.1
"""Time that the refiner has for a preview where there is no predictor."""


class DragEditor:
    """Opens images of one generator and drags their points, with undo, redo and sessions.

    Not thread-safe, except that another thread may set the `stop` event of a running drag.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        learned: LearnedNets | None = None,
        landmarks: LandmarkNet | None = None,
        checkpoint: str = DEFAULT_CHECKPOINT,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take ownership of a generator (it is moved and frozen); `load` is the usual way in.

        Args:
            learned: predictor and regularizer that were trained on this generator; None: the refiner does all edits.
            landmarks: net that measures a drag independently; None leaves landmark distances out.
            checkpoint: what saved edits call the checkpoint.
            device: None takes CUDA where it is available.
            dtype: None or float32, or bfloat16 to run convolutions in it.
        """
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise AutodragError(f"dtype {dtype} is not supported; expected torch.float32 or torch.bfloat16")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.fingerprint = fingerprint(generator.state_dict())
        self.generator = generator.to(self.device).freeze()
        self.learned = None if learned is None else learned.to(self.device)
        self.landmarks = None if landmarks is None else landmarks.to(self.device).eval()
        self.checkpoint = checkpoint
        self._dtype = dtype
        self._latent_basis: LatentBasis | None = None
        self._history = History()
        self._image: np.ndarray | None = None
        self._features: Features | None = None
        if self.learned is not None:
            with self._precision():
                warm_up(self.generator, self.learned)

    @classmethod
    def load(
        cls,
        folder: str | Path = DEFAULT_CHECKPOINT,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> DragEditor:
        """Load a checkpoint folder; only its generator is needed. A predictor is warmed up by a first prediction.

        Raises:
            CheckpointError: unknown, broken, or with a predictor that belongs to another generator or lacks the
                regularizer that it was trained with.
        """
        generator, identity = load_generator(folder)
        learned = LearnedNets(*load_learned(folder, identity)) if has_predictor(folder, identity) else None
        nets = {"learned": learned, "landmarks": load_landmarks(folder)}
        return cls(generator, **nets, checkpoint=str(folder), device=device, dtype=dtype)  # type: ignore[arg-type]

    @property
    def image_size(self) -> Size:
        """(height, width) of the images in px."""
        return self.generator.config.image_size

    @property
    def can_predict(self) -> bool:
        """Whether the checkpoint brought a predictor."""
        return self.learned is not None

    @property
    def latent(self) -> Float[Tensor, "1 L D"]:
        """W+ of the present image, on the CPU."""
        return self._history.present.latent.cpu()

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The present image, HWC uint8 RGB."""
        if self._image is None:
            with torch.inference_mode(), self._precision():
                self._image = to_uint8(self.generator.image(self._history.present.latent, self._present()))[0]
        return self._image

    def open(
        self,
        seed: int | None = None,
        psi: float = 0.7,
        label: int | None = None,
        latent: Tensor | str | Path | None = None,
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Open an image and forget the one before, with its history.

        Args:
            seed: 0 to 2**32 - 1; the same image as NVIDIA's code gives for it.
            psi: truncation, 1 = none, 0 = the average image. Unused with `latent`.
            label: class of a conditional generator.
            latent: W+ (1, L, D), or a `latent.safetensors` file, instead of a seed.
        """
        start = opened_latent(
            self.generator, seed=seed, psi=psi, label=label, latent=latent, fingerprint=self.fingerprint
        )
        path = Path(latent) if isinstance(latent, (str, Path)) else None
        source = Source.of(seed=seed, psi=psi, label=label, latent=path)
        self._history.open(start.to(self.device), source)
        self._image = self._features = None
        return self.image

    def drag(
        self,
        handles: PointsLike,
        targets: PointsLike,
        mask: Bool[np.ndarray, "H W"] | None = None,
        anchors: PointsLike | None = None,
        refine: Refine = "auto",
        preset: Preset = "default",
        budget_s: float | None = None,
        steps: int | None = None,
        callback: Callable[[StepState], None] | None = None,
        stop: threading.Event | None = None,
        keep_references: bool = False,
        **settings: Any,
    ) -> DragResult:
        """Move the content at `handles` to `targets`; the result becomes the present image.

        Args:
            handles, targets: N points (x, y) in px of the image, integers at pixel centres, y down.
            mask: (H, W), True = may move; None: everything may.
            anchors: M points that must stay.
            refine: False is the predictor alone, True the refiner alone; "both" predicts, and refines where that left a
                point short of its target; "auto" is "both" where there is a predictor and no mask, and otherwise True.
            preset: "default" or "draggan", the published method.
            budget_s, steps: most seconds, and most steps of the refiner; None takes the preset's.
            callback: called after each step, in this thread.
            stop: set it from another thread to end the loop after the current step.
            keep_references: go on tracking what the drag before tracked, instead of the present image.
            settings: further fields of `Parameters`: rounds, lr, space, edit_layers, feature_block, stop_px.

        Raises:
            NothingToDo: every handle already lies on its target.
            AutodragError: points, mask, anchors or settings that cannot be used; the image stays as it is.
        """
        state, size, masked = self._history.present, self.image_size, mask is not None and not np.all(mask)
        method = choose_method(refine, can_predict=self.can_predict, masked=masked, checkpoint=self.checkpoint)
        start, end = check_drags(handles, targets, size)
        fixed, free = check_anchors(anchors, start, size), check_mask(mask, size)
        parameters = Parameters.of(
            preset=preset, steps=steps, budget_s=budget_s, keep_references=keep_references, **settings
        )
        edit = Edit.of(
            drags=tuple(PointPair(handle=a, target=b) for a, b in zip(start.tolist(), end.tolist(), strict=True)),
            anchors=() if fixed is None else tuple((x, y) for x, y in fixed.tolist()),
            method="auto" if refine == "auto" else method,
            parameters=parameters,
        )
        config, rounds = check_parameters(parameters, size)
        references = state.references if keep_references else None
        if keep_references and references is None:
            raise AutodragError("keep_references needs a drag before this one; drag once without it")
        outcome = self._run(
            state.latent,
            (start, end),
            (free, fixed),
            method=method,
            refiner=config,
            predictor=rounds,
            references=references,
            stop=stop,
            callback=callback,
        )
        before = self.image
        # A clock cannot be replayed, numbers of rounds and steps can.
        replayed = parameters.replaced(steps=outcome.steps, rounds=outcome.rounds or None, budget_s=None)
        edit = edit.replaced(method=method, parameters=replayed)
        self._history.push(State(outcome.latent.detach(), edit, free, outcome.references))
        self._image, self._features = None, outcome.features
        return DragResult(
            image=self.image,
            latent=self.latent,
            handles=start,
            targets=end,
            **_found(outcome),
            landmark_distances=measure_drag(self.landmarks, before, self.image, start, end),
            method=method,
            rounds=outcome.rounds,
            steps=outcome.steps,
            reason=outcome.reason,
            feature_block=feature_block(self.generator, config),
        )

    def preview(
        self,
        handles: PointsLike,
        targets: PointsLike,
        mask: Bool[np.ndarray, "H W"] | None = None,
        anchors: PointsLike | None = None,
        start: Preview | None = None,
    ) -> Preview:
        """What a drag of the present image would give, as fast as can be; the image and its history stay.

        Made for a pointer in motion. A predictor answers from the present image; without one the refiner works for
        `PREVIEW_S` seconds and goes on from `start`, the preview before of the same handles.

        Raises:
            NothingToDo, AutodragError: as `drag` does.
        """
        size = self.image_size
        first, last = check_drags(handles, targets, size)
        fixed, free = check_anchors(anchors, first, size), check_mask(mask, size)
        config, _ = check_parameters(Parameters(budget_s=None if self.can_predict else PREVIEW_S), size)
        if self.can_predict:
            start = None
        outcome = self._run(
            self._history.present.latent if start is None else start.latent.to(self.device),
            (first if start is None else start.points, last),
            (free, fixed),
            method="predict" if self.can_predict else "refine",
            refiner=config,
            references=None if start is None else start.references,
        )
        with torch.inference_mode(), self._precision():
            image = self.generator.image(outcome.latent, outcome.features or Features(()))
        return Preview(
            image=to_uint8(image)[0],
            latent=outcome.latent.detach().cpu(),
            **_found(outcome),
            references=outcome.references,
        )

    def apply(
        self,
        edit: Edit,
        *,
        callback: Callable[[StepState], None] | None = None,
        stop: threading.Event | None = None,
    ) -> DragResult:
        """Open the image that an edit names, if it names one, and drag."""
        if edit.method in ("predict", "both") and not self.can_predict:
            raise AutodragError(no_predictor(f"method {edit.method!r}", self.checkpoint))
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
            refine=REFINE[edit.method],
            preset=parameters.preset,
            callback=callback,
            stop=stop,
            keep_references=parameters.keep_references,
            **parameters.overrides(),
        )

    def undo(self) -> UInt8[np.ndarray, "H W 3"]:
        """Go back to the image before the last drag."""
        self._history.undo()
        self._image = self._features = None
        return self.image

    def redo(self) -> UInt8[np.ndarray, "H W 3"]:
        """Take back the last undo."""
        self._history.redo()
        self._image = self._features = None
        return self.image

    def save_session(self, path: str | Path) -> None:
        """Write the edits that led to the present image; masks and an opened latent go beside the file."""
        self._history.save(Path(path), checkpoint=self.checkpoint, fingerprint=self.fingerprint)

    def load_session(self, path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
        """Replay a session: the same checkpoint on the same kind of machine gives the same image."""
        for edit in read_edits(path):
            self.apply(edit)
        return self.image

    # --- histories, for who serves many images -------------------------------------------------------------

    def sibling(self) -> DragEditor:
        """Another editor around the same networks, with an image and a history of its own; costs next to nothing.

        Siblings may work in different threads at once, since frozen networks are only read.
        """
        other = copy.copy(self)
        other._history, other._image, other._features = History(), None, None
        return other

    @property
    def past(self) -> Float[Tensor, "K L D"]:
        """Latents from the opened image to the present one, on the CPU."""
        return self._history.past

    @property
    def undone(self) -> int:
        """How many edits `redo` can still bring back."""
        return self._history.undone

    def forget(self, keep: int, references: int) -> int:
        """Bound the memory of a long history; returns how many edits were dropped from its beginning.

        The last `keep` edits stay, and what the handles looked like (`keep_references`) for the last `references`
        of them. The image before the first that stays becomes the opened one: a session then starts at its latent.
        """
        return self._history.forget(keep, references)

    def restore(self, edits: Sequence[Edit], latents: Float[Tensor, "K L D"]) -> UInt8[np.ndarray, "H W 3"]:
        """Put a history back without computing it: what `load_session` does, where the images are known.

        Args:
            edits: as `read_edits` gives them.
            latents: the opened image's, then one for each edit, as `past` gave them.
        """
        config = self.generator.config
        if latents.shape != (len(edits) + 1, config.latent_layers, config.w_dim) or not torch.isfinite(latents).all():
            raise AutodragError(f"latents of shape {tuple(latents.shape)} do not belong to {len(edits)} edits")
        masks = [None if edit.mask is None else read_mask(edit.mask, self.image_size) for edit in edits]
        self._history.restore(edits, [latent[None].to(self.device) for latent in latents], masks)
        self._image = self._features = None
        return self.image

    # --- inside ---------------------------------------------------------------------------------------------

    def _run(
        self,
        latent: Tensor,
        way: tuple[np.ndarray, np.ndarray],
        held: tuple[np.ndarray | None, np.ndarray | None],
        *,
        method: Method,
        refiner: RefineConfig,
        **options: Any,
    ) -> Outcome:
        """`run_drag` by the editor's networks, on its device and in its precision.

        Args:
            way: where the points are, and where they should be, (N, 2) px.
            held: mask (H, W) and anchors (M, 2) px.
        """
        mask, anchors = held
        with self._precision():
            return run_drag(
                self.generator,
                self.learned,
                latent,
                *map(self._points, way),
                method=method,
                refiner=refiner,
                mask=None if mask is None else torch.from_numpy(mask).to(self.device),
                anchors=None if anchors is None else self._points(anchors),
                features=self._present() if method != "refine" else None,
                basis=self._basis(refiner),
                **options,
            )

    def _present(self) -> Features:
        """Features of the present image, up to the block that a predictor reads; kept until the image changes."""
        if self._features is None:
            block = self.learned.predictor.config.track_block if self.learned else 0
            with torch.inference_mode(), self._precision():
                self._features = self.generator.features(self._history.present.latent, block=block)
        return self._features

    def _points(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._dtype in (None, torch.float32):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def render(self, latent: Float[Tensor, "1 L D"]) -> UInt8[np.ndarray, "H W 3"]:
        """The image of any latent of this generator; the open image stays."""
        with torch.no_grad(), self._precision():
            return to_uint8(self.generator(latent.to(self.device)))[0]

    def _basis(self, config: RefineConfig) -> LatentBasis | None:
        """Standard coordinates of the generator's latents, found at the first drag that needs them."""
        if config.objective != "locate":
            return None
        if self._latent_basis is None:
            self._latent_basis = LatentBasis.of(self.generator)
        return self._latent_basis


def _found(outcome: Outcome) -> dict[str, Any]:
    """What results say of an outcome's points, on the CPU; and its time."""
    numbers = {name: getattr(outcome, name) for name in ("points", "distances", "confidences")}
    found: dict[str, Any] = {name: value.detach().double().cpu().numpy() for name, value in numbers.items()}
    return found | {"lost": outcome.lost.cpu().numpy(), "seconds": outcome.seconds}
