"""The baseline FreeDrag (Ling et al. 2023, arXiv 2307.04684), which moves feature templates along lines.

Points are not tracked. Each handle has a template T, initially the features of the 3 x 3 samples around it. A
*sub-motion* chooses a position on the line to the target whose features F differ from T by about `l` (fuzzy
localisation), and takes at most five Adam steps that make the features at this position equal to T. Then T is updated
with a rate that depends on the remaining difference, and the next position is chosen: farther, the same, or back (line
search with backtracking).

    L(p)    = mean |F(p) - T|, over channels and samples; L_ini at the first step of a sub-motion, L_end after its last
    T      <- lambda F + (1 - lambda) T,   lambda = 1 / (1 + exp(alpha (L_end - beta)))
    alpha   = ln 9 / (0.6 l), beta = 0.2 l: lambda is 1/2 at L_end = 0.2 l, and 1/10 at 0.8 l
    next    = S(p, d, l)            where L_end < 0.5 l
              p                     else where L_end < L_ini
              S(p - d u, 2 d, 0)    else; u is the unit vector toward the target
    S(q, r, L) = the position q + j/10 r u, j = 1 ... 10, not beyond the target, with the smallest |L(.) - L|

Paper and public code differ. A point is finished (it stays, and lambda is 1) at L_end < 0.5 l within 2 px of its target
in the paper, and at L_end < 0.25 l within 1 px in the code. The code also ends a sub-motion as soon as all points are
below 0.25 l, and moves back by at most the remaining distance to the target. The defaults are those of the code. They
are for feature maps of 128 x 128. For smaller maps (images under 128 px), lengths in cells and the spacing of samples
are scaled down. The unit of l is that of the features, which differ between generators. The public code has a constant
for each of its data sets; for other generators, `fitted` measures l. This implementation is written from the paper and
these constants, and contains no code of the authors.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.data.latents import map_codes
from autodrag.nets.stylegan2 import Generator
from autodrag.points import Size, resize_mask, sample, square


@dataclass(frozen=True)
class FreeDragConfig:
    """Settings of FreeDrag. `preset` returns the published settings for an image size."""

    expected: float = 0.3
    """l, the expected feature difference at the start of a sub-motion: 0.3; 0.4 for lion, elephant and dog."""
    reach: float = 3.0
    """d, the maximum length of a sub-motion in cells of the feature map: 3; 4 for lion, elephant and dog."""
    steps: int = 300
    """Maximum total number of Adam steps."""
    inner_steps: int = 5
    """Maximum number of Adam steps per sub-motion."""
    candidates: int = 10
    """Number of candidate positions on the line."""
    lr: float = 2e-3
    """Learning rate of Adam."""
    edit_layers: int = 6
    """Number of latent vectors that may change, counted from the first."""
    feature_block: int = 5
    """Index of the block of the feature map; the last block for smaller generators."""
    spacing: float = 3.0
    """Spacing of the 3 x 3 samples, px."""
    mask_weight: float = 10.0
    """Weight of the mean feature change outside the mask."""
    stop_px: float = 1.0
    """Maximum distance of a finished point from its target, px; 2 in the paper."""
    sign_off: float = 0.25
    """Maximum feature difference of a finished point, as a fraction of l; 0.5 in the paper."""

    def __post_init__(self) -> None:
        if min(self.expected, self.reach, self.lr, self.stop_px, self.sign_off, self.spacing) <= 0:
            raise ValueError("expected, reach, lr, stop_px, sign_off and spacing must be positive.")
        if self.steps < 0 or min(self.inner_steps, self.candidates, self.edit_layers) < 1 or self.feature_block < 0:
            raise ValueError("steps and feature_block must not be negative; the other numbers must be at least 1.")

    @staticmethod
    def preset(image_size: Size) -> FreeDragConfig:
        """Settings of the public code for images of (H, W) px. Lengths are scaled down for maps under 128 cells."""
        scale = min(1.0, image_size[0] / 128)
        return FreeDragConfig(reach=3.0 * scale, spacing=3.0 * scale)

    @staticmethod
    @torch.no_grad()
    def fitted(generator: Generator, *, samples: int = 16, seed: int = 0) -> FreeDragConfig:
        """The preset with l measured for a generator, as the feature difference of textured points at distance d.

        A sub-motion of length d starts from such a difference. It is measured at 64 random points in each of `samples`
        images (psi 0.7), in random directions. l is the 90th percentile, because most points lie in smooth regions,
        which users do not drag. This procedure is our choice.
        """
        config, image = FreeDragConfig.preset(generator.config.image_size), generator.config.image_size
        rng = torch.Generator().manual_seed(seed)
        codes = map_codes(generator, samples, torch.full((samples,), 0.7), rng)
        cell = image[0] / generator.config.block_resolutions[_block(generator, config)]
        found = []
        for code in codes:
            latent = code.expand(1, generator.config.latent_layers, -1)
            maps = generator.features(latent, block=_block(generator, config)).last
            points = torch.rand(64, 2, generator=rng) * torch.tensor([image[1] - 1, image[0] - 1])
            angle = torch.rand(64, generator=rng) * (2 * math.pi)
            shifted = points + config.reach * cell * torch.stack([angle.cos(), angle.sin()], dim=1)
            a, b = (read_patches(maps, p.to(maps), image, config.spacing) for p in (points, shifted))
            found.append(difference(a, b))
        return replace(config, expected=float(torch.cat(found).quantile(0.9)))


def _block(generator: Generator, config: FreeDragConfig) -> int:
    """Index of the block of the features; the last block of a small generator."""
    return min(config.feature_block, len(generator.config.block_resolutions) - 1)


@dataclass(frozen=True)
class FreeDragState:
    """Argument of the callback, before each Adam step and at the end."""

    step: int
    """Number of Adam steps so far."""
    seconds: float
    """Time since the start."""
    latent: Float[Tensor, "1 L D"]
    points: Float[Tensor, "N 2"]
    """Current positions of the templates, px."""


@dataclass(frozen=True)
class FreeDragResult:
    """Result of a drag."""

    latent: Float[Tensor, "1 L D"]
    points: Float[Tensor, "N 2"]
    """Final positions of the templates, px. The image content may be elsewhere."""
    steps: int
    """Number of Adam steps."""
    seconds: float
    reason: Literal["arrived", "steps", "stopped"]


def template_rate(loss: Float[Tensor, " N"], expected: float) -> Float[Tensor, " N"]:
    """lambda, the weight of the new features in a template, computed from L_end."""
    alpha, beta = math.log(9.0) / (0.6 * expected), 0.2 * expected
    return 1 / (1 + (alpha * (loss - beta)).exp())


def line_candidates(
    start: Float[Tensor, "N 2"], targets: Float[Tensor, "N 2"], reach: Float[Tensor, " N"], count: int
) -> Float[Tensor, "N K 2"]:
    """`count` equidistant positions from `start` (excluded) to `reach` px toward the target, but not beyond it."""
    displacement = targets - start
    share = (reach / displacement.norm(dim=1).clamp_min(1e-8)).clamp_max(1.0)
    parts = torch.arange(1, count + 1, device=start.device, dtype=start.dtype) / count
    return start[:, None] + parts[:, None] * (share[:, None] * displacement)[:, None]


def read_patches(
    maps: Float[Tensor, "1 C h w"], points: Float[Tensor, "N 2"], image: Size, spacing: float
) -> Float[Tensor, "N C 9"]:
    """Features of 3 x 3 bilinear samples around points. Points and spacing are in px."""
    around = points[:, None] + square(1, spacing).to(points)  # (N, 9, 2)
    values = sample(maps, around.flatten(0, 1)[None], image)[0]  # (C, N * 9)
    return values.unflatten(1, around.shape[:2]).transpose(0, 1)


def difference(patches: Float[Tensor, "*N C 9"], templates: Float[Tensor, "*N C 9"]) -> Float[Tensor, "*N"]:
    """L: the mean L1 distance."""
    return (patches - templates).abs().mean(dim=(-2, -1))


def next_points(
    maps: Float[Tensor, "1 C h w"],
    templates: Float[Tensor, "N C 9"],
    points: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    first: Float[Tensor, " N"],
    last: Float[Tensor, " N"],
    image: Size,
    config: FreeDragConfig,
) -> Float[Tensor, "N 2"]:
    """Positions (px) of the next sub-motion. `first` and `last` are L_ini and L_end of the previous sub-motion.

    A position moves forward, stays, or is searched from a step back (see the module docstring).
    """
    forward = last < 0.5 * config.expected
    back = ~forward & ~(last < first)
    reach = config.reach * image[0] / maps.shape[2]  # cells to px
    lengths = torch.full_like(last, reach)
    behind = points - (line_candidates(points, targets, lengths, 1)[:, 0] - points)
    start = torch.where(back[:, None], behind, points)
    candidates = line_candidates(start, targets, torch.where(back, 2 * lengths, lengths), config.candidates)
    patches = read_patches(maps, candidates.flatten(0, 1), image, config.spacing).unflatten(0, candidates.shape[:2])
    expected = torch.where(back, 0.0, config.expected)
    error = (difference(patches, templates[:, None].expand_as(patches)) - expected[:, None]).abs()  # (N, K)
    chosen = candidates[torch.arange(len(points), device=points.device), error.argmin(dim=1)]
    return torch.where((forward | back)[:, None], chosen, points)


def freedrag(
    generator: Generator,
    latent: Float[Tensor, "1 L D"],
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    *,
    config: FreeDragConfig,
    mask: Bool[Tensor, "H W"] | None = None,
    callback: Callable[[FreeDragState], None] | None = None,
    stop: threading.Event | None = None,
) -> FreeDragResult:
    """Move `handles` to `targets` (px of the image) by optimising the first layers of `latent`.

    Args:
        generator: a frozen generator.
        latent: code of the image.
        handles: current positions.
        targets: desired positions.
        config: settings.
        mask: True = may move.
        callback: called before every Adam step and at the end, in this thread.
        stop: event to stop after the current step; it may be set by any thread.
    """
    started = time.monotonic()
    image = generator.config.image_size
    block = _block(generator, config)
    layers = min(config.edit_layers, latent.shape[1])
    device = latent.device
    points, targets = handles.to(device, torch.float32), targets.to(device, torch.float32)
    edited, unedited = latent[:, :layers].detach().clone().requires_grad_(True), latent[:, layers:].detach()
    optimizer = torch.optim.Adam([edited], lr=config.lr)

    def features() -> Tensor:
        return generator.features(torch.cat([edited, unedited], dim=1), block=block).last

    def report() -> None:
        if callback is not None:
            code = torch.cat([edited.detach(), unedited], dim=1)
            callback(FreeDragState(step, time.monotonic() - started, code, points))

    with torch.no_grad():
        initial = maps = features()
    # (h, w); as in the public code, only cells that the mask does not overlap are fixed
    fixed = None if mask is None else resize_mask(mask, (maps.shape[2], maps.shape[3])) == 0
    templates = read_patches(maps, points, image, config.spacing)
    first = last = torch.zeros(len(points), device=device)
    finished = torch.zeros(len(points), dtype=torch.bool, device=device)
    tolerance, step = config.sign_off * config.expected, 0
    reason: Literal["arrived", "steps", "stopped"] = "steps"
    while step < config.steps and reason == "steps":
        proposed = next_points(maps, templates, points, targets, first, last, image, config)
        points = torch.where(finished[:, None], points, proposed)
        for inner in range(min(config.inner_steps, config.steps - step)):
            report()
            if stop is not None and stop.is_set():
                reason = "stopped"
                break
            maps = features()
            each = difference(read_patches(maps, points, image, config.spacing), templates)
            loss = each.sum()
            if fixed is not None and bool(fixed.any()):
                loss = loss + config.mask_weight * (maps - initial)[..., fixed].abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            first = each.detach() if inner == 0 else first
            if bool((each < tolerance).all()):
                break
        with torch.no_grad():
            maps = features()
            patches = read_patches(maps, points, image, config.spacing)
            last = difference(patches, templates)
            finished = ((targets - points).norm(dim=1) <= config.stop_px) & (last < tolerance)
            rate = torch.where(finished, 1.0, template_rate(last, config.expected))[:, None, None]
            templates = rate * patches + (1 - rate) * templates
        if bool(finished.all()):
            reason = "arrived"
    report()
    code = torch.cat([edited.detach(), unedited], dim=1)
    return FreeDragResult(code, points, step, time.monotonic() - started, reason)
