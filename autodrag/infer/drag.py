"""One drag by any method: the predictor, the refiner, or both, the refiner from where the predictor came to.

By both, the refiner starts only where a point has not arrived, from halfway to the prediction, follows what the handles
looked like in the image before it, and has what is left of the time. Should it end farther away, the prediction stays.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.edits import Method
from autodrag.errors import AutodragError
from autodrag.infer.predict import LearnedNets, PredictConfig, Prediction, make_drags, predict
from autodrag.infer.refine import Callback, Origin, RefineConfig, RefineResult, refine
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Features, Generator

Refine = bool | Literal["auto", "both"]
"""False: the predictor alone; True: the refiner alone; "both"; "auto": see `choose_method`."""
REFINE: dict[Method, Refine] = {"refine": True, "predict": False, "both": "both", "auto": "auto"}
"""An edit's method as the argument `refine` of `DragEditor.drag`."""


BACK = 0.5
"""The refiner begins at this share of the way to the prediction. It ends as soon as points arrive, and would hardly
take back what a prediction moved more than was needed: from halfway the edited images' spread stays nearer to that of
unedited ones (Fréchet distance of 1000 one-point drags 0.004, from the prediction 0.006), and points end as near."""


@dataclass(frozen=True)
class Outcome:
    """Where a drag ended; `points` were found in `latent`. Distances in px."""

    latent: Float[Tensor, "1 L D"]
    points: Float[Tensor, "N 2"]
    distances: Float[Tensor, "N"]
    confidences: Float[Tensor, "N"]
    lost: Bool[Tensor, "N"]
    rounds: int
    """Predictions made."""
    steps: int
    """Optimisation steps made."""
    seconds: float
    reason: str
    """Why it ended: arrived, steps, budget, stopped, stalled, lost; or rounds, of the predictor alone."""
    references: Origin | None
    """What the handles first looked like; None where the refiner had nothing to do."""
    features: Features | None = None
    """Of `latent`, where the predictor made it: the image costs only the blocks that are left."""


def choose_method(refine: object, *, can_predict: bool, masked: bool, checkpoint: str) -> Method:
    """What the argument `refine` of `DragEditor.drag` asks for: refine, predict or both.

    Args:
        can_predict: whether there is a predictor.
        masked: whether a mask holds something.
        checkpoint: what errors call the checkpoint.

    Raises:
        AutodragError: a predictor is asked for that is not there, or `refine` is none of `Refine`.
    """
    if refine == "auto":
        # A predictor holds a mask loosely, so that with one the refiner does the whole drag.
        return "both" if can_predict and not masked else "refine"
    if refine is True:
        return "refine"
    if refine is not False and refine != "both":
        raise AutodragError(f"refine={refine!r} is not known; expected True, False, 'auto' or 'both'")
    if not can_predict:
        raise AutodragError(no_predictor(f"refine={refine!r}", checkpoint))
    return "both" if refine == "both" else "predict"


def no_predictor(what: str, checkpoint: str) -> str:
    """The sentence for `what` that needs a predictor where the checkpoint has none."""
    return f"{what} needs a predictor, which {checkpoint!r} does not have yet; use the refiner (method 'refine')"


def drag(
    generator: Generator,
    nets: LearnedNets | None,
    latent: Float[Tensor, "1 L D"],
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    *,
    method: Method,
    refiner: RefineConfig,
    predictor: PredictConfig | None = None,
    mask: Bool[Tensor, "H W"] | None = None,
    anchors: Float[Tensor, "M 2"] | None = None,
    references: Origin | None = None,
    features: Features | None = None,
    basis: LatentBasis | None = None,
    stop: threading.Event | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Moves `handles` to `targets` (px); see `refine` and `predict` for the arguments.

    features: of `latent`, which a predictor needs, where they are known.

    Raises ValueError where a method needs a predictor and `nets` is None.
    """
    started = time.monotonic()

    def refined(start: Tensor, points: Tensor, known: Origin | None, config: RefineConfig) -> RefineResult:
        return refine(
            generator,
            start,
            points,
            targets,
            config=config,
            mask=mask,
            anchors=anchors,
            references=known,
            before=latent,
            basis=basis,
            stop=stop,
            callback=callback,
        )

    if method == "refine":
        result = refined(latent, handles, references, refiner)
        return _from_refiner(result, 0, result.seconds)
    if nets is None:
        raise ValueError(f"method {method!r} needs a predictor.")
    settings = predictor or PredictConfig()
    if refiner.budget_s is not None:
        settings = replace(settings, budget_s=refiner.budget_s)
    drags = make_drags(nets.predictor, handles, targets, mask=mask, anchors=anchors)
    guess = predict(nets, generator, latent, drags, config=settings, features=features, stop=stop)
    count = len(handles)
    points, distances = guess.points[0, :count], guess.distances[0, :count]
    arrived = bool((distances <= refiner.stop_px).all())
    stopped = stop is not None and stop.is_set()
    left = None if refiner.budget_s is None else refiner.budget_s - (time.monotonic() - started)
    if method == "predict" or arrived or stopped or (left is not None and left <= 0):
        reason = "arrived" if arrived else "stopped" if stopped else "rounds" if method == "predict" else "budget"
        return _from_predictor(guess, count, 0, time.monotonic() - started, reason, references)
    known = references or Origin(latent, handles)
    halfway = latent + BACK * (guess.latent - latent), handles + BACK * (points - handles)
    result = refined(*halfway, known, replace(refiner, budget_s=left))
    free = mask is None and anchors is None  # else the prediction holds more loosely what must stay
    if free and float(result.distances.sum()) > float(distances.sum()):  # it had no time, or stalled on the way
        return _from_predictor(guess, count, result.steps, time.monotonic() - started, result.reason, known)
    return _from_refiner(result, guess.rounds, time.monotonic() - started)


def _from_predictor(
    guess: Prediction, count: int, steps: int, seconds: float, reason: str, references: Origin | None
) -> Outcome:
    """A prediction of one image without its anchors, which come after `count` points."""
    points, distances = guess.points[0, :count], guess.distances[0, :count]
    sure, lost = guess.confidences[0, :count], guess.lost[0, :count]
    how = (guess.rounds, steps, seconds, reason, references, guess.features)
    return Outcome(guess.latent.clone(), points, distances, sure, lost, *how)


def _from_refiner(result: RefineResult, rounds: int, seconds: float) -> Outcome:
    r = result
    fields = (r.latent, r.points, r.distances, r.confidences, r.lost, rounds, r.steps, seconds, r.reason, r.references)
    return Outcome(*fields)


def warm_up(generator: Generator, nets: LearnedNets) -> None:
    """Throw-away predictions, so that the first real one is not the slow one; on a GPU the second records graphs."""
    latent = generator.mapping.w_avg.expand(1, generator.config.latent_layers, -1)
    height, width = generator.config.image_size
    handle = torch.tensor([[width / 2, height / 2]], device=latent.device)
    drags = make_drags(nets.predictor, handle, handle + 2)
    for _ in range(2 if latent.is_cuda else 1):
        guess = predict(nets, generator, latent, drags, config=PredictConfig(rounds=2, stop_px=0.0))
        with torch.inference_mode():
            generator.image(guess.latent, guess.features)
