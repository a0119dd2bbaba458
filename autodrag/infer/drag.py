"""One drag by any method: the predictor, a refiner, or both.

With both, the refiner starts only if a point has not arrived, halfway between the open image and the prediction; it
tracks the appearance of the open image and has the rest of the time budget. If it ends farther away than the
prediction, the prediction is returned.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from autodrag.edits import Method, Parameters
from autodrag.errors import AutodragError
from autodrag.infer.draggan import DragganConfig, draggan
from autodrag.infer.locate import LOST_CONFIDENCE, LocateConfig, locate
from autodrag.infer.open_image import OpenImage
from autodrag.infer.predict import PredictConfig, Prediction, batch_of, predict
from autodrag.infer.task import Control, Drag, DragResult, Reason, References, Start, arrival_distance, renderer
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import GeneratorConfig

RefinerConfig = LocateConfig | DragganConfig

HALFWAY = 0.5
"""With both methods, the refiner starts at this share of the predicted edit. It stops as soon as the points arrive and
would hardly undo a prediction that changed more than necessary. Starting halfway, points end as near, and edited images
stay closer to the distribution of unedited ones."""


@dataclass(frozen=True)
class DragSettings:
    """Which method drags, with the settings of its parts."""

    method: Method
    """predict, refine or both."""
    refiner: RefinerConfig
    predictor: PredictConfig


def choose_method(method: str, *, can_predict: bool, checkpoint: str) -> Method:
    """`predict`, `refine` or `both`; decides `auto`.

    Args:
        can_predict: whether the checkpoint has a predictor.
        checkpoint: its name in error messages.

    Raises:
        AutodragError: an unknown method, or one that needs a missing predictor.
    """
    if method == "auto":
        return "both" if can_predict else "refine"
    if method == "refine":
        return "refine"
    if method not in ("predict", "both"):
        raise AutodragError(f"method {method!r} is not known; expected auto, predict, refine or both")
    if not can_predict:
        raise AutodragError(
            f"method {method!r} needs a predictor, and {checkpoint!r} has none; train one with "
            "`autodrag train predictor`, or use method 'refine'"
        )
    return "predict" if method == "predict" else "both"


_READ_BY = {
    "predict": {"rounds", "stop_px", "steps", "space"},
    "default": {"steps", "space", "edit_layers", "feature_block", "stop_px"},
    "draggan": {"steps", "lr", "space", "edit_layers", "feature_block", "stop_px"},
}
"""Fields of `Parameters` that each part reads. The predictor ignores `steps` and `space`, the refiner's most common
settings, so that one form of an interface can serve all methods."""


def choose_settings(parameters: Parameters, method: Method, generator: GeneratorConfig) -> DragSettings:
    """The configs for the parameters of an edit.

    Raises:
        AutodragError: a value that is out of range, or a setting that the chosen method and preset do not read.
    """
    given, preset = parameters.overrides(), parameters.preset
    given.pop("budget_s", None)
    if preset == "draggan" and method == "predict":
        raise AutodragError("preset 'draggan' is a refiner, and method 'predict' does not refine; use method 'refine'")
    if parameters.outside == "soft" and method != "refine":
        raise AutodragError(
            f"outside 'soft' is a penalty of the published loop, and method {method!r} also predicts; use method "
            "'refine', or outside 'exact'"
        )
    read = set()
    if method != "refine":
        read |= _READ_BY["predict"]
    if method != "predict":
        read |= _READ_BY[preset]
    for name, value in given.items():
        if name not in read:
            raise AutodragError(
                f"{name} {value!r} has no effect with method {method!r} and preset {preset!r}; leave it out"
            )
    last = len(generator.block_resolutions) - 1
    if given.get("feature_block", 0) > last:
        raise AutodragError(
            f"feature_block {given['feature_block']} does not exist; this generator has blocks 0 to {last}"
        )
    if given.get("edit_layers", 1) > generator.latent_layers:
        raise AutodragError(
            f"edit_layers {given['edit_layers']} is too large; this generator has {generator.latent_layers} layers"
        )
    rounds = given.pop("rounds", None)
    config: RefinerConfig
    try:
        if preset == "draggan":
            config = DragganConfig.for_image(generator.image_size)
        else:
            config = LocateConfig.for_image(generator.image_size)
        known = {field.name for field in dataclasses.fields(config)}
        config = replace(config, **{name: value for name, value in given.items() if name in known})
        stop_px = given.get("stop_px", LocateConfig.for_image(generator.image_size).stop_px)
        predictor = PredictConfig(rounds=rounds, stop_px=stop_px)
    except ValueError as error:
        raise AutodragError(f"the settings cannot be used: {str(error).rstrip('.')}") from None
    return DragSettings(method, config, predictor)


def run_drag(
    image: OpenImage,
    drag: Drag,
    settings: DragSettings,
    control: Control | None = None,
    basis: LatentBasis | None = None,
) -> DragResult:
    """Drags an open image (B = 1). `basis` is needed by the default refiner and made if it is not given.

    Raises:
        AutodragError: the image has too many layers; see `Layers.split`.
    """
    control = control or Control()
    exact = drag.outside == "exact"
    image = image.within(drag.mask if exact else None, drag.handles[0])
    drag = replace(drag, mask=None) if exact else drag
    if settings.method == "refine":
        return _refine(image, drag, settings, control, basis)
    if image.editor is None:
        raise ValueError(f"method {settings.method!r} needs a predictor.")
    drag = replace(drag, references=drag.references or References(image.layers, drag.handles))
    guess = predict(image, batch_of(drag), settings.predictor, control)
    stop = arrival_distance(drag.handles, drag.targets, settings.refiner.stop_px)
    arrived = bool((guess.distances[0, : len(drag.handles)] <= stop).all())
    reason: Reason | None = None
    if arrived:
        reason = "arrived"
    elif control.stopped:
        reason = "stopped"
    elif guess.cut or control.expires():
        reason = "budget"
    elif settings.method == "predict":
        reason = "rounds"
    if reason is not None:
        return _predicted(image, drag, guess, settings, control, reason)

    count = len(drag.handles)
    start = Start(
        image.latent + HALFWAY * (guess.latent - image.latent),
        drag.handles + HALFWAY * (guess.points[0, :count] - drag.handles),
    )
    result = _refine(image, drag, settings, control, basis, start)
    free = drag.mask is None and drag.anchors is None  # otherwise the refiner preserves the fixed parts better
    if free and result.distances.sum() > float(guess.distances[0, :count].sum()):
        return replace(
            _predicted(image, drag, guess, settings, control, result.reason), steps=result.steps, method="both"
        )
    return replace(result, method="both", rounds=guess.rounds)


def _refine(
    image: OpenImage,
    drag: Drag,
    settings: DragSettings,
    control: Control,
    basis: LatentBasis | None,
    start: Start | None = None,
) -> DragResult:
    if isinstance(settings.refiner, DragganConfig):
        return draggan(image, drag, settings.refiner, control, start)
    basis = basis or LatentBasis.of(image.synthesis.generator)
    return locate(image, drag, settings.refiner, basis, control, start)


def _predicted(
    image: OpenImage, drag: Drag, guess: Prediction, settings: DragSettings, control: Control, reason: Reason
) -> DragResult:
    """A prediction for one image as a result, without its anchors."""
    count = len(drag.handles)

    def numbers(values: Tensor) -> np.ndarray:
        array: np.ndarray = values[0, :count].double().cpu().numpy()
        return array

    confidences = numbers(guess.confidences)
    return DragResult(
        latent=guess.latent,
        synthesis=image.synthesis,
        handles=drag.handles.double().cpu().numpy(),
        targets=drag.targets.double().cpu().numpy(),
        points=numbers(guess.points),
        distances=numbers(guess.distances),
        confidences=confidences,
        lost=confidences < LOST_CONFIDENCE,
        method=settings.method,
        rounds=guess.rounds,
        seconds=control.seconds,
        reason=reason,
        references=drag.references,
        features=guess.features,
        render=renderer(image.synthesis, guess.latent, guess.features),
    )


def warm_up(image: OpenImage) -> None:
    """Discarded predictions, so that the first real one is not slow; on a GPU the second one records CUDA graphs."""
    height, width = image.synthesis.config.image_size
    handle = torch.tensor([[width / 2, height / 2]], device=image.latent.device)
    drags = batch_of(Drag(handle, handle + 2))
    for _ in range(2 if image.latent.is_cuda else 1):
        guess = predict(image, drags, PredictConfig(rounds=2, stop_px=0.0))
        with torch.inference_mode():
            image.synthesis.image(guess.latent, guess.features)
