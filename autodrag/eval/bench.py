"""The generator and methods of an evaluation run, and the options shared by all evaluations."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from autodrag import parallel
from autodrag.checkpoint import find_checkpoint, load_generator, load_landmarks
from autodrag.edits import DEFAULT_CHECKPOINT
from autodrag.errors import AutodragError
from autodrag.eval import results
from autodrag.eval.log import Record
from autodrag.eval.methods import METHODS, Limits, Method, Trace, check_names, identities, make_methods
from autodrag.images import to_uint8
from autodrag.infer.open_image import OpenImage
from autodrag.infer.task import Drag, check_device
from autodrag.nets.landmarks import LandmarkNet
from autodrag.nets.layers import Layers
from autodrag.nets.stylegan2 import Features, Generator, seed_z

MAX_PAIRS = 400_000
SEEDS_APART = 1_000_000
"""Difference between the first image seeds of two runs with consecutive `--seed`."""


def add_options(parser: argparse.ArgumentParser, *, steps: int, psi: float, pairs: int, out: str) -> None:
    """Add the options of all evaluations, with the given defaults."""
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, metavar="FOLDER")
    parser.add_argument(
        "--methods",
        help=f"comma-separated methods from {','.join(METHODS)} (default: all that the checkpoint supports)",
    )
    parser.add_argument("--pairs", type=int, default=pairs, help=f"number of image pairs (default: {pairs})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pairs; the same seed gives the same table")
    parser.add_argument("--psi", type=float, default=psi, help=f"truncation (default: {psi})")
    parser.add_argument("--label", type=int, help="class of a conditional generator")
    parser.add_argument(
        "--steps",
        default=str(steps),
        help=f"step limit of all methods; own: the limit of each method (default: {steps}, as published)",
    )
    parser.add_argument(
        "--stop",
        default="paper",
        help="distance in px at which all methods stop; own: the value of each method; paper (default): 1 for up to 5 "
        "points, 2 for more",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if available)")
    parallel.add_options(parser)
    parser.add_argument("--out", type=Path, default=Path(out), help="output folder; an earlier run there is resumed")
    results.add_option(parser)


@dataclass(frozen=True)
class Edited:
    """Result of a drag, with its image."""

    code: Layers
    image: Float[Tensor, "1 3 H W"]
    """In [-1, 1]."""
    picture: UInt8[np.ndarray, "H W 3"]
    seconds: float
    """Time of the drag, of synthesising the image, and of copying it to the CPU as uint8. Loading is excluded."""
    steps: int
    reason: str

    def record(self) -> Record:
        """The fields that all records have."""
        return {"seconds": self.seconds, "steps": self.steps, "reason": self.reason}


@dataclass(frozen=True)
class Bench:
    """A frozen generator, and methods that are ready to run on it."""

    generator: Generator
    fingerprint: str
    folder: Path
    """The checkpoint folder."""
    net: LandmarkNet | None
    """The landmark net of the checkpoint."""
    methods: dict[str, Method]
    identities: dict[str, str]
    """Digest of each method; see `methods.identities`."""
    limits: Limits
    device: torch.device
    pairs: int
    seed: int
    psi: float
    label: int | None

    @torch.no_grad()
    def latent(self, seed: int) -> Float[Tensor, "1 L D"]:
        """W+ of a seed, mapped as in NVIDIA's code, with the run's truncation."""
        return self.map(seed_z(seed, self.generator.config.z_dim), self.psi)

    @torch.no_grad()
    def map(self, z: Float[Tensor, "B Z"], psi: float) -> Float[Tensor, "B L D"]:
        """Map z to W+ on the run's device, with the run's class label."""
        labels = None
        if self.label is not None:
            classes = self.generator.config.c_dim
            labels = torch.eye(classes, device=self.device)[self.label].expand(len(z), -1)
        return self.generator.map(z.to(self.device), labels, psi=psi)

    @torch.no_grad()
    def image(self, code: Float[Tensor, "1 L D"] | Layers) -> Float[Tensor, "1 3 H W"]:
        """The image of a code, clipped to [-1, 1]."""
        return OpenImage.of(self.generator, code).rendered.picture.clamp(-1, 1)

    @property
    def base_seed(self) -> int:
        """Seed of the first image. Runs with different seeds share no images."""
        return SEEDS_APART * (self.seed + 1)

    def run(self, method: str, latent: Float[Tensor, "1 L D"], drag: Drag, trace: Trace | None = None) -> Edited:
        """Runs one drag by a method and measures the time."""
        started = time.perf_counter()
        result = self.methods[method](latent, drag, trace)
        synthesis = result.synthesis or OpenImage.of(self.generator, result.latent).synthesis
        with torch.no_grad():
            image = synthesis.image(result.latent, result.features or Features(())).clamp(-1, 1)
        picture = to_uint8(image)[0]  # waits for the device
        seconds = time.perf_counter() - started
        return Edited(synthesis.moved(result.latent).layers, image, picture, seconds, result.steps, result.reason)


def open_bench(args: argparse.Namespace) -> Bench:
    """Check the shared options, load the checkpoint and prepare the methods.

    Raises:
        AutodragError: a method is unknown or unavailable, or an option is invalid.
    """
    names = None if args.methods is None else args.methods.split(",")
    check_names(names or ())
    limits = read_limits(args.steps, args.stop)
    if not 1 <= args.pairs <= MAX_PAIRS:
        raise AutodragError(f"--pairs {args.pairs}: expected 1 to {MAX_PAIRS}")
    last_seed = 2**32 // SEEDS_APART - 2
    if not 0 <= args.seed <= last_seed:
        raise AutodragError(f"--seed {args.seed}: expected 0 to {last_seed}")
    if not math.isfinite(args.psi):
        raise AutodragError(f"--psi {args.psi}: expected a number such as 0.7")
    if args.jobs is not None and args.jobs < 1:
        raise AutodragError(f"--jobs {args.jobs}: expected at least 1")
    device = check_device(args.device)
    folder = find_checkpoint(args.checkpoint)
    generator, identity = load_generator(folder)
    classes = generator.config.c_dim
    if (classes == 0) != (args.label is None) or (classes and not 0 <= args.label < classes):
        expected = f"0 to {classes - 1}" if classes else "none, because this generator has no classes"
        raise AutodragError(f"--label {args.label}: expected {expected}")
    generator.to(device).freeze()
    net = load_landmarks(folder)
    return Bench(
        generator=generator,
        fingerprint=identity,
        folder=folder,
        net=None if net is None else net.to(device),
        methods=make_methods(names, generator, folder, limits),
        identities=identities(folder, generator.config.image_size),
        limits=limits,
        device=device,
        pairs=args.pairs,
        seed=args.seed,
        psi=args.psi,
        label=args.label,
    )


def read_limits(steps: str, stop: str) -> Limits:
    """Parse `--steps` (a number or own) and `--stop` (paper, own or px)."""
    named: Literal["paper", "own"] | None = "paper" if stop == "paper" else "own" if stop == "own" else None
    try:
        return Limits(None if steps == "own" else int(steps), float(stop) if named is None else named)
    except ValueError as error:
        raise AutodragError(
            f"--steps {steps} --stop {stop}: expected a whole number or own, and paper, own or a distance in px"
        ) from error


def read_points(text: str, count: int) -> tuple[int, ...]:
    """Parse numbers of points such as `1,5,all`, without repetitions. `count` is the maximum and the value of `all`."""
    try:
        points: Sequence[int] = tuple(dict.fromkeys(count if part == "all" else int(part) for part in text.split(",")))
    except ValueError:
        points = (0,)
    if not all(1 <= n <= count for n in points):
        raise AutodragError(f"--points {text}: expected numbers from 1 to {count}, or all, such as 1,5,all")
    return tuple(points)
