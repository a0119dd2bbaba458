"""Transformer blocks of the learned editor: attention with reusable keys and values, encoder and decoder layers.

The layers follow Vaswani et al. 2017, but with pre-layer normalisation (Xiong et al. 2020), which trains without a long
warm-up.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (B, heads, tokens, D / heads)."""


def fourier_positions(points: Float[Tensor, "*N 2"], bands: int) -> Float[Tensor, "*N 4*{bands}"]:
    """Sines and cosines of positions in [-1, 1] at frequencies pi, 2 pi, ... 2^(bands - 1) pi (Tancik et al. 2020)."""
    frequencies = math.pi * 2.0 ** torch.arange(bands, device=points.device, dtype=points.dtype)
    angles = (points[..., None] * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Attention(nn.Module):
    """Multi-head attention. Keys and values are computed separately by `project`, so that they can be reused."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def project(self, x: Float[Tensor, "B N D"]) -> KeysValues:
        """Keys and values of tokens."""
        key, value = self.key_value(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return key, value

    def forward(
        self, x: Float[Tensor, "B M D"], keys_values: KeysValues, mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B M D"]:
        """mask: True = may attend, broadcast to (B, heads, M, N)."""
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, M, D / heads)
        return self.out(_attend(query, *keys_values, mask).transpose(1, 2).flatten(2))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention, (B, heads, tokens, D / heads)."""
    if query.is_cuda or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # On a CPU in bf16, the backward pass of torch's fused kernel took 12 times as long (70 tokens).
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=3).to(value.dtype) @ value


def feed_forward(width: int, ratio: float) -> nn.Sequential:
    """Two linear layers with a GELU between them; the hidden width is `ratio` times `width`."""
    return nn.Sequential(nn.Linear(width, round(width * ratio)), nn.GELU(), nn.Linear(round(width * ratio), width))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward net."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = feed_forward(width, ratio)

    def forward(self, x: Float[Tensor, "B N D"], mask: Tensor | None = None) -> Float[Tensor, "B N D"]:
        y = self.norm1(x)
        x = x + self.attention(y, self.attention.project(y), mask)
        return x + self.mlp(self.norm2(x))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to a memory, and a feed-forward net."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads)
        self.mlp = feed_forward(width, ratio)

    def forward(
        self,
        x: Float[Tensor, "B M D"],
        memory: KeysValues,
        *,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "B M D"], KeysValues]:
        """Return the layer's output, and the self-attention keys and values of all tokens, for `past` of the next call.

        Args:
            memory: keys and values of the cross-attention, from `self.cross.project`.
            mask: True = may attend, for the self-attention.
            memory_mask: True = may attend, for the cross-attention.
            past: keys and values of the self-attention of earlier tokens.
        """
        y = self.norm1(x)
        keys_values = self.attention.project(y)
        if past is not None:
            keys_values = (torch.cat([past[0], keys_values[0]], dim=2), torch.cat([past[1], keys_values[1]], dim=2))
        x = x + self.attention(y, keys_values, mask)
        x = x + self.cross(self.norm2(x), memory, memory_mask)
        return x + self.mlp(self.norm3(x)), keys_values
