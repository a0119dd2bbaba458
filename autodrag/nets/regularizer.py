"""The Latent Regularizer of Auto DragGAN (2024, section 3.1): moves an outlying W+ code back into the distribution.

An edit changes only the first layers of a code. The remaining clean layers pass through encoder layers and provide keys
and values. The edited layers, with a position embedding, are the queries of the decoder layers (Eq. 2-5).

In the variant `default` the network adds a correction to its input, so that an untrained network is the identity. In
the variant `paper` its output replaces the first layers, as in Eq. 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autodrag.nets.latent_space import LatentFrame
from autodrag.nets.transformer import DecoderLayer, EncoderLayer, KeysValues


@dataclass(frozen=True)
class RegularizerConfig:
    """Sizes of the regularizer. The depths are from the paper, which does not give width and heads."""

    layers: int = 16
    """Number of latent vectors of the generator's W+."""
    w_dim: int = 512
    """Length of a latent vector."""
    edit_layers: int = 6
    """Number of edited layers, counted from the first. These layers are restored."""
    width: int = 512
    """Width of the tokens."""
    heads: int = 8
    """Number of attention heads."""
    encoder_layers: int = 6
    """Number of encoder layers, for the clean vectors."""
    decoder_layers: int = 6
    """Number of decoder layers, for the edited vectors."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward nets relative to `width`."""
    variant: Literal["default", "paper"] = "default"
    """`default` adds a correction to the first layers; `paper` replaces them."""

    def __post_init__(self) -> None:
        if not 0 < self.edit_layers < self.layers:
            raise ValueError(f"edit_layers {self.edit_layers} of {self.layers}: some layers must stay clean.")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}.")
        if self.encoder_layers < 0 or self.decoder_layers < 1 or self.w_dim < 1 or self.mlp_ratio <= 0:
            raise ValueError("expected encoder_layers >= 0, decoder_layers >= 1, w_dim >= 1 and mlp_ratio > 0.")


class Regularizer(nn.Module):
    """Restores the edited layers of W+ codes from the edited and the clean layers."""

    def __init__(self, config: RegularizerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.frame = LatentFrame(config.w_dim)
        self.embed_clean = nn.Linear(config.w_dim, width)
        self.embed_edited = nn.Sequential(nn.Linear(config.w_dim, width), nn.GELU(), nn.Linear(width, width))
        self.layer_positions = nn.Parameter(torch.randn(config.layers, width) * 0.02)
        block = (width, config.heads, config.mlp_ratio)
        self.encoder = nn.ModuleList(EncoderLayer(*block) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*block) for _ in range(config.decoder_layers))
        self.norm_clean, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, config.w_dim)
        if config.variant == "default":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def read(self, latent: Float[Tensor, "B L D"]) -> list[KeysValues]:
        """Compute keys and values of the clean layers. They are the same for all edits of an image."""
        edited = self.config.edit_layers
        clean = self.embed_clean(self.frame.coordinates(latent[:, edited:])) + self.layer_positions[edited:]
        for encode in self.encoder:
            clean = encode(clean)
        clean = self.norm_clean(clean)
        return [decode.cross.project(clean) for decode in self.decoder]  # type: ignore[union-attr, operator]

    def forward(self, latent: Float[Tensor, "B L D"], memory: list[KeysValues] | None = None) -> Float[Tensor, "B L D"]:
        """Return the code with its first layers restored. memory: result of `read`; None computes it."""
        edited = self.config.edit_layers
        memory = self.read(latent) if memory is None else memory
        x = self.embed_edited(self.frame.coordinates(latent[:, :edited])) + self.layer_positions[:edited]
        for decode, keys_values in zip(self.decoder, memory, strict=True):
            x, _ = decode(x, keys_values)
        offset = self.frame.offset(self.head(self.norm(x)).to(latent.dtype))
        origin = self.frame.mean if self.config.variant == "paper" else latent[:, :edited]
        return torch.cat([origin + offset, latent[:, edited:]], dim=1)
