"""UserControllableLT (Endo 2022, arXiv 2208.12408) as an editor: one pass of its latent transformer.

A drag becomes a motion of unit length where its handle lies, and a strength alpha = |d| / 10, px of an image 256 px
high; points that must stay have no motion. The published interface drags one point. Here several are one motion each,
divided by their mean length, and alpha is a tenth of that: the same for one point. The image to start from (psi 0.5
there) is the caller's.

Training's edits have alpha 1 and move a point by about `flow_px`, 4 to 12 px of 256 in the original. Where that is far
from 10, as on generators whose images hardly differ at a tenth of the way, a drag of 10 px moves about `flow_px`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.checkpoint import find_checkpoint, load_net
from autodrag.errors import AutodragError
from autodrag.nets.stylegan2 import Generator
from autodrag.nets.userlt import UserLT, UserLTConfig
from autodrag.points import sample

FILE = "userlt.safetensors"
GRID = 16
"""Points that stay are taken on a grid of so many rows and columns where a mask is given, as DragGAN does for it."""


def load_userlt(folder: str | Path, fingerprint: str) -> UserLT:
    """Load the net of a checkpoint folder strictly; `fingerprint` is that of the folder's generator.

    Raises:
        AutodragError: the folder has none.
        CheckpointError: a broken file, or one trained on another generator.
    """
    file = find_checkpoint(folder) / FILE
    if not file.is_file():
        raise AutodragError(f"{str(folder)!r} holds no {FILE}; make one with `autodrag train userlt`")
    return load_net(file, "userlt", UserLTConfig, UserLT, fingerprint)


@torch.no_grad()
def userlt(
    net: UserLT,
    generator: Generator,
    latent: Float[Tensor, "1 L D"],
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    anchors: Float[Tensor, "M 2"] | None = None,
    mask: Bool[Tensor, "H W"] | None = None,
) -> Float[Tensor, "1 L D"]:
    """The code after a drag of `handles` to `targets`, all in px of the image; nothing makes the points arrive.

    anchors: points that stay. mask: True = may move; the points of a 16 x 16 grid outside of it stay as well.
    """
    image = generator.config.image_size
    points, flow = handles.to(latent), (targets - handles).to(latent)
    length = flow.norm(dim=1).mean()
    alpha = float(length) * 256 / image[0] / 10
    if alpha == 0:
        return latent.clone()
    # One unit of motion for the net is `flow_px` of an image 256 px high.
    motions = flow / length * net.config.flow_px * image[0] / 256
    for fixed in (anchors, None if mask is None else outside(mask)):
        if fixed is not None:
            points = torch.cat([points, fixed.to(points)])
            motions = torch.cat([motions, torch.zeros_like(fixed).to(motions)])
    maps = generator.features(latent, block=net.config.feature_block).last
    features = sample(maps, points[None], image).transpose(1, 2)  # (1, N + M, C)
    units = net.motions(motions[None], motions.new_zeros(1, len(motions)), image)
    layers = net.config.edit_layers
    edited = net(latent[:, :layers], units, features, alpha)
    return torch.cat([edited, latent[:, layers:]], dim=1)


def outside(mask: Bool[Tensor, "H W"]) -> Float[Tensor, "M 2"]:
    """Points (px) of a regular grid that lie where a mask (True = may move) lets nothing move."""
    rows, columns = (torch.linspace(0, side - 1, GRID).round().long() for side in mask.shape)
    points = torch.cartesian_prod(rows, columns)  # (G * G, 2) as (y, x)
    fixed = ~mask.cpu()[points[:, 0], points[:, 1]]
    return points[fixed].flip(1).float()
