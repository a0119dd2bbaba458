"""Drags of the evaluations, between landmarks of two images or along the optical flow between them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.eval import detectors
from autodrag.eval.bench import Bench, read_points
from autodrag.eval.detectors import Detector
from autodrag.eval.flow import Flow, RaftFlow, dis_flow
from autodrag.eval.log import Record
from autodrag.images import to_uint8
from autodrag.infer.task import Drag
from autodrag.progress import track

MOVING = 0.05
"""Minimum flow of a dragged pixel, as a fraction of the image height."""


@dataclass(frozen=True)
class Pair:
    """Image A, points in A, and their positions in image B. All tensors are on the CPU."""

    seed: int
    latent: Float[Tensor, "1 L D"]
    """Code of A."""
    source: Float[Tensor, "K 2"]
    target: Float[Tensor, "K 2"]
    order: tuple[int, ...]
    """Indices of usable points in random order. The first n indices are the subset of n points."""
    goal: Float[Tensor, "1 L D"]
    """Code of B."""

    def chosen(self, count: int) -> list[int]:
        """Indices of the first `count` points, or of all points if there are fewer."""
        return list(self.order[:count])

    def drag(self, count: int, device: torch.device, mask: Bool[Tensor, "H W"] | None = None) -> Drag:
        """The drag of the first `count` points."""
        chosen = self.chosen(count)
        return Drag(self.source[chosen].to(device), self.target[chosen].to(device), mask)


def landmark_pairs(bench: Bench, detector: Detector) -> list[Pair]:
    """Pairs of the images of seeds base + 2k and base + 2k + 1. Points are landmarks inside both images.

    Pairs are skipped if the model detects nothing in one of the images, or if no landmark lies inside both.
    """
    height, width = bench.generator.config.image_size
    pairs: list[Pair] = []
    rng = np.random.default_rng(bench.seed)
    for k in track(range(bench.pairs), "preparing pairs", unit="pair"):
        seed = bench.base_seed + 2 * k
        latents = [bench.latent(seed + i) for i in (0, 1)]
        found = [detector(bench.image(latent)) for latent in latents]
        if found[0] is None or found[1] is None:
            continue
        a, b = found[0].points.cpu(), found[1].points.cpu()
        limit = a.new_tensor([width - 1, height - 1])
        inside = ((a >= 0) & (a <= limit) & (b >= 0) & (b <= limit)).all(dim=1).nonzero()[:, 0].tolist()
        order = tuple(int(i) for i in rng.permutation(inside))
        if order:
            pairs.append(Pair(seed, latents[0].cpu(), a, b, order, latents[1].cpu()))
    if not pairs:
        raise AutodragError(f"the landmark model finds nothing in {bench.pairs} pairs; use a model for such images")
    return pairs


@dataclass(frozen=True)
class Perturbation:
    """Perturbation of a code: w2 = w1 + strength * (w* - w1) in the first layers.

    UserControllableLT (Endo 2022) uses this formula for its training pairs, with psi 0.3 for w1 and no truncation of
    w*. The script of its evaluation, which DragGAN and Auto DragGAN follow, is not public.
    """

    strength: float = 0.1
    """Distance from w1, as a fraction of the distance to w*."""
    layers: int = 6
    """Number of layers that change, counted from the first."""
    star: Literal["mixed", "one"] = "mixed"
    """`mixed`: w* has an independent z for each layer (published); `one`: the same z for all layers."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1 or self.layers < 1 or self.star not in ("mixed", "one"):
            raise ValueError(f"{self}: expected a strength in (0, 1], at least one layer, and mixed or one")


def perturb(
    bench: Bench, latent: Float[Tensor, "1 L D"], perturbation: Perturbation, seed: int
) -> Float[Tensor, "1 L D"]:
    """Compute the second code of a pair."""
    config = bench.generator.config
    layers = min(perturbation.layers, config.latent_layers)
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((layers if perturbation.star == "mixed" else 1, config.z_dim))
    star = bench.map(torch.from_numpy(z).float(), psi=1.0)[:, 0]  # (layers or 1, D)
    moved = latent.clone()
    moved[:, :layers] += perturbation.strength * (star - latent[:, :layers])
    return moved


def flow_pairs(bench: Bench, flow: Flow, perturbation: Perturbation, *, points: int, least: float = 0.0) -> list[Pair]:
    """Pairs of the image of seed base + k and a perturbed image, with `points` random pixels of the flow between them.

    Pixels are skipped if their target lies outside the image or if they move less than `least` px. With 0, as
    published, pixels without motion are included; their drags have length zero.
    """
    height, width = bench.generator.config.image_size
    pairs = []
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns, rows], axis=2).reshape(-1, 2)
    for k in track(range(bench.pairs), "preparing pairs", unit="pair"):
        seed = bench.base_seed + k
        latent = bench.latent(seed)
        goal = perturb(bench, latent, perturbation, seed)
        first, second = (to_uint8(bench.image(code))[0] for code in (latent, goal))
        ends = pixels + flow(first, second).reshape(-1, 2)
        usable = ((ends >= 0) & (ends <= (width - 1, height - 1))).all(axis=1)
        usable &= np.hypot(*(ends - pixels).T) >= least
        chosen = np.random.default_rng(seed).permutation(usable.nonzero()[0])[:points]
        source, target = (torch.tensor(p[chosen], dtype=torch.float32) for p in (pixels, ends))
        if len(chosen):
            pairs.append(Pair(seed, latent.cpu(), source, target, tuple(range(len(chosen))), goal.cpu()))
    if not pairs:
        raise AutodragError(f"no pixel moves {least:g} px in {bench.pairs} pairs; perturb more: --perturb 0.5")
    return pairs


@dataclass(frozen=True)
class FlowSource:
    """Drags along the flow to a perturbed image."""

    points: tuple[int, ...]
    """Numbers of points per drag."""
    flow: Flow
    perturbation: Perturbation
    least: float
    """Minimum flow of a dragged pixel, px."""
    setup: Record
    """Settings that a resumed run must share."""

    detector: None = None

    @staticmethod
    def add_options(parser: argparse.ArgumentParser, strength: float) -> None:
        """Add the options `--perturb`, `--perturb-layers`, `--perturb-z` and `--flow`."""
        parser.add_argument(
            "--perturb",
            type=float,
            default=strength,
            metavar="SHARE",
            help=f"distance to the second code, as a fraction of the distance to a random code (default: {strength})",
        )
        parser.add_argument("--perturb-layers", type=int, default=6, help="number of perturbed layers (default: 6)")
        parser.add_argument(
            "--perturb-z",
            choices=("mixed", "one"),
            default="mixed",
            help="mixed: an independent z for each layer (default); one: the same z for all layers",
        )
        parser.add_argument("--flow", choices=("dis", "raft"), default="dis", help="OpenCV's DIS or torchvision's RAFT")

    @staticmethod
    def read(args: argparse.Namespace, bench: Bench, least: float = 0.0) -> FlowSource:
        """Create the source from the options. Raises AutodragError if RAFT is chosen and its weights are missing."""
        height, width = bench.generator.config.image_size
        try:
            perturbation = Perturbation(args.perturb, args.perturb_layers, args.perturb_z)
        except ValueError as error:
            raise AutodragError(
                f"--perturb {args.perturb} --perturb-layers {args.perturb_layers}: "
                "expected a fraction in (0, 1] and at least one layer"
            ) from error
        flow = dis_flow if args.flow == "dis" else RaftFlow(bench.device)
        names = ("perturb", "perturb_layers", "perturb_z", "flow")
        setup = {name: getattr(args, name) for name in names}
        return FlowSource(read_points(args.points, height * width), flow, perturbation, least, setup)

    def pairs(self, bench: Bench) -> list[Pair]:
        """Create the pairs."""
        return flow_pairs(bench, self.flow, self.perturbation, points=max(self.points), least=self.least)


@dataclass(frozen=True)
class LandmarkSource:
    """Drags between the landmarks of two images."""

    points: tuple[int, ...]
    detector: Detector
    setup: Record

    @staticmethod
    def of(args: argparse.Namespace, detector: Detector) -> LandmarkSource:
        """Create the source for a landmark model."""
        return LandmarkSource(read_points(args.points, detector.count), detector, {"landmarks": detector.identity})

    def pairs(self, bench: Bench) -> list[Pair]:
        """Create the pairs."""
        return landmark_pairs(bench, self.detector)


Source = LandmarkSource | FlowSource


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the landmark model, and of the optical flow that is used without a model."""
    detectors.add_options(parser)
    FlowSource.add_options(parser, 0.5)


def read_source(args: argparse.Namespace, bench: Bench) -> Source:
    """A landmark source if there is a model, otherwise a flow source with pixels that move by at least 5 %."""
    image = bench.generator.config.image_size
    detector = detectors.load_detector(args, bench.net, image, bench.device)
    if detector is not None:
        return LandmarkSource.of(args, detector)
    return FlowSource.read(args, bench, MOVING * image[0])
