"""FreeDrag (Ling et al. 2023, arXiv 2307.04684), a baseline: no point is tracked, a template is pulled along a line.

Every handle carries a template T, at first the features of the 3 x 3 samples around it. A *sub-motion* chooses a place
on the line to the target whose features F differ from T by about `l` (fuzzy localisation), and takes at most five
Adam steps that make the features there those of T. Then T is brought up to date by how well that went, and the next
place is chosen: further on, the same, or back (line search with backtracking).

    L(p)    = mean |F(p) - T|, over channels and samples; L_ini at the first step of a sub-motion, L_end after its last
    T      <- lambda F + (1 - lambda) T,   lambda = 1 / (1 + exp(alpha (L_end - beta)))
    alpha   = ln 9 / (0.6 l), beta = 0.2 l: lambda is 1/2 at L_end = 0.2 l, and 1/10 at 0.8 l
    next    = S(p, d, l)            where L_end < 0.5 l
              p                     else where L_end < L_ini
              S(p - d u, 2 d, 0)    else; u is the unit vector toward the target
    S(q, r, L) = the one of q + j/10 r u, j = 1 ... 10, not beyond the target, at which |L(.) - L| is least

Paper and public code differ: a point is signed off (it stays, and lambda is 1) where L_end < 0.5 l within 2 px of its
target in the paper, where L_end < 0.25 l within 1 px in the code; the code also ends a sub-motion early once every
point is below 0.25 l, and steps back by no more than is left to the target. The defaults are the code's. They are made
for features of 128 x 128: where a generator's map is smaller (images under 128 px), lengths in cells and the spacing of
samples shrink with it. And l is in units of the features, which differ from generator to generator: the original has
it written down for each of its data sets; for others `fitted` measures it. This is written from the paper and from
those constants; no code of theirs is in it.
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
    """The settings; `preset` gives the published ones for an image size."""

    expected: float = 0.3
    """l, the feature difference that a sub-motion shall start from: 0.3, and 0.4 for the lion, elephant and dog."""
    reach: float = 3.0
    """d, most cells of the feature map that a sub-motion goes: 3, and 4 for the lion, elephant and dog."""
    steps: int = 300
    """Most Adam steps in all."""
    inner_steps: int = 5
    """Most Adam steps of a sub-motion."""
    candidates: int = 10
    """Places on the line that the localisation chooses from."""
    lr: float = 2e-3
    """Adam's learning rate."""
    edit_layers: int = 6
    """The first so many latent vectors may change."""
    feature_block: int = 5
    """Block whose output is the feature map, from 0; the last one where a generator has fewer."""
    spacing: float = 3.0
    """Distance of the 3 x 3 samples, px."""
    mask_weight: float = 10.0
    """Weight of the mean change of the features where nothing may move."""
    stop_px: float = 1.0
    """A point may be signed off at this distance from its target, px; 2 in the paper."""
    sign_off: float = 0.25
    """It is signed off at a difference below this share of l; 0.5 in the paper."""

    def __post_init__(self) -> None:
        if min(self.expected, self.reach, self.lr, self.stop_px, self.sign_off, self.spacing) <= 0:
            raise ValueError("expected, reach, lr, stop_px, sign_off and spacing must be positive.")
        if self.steps < 0 or min(self.inner_steps, self.candidates, self.edit_layers) < 1 or self.feature_block < 0:
            raise ValueError("steps and feature_block must not be negative, the other numbers at least 1.")

    @staticmethod
    def preset(image_size: Size) -> FreeDragConfig:
        """The code's settings for images of (H, W) px; lengths shrink with the map where that is under 128 cells."""
        scale = min(1.0, image_size[0] / 128)
        return FreeDragConfig(reach=3.0 * scale, spacing=3.0 * scale)

    @staticmethod
    @torch.no_grad()
    def fitted(generator: Generator, *, samples: int = 16, seed: int = 0) -> FreeDragConfig:
        """The preset with l for a generator: the difference of places d apart where the image is busy. Our choice.

        That is what a sub-motion of length d starts from. It is measured at 64 random places in each of `samples`
        images, psi 0.7, in random directions, and the value that a tenth of them exceed is taken: most places are
        smooth, and nobody drags those.
        """
        config, image = FreeDragConfig.preset(generator.config.image_size), generator.config.image_size
        rng = torch.Generator().manual_seed(seed)
        codes = map_codes(generator, samples, torch.full((samples,), 0.7), rng)
        cell = image[0] / generator.config.block_resolutions[_block(generator, config)]
        found = []
        for code in codes:
            latent = code.expand(1, generator.config.latent_layers, -1)
            maps = generator.features(latent, block=_block(generator, config)).last
            places = torch.rand(64, 2, generator=rng) * torch.tensor([image[1] - 1, image[0] - 1])
            angle = torch.rand(64, generator=rng) * (2 * math.pi)
            there = places + config.reach * cell * torch.stack([angle.cos(), angle.sin()], dim=1)
            a, b = (read_patches(maps, p.to(maps), image, config.spacing) for p in (places, there))
            found.append(difference(a, b))
        return replace(config, expected=float(torch.cat(found).quantile(0.9)))


def _block(generator: Generator, config: FreeDragConfig) -> int:
    """The block of the features, or the last of a small generator."""
    return min(config.feature_block, len(generator.config.block_resolutions) - 1)


@dataclass(frozen=True)
class FreeDragState:
    """What a callback sees, before each Adam step and at the end."""

    step: int
    """Adam steps taken so far."""
    seconds: float
    """Since the start."""
    latent: Float[Tensor, "1 L D"]
    points: Float[Tensor, "N 2"]
    """Where the templates are being pulled to, px."""


@dataclass(frozen=True)
class FreeDragResult:
    """The end of a drag."""

    latent: Float[Tensor, "1 L D"]
    points: Float[Tensor, "N 2"]
    """Where the templates were last pulled to, px; nothing tells whether the content followed."""
    steps: int
    """Adam steps."""
    seconds: float
    reason: Literal["arrived", "steps", "stopped"]


def template_rate(loss: Float[Tensor, " N"], expected: float) -> Float[Tensor, " N"]:
    """lambda, the share of the new features in a template, from L_end."""
    alpha, beta = math.log(9.0) / (0.6 * expected), 0.2 * expected
    return 1 / (1 + (alpha * (loss - beta)).exp())


def line_candidates(
    start: Float[Tensor, "N 2"], targets: Float[Tensor, "N 2"], reach: Float[Tensor, " N"], count: int
) -> Float[Tensor, "N K 2"]:
    """`count` places at equal distances from `start` (left out) to `reach` px toward the target, or to the target."""
    way = targets - start
    share = (reach / way.norm(dim=1).clamp_min(1e-8)).clamp_max(1.0)
    parts = torch.arange(1, count + 1, device=start.device, dtype=start.dtype) / count
    return start[:, None] + parts[:, None] * (share[:, None] * way)[:, None]


def read_patches(
    maps: Float[Tensor, "1 C h w"], points: Float[Tensor, "N 2"], image: Size, spacing: float
) -> Float[Tensor, "N C 9"]:
    """Features at 3 x 3 bilinear samples around points, all in px."""
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
    """Where the next sub-motion pulls each template to (px); `first` and `last` are L_ini and L_end of the one before.

    Further on, the same place, or from a step back, as the module's docstring says.
    """
    on = last < 0.5 * config.expected
    back = ~on & ~(last < first)
    reach = config.reach * image[0] / maps.shape[2]  # cells to px
    whole = torch.full_like(last, reach)
    behind = points - (line_candidates(points, targets, whole, 1)[:, 0] - points)
    start = torch.where(back[:, None], behind, points)
    places = line_candidates(start, targets, torch.where(back, 2 * whole, whole), config.candidates)  # (N, K, 2)
    patches = read_patches(maps, places.flatten(0, 1), image, config.spacing).unflatten(0, places.shape[:2])
    wanted = torch.where(back, 0.0, config.expected)
    off = (difference(patches, templates[:, None].expand_as(patches)) - wanted[:, None]).abs()  # (N, K)
    chosen = places[torch.arange(len(points), device=points.device), off.argmin(dim=1)]
    return torch.where((on | back)[:, None], chosen, points)


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
    """Moves `handles` to `targets` (px of the image) by optimising the first layers of `latent`.

    mask: True = may move. callback: called before every Adam step and at the end, in this thread. stop: set it from any
    thread to end after the current step.
    """
    started = time.monotonic()
    image = generator.config.image_size
    block = _block(generator, config)
    layers = min(config.edit_layers, latent.shape[1])
    device = latent.device
    points, targets = handles.to(device, torch.float32), targets.to(device, torch.float32)
    edited, kept = latent[:, :layers].detach().clone().requires_grad_(True), latent[:, layers:].detach()
    optimizer = torch.optim.Adam([edited], lr=config.lr)

    def features() -> Tensor:
        return generator.features(torch.cat([edited, kept], dim=1), block=block).last

    def tell() -> None:
        if callback is not None:
            whole = torch.cat([edited.detach(), kept], dim=1)
            callback(FreeDragState(step, time.monotonic() - started, whole, points))

    with torch.no_grad():
        initial = maps = features()
    # (h, w); the published code keeps only cells that the mask does not touch
    fixed = None if mask is None else resize_mask(mask, (maps.shape[2], maps.shape[3])) == 0
    templates = read_patches(maps, points, image, config.spacing)
    first = last = torch.zeros(len(points), device=device)
    signed = torch.zeros(len(points), dtype=torch.bool, device=device)
    done, step = config.sign_off * config.expected, 0
    reason: Literal["arrived", "steps", "stopped"] = "steps"
    while step < config.steps and reason == "steps":
        ahead = next_points(maps, templates, points, targets, first, last, image, config)
        points = torch.where(signed[:, None], points, ahead)
        for inner in range(min(config.inner_steps, config.steps - step)):
            tell()
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
            if bool((each < done).all()):
                break
        with torch.no_grad():
            maps = features()
            patches = read_patches(maps, points, image, config.spacing)
            last = difference(patches, templates)
            signed = ((targets - points).norm(dim=1) <= config.stop_px) & (last < done)
            rate = torch.where(signed, 1.0, template_rate(last, config.expected))[:, None, None]
            templates = rate * patches + (1 - rate) * templates
        if bool(signed.all()):
            reason = "arrived"
    tell()
    whole = torch.cat([edited.detach(), kept], dim=1)
    return FreeDragResult(whole, points, step, time.monotonic() - started, reason)
