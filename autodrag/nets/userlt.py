"""The latent transformer of UserControllableLT (Endo 2022, arXiv 2208.12408): motions at points to an edit of W+.

Every point is a token: its motion (dx, dy, log-expansion) and the generator's feature where it lies. An encoder lets
the points see one another; the first six latent vectors query them through a decoder, and what comes out is added to
the vectors, times a strength alpha:

    tokens  = Linear(3 -> D / 2)(motion) ++ Linear(C -> D / 2)(feature)
    queries = Linear(W -> D)(w_0 ... w_5) + position embedding
    w'      = w + alpha * Linear(D -> W)(decoder(queries, encoder(tokens)))

A point has no position code: only its feature tells where it is, as published. The published sizes are the
defaults; a small generator gets a small net.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autodrag.nets.stylegan2 import GeneratorConfig
from autodrag.nets.transformer import DecoderLayer, EncoderLayer
from autodrag.points import Size

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
    """A motion of 1 is so many px of an image 256 px high; the original has 4 to 12, chosen for each data set."""
    expansion: float = 0.025
    """A log-expansion of 1 is so much; the original has 0.02 to 0.04."""

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
        nn.init.zeros_(self.head.weight)  # training starts from no edit, which a short one would else spend long on
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
