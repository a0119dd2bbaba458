"""UserControllableLT (Endo 2022, arXiv 2208.12408): motions at points to an edit of W+, in one pass of a transformer.

Every point is a token: its motion (dx, dy, log-expansion) and the generator's feature at the point. An encoder relates
the points to one another; the first six latent vectors query them through a decoder, whose output, times a strength
alpha, is added to the vectors:

    tokens  = Linear(3 -> D / 2)(motion) ++ Linear(C -> D / 2)(feature)
    queries = Linear(W -> D)(w_0 ... w_5) + position embedding
    w'      = w + alpha * Linear(D -> W)(decoder(queries, encoder(tokens)))

As published, a point has no position code: only its feature tells where the point lies. The published sizes are the
defaults.

A drag becomes a motion of unit length at its handle and a strength alpha = |d| / 10, px of an image 256 px high; points
that must stay have no motion. The published interface drags one point. Here several points are divided by their mean
length, and alpha is a tenth of that length; for one point this is the published rule. Training uses alpha 1 and moves
a point by about `flow_px`, 4 to 12 px of 256 in the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from autodrag.checkpoint import find_checkpoint, load_net
from autodrag.errors import AutodragError
from autodrag.nets.stylegan2 import Generator, GeneratorConfig
from autodrag.nets.transformer import DecoderLayer, EncoderLayer
from autodrag.points import Size, sample

FILE = "userlt.safetensors"
GRID = 16
"""With a mask, the fixed points are taken from a grid of this many rows and columns."""
MAP_PX = 64
"""Height of the generator map whose features the tokens hold."""


@dataclass(frozen=True)
class UserLTConfig:
    """Sizes, and the units of motions."""

    w_dim: int = 512
    """Length of a latent vector of the generator."""
    edit_layers: int = 6
    """How many latent vectors change, from the first."""
    feature_block: int = 4
    """Generator block whose features the tokens hold: the one of 64 px, or the last one of a smaller generator."""
    channels: int = 512
    """Channels of that block."""
    width: int = 512
    """Width D of the layers."""
    heads: int = 8
    """Heads of attention."""
    encoder_layers: int = 6
    """Layers over the points."""
    decoder_layers: int = 6
    """Layers over the latent vectors."""
    mlp_ratio: float = 1.0
    """Hidden width of the feed-forward nets, in D."""
    flow_px: float = 8.0
    """Length of a motion of 1, px of an image 256 px high; the original has 4 to 12, chosen for each data set."""
    expansion: float = 0.025
    """Log-expansion that counts as 1; the original has 0.02 to 0.04."""

    def __post_init__(self) -> None:
        sizes = (self.w_dim, self.edit_layers, self.channels, self.width, self.heads)
        if min(sizes) < 1 or self.feature_block < 0 or self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width}: expected a multiple of twice the heads ({self.heads}), and sizes > 0."
            )
        if not (1 <= self.encoder_layers <= 64 and 1 <= self.decoder_layers <= 64):
            raise ValueError("encoder_layers and decoder_layers: expected 1 to 64 of each.")
        if min(self.mlp_ratio, self.flow_px, self.expansion) <= 0 or self.width * self.mlp_ratio < 1:
            raise ValueError("mlp_ratio, flow_px and expansion must be positive.")


def map_block(generator: GeneratorConfig) -> int:
    """The block of 64 px, or the largest below it that a generator has."""
    return max(k for k, size in enumerate(generator.block_resolutions) if size <= MAP_PX)


class UserLT(nn.Module):
    """Motions at points, features there, and the first latent vectors to new latent vectors."""

    def __init__(self, config: UserLTConfig) -> None:
        super().__init__()
        self.config = config
        half = config.width // 2
        self.motion, self.feature = nn.Linear(3, half), nn.Linear(config.channels, half)
        self.latent = nn.Linear(config.w_dim, config.width)
        self.position = nn.Parameter(torch.randn(1, config.edit_layers, config.width))
        layer = (config.width, config.heads, config.mlp_ratio)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(config.decoder_layers))
        self.head = nn.Linear(config.width, config.w_dim)
        nn.init.zeros_(self.head.weight)  # training starts from no edit
        nn.init.zeros_(self.head.bias)

    def motions(
        self, flow: Float[Tensor, "B N 2"], expansion: Float[Tensor, "B N"], image: Size
    ) -> Float[Tensor, "B N 3"]:
        """Motions in the net's units, of flows in px of an image (H, W) and log-expansions."""
        shift = flow * (256 / image[0] / self.config.flow_px)
        return torch.cat([shift, expansion[:, :, None] / self.config.expansion], dim=2)

    def forward(
        self,
        latent: Float[Tensor, "B E D"],
        motions: Float[Tensor, "B N 3"],
        features: Float[Tensor, "B N C"],
        alpha: float = 1.0,
    ) -> Float[Tensor, "B E D"]:
        """The first `edit_layers` vectors of W+ to the edited ones. The order of the N points does not matter."""
        tokens = torch.cat([self.motion(motions), self.feature(features)], dim=2)  # (B, N, width)
        for layer in self.encoder:
            tokens = layer(tokens)
        x = self.latent(latent) + self.position  # (B, E, width)
        for layer in self.decoder:
            x, _ = layer(x, layer.cross.project(tokens))  # type: ignore[union-attr, operator]
        return latent + alpha * self.head(x)


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
    """The code after a drag of `handles` to `targets`, all in px of the image. Whether points arrive is not checked.

    anchors: points that stay. mask: True = may move; the points of a 16 x 16 grid outside the mask stay as well.
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
    """Points (px) of a regular grid at which a mask (True = may move) is False."""
    rows, columns = (torch.linspace(0, side - 1, GRID).round().long() for side in mask.shape)
    points = torch.cartesian_prod(rows, columns)  # (G * G, 2) as (y, x)
    fixed = ~mask.cpu()[points[:, 0], points[:, 1]]
    return points[fixed].flip(1).float()
