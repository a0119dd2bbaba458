"""The Latent Regularizer of Auto DragGAN (2024, section 3.1): brings an outlying W+ code back into the distribution.

The clean layers, which an edit leaves alone, go through encoder layers and are keys and values; the first, edited
layers are the queries of the decoder layers, with a position embedding (Eq. 2-5). The paper joins the result to the
predictor by a skip connection; here the network itself adds its correction to what it is given, so that an untrained
one changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autodrag.nets.latent_space import LatentFrame
from autodrag.nets.transformer import DecoderLayer, EncoderLayer, KeysValues


@dataclass(frozen=True)
class RegularizerConfig:
    """Sizes of the regularizer; depths are the paper's, width and heads are our choice."""

    layers: int = 16
    """Latent vectors of the generator's W+."""
    w_dim: int = 512
    """Their width."""
    edit_layers: int = 6
    """The first so many are restored."""
    width: int = 512
    """Width of the tokens."""
    heads: int = 8
    """Attention heads."""
    encoder_layers: int = 6
    """Self-attention layers on the clean vectors."""
    decoder_layers: int = 6
    """Cross-attention layers on the vectors to restore."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward nets relative to `width`."""

    def __post_init__(self) -> None:
        if not 0 < self.edit_layers < self.layers:
            raise ValueError(f"edit_layers {self.edit_layers} of {self.layers}: some layers must stay clean.")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}.")
        if self.encoder_layers < 0 or self.decoder_layers < 1 or self.w_dim < 1 or self.mlp_ratio <= 0:
            raise ValueError("expected encoder_layers >= 0, decoder_layers >= 1, w_dim >= 1 and mlp_ratio > 0.")


class Regularizer(nn.Module):
    """W+ codes whose first layers may be off, to codes whose first layers are plausible beside the others."""

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
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def read(self, latent: Float[Tensor, "B L D"]) -> list[KeysValues]:
        """What the decoder attends to: of the clean layers alone, so that it holds for every edit of one image."""
        edited = self.config.edit_layers
        clean = self.embed_clean(self.frame.coordinates(latent[:, edited:])) + self.layer_positions[edited:]
        for encode in self.encoder:
            clean = encode(clean)
        clean = self.norm_clean(clean)
        return [decode.cross.project(clean) for decode in self.decoder]  # type: ignore[union-attr, operator]

    def forward(self, latent: Float[Tensor, "B L D"], memory: list[KeysValues] | None = None) -> Float[Tensor, "B L D"]:
        """The code with its first layers restored. memory: of `read`, where it is known."""
        edited = self.config.edit_layers
        memory = self.read(latent) if memory is None else memory
        x = self.embed_edited(self.frame.coordinates(latent[:, :edited])) + self.layer_positions[:edited]
        for decode, keys_values in zip(self.decoder, memory, strict=True):
            x, _ = decode(x, keys_values)
        correction = self.frame.offset(self.head(self.norm(x)).to(latent.dtype))
        return torch.cat([latent[:, :edited] + correction, latent[:, edited:]], dim=1)
