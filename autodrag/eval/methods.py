"""The methods that evaluations compare, and the limits that they share.

A method takes a code and a drag, and returns a result. Its factory does the work that is needed once per run. It raises
AutodragError if something is missing, so that errors occur before the long part of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from autodrag.acceleration import accelerate
from autodrag.checkpoint import PREDICTOR_FILE, REGULARIZER_FILE, fingerprint, load_editor
from autodrag.errors import AutodragError
from autodrag.eval.baselines.freedrag import FreeDragConfig, FreeDragState, freedrag
from autodrag.eval.baselines.userlt import FILE as USERLT_FILE
from autodrag.eval.baselines.userlt import load_userlt, userlt
from autodrag.infer.drag import DragSettings, RefinerConfig, run_drag, warm_up
from autodrag.infer.draggan import DragganConfig
from autodrag.infer.locate import LocateConfig
from autodrag.infer.open_image import OpenImage
from autodrag.infer.predict import PredictConfig
from autodrag.infer.task import Control, Drag, DragResult
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.layers import LayeredGenerator
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.points import Size


@dataclass(frozen=True)
class Limits:
    """Limits for all methods."""

    steps: int | None = 300
    """Maximum number of optimisation steps; None uses each method's own limit. DragGAN uses 300, and 100 in paired
    reconstruction."""
    stop: float | Literal["paper", "own"] = "paper"
    """Distance at which a point has arrived, px; `paper`: 1 for up to five points and 2 for more (DragGAN, section
    3.2); `own`: the value of each method."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"steps {self.steps}: expected 0 or more.")
        if self.stop not in ("paper", "own") and not (isinstance(self.stop, (int, float)) and self.stop > 0):
            raise ValueError(f"stop {self.stop!r}: expected paper, own or a positive number of px.")

    def stop_px(self, points: int) -> float | None:
        """The stop distance for a number of points; None for the method's own value."""
        if self.stop == "own":
            return None
        if self.stop == "paper":
            return 1.0 if points <= 5 else 2.0
        return float(self.stop)

    def overrides(self, points: int) -> dict[str, Any]:
        """The fields `steps` and `stop_px` of a method's config that these limits replace."""
        limits = {"steps": self.steps, "stop_px": self.stop_px(points)}
        return {name: value for name, value in limits.items() if value is not None}


@dataclass(frozen=True)
class MethodResult:
    """The end of a drag, as far as every method knows it."""

    latent: Float[Tensor, "1 L D"]
    steps: int
    """Steps or rounds."""
    reason: str
    """Why the method ended."""
    features: Features | None = None
    """Features of `latent`, where the method has them: the image then costs only the blocks after them."""
    synthesis: LayeredGenerator | None = None
    """The image as a function of `latent`; None: of the generator."""


Trace = Callable[[float, Tensor], None]
"""Called with (seconds since the start, latent (1, L, D)) whenever a method has a code that it could show."""


@runtime_checkable
class Method(Protocol):
    """Edits `latent` so that the handles of `drag` move to their targets."""

    def __call__(self, latent: Float[Tensor, "1 L D"], drag: Drag, trace: Trace | None = None) -> MethodResult: ...


Factory = Callable[[Generator, Path, Limits], Method]
"""Builds a method from (generator, its checkpoint folder, limits). Raises AutodragError if something is missing."""


def _none(generator: Generator, folder: Path, limits: Limits) -> Method:
    return lambda latent, drag, trace=None: MethodResult(latent, 0, "none")


def _draggan(generator: Generator, folder: Path, limits: Limits) -> Method:
    return refiner_method(generator, DragganConfig.for_image(generator.config.image_size), limits)


def _refine(generator: Generator, folder: Path, limits: Limits) -> Method:
    return refiner_method(generator, LocateConfig.for_image(generator.config.image_size), limits)


def refiner_method(generator: Generator, config: RefinerConfig, limits: Limits) -> Method:
    """A method that runs a refiner with the given config."""
    return _ours(generator, None, DragSettings("refine", config, PredictConfig()), limits)


def _predict(generator: Generator, folder: Path, limits: Limits) -> Method:
    return _learned(generator, folder, limits, "predict")


def _both(generator: Generator, folder: Path, limits: Limits) -> Method:
    return _learned(generator, folder, limits, "both")


def _learned(generator: Generator, folder: Path, limits: Limits, name: Literal["predict", "both"]) -> Method:
    editor = load_editor(folder, fingerprint(generator.state_dict()))
    if editor is None:
        raise AutodragError(f"methods predict and both need a predictor, which {str(folder)!r} does not have")
    editor = accelerate(editor.to(generator.mapping.w_avg.device))
    warm_up(OpenImage.of(generator, generator.mapping.w_avg.expand(1, generator.config.latent_layers, -1), editor))
    config = LocateConfig.for_image(generator.config.image_size)
    return _ours(generator, editor, DragSettings(name, config, PredictConfig()), limits)


def _ours(generator: Generator, editor: LearnedEditor | None, settings: DragSettings, limits: Limits) -> Method:
    """A method of this package with the limits applied. Each drag opens its image again, so times include this work."""
    basis = LatentBasis.of(generator)

    def run(latent: Tensor, drag: Drag, trace: Trace | None = None) -> MethodResult:
        refiner = replace(settings.refiner, **limits.overrides(len(drag.handles)))
        predictor = replace(settings.predictor, stop_px=refiner.stop_px)
        held = replace(settings, refiner=refiner, predictor=predictor)
        result = run_drag(
            OpenImage.of(generator, latent, editor), drag, held, Control(callback=_callback(trace)), basis
        )
        if trace is not None and settings.method != "refine":  # a refiner has reported its last step
            trace(result.seconds, result.latent)
        count = result.rounds + result.steps
        return MethodResult(result.latent, count, result.reason, result.features, result.synthesis)

    return run


def _freedrag(generator: Generator, folder: Path, limits: Limits) -> Method:
    config = FreeDragConfig.fitted(generator)

    def run(latent: Tensor, drag: Drag, trace: Trace | None = None) -> MethodResult:
        limited = replace(config, **limits.overrides(len(drag.handles)))
        result = freedrag(
            generator,
            latent,
            drag.handles,
            drag.targets,
            config=limited,
            mask=drag.mask,
            callback=_callback(trace),
        )
        return MethodResult(result.latent, result.steps, result.reason)

    return run


def _userlt(generator: Generator, folder: Path, limits: Limits) -> Method:
    net = load_userlt(folder, fingerprint(generator.state_dict())).to(generator.mapping.w_avg.device)

    def run(latent: Tensor, drag: Drag, trace: Trace | None = None) -> MethodResult:
        edited = userlt(net, generator, latent, drag.handles, drag.targets, mask=drag.mask)
        return MethodResult(edited, 1, "one pass")

    return run


def _callback(trace: Trace | None) -> Callable[[DragResult | FreeDragState], None] | None:
    return None if trace is None else lambda state: trace(state.seconds, state.latent)


METHODS: dict[str, Factory] = {
    "none": _none,
    "draggan": _draggan,
    "refine": _refine,
    "predict": _predict,
    "both": _both,
    "freedrag": _freedrag,
    "userlt": _userlt,
}
"""All methods by name. To add a variant, such as `draggan` with another learning rate, add an entry here and in
`identities`."""


def make_methods(names: Sequence[str] | None, generator: Generator, folder: Path, limits: Limits) -> dict[str, Method]:
    """Build the named methods; None: all methods that the checkpoint supports.

    Raises:
        AutodragError: a name is unknown, or a named method is not available.
    """
    if names is not None:
        check_names(names)
        return {name: METHODS[name](generator, folder, limits) for name in names}
    methods = {}
    for name, factory in METHODS.items():
        try:
            methods[name] = factory(generator, folder, limits)
        except AutodragError:
            continue
    return methods


def check_names(names: Sequence[str]) -> None:
    """Raise AutodragError for unknown or repeated names."""
    for index, name in enumerate(names):
        if name not in METHODS:
            raise AutodragError(f"method {name!r} is unknown; expected some of {', '.join(METHODS)}")
        if name in names[:index]:
            raise AutodragError(f"method {name!r} is given twice; give each method once")


def identities(folder: Path, image_size: Size) -> dict[str, str]:
    """Digests of the networks and settings of all methods, for a checkpoint with images of (H, W) px.

    Results with different digests of a method must not be combined in one table. The digest does not include the
    generator, the step limit and the stop rule, which are settings of the run (`run.evaluate`). Code changes are not
    detected.
    """
    refiner = LocateConfig.for_image(image_size)
    learned = (PredictConfig(), folder / PREDICTOR_FILE, folder / REGULARIZER_FILE)
    return {
        "none": digest(),
        "draggan": digest(DragganConfig.for_image(image_size)),
        "refine": digest(refiner),
        "predict": digest(*learned),
        "both": digest(*learned, refiner),
        "freedrag": digest(FreeDragConfig.preset(image_size)),  # the fitted value depends only on the generator
        "userlt": digest(folder / USERLT_FILE),
    }


def digest(*parts: Any) -> str:
    """16 hex digits: SHA-256 of configs and of the contents of files. A missing file counts as empty."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            sha.update(hashlib.sha256(part.read_bytes() if part.is_file() else b"").digest())
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()[:16]
