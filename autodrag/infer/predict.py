"""The closed loop of the learned editor: predict, synthesise up to the feature block, find the points, predict on.

Auto DragGAN (2024) predicts once, open loop: `rounds` = 1 is that. Looking where the points really went costs a part of
a synthesis and lets the next prediction correct the one before. A round that brings points no nearer is not kept.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from autodrag.acceleration import Graphs
from autodrag.nets.predictor import DragBatch, Predictor
from autodrag.nets.regularizer import Regularizer
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.nets.transformer import KeysValues
from autodrag.points import resize_mask
from autodrag.tracking import PULL, Appearance, Look, follow, look

ROUNDS = (2, 6)
"""Of one point, and of several, which later ones still bring nearer: `benchmarks/tuning.py --only rounds`."""


@dataclass(frozen=True)
class PredictConfig:
    """When the closed loop ends."""

    rounds: int | None = None
    """Most predictions in a row; 1 is an open loop. None: 2 for one point and 6 for several, see `ROUNDS`."""
    stop_px: float = 0.5
    """A point has arrived at this distance from its target, px."""
    budget_s: float | None = None
    """Wall-clock limit in seconds; the first prediction is always made."""
    lost_confidence: float = 0.35
    """A point whose confidence is below this is lost."""
    gain: float = 0.02
    """The loop ends when a round has not shortened the way left by this share."""

    def __post_init__(self) -> None:
        if (self.rounds is not None and self.rounds < 1) or self.stop_px < 0 or not 0 <= self.gain < 1:
            raise ValueError("expected rounds >= 1, stop_px >= 0 and gain in [0, 1).")
        if self.budget_s is not None and not self.budget_s > 0:
            raise ValueError(f"budget_s {self.budget_s}: expected a positive number of seconds, or none.")

    def limit(self, drags: DragBatch) -> Int[Tensor, " B"]:
        """Most predictions for each of B images; points that are to stay do not count."""
        if self.rounds is not None:
            return torch.full((len(drags.valid),), self.rounds, device=drags.valid.device)
        moving = drags.valid & (drags.targets != drags.handles).any(dim=2)
        return torch.where(moving.sum(dim=1) > 1, ROUNDS[1], ROUNDS[0])


@dataclass(frozen=True)
class Prediction:
    """Where B drags of N points ended; `points` were found in `latent`. Distances in px; padding has distance 0."""

    latent: Float[Tensor, "B L D"]
    points: Float[Tensor, "B N 2"]
    distances: Float[Tensor, "B N"]
    confidences: Float[Tensor, "B N"]
    lost: Bool[Tensor, "B N"]
    rounds: int
    """Predictions made."""
    seconds: float
    features: Features
    """Of `latent`: the image costs only the blocks that are left."""


@dataclass(frozen=True)
class LearnedNets:
    """The two networks of a checkpoint; the regularizer may be missing."""

    predictor: Predictor
    regularizer: Regularizer | None
    _last: list[tuple[Tensor, bool, list[KeysValues]]] = field(default_factory=list, repr=False, compare=False)
    """What `read` was last asked, in autocast or not, and its answer: an image is dragged many times."""
    _read: list[tuple[Tensor, bool, Tensor]] = field(default_factory=list, repr=False, compare=False)
    """The map, in autocast or not, of which `open_map` last made tokens, and these."""
    _seen: list[tuple[Features, Look]] = field(default_factory=list, repr=False, compare=False)
    """What `see` was last asked, and its answer."""
    _graphs: Graphs = field(default_factory=Graphs, repr=False, compare=False)

    def to(self, device: torch.device) -> LearnedNets:
        """Both on a device, frozen."""
        self._graphs.clear()
        for net in (self.predictor, self.regularizer):
            if net is not None:
                net.to(device).eval().requires_grad_(False)
                for part in net.modules():
                    if isinstance(part, nn.Conv2d):  # frozen features come in this order, see `SynthesisLayer.freeze`
                        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def read(self, latent: Float[Tensor, "B L D"]) -> list[KeysValues] | None:
        """What the regularizer knows of the layers that no edit changes; that of the last image is kept.

        None on a GPU, where reading is part of the graph that `edit` replays.
        """
        if self.regularizer is None or latent.is_cuda:
            return None
        clean, auto = latent[:, self.regularizer.config.edit_layers :], torch.is_autocast_enabled(latent.device.type)
        for known, precision, answer in self._last[:]:  # a copy: other threads may read too
            if precision == auto and known.device == clean.device and torch.equal(known, clean):
                return answer
        answer = self.regularizer.read(latent)
        self._last[:] = [(clean.clone(), auto, answer)]
        return answer

    def see(self, features: Features) -> Look:
        """What the image of these features looks like; that of the last one is kept."""
        for known, answer in self._seen[:]:
            if known is features:
                return answer
        answer = look(features.outputs[self.predictor.config.tracked])
        self._seen[:] = [(features, answer)]
        return answer

    def open_map(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B M D"]:
        """The tokens of a map where everything may move; those of the last one are kept."""
        auto = torch.is_autocast_enabled(maps.device.type)
        for known, precision, answer in self._read[:]:
            if known is maps and precision == auto:
                return answer
        answer = self.predictor.read_map(maps)
        self._read[:] = [(maps, auto, answer)]
        return answer

    def edit(
        self,
        latent: Float[Tensor, "B L D"],
        maps: Float[Tensor, "B C h w"],
        drags: DragBatch,
        clean: list[KeysValues] | None = None,
        read: Float[Tensor, "B M W"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The last code of one predicted motion, restored and aligned.

        clean: of `read`, where it is known. read: of `Predictor.read_map`, likewise.
        """
        tokens, known = self.predictor.tokenise(maps, drags, read)
        if latent.is_cuda and not torch.is_grad_enabled():
            (restored,) = self._graphs.call("decode", self._decode, tokens, known, latent)
        else:
            (restored,) = self._decode(tokens, known, latent, clean)
        return self.predictor.align(restored[:, None], latent, drags)[:, 0]

    def _decode(
        self, tokens: Tensor, known: Tensor, latent: Tensor, clean: list[KeysValues] | None = None
    ) -> tuple[Float[Tensor, "B L D"]]:
        memory, code = self.predictor.attend(tokens, known), latent
        for _ in range(self.predictor.config.steps):
            code = self.predictor.next_code(memory, code)
        return (code if self.regularizer is None else self.regularizer(code, clean),)


def make_drags(
    predictor: Predictor,
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    *,
    mask: Bool[Tensor, "H W"] | None = None,
    anchors: Float[Tensor, "M 2"] | None = None,
) -> DragBatch:
    """One image's drags, then its anchors. mask: True = may move."""
    if anchors is not None:
        handles, targets = torch.cat([handles, anchors]), torch.cat([targets, anchors])
    movable = None
    if mask is not None and not bool(mask.all()):
        rows = predictor.config.feature_height
        movable = resize_mask(mask, (rows, rows * mask.shape[1] // mask.shape[0]))[None]
    valid = torch.ones(1, len(handles), dtype=torch.bool, device=handles.device)
    return DragBatch(handles[None], targets[None], valid, movable)


@torch.inference_mode()
def predict(
    nets: LearnedNets,
    generator: Generator,
    latent: Float[Tensor, "B L D"],
    drags: DragBatch,
    *,
    config: PredictConfig,
    what: Appearance | None = None,
    features: Features | None = None,
    stop: threading.Event | None = None,
) -> Prediction:
    """Moves the handles of B images to their targets by at most `rounds` predictions.

    The order of points does not matter, to the last bit: they are sorted first. what: appearance of the (unsorted)
    handles from an earlier image, None takes it from `latent`. features: of `latent`, where known. stop: set it from
    any thread to end after the current round.
    """
    started = time.monotonic()
    net = nets.predictor.config
    image, block, tracked = net.image, net.feature_block, net.tracked
    order = _order(drags)
    back = order.argsort(dim=1)
    drags = replace(
        drags,
        handles=torch.take_along_dim(drags.handles, order[..., None], 1),
        targets=torch.take_along_dim(drags.targets, order[..., None], 1),
        valid=torch.take_along_dim(drags.valid, order, 1),
    )
    features = features or generator.features(latent, block=net.track_block)
    what = nets.see(features).at(drags.handles, image) if what is None else what.take(order)
    best = _state(latent, features, drags.handles, torch.ones_like(drags.handles[..., 0]), drags, config)
    points, codes, maps, made, clean = drags.handles, latent, features, 0, nets.read(latent)
    read = nets.open_map(features.outputs[block]) if drags.movable is None else None  # of the first round
    done = torch.zeros(len(latent), dtype=torch.bool, device=latent.device)  # rows that are left as they are
    limit = config.limit(drags)
    for made in range(1, int(limit.max()) + 1):
        codes = nets.edit(codes, maps.outputs[block], replace(drags, handles=points), clean, read)
        read = None
        maps = generator.features(codes, block=net.track_block)
        # A prediction is to take points all the way: near their targets, not near where they were, they are expected.
        points, sure = follow(maps.outputs[tracked], what, image, near=drags.targets, pull=PULL)
        now = _state(codes, maps, points, sure, drags, config)
        before = best.distances.sum(dim=1)
        # Of the first round any result is taken: the way before it was known, what the code did was not.
        better = now.distances.sum(dim=1) < (torch.inf if made == 1 else before)
        best = _choose(better & ~done, now, best)
        arrived = ((best.distances <= config.stop_px) | ~drags.valid).all(dim=1)
        stuck = best.distances.sum(dim=1) > before * (1 - config.gain)
        done = (done | arrived | stuck if made > 1 else arrived) | (limit <= made)
        if bool(done.all()) or (stop is not None and stop.is_set()):
            break
        if config.budget_s is not None and (time.monotonic() - started) * (made + 1) / made > config.budget_s:
            break
    return replace(
        best,
        points=torch.take_along_dim(best.points, back[..., None], 1),
        distances=torch.take_along_dim(best.distances, back, 1),
        confidences=torch.take_along_dim(best.confidences, back, 1),
        lost=torch.take_along_dim(best.lost, back, 1),
        rounds=made,
        seconds=time.monotonic() - started,
    )


def _order(drags: DragBatch) -> Tensor:
    """The order of points by handle, then target: (B, N)."""
    keys = torch.cat([drags.handles, drags.targets], dim=2)
    order = torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[:2])
    if keys.shape[1] == 1:
        return order
    for k in range(3, -1, -1):  # stable sorts, least significant key first
        step = torch.take_along_dim(keys[..., k], order, 1).argsort(dim=1, stable=True)
        order = torch.take_along_dim(order, step, 1)
    return order


def _state(
    latent: Tensor, features: Features, points: Tensor, sure: Tensor, drags: DragBatch, config: PredictConfig
) -> Prediction:
    distances = (points - drags.targets).norm(dim=2) * drags.valid
    return Prediction(latent, points, distances, sure, sure < config.lost_confidence, 0, 0.0, features)


def _choose(better: Tensor, now: Prediction, best: Prediction) -> Prediction:
    """Row by row the better of two states."""
    if bool(better.all()):
        return now
    if not bool(better.any()):
        return best

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b)

    outputs = tuple(pick(a, b) for a, b in zip(now.features.outputs, best.features.outputs, strict=True))
    fields = {name: pick(getattr(now, name), getattr(best, name)) for name in ("latent", "points", "distances")}
    fields |= {name: pick(getattr(now, name), getattr(best, name)) for name in ("confidences", "lost")}
    return Prediction(**fields, rounds=0, seconds=0.0, features=Features(outputs))
