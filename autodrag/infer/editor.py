"""The editor object: a checkpoint loaded once, images opened and dragged many times.

    editor = DragEditor.load("checkpoints/critters")
    image = editor.open(seed=7)                                   # HWC uint8 RGB
    result = editor.drag(handles=[[60, 70]], targets=[[80, 66]])
    result.image, result.latent, result.distances, result.seconds

It owns the state that an algorithm should not have: the open image, the edits made to it, undo and redo. The
work is done by `refine`, a plain function.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.checkpoint import (
    REGULARIZER_FILE,
    find_checkpoint,
    fingerprint,
    has_predictor,
    load_generator,
    load_landmarks,
    load_latent,
    load_predictor,
    load_regularizer,
    save_latent,
)
from autodrag.edits import DEFAULT_CHECKPOINT, Drag, Edit, Method, Parameters, Preset, read_edits, write_session
from autodrag.errors import AutodragError
from autodrag.images import read_mask, to_uint8, write_png
from autodrag.infer.checks import PointsLike, check_anchors, check_drags, check_mask
from autodrag.infer.drag import drag as run_drag
from autodrag.infer.drag import warm_up
from autodrag.infer.measure import NEAR, detect_landmarks, landmark_distances
from autodrag.infer.predict import LearnedNets, PredictConfig
from autodrag.infer.refine import RefineConfig, StepState, feature_block
from autodrag.infer.result import DragResult, Preview
from autodrag.infer.tracking import References
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Features, Generator, seed_z
from autodrag.points import Size

if TYPE_CHECKING:
    from autodrag.nets.landmarks import LandmarkNet


REFINE: dict[Method, bool | Literal["auto"]] = {"refine": True, "predict": False, "both": "auto", "auto": "auto"}
"""An edit's method as the argument `refine` of `DragEditor.drag`."""
PREVIEW_S = 0.1
"""Time that the refiner has for a preview where there is no predictor."""


@dataclass(frozen=True)
class _State:
    """An image in the history: its latent, and the edit that led to it from the state before."""

    latent: Tensor
    edit: Edit | None = None
    mask: np.ndarray | None = None
    references: References | None = None


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
        self._states: list[_State] = []
        self._cursor = 0
        self._image: np.ndarray | None = None
        self._features: Features | None = None
        self._source = Edit(drags=())
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
            CheckpointError: unknown, broken, or with a predictor that belongs to another generator.
        """
        generator, identity = load_generator(folder)
        learned = None
        if has_predictor(folder, identity):
            joint = (find_checkpoint(folder) / REGULARIZER_FILE).is_file()
            regularizer = load_regularizer(folder, identity) if joint else None
            learned = LearnedNets(load_predictor(folder, identity), regularizer)
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
        return self._state.latent.cpu()

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The present image, HWC uint8 RGB."""
        if self._image is None:
            with torch.inference_mode(), self._precision():
                self._image = to_uint8(self.generator.image(self._state.latent, self._present()))[0]
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
        if (seed is None) == (latent is None):
            raise AutodragError("give either a seed or a latent to open, such as seed=7")
        config = self.generator.config
        if isinstance(latent, Tensor):
            if latent.shape != (1, config.latent_layers, config.w_dim) or not torch.isfinite(latent).all():
                expected = (1, config.latent_layers, config.w_dim)
                raise AutodragError(f"latent has shape {tuple(latent.shape)}; expected finite values of {expected}")
            start = latent.detach().float()
        elif latent is not None:
            start = load_latent(latent, layers=config.latent_layers, w_dim=config.w_dim, generator=self.fingerprint)
        else:
            assert seed is not None
            start = self._map(seed, psi, label)
        path = Path(latent) if isinstance(latent, (str, Path)) else None
        self._source = Edit(drags=(), seed=seed, psi=psi, label=label, latent=path)
        self._states, self._cursor, self._image = [_State(start.to(self.device))], 0, None
        self._features = None
        return self.image

    def drag(
        self,
        handles: PointsLike,
        targets: PointsLike,
        mask: Bool[np.ndarray, "H W"] | None = None,
        anchors: PointsLike | None = None,
        refine: bool | Literal["auto"] = "auto",
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
            refine: False is the predictor alone, True the refiner alone; "auto" predicts where there is a predictor and
                no mask, and refines where that left a point short of its target.
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
        state = self._state
        # A predictor holds a mask loosely, so that with one the refiner does the whole drag.
        alone = not self.can_predict or (mask is not None and not np.all(mask))
        method: Method = "predict" if refine is False else "refine" if refine is True or alone else "both"
        if method != "refine" and not self.can_predict:
            raise AutodragError(_no_predictor("refine=False", self.checkpoint))
        size = self.image_size
        start, end = check_drags(handles, targets, size)
        fixed, free = check_anchors(anchors, start, size), check_mask(mask, size)
        parameters = Parameters(
            preset=preset, steps=steps, budget_s=budget_s, keep_references=keep_references, **_known(settings)
        )
        config = self._config(parameters)
        references = state.references if keep_references else None
        if keep_references and references is None:
            raise AutodragError("keep_references needs a drag before this one; drag once without it")
        with self._precision():
            outcome = run_drag(
                self.generator,
                self.learned,
                state.latent,
                self._points(start),
                self._points(end),
                method=method,
                refiner=config,
                predictor=self._rounds(parameters),
                mask=None if free is None else torch.from_numpy(free).to(self.device),
                anchors=None if fixed is None else self._points(fixed),
                references=references,
                features=self._present() if method != "refine" else None,
                basis=self._basis(config),
                stop=stop,
                callback=callback,
            )
        before = self.image
        edit = Edit(
            drags=tuple(Drag((a[0], a[1]), (b[0], b[1])) for a, b in zip(start.tolist(), end.tolist(), strict=True)),
            anchors=() if fixed is None else tuple((x, y) for x, y in fixed.tolist()),
            method=method,
            # A clock cannot be replayed, numbers of rounds and steps can.
            parameters=dataclasses.replace(
                parameters, steps=outcome.steps, rounds=outcome.rounds or None, budget_s=None
            ),
        )
        self._push(_State(outcome.latent.detach(), edit, free, outcome.references))
        self._features = outcome.features
        return DragResult(
            image=self.image,
            latent=self.latent,
            handles=start,
            targets=end,
            points=outcome.points.detach().double().cpu().numpy(),
            distances=outcome.distances.detach().double().cpu().numpy(),
            confidences=outcome.confidences.detach().double().cpu().numpy(),
            lost=outcome.lost.cpu().numpy(),
            landmark_distances=self._measure(before, self.image, start, end),
            method=method,
            rounds=outcome.rounds,
            steps=outcome.steps,
            seconds=outcome.seconds,
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
        config = self._config(Parameters(budget_s=None if self.can_predict else PREVIEW_S))
        if self.can_predict:
            start = None
        with self._precision():
            outcome = run_drag(
                self.generator,
                self.learned,
                self._state.latent if start is None else start.latent.to(self.device),
                self._points(first if start is None else start.points),
                self._points(last),
                method="predict" if self.can_predict else "refine",
                refiner=config,
                mask=None if free is None else torch.from_numpy(free).to(self.device),
                anchors=None if fixed is None else self._points(fixed),
                references=None if start is None else start.references,
                features=self._present() if self.can_predict else None,
                basis=self._basis(config),
            )
            with torch.inference_mode():
                image = self.generator.image(outcome.latent, outcome.features or Features(()))
        return Preview(
            image=to_uint8(image)[0],
            latent=outcome.latent.detach().cpu(),
            points=outcome.points.detach().double().cpu().numpy(),
            distances=outcome.distances.detach().double().cpu().numpy(),
            confidences=outcome.confidences.detach().double().cpu().numpy(),
            lost=outcome.lost.cpu().numpy(),
            seconds=outcome.seconds,
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
            raise AutodragError(_no_predictor(f"method {edit.method!r}", self.checkpoint))
        if edit.fingerprint not in (None, self.fingerprint):
            raise AutodragError(
                f"the edit was made for generator {edit.fingerprint!r}, and {self.checkpoint!r} is "
                f"{self.fingerprint!r}; name the right checkpoint"
            )
        if edit.seed is not None or edit.latent is not None:
            self.open(edit.seed, edit.psi, edit.label, edit.latent)
        elif not self._states:
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
        return self._move(-1, "undo")

    def redo(self) -> UInt8[np.ndarray, "H W 3"]:
        """Take back the last undo."""
        return self._move(+1, "redo")

    def save_session(self, path: str | Path) -> None:
        """Write the edits that led to the present image; masks and an opened latent go beside the file."""
        path = Path(path)
        first, *states = self._states[: self._cursor + 1] or [self._state]
        edits = []
        for number, state in enumerate(states, start=1):
            assert state.edit is not None
            mask = None
            if state.mask is not None:
                mask = path.with_name(f"{path.stem}.mask-{number}.png")
                write_png(mask, np.repeat(state.mask[:, :, None], 3, axis=2).astype(np.uint8) * 255)
            edits.append(dataclasses.replace(state.edit, checkpoint=self.checkpoint, mask=mask, psi=self._source.psi))
        if edits:
            latent = None
            if self._source.seed is None:
                latent = path.with_name(f"{path.stem}.latent.safetensors")
                save_latent(latent, first.latent, {"generator": self.fingerprint})
            edits[0] = dataclasses.replace(
                edits[0],
                fingerprint=self.fingerprint,
                seed=self._source.seed,
                label=self._source.label,
                latent=latent,
            )
        write_session(path, edits)

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
        other._states, other._cursor, other._image, other._source = [], 0, None, Edit(drags=())
        other._features = None
        return other

    @property
    def past(self) -> Float[Tensor, "K L D"]:
        """Latents from the opened image to the present one, on the CPU."""
        return torch.cat([state.latent.cpu() for state in self._states[: self._cursor + 1] or [self._state]])

    @property
    def undone(self) -> int:
        """How many edits `redo` can still bring back."""
        return max(0, len(self._states) - 1 - self._cursor)

    def forget(self, keep: int, references: int) -> int:
        """Bound the memory of a long history; returns how many edits were dropped from its beginning.

        The last `keep` edits stay, and what the handles looked like (`keep_references`) for the last `references`
        of them. The image before the first that stays becomes the opened one: a session then starts at its latent.
        """
        surplus = max(0, self._cursor - keep)
        if surplus:
            first = self._states[surplus]
            self._states = [_State(first.latent), *self._states[surplus + 1 :]]
            self._cursor -= surplus
            self._source = Edit(drags=(), psi=self._source.psi)
        for index in range(max(0, self._cursor - references + 1)):
            self._states[index] = dataclasses.replace(self._states[index], references=None)
        return surplus

    def restore(self, edits: Sequence[Edit], latents: Float[Tensor, "K L D"]) -> UInt8[np.ndarray, "H W 3"]:
        """Put a history back without computing it: what `load_session` does, where the images are known.

        Args:
            edits: as `read_edits` gives them.
            latents: the opened image's, then one for each edit, as `past` gave them.
        """
        config = self.generator.config
        if latents.shape != (len(edits) + 1, config.latent_layers, config.w_dim) or not torch.isfinite(latents).all():
            raise AutodragError(f"latents of shape {tuple(latents.shape)} do not belong to {len(edits)} edits")
        source = dataclasses.replace(edits[0], drags=()) if edits else Edit(drags=())
        states = [_State(latents[:1].to(self.device))]
        for edit, latent in zip(edits, latents[1:], strict=True):
            mask = None if edit.mask is None else read_mask(edit.mask, self.image_size)
            plain = dataclasses.replace(edit, seed=None, latent=None, label=None, mask=None)
            states.append(_State(latent[None].to(self.device), plain, mask))
        self._source, self._states, self._cursor, self._image = source, states, len(edits), None
        self._features = None
        return self.image

    # --- inside ---------------------------------------------------------------------------------------------

    @property
    def _state(self) -> _State:
        if not self._states:
            raise AutodragError("no image is open; call open(seed=7) first")
        return self._states[self._cursor]

    def _present(self) -> Features:
        """Features of the present image, up to the block that a predictor reads; kept until the image changes."""
        if self._features is None:
            block = self.learned.predictor.config.feature_block if self.learned else 0
            with torch.inference_mode(), self._precision():
                self._features = self.generator.features(self._state.latent, block=block)
        return self._features

    def _push(self, state: _State) -> None:
        del self._states[self._cursor + 1 :]
        self._states.append(state)
        self._cursor += 1
        self._image = self._features = None

    def _move(self, by: int, name: str) -> np.ndarray:
        if not 0 <= self._cursor + by < len(self._states):
            raise AutodragError(f"there is nothing to {name}")
        self._cursor += by
        self._image = self._features = None
        return self.image

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

    def _map(self, seed: int, psi: float, label: int | None) -> Tensor:
        classes = self.generator.config.c_dim
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise AutodragError(f"seed {seed!r} is not usable; expected a whole number from 0 to {2**32 - 1}")
        if not np.isfinite(psi):
            raise AutodragError(f"psi {psi} is not finite; expected a number such as 0.7")
        if classes == 0 and label is not None:
            raise AutodragError(f"label {label} is given, but this generator has no classes; leave it out")
        if classes and (label is None or not 0 <= label < classes):
            raise AutodragError(f"label {label} is not a class of this generator; expected 0 to {classes - 1}")
        labels = None if label is None else torch.eye(classes, device=self.device)[label][None]
        with torch.no_grad():
            return self.generator.map(seed_z(seed, self.generator.config.z_dim).to(self.device), labels, psi=psi)

    def _basis(self, config: RefineConfig) -> LatentBasis | None:
        """Standard coordinates of the generator's latents, found at the first drag that needs them."""
        if config.objective != "locate":
            return None
        if self._latent_basis is None:
            self._latent_basis = LatentBasis.of(self.generator)
        return self._latent_basis

    def _config(self, parameters: Parameters) -> RefineConfig:
        try:
            config = RefineConfig.preset(parameters.preset, self.image_size)
            settings = {name: value for name, value in parameters.overrides().items() if name != "rounds"}
            return dataclasses.replace(config, **settings)
        except (ValueError, TypeError, KeyError) as error:
            raise AutodragError(f"the settings cannot be used: {str(error).rstrip('.')}") from error

    def _rounds(self, parameters: Parameters) -> PredictConfig:
        try:
            return PredictConfig() if parameters.rounds is None else PredictConfig(rounds=parameters.rounds)
        except ValueError as error:
            raise AutodragError(f"the settings cannot be used: {str(error).rstrip('.')}") from error

    def _measure(
        self, before: np.ndarray, after: np.ndarray, handles: np.ndarray, targets: np.ndarray
    ) -> tuple[float | None, ...] | None:
        if self.landmarks is None:
            return None
        old, new = detect_landmarks(self.landmarks, before), detect_landmarks(self.landmarks, after)
        return landmark_distances(old, new, handles, targets, NEAR * self.image_size[0])


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    allowed = {field.name for field in dataclasses.fields(Parameters)}
    for name in settings:
        if name not in allowed:
            raise AutodragError(f"drag has no setting {name!r}; expected one of {', '.join(sorted(allowed))}")
    return settings


def _no_predictor(what: str, checkpoint: str) -> str:
    return f"{what} needs a predictor, which {checkpoint!r} does not have yet; use the refiner (method 'refine')"
