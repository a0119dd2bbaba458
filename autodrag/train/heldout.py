"""Validation of predictor training: the distance that remains after a closed loop on held-out drags.

A small, batched version of the landmark evaluation: landmarks of one image are dragged to their positions in another
image, and detected again. Without a landmark net, mutual matches between the two images replace the landmarks. The
tracker then searches near the handles, so that its results are not biased toward the targets.

Results are fractions of the distance measured by the same detector without an edit, so that "no edit" scores 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.data.latents import map_codes
from autodrag.infer.open_image import OpenImage
from autodrag.infer.predict import PredictConfig, predict
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.landmarks import LandmarkNet
from autodrag.nets.predictor import DragBatch, PredictorConfig
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.points import Size
from autodrag.tracking import PULL, appearance, follow, match_features

COUNT = 64
"""Number of image pairs."""
N_POINTS, N_CANDIDATES = 11, 64
"""Number of matched points per image, and of the random points from which they are chosen."""
CHUNK_PX = 2**21
"""Number of pixels synthesised at a time: 8 images of 512 px."""
SHOWN = 8
"""Number of edits on the sheet."""


@dataclass(frozen=True)
class HeldOut:
    """Images and their drags."""

    latent: Float[Tensor, "B L D"]
    """Codes of the images, psi 0.7."""
    handles: Float[Tensor, "B N 2"]
    """px."""
    targets: Float[Tensor, "B N 2"]
    """px."""
    valid: Bool[Tensor, "B N"]
    """False for padding of images with fewer matches."""
    landmarks: LandmarkNet | None
    """Detects the points in edited images; None: the tracker is used."""
    config: PredictorConfig
    """Config of the predictor, for blocks and image size."""


@torch.no_grad()
def held_out_drags(
    generator: Generator, landmarks: LandmarkNet | None, config: PredictorConfig, count: int = COUNT
) -> HeldOut:
    """Create the drags of a generator, equal for all trainings. A landmark net for another image size is not used."""
    rng = torch.Generator().manual_seed(77_777)
    psi = torch.full((count,), 0.7)
    first, second = (map_codes(generator, count, psi, rng)[:, None].repeat(1, config.layers, 1) for _ in range(2))
    if landmarks is not None and (landmarks.config.resolution,) * 2 != config.image:
        landmarks = None
    points = torch.rand(count, N_CANDIDATES, 2, generator=rng) * torch.tensor([*config.image[::-1]]) - 0.5
    parts = []
    for rows in _chunks(count, config.image):
        if landmarks is not None:
            handles, targets = (landmarks(generator(w[rows]).clamp(-1, 1)).points for w in (first, second))
            parts.append((handles, targets, torch.ones_like(handles[..., 0], dtype=torch.bool)))
            continue
        before, after = (_features(generator, w[rows], config).outputs[config.tracked] for w in (first, second))
        found, mutual = match_features(before, after, points[rows], config.image)
        order = mutual.float().argsort(dim=1, descending=True, stable=True)[:, :N_POINTS]
        handles, targets = (torch.take_along_dim(p, order[..., None], 1) for p in (points[rows], found))
        parts.append((handles, targets, torch.take_along_dim(mutual, order, 1)))
    handles, targets, valid = (torch.cat(part) for part in zip(*parts, strict=True))
    return HeldOut(first, handles, targets, valid, landmarks, config)


@torch.no_grad()
def measure_drags(
    held_out: HeldOut, generator: Generator, editor: LearnedEditor, rounds: int | None = None
) -> tuple[dict[str, float], Float[Tensor, "3 H W"]]:
    """Fraction of the distance that remains after the closed loop, for 1, 5 and all points, and a sheet of edits.

    rounds: number of rounds of the closed loop; None: as in inference. The rows of the sheet show the images before the
    edit, after drags of one point, and after drags of all points.
    """
    device, config = generator.mapping.w_avg.device, held_out.config
    image, (total, most) = config.image, held_out.valid.shape
    random = torch.rand(total, most, generator=torch.Generator().manual_seed(1))
    order = (random + 2 * ~held_out.valid.cpu()).argsort(dim=1).to(device)  # padding comes last
    handles, targets, valid = (
        torch.take_along_dim(t.to(device), order.view(total, most, *[1] * (t.dim() - 2)), 1)
        for t in (held_out.handles, held_out.targets, held_out.valid)
    )
    net = None if held_out.landmarks is None else held_out.landmarks.to(device)
    counts = sorted({min(1, most), min(5, most), most})
    left, idle = dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0)
    rows_shown: list[list[Tensor]] = [[], [], []]
    for rows in _chunks(total, image):
        latent = held_out.latent[rows].to(device)
        before = _features(generator, latent, config)
        look = appearance(before.outputs[config.tracked], handles[rows], image) if net is None else None
        if rows.start < SHOWN:
            rows_shown[0].append(generator(latent))
        for count in counts:
            drags = DragBatch(handles[rows, :count], targets[rows, :count], valid[rows, :count])
            edited = predict(OpenImage.of(generator, latent, editor, before), drags, PredictConfig(rounds)).latent
            picture = generator(edited).clamp(-1, 1)
            if rows.start < SHOWN and count in (1, most):
                rows_shown[1 if count == 1 else 2].append(picture)
            for name, codes, pixels in ((left, edited, picture), (idle, latent, None)):
                if net is not None and pixels is not None:
                    found = torch.take_along_dim(net(pixels).points, order[rows, :, None], 1)
                elif look is not None:
                    maps = _features(generator, codes, config).outputs[config.tracked]
                    found, _ = follow(maps, look, image, near=handles[rows], pull=PULL)
                else:
                    found = handles[rows]  # detected on the unedited image
                distance = (found[:, :count] - drags.targets).norm(dim=2)
                name[count] += float((distance * drags.valid).sum())
    shares = {f"{count}-points": round(left[count] / max(idle[count], 1e-9), 4) for count in counts}
    sheet = torch.stack([torch.cat(part)[:SHOWN] for part in rows_shown if part]).float().clamp(-1, 1)
    return shares, (sheet.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3) + 1) / 2


def _features(generator: Generator, latent: Tensor, config: PredictorConfig) -> Features:
    return generator.features(latent, block=config.track_block)


def _chunks(count: int, image: Size) -> list[slice]:
    size = max(1, CHUNK_PX // (image[0] * image[1]))
    return [slice(start, min(count, start + size)) for start in range(0, count, size)]
