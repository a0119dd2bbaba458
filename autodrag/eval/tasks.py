"""What the protocols ask methods to do: drags between landmarks of two images, or along the flow between them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from autodrag.data.flow import Flow, dis_flow
from autodrag.errors import AutodragError
from autodrag.eval import detectors
from autodrag.eval.detectors import Detector
from autodrag.eval.flow import RaftFlow
from autodrag.eval.run import Bench, Record, read_points
from autodrag.images import to_uint8

MOVING = 0.05
"""Least flow of a pixel that shall be dragged, as a share of the image's height."""


@dataclass(frozen=True)
class Pair:
    """One task: image A, points in it, and where image B has what lies there."""

    seed: int
    latent: Float[Tensor, "1 L D"]
    """Of A."""
    source: Float[Tensor, "K 2"]
    target: Float[Tensor, "K 2"]
    order: tuple[int, ...]
    """Usable points, shuffled; a subset of n points is the first n."""
    goal: Float[Tensor, "1 L D"]
    """Of B."""

    def drags(self, count: int) -> tuple[list[int], Float[Tensor, "N 2"], Float[Tensor, "N 2"]]:
        """(indices, handles, targets) of the first `count` points, or of all where there are fewer."""
        chosen = list(self.order[:count])
        return chosen, self.source[chosen], self.target[chosen]


def landmark_pairs(bench: Bench, detector: Detector) -> list[Pair]:
    """Pair k compares the images of seeds base + 2k and base + 2k + 1; S is drawn among landmarks inside both frames.

    Pairs in which the model finds nothing in one of the images, or no landmark lies inside both, are left out.
    """
    height, width = bench.generator.config.image_size
    pairs: list[Pair] = []
    rng = np.random.default_rng(bench.seed)
    for k in tqdm(range(bench.pairs), desc="pairs", unit="pair", leave=False, disable=None):
        seed = bench.base_seed + 2 * k
        latents = [bench.latent(seed + i) for i in (0, 1)]
        found = [detector(bench.image(latent)) for latent in latents]
        if found[0] is None or found[1] is None:
            continue
        a, b = found[0].points, found[1].points
        limit = a.new_tensor([width - 1, height - 1])
        inside = ((a >= 0) & (a <= limit) & (b >= 0) & (b <= limit)).all(dim=1).nonzero()[:, 0].tolist()
        order = tuple(int(i) for i in rng.permutation(inside))
        if order:
            pairs.append(Pair(seed, latents[0], a, b, order, latents[1]))
    if not pairs:
        raise AutodragError(f"the landmark model finds nothing in {bench.pairs} pairs; is it made for such images?")
    return pairs


@dataclass(frozen=True)
class Perturbation:
    """How the second code of a pair is made from the first: w2 = w1 + strength * (w* - w1) in the first layers.

    The formula by which UserControllableLT makes its training pairs (Endo 2022); the script of its evaluation, which
    DragGAN and Auto DragGAN follow, is not public. There w1 has psi 0.3, w* none.
    """

    strength: float = 0.1
    """Share of the way to w*."""
    layers: int = 6
    """How many layers change, from the first."""
    star: Literal["mixed", "one"] = "mixed"
    """w* has an independent z for each layer (published), or one for all."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1 or self.layers < 1 or self.star not in ("mixed", "one"):
            raise ValueError(f"{self}: expected a strength in (0, 1], at least one layer, and mixed or one")


def perturb(bench: Bench, latent: Float[Tensor, "1 L D"], how: Perturbation, seed: int) -> Float[Tensor, "1 L D"]:
    """The second code of a pair."""
    config = bench.generator.config
    layers = min(how.layers, config.latent_layers)
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((layers if how.star == "mixed" else 1, config.z_dim))
    star = bench.map(torch.from_numpy(z).float(), psi=1.0)[:, 0]  # (layers or 1, D)
    moved = latent.clone()
    moved[:, :layers] += how.strength * (star - latent[:, :layers])
    return moved


def flow_pairs(bench: Bench, flow: Flow, how: Perturbation, *, points: int, least: float = 0.0) -> list[Pair]:
    """Pair k: the image of seed base + k and a perturbed one, and `points` random pixels of the flow between them.

    Pixels whose target lies outside of the frame are not drawn, nor those that move less than `least` px. With 0 all
    are alike, as published: where the flow is zero, the drag says that nothing shall move.
    """
    height, width = bench.generator.config.image_size
    pairs = []
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns, rows], axis=2).reshape(-1, 2)
    for k in tqdm(range(bench.pairs), desc="pairs", unit="pair", leave=False, disable=None):
        seed = bench.base_seed + k
        latent = bench.latent(seed)
        goal = perturb(bench, latent, how, seed)
        first, second = (to_uint8(bench.image(code))[0] for code in (latent, goal))
        ends = pixels + flow(first, second).reshape(-1, 2)
        inside = ((ends >= 0) & (ends <= (width - 1, height - 1))).all(axis=1)
        inside &= np.hypot(*(ends - pixels).T) >= least
        chosen = np.random.default_rng(seed).permutation(inside.nonzero()[0])[:points]
        source, target = (torch.tensor(p[chosen], dtype=torch.float32, device=bench.device) for p in (pixels, ends))
        if len(chosen):
            pairs.append(Pair(seed, latent, source, target, tuple(range(len(chosen))), goal))
    if not pairs:
        raise AutodragError(f"no pixel moves {least:g} px in {bench.pairs} pairs; perturb more: --perturb 0.5")
    return pairs


def add_flow_options(parser: argparse.ArgumentParser, strength: float) -> None:
    """How pairs are made where no landmarks are used: `--perturb`, `--perturb-layers`, `--perturb-z`, `--flow`."""
    parser.add_argument(
        "--perturb", type=float, default=strength, metavar="SHARE", help=f"way to a random code (default: {strength})"
    )
    parser.add_argument("--perturb-layers", type=int, default=6, help="layers that are perturbed (default: 6)")
    parser.add_argument(
        "--perturb-z", choices=("mixed", "one"), default="mixed", help="an independent z for each layer, or one"
    )
    parser.add_argument("--flow", choices=("dis", "raft"), default="dis", help="OpenCV's DIS, or torchvision's RAFT")


def read_flow(args: argparse.Namespace, bench: Bench) -> tuple[Perturbation, Flow]:
    """The perturbation and the flow that the options name; an AutodragError where RAFT's weights are missing."""
    try:
        how = Perturbation(args.perturb, args.perturb_layers, args.perturb_z)
    except ValueError as error:
        raise AutodragError(
            f"--perturb {args.perturb} --perturb-layers {args.perturb_layers}: "
            "expected a share in (0, 1] and at least one layer"
        ) from error
    return how, dis_flow if args.flow == "dis" else RaftFlow(bench.device)


def flow_setup(args: argparse.Namespace) -> Record:
    """What a run must share with the one it continues."""
    names = ("perturb", "perturb_layers", "perturb_z", "flow")
    return {name: getattr(args, name) for name in names}


@dataclass(frozen=True)
class DragSource:
    """Where the drags of a run come from: between landmarks, or without a landmark model along a flow."""

    detector: Detector | None
    """The landmark model."""
    points: tuple[int, ...]
    """Numbers of points that are dragged at once."""
    setup: Record
    """What a run must share with the one it continues."""
    sample: Callable[[], list[Pair]]
    """Makes the pairs; the run's long work begins with it."""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """`--points`, the landmark model, and how pairs are made without one."""
    parser.add_argument("--points", default="1", help="numbers of points, such as 1,5 (default: 1)")
    detectors.add_options(parser)
    add_flow_options(parser, 0.5)


def read_source(args: argparse.Namespace, bench: Bench) -> DragSource:
    """What the options name. Pixels along a flow are those that move."""
    height, width = bench.generator.config.image_size
    detector = detectors.load_detector(args, bench.net, (height, width), bench.device)
    points = read_points(args.points, height * width if detector is None else detector.count)
    if detector is not None:
        return DragSource(detector, points, {"landmarks": detector.identity}, partial(landmark_pairs, bench, detector))
    how, flow = read_flow(args, bench)
    sample = partial(flow_pairs, bench, flow, how, points=max(points), least=MOVING * height)
    return DragSource(None, points, flow_setup(args), sample)
