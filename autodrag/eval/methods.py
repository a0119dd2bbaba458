"""The methods that the protocols compare: one table, and what all of them are held to.

A method moves handles to targets and says what it did. Its factory prepares everything that is prepared once, and
raises an AutodragError where something is missing, so that a run ends before its long work starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.checkpoint import fingerprint, has_predictor, load_learned
from autodrag.errors import AutodragError
from autodrag.eval.freedrag import FreeDragConfig, FreeDragState, freedrag
from autodrag.eval.userlt import load_userlt, userlt
from autodrag.infer.drag import drag, warm_up
from autodrag.infer.predict import LearnedNets, PredictConfig
from autodrag.infer.refine import RefineConfig, StepState, refine
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Features, Generator


@dataclass(frozen=True)
class Settings:
    """What every method is held to."""

    steps: int | None = 300
    """Most optimisation steps; None leaves each method its own limit. DragGAN: 300, in paired reconstruction 100."""
    stop: float | Literal["paper", "own"] = "paper"
    """Distance at which a point has arrived, px; `paper`: 1 for up to five points and 2 for more (DragGAN, section
    3.2); `own`: each method's."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"steps {self.steps}: expected 0 or more.")
        if self.stop not in ("paper", "own") and not (isinstance(self.stop, (int, float)) and self.stop > 0):
            raise ValueError(f"stop {self.stop!r}: expected paper, own or a positive number of px.")

    def stop_px(self, points: int) -> float | None:
        """The stop distance for a number of points; None: the method's own."""
        if self.stop == "own":
            return None
        if self.stop == "paper":
            return 1.0 if points <= 5 else 2.0
        return float(self.stop)

    def overrides(self, points: int) -> dict[str, Any]:
        """Fields `steps` and `stop_px` of a method's config, where they are given."""
        given = {"steps": self.steps, "stop_px": self.stop_px(points)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Outcome:
    """What a method left behind."""

    latent: Float[Tensor, "1 L D"]
    """The edited code."""
    steps: int
    """Steps or rounds it took."""
    reason: str
    """Why it ended."""
    features: Features | None = None
    """Of `latent`, where the method has them: the image costs only the blocks that are left."""


Trace = Callable[[float, Tensor], None]
"""Called with (seconds since the start, latent (1, L, D)) whenever a method has a code that it could show."""


@runtime_checkable
class Method(Protocol):
    """Moves `handles` to `targets` (px); mask: True = may move."""

    def __call__(
        self,
        latent: Float[Tensor, "1 L D"],
        handles: Float[Tensor, "N 2"],
        targets: Float[Tensor, "N 2"],
        *,
        mask: Bool[Tensor, "H W"] | None = None,
        trace: Trace | None = None,
    ) -> Outcome: ...


Factory = Callable[[Generator, Path, Settings], Method]
"""(generator, its checkpoint folder, settings) to a method; raises AutodragError where something is missing."""


def _none(generator: Generator, folder: Path, settings: Settings) -> Method:
    def run(latent: Tensor, handles: Tensor, targets: Tensor, **_: Any) -> Outcome:
        return Outcome(latent, 0, "none")

    return run


def _draggan(generator: Generator, folder: Path, settings: Settings) -> Method:
    return refiner_method(generator, RefineConfig.preset("draggan", generator.config.image_size), settings)


def _default(generator: Generator, folder: Path, settings: Settings) -> Method:
    return refiner_method(generator, RefineConfig.preset("default", generator.config.image_size), settings)


def refiner_method(generator: Generator, config: RefineConfig, settings: Settings) -> Method:
    """The refiner with a config of its own, held to the settings."""
    basis = LatentBasis.of(generator) if config.objective == "locate" else None

    def run(
        latent: Tensor, handles: Tensor, targets: Tensor, *, mask: Tensor | None = None, trace: Trace | None = None
    ) -> Outcome:
        held = replace(config, **settings.overrides(len(handles)))
        callback = None if trace is None else _traced(trace)
        result = refine(generator, latent, handles, targets, config=held, mask=mask, basis=basis, callback=callback)
        return Outcome(result.latent, result.steps, result.reason)

    return run


def _freedrag(generator: Generator, folder: Path, settings: Settings) -> Method:
    config = FreeDragConfig.fitted(generator)

    def run(
        latent: Tensor, handles: Tensor, targets: Tensor, *, mask: Tensor | None = None, trace: Trace | None = None
    ) -> Outcome:
        held = replace(config, **settings.overrides(len(handles)))
        callback = None if trace is None else _traced(trace)
        result = freedrag(generator, latent, handles, targets, config=held, mask=mask, callback=callback)
        return Outcome(result.latent, result.steps, result.reason)

    return run


def _userlt(generator: Generator, folder: Path, settings: Settings) -> Method:
    net = load_userlt(folder, fingerprint(generator.state_dict())).to(generator.mapping.w_avg.device)

    def run(
        latent: Tensor, handles: Tensor, targets: Tensor, *, mask: Tensor | None = None, trace: Trace | None = None
    ) -> Outcome:
        return Outcome(userlt(net, generator, latent, handles, targets, mask=mask), 1, "one pass")

    return run


def _traced(trace: Trace) -> Callable[[StepState | FreeDragState], None]:
    return lambda state: trace(state.seconds, state.latent)


def _predictor(generator: Generator, folder: Path, settings: Settings) -> Method:
    return _learned(generator, folder, settings, "predict")


def _hybrid(generator: Generator, folder: Path, settings: Settings) -> Method:
    return _learned(generator, folder, settings, "both")


def _learned(generator: Generator, folder: Path, settings: Settings, how: Literal["predict", "both"]) -> Method:
    identity = fingerprint(generator.state_dict())
    if not has_predictor(folder, identity):
        raise AutodragError(f"methods predictor and hybrid need a predictor, which {str(folder)!r} does not have")
    nets = LearnedNets(*load_learned(folder, identity)).to(generator.mapping.w_avg.device)
    warm_up(generator, nets)
    config, basis = RefineConfig.preset("default", generator.config.image_size), LatentBasis.of(generator)

    def run(
        latent: Tensor, handles: Tensor, targets: Tensor, *, mask: Tensor | None = None, trace: Trace | None = None
    ) -> Outcome:
        held = replace(config, **settings.overrides(len(handles)))
        loop = replace(PredictConfig(), stop_px=held.stop_px)
        callback = None if trace is None else _traced(trace)
        options: dict[str, Any] = {"method": how, "refiner": held, "predictor": loop, "mask": mask, "basis": basis}
        result = drag(generator, nets, latent, handles, targets, **options, callback=callback)
        if trace is not None:
            trace(result.seconds, result.latent)
        return Outcome(result.latent, result.rounds + result.steps, result.reason, result.features)

    return run


METHODS: dict[str, Factory] = {
    "none": _none,
    "draggan": _draggan,
    "refiner": _default,
    "freedrag": _freedrag,
    "userlt": _userlt,
    "predictor": _predictor,
    "hybrid": _hybrid,
}


def make_methods(
    names: Sequence[str] | None, generator: Generator, folder: Path, settings: Settings
) -> dict[str, Method]:
    """The named methods, ready to run; None takes all that this checkpoint can run.

    Raises:
        AutodragError: a name that is not in the table, or a method that misses something.
    """
    if names is not None:
        check_names(names)
        return {name: METHODS[name](generator, folder, settings) for name in names}
    methods = {}
    for name, factory in METHODS.items():
        try:
            methods[name] = factory(generator, folder, settings)
        except AutodragError:
            continue
    return methods


def check_names(names: Sequence[str]) -> None:
    """Raises AutodragError for a name that is not in the table, or one given twice."""
    for index, name in enumerate(names):
        if name not in METHODS:
            raise AutodragError(f"method {name!r} is unknown; expected some of {', '.join(METHODS)}")
        if name in names[:index]:
            raise AutodragError(f"method {name!r} is named twice; name each method once")
