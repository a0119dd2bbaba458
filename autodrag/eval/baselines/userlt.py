"""UserControllableLT (Endo 2022, arXiv 2208.12408): a transformer that maps motions at points to an edit of W+.

Each point is a token with its motion (dx, dy, log-expansion) and the generator's feature at the point. An encoder
processes the tokens. The first six latent vectors are the queries of a decoder. Its output, times a strength alpha, is
added to the vectors:

    tokens  = Linear(3 -> D / 2)(motion) ++ Linear(C -> D / 2)(feature)
    queries = Linear(W -> D)(w_0 ... w_5) + position embedding
    w'      = w + alpha * Linear(D -> W)(decoder(queries, encoder(tokens)))

As published, tokens have no position embedding; a point's position is only implied by its feature. The defaults are the
published sizes.

A drag becomes a motion of unit length at its handle, and a strength alpha = |d| / 10, with d in px of an image 256 px
high. Points that must not move have zero motion. The published interface drags one point. Here the motions of several
points are divided by their mean length, and alpha is a tenth of that length; for one point this equals the published
rule. Training uses alpha = 1 and moves a point by about `flow_px` (4 to 12 px at 256 px in the original).
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
"""Number of rows and columns of the grid from which the fixed points of a mask are taken."""
MAP_PX = 64
"""Height of the generator map whose features the tokens contain."""


@dataclass(frozen=True)
class UserLTConfig:
    """Sizes of the network, and units of the motions."""

    w_dim: int = 512
    """Length of a latent vector of the generator."""
    edit_layers: int = 6
    """Number of latent vectors that change, counted from the first."""
    feature_block: int = 4
    """Index of the generator block whose features the tokens contain: the 64 px block, or the last smaller block."""
    channels: int = 512
    """Number of channels of that block."""
    width: int = 512
    """Width D of the layers."""
    heads: int = 8
    """Number of attention heads."""
    encoder_layers: int = 6
    """Number of encoder layers, for the points."""
    decoder_layers: int = 6
    """Number of decoder layers, for the latent vectors."""
    mlp_ratio: float = 1.0
    """Hidden width of the feed-forward nets, relative to `width`."""
    flow_px: float = 8.0
    """Unit of motion, px of an image 256 px high; the original uses 4 to 12, depending on the data set."""
    expansion: float = 0.025
    """Unit of log-expansion; the original uses 0.02 to 0.04."""

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
    """Index of the 64 px block, or of the last block of a smaller generator."""
    return max(k for k, size in enumerate(generator.block_resolutions) if size <= MAP_PX)


class UserLT(nn.Module):
    """Maps motions and features at points, and the first latent vectors, to edited latent vectors."""

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
        """Convert flows (px of an image (H, W)) and log-expansions to motions in the network's units."""
        shift = flow * (256 / image[0] / self.config.flow_px)
        return torch.cat([shift, expansion[:, :, None] / self.config.expansion], dim=2)

    def forward(
        self,
        latent: Float[Tensor, "B E D"],
        motions: Float[Tensor, "B N 3"],
        features: Float[Tensor, "B N C"],
        alpha: float = 1.0,
    ) -> Float[Tensor, "B E D"]:
        """Edit the first `edit_layers` vectors of W+. The order of the N points does not matter."""
        tokens = torch.cat([self.motion(motions), self.feature(features)], dim=2)  # (B, N, width)
        for layer in self.encoder:
            tokens = layer(tokens)
        x = self.latent(latent) + self.position  # (B, E, width)
        for layer in self.decoder:
            x, _ = layer(x, layer.cross.project(tokens))  # type: ignore[union-attr, operator]
        return latent + alpha * self.head(x)


def load_userlt(folder: str | Path, fingerprint: str) -> UserLT:
    """Load the network of a checkpoint folder; `fingerprint` is the required fingerprint of its generator.

    Raises:
        AutodragError: the folder has none.
        CheckpointError: a broken file, or one trained on another generator.
    """
    file = find_checkpoint(folder) / FILE
    if not file.is_file():
        raise AutodragError(f"{str(folder)!r} has no {FILE}; create it with `autodrag train userlt`")
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
    """Compute the code after a drag of `handles` to `targets` (px of the image). Arrival is not checked.

    anchors: points that must not move. mask: True = may move; the points of a 16 x 16 grid outside the mask are
    additional anchors.
    """
    image = generator.config.image_size
    points, flow = handles.to(latent), (targets - handles).to(latent)
    length = flow.norm(dim=1).mean()
    alpha = float(length) * 256 / image[0] / 10
    if alpha == 0:
        return latent.clone()
    # One unit of motion is `flow_px` px of an image 256 px high.
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
    """Points (px) of a regular grid where a mask (True = may move) is False."""
    rows, columns = (torch.linspace(0, side - 1, GRID).round().long() for side in mask.shape)
    points = torch.cartesian_prod(rows, columns)  # (G * G, 2) as (y, x)
    fixed = ~mask.cpu()[points[:, 0], points[:, 1]]
    return points[fixed].flip(1).float()
