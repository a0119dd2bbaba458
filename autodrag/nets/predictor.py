"""The Latent Predictor of Auto DragGAN (2024, section 3.2): from handles and targets to a sequence of latent codes.

Encoder layers read tokens of the feature map F (after a convolution) and of 7 x 7 patches of F at handles and targets.
Their outputs are keys and values. The codes so far, w_0 ... w_i, are the queries of causal decoder layers, which
predict w_1 ... w_(i+1) (Eq. 8-11).

There are two variants:

- `paper` follows the paper as printed. Every patch is a token without a position, the network predicts whole codes, and
  every layer changes on its own.
- `default` makes one token per drag, from both patches, both positions and the displacement. A drag of length zero is
  an anchor. Map tokens have positions. The network predicts steps in standard coordinates, and all edited layers change
  by their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from autodrag.nets.latent_space import LatentFrame
from autodrag.nets.transformer import DecoderLayer, EncoderLayer, KeysValues, fourier_positions
from autodrag.points import Size, sample, square, to_unit

BANDS = 6
"""Fourier bands of a position. The finest has a period of 1/32 of the image."""
PATCH = 7
"""Side of the patches, in cells of F (the paper's)."""


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of the predictor. It fits only the generator that it was trained for."""

    layers: int = 16
    """Latent vectors of the generator's W+."""
    w_dim: int = 512
    """Their width."""
    image_height: int = 512
    """Height of the images, px."""
    image_width: int = 512
    """Width of the images, px."""
    feature_block: int = 5
    """Index of the synthesis block whose output is F, from 0."""
    feature_channels: int = 512
    """Channels of F."""
    feature_height: int = 128
    """Rows of F."""
    track_block: int = 5
    """Points are tracked in the outputs of the blocks `feature_block` - 1 ... `track_block`."""
    edit_layers: int = 6
    """Number of first latent vectors that are edited."""
    steps: int = 5
    """Codes w_1 ... w_n of a motion."""
    width: int = 512
    """Width of the tokens."""
    heads: int = 8
    """Attention heads."""
    encoder_layers: int = 6
    """Self-attention layers on the tokens of map and drags."""
    decoder_layers: int = 16
    """Causal layers on the codes."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward nets relative to `width`."""
    token_rows: int = 16
    """Rows of map tokens. Strided convolutions reduce F to them."""
    variant: Literal["default", "paper"] = "default"
    """See the head of this file."""

    def __post_init__(self) -> None:
        if not 0 < self.edit_layers < self.layers:
            raise ValueError(f"edit_layers {self.edit_layers} of {self.layers}: some layers must stay.")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}.")
        if self.encoder_layers < 0 or self.decoder_layers < 1 or self.steps < 1 or self.mlp_ratio <= 0:
            raise ValueError("expected encoder_layers >= 0, decoder_layers >= 1, steps >= 1 and mlp_ratio > 0.")
        stride = self.feature_height // max(1, self.token_rows)
        if stride * self.token_rows != self.feature_height or stride & (stride - 1):
            raise ValueError(
                f"token_rows {self.token_rows}: expected {self.feature_height} (rows of F) divided by a power of two."
            )
        if not 0 <= self.feature_block <= self.track_block:
            raise ValueError(
                f"feature_block {self.feature_block}, track_block {self.track_block}: expected 0 <= first <= second."
            )
        if min(self.w_dim, self.feature_channels, self.image_height, self.image_width, self.feature_height) < 1:
            raise ValueError("expected positive sizes.")

    @property
    def tracked(self) -> slice:
        """The blocks in which points are tracked."""
        return slice(max(0, self.feature_block - 1), self.track_block + 1)

    @property
    def image(self) -> Size:
        """(height, width) of the images, px."""
        return self.image_height, self.image_width


@dataclass(frozen=True)
class DragBatch:
    """Drags of B images, padded to N points each."""

    handles: Float[Tensor, "B N 2"]
    """Current positions of the points, px."""
    targets: Float[Tensor, "B N 2"]
    """Positions to reach, px. The target of an anchor is its handle."""
    valid: Bool[Tensor, "B N"]
    """False for rows of padding."""


@dataclass
class DecoderState:
    """Inputs of the decoder for one motion; `past` grows with every decoded step."""

    keys_values: list[KeysValues]
    """Keys and values of the cross-attention, per decoder layer."""
    mask: Tensor | None
    """True = a token, False = padding; (B, 1, 1, tokens). None: no padding."""
    past: list[KeysValues | None]
    """Keys and values of the codes decoded so far, per decoder layer."""
    step: int = 0
    """Number of codes decoded so far."""


class Predictor(nn.Module):
    """Features and drags to motion: `encode` once, then `decode` a known sequence or call `next_code` step by step."""

    feature_scale: Tensor
    """Root mean square of each channel of F."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.frame = LatentFrame(config.w_dim)
        self.register_buffer("feature_scale", torch.ones(config.feature_channels))
        # F and ones, which show the image border to the convolutions, are halved until `token_rows` rows remain; narrow
        # where the maps are large.
        convolutions: list[nn.Module] = []
        halvings, inputs = (config.feature_height // config.token_rows).bit_length() - 1, config.feature_channels + 1
        for remaining in range(halvings - 1, -1, -1):
            outputs = max(width >> remaining, min(width, 32))
            convolutions += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GELU()]
            inputs = outputs
        self.tokens = nn.Sequential(*convolutions, nn.Conv2d(inputs, width, 1 if convolutions else 3, padding="same"))
        cells = config.feature_channels * PATCH**2
        self.handle_patch, self.target_patch = nn.Linear(cells, width), nn.Linear(cells, width)
        if config.variant == "default":
            position = 2 + 4 * BANDS
            self.token_position = nn.Linear(position, width)
            self.drag_position = nn.Linear(3 * position, width)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.kind = nn.Parameter(torch.randn(3, width) * 0.02)  # embeddings of the tokens: map, handle or drag, target
        block = (width, config.heads, config.mlp_ratio)
        self.encoder = nn.ModuleList(EncoderLayer(*block) for _ in range(config.encoder_layers))
        self.norm_memory, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.embed_code = nn.Sequential(nn.Linear(config.w_dim, width), nn.GELU(), nn.Linear(width, width))
        self.layer_positions = nn.Parameter(torch.randn(config.edit_layers, width) * 0.02)
        self.step_positions = nn.Parameter(torch.randn(config.steps, width) * 0.02)
        self.decoder = nn.ModuleList(DecoderLayer(*block) for _ in range(config.decoder_layers))
        self.head = nn.Linear(width, config.w_dim)
        if config.variant == "default":  # an untrained network predicts no motion
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def encode(self, maps: Float[Tensor, "B C h w"], drags: DragBatch) -> DecoderState:
        """The decoder's state before the first step, from F of the current image and the drags."""
        return self.attend(*self.tokenise(maps, drags))

    def tokenise(
        self, maps: Float[Tensor, "B C h w"], drags: DragBatch, map_tokens: Float[Tensor, "B M W"] | None = None
    ) -> tuple[Float[Tensor, "B K W"], Bool[Tensor, "B K"]]:
        """Tokens of map and drags, and False for tokens of padding. map_tokens: of `read_map`; None computes them."""
        map_tokens = self.read_map(maps) if map_tokens is None else map_tokens
        drag_tokens, valid = self._read_drags(maps, drags)
        valid = torch.cat([valid.new_ones(map_tokens.shape[:2]), valid], dim=1)
        return torch.cat([map_tokens, drag_tokens], dim=1), valid

    def read_map(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B M W"]:
        """Tokens of F. They are the same for all drags of one image."""
        ones = maps.new_ones(maps[:, :1].shape)
        tokens = self.tokens(torch.cat([maps / self.feature_scale[:, None, None], ones], dim=1))
        rows, columns = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2) + self.kind[0]
        if self.config.variant == "default":
            tokens = tokens + self.token_position(_cell_positions(rows, columns, tokens.device))
        return tokens

    def attend(self, tokens: Float[Tensor, "B K W"], valid: Bool[Tensor, "B K"]) -> DecoderState:
        """The decoder's state before the first step, from the outputs of `tokenise`."""
        tokens = tokens + self.mix(tokens)
        # The check runs on a CPU alone: a GPU would have to be waited for, and a CUDA graph could not record it.
        mask = None if valid.device.type == "cpu" and bool(valid.all()) else valid[:, None, None]
        for layer in self.encoder:
            tokens = layer(tokens, mask)
        tokens = self.norm_memory(tokens)
        keys_values = [layer.cross.project(tokens) for layer in self.decoder]  # type: ignore[union-attr, operator]
        return DecoderState(keys_values, mask, [None] * len(self.decoder))

    def decode(self, state: DecoderState, codes: Float[Tensor, "B T L D"]) -> Float[Tensor, "B T L D"]:
        """Teacher forcing: the code after each of w_0 ... w_(T-1), predicted from that code and earlier ones."""
        edited = self.config.edit_layers
        count = codes.shape[1]
        x = self._embed(codes[:, :, :edited], 0).flatten(1, 2)  # (B, T * E, W)
        step = torch.arange(count, device=x.device).repeat_interleave(edited)
        causal = step[:, None] >= step
        for layer, keys_values in zip(self.decoder, state.keys_values, strict=True):
            x, _ = layer(x, keys_values, mask=causal, memory_mask=state.mask)
        return self._finish(codes, x.unflatten(1, (count, edited)))

    def next_code(self, state: DecoderState, code: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The code after `code`, which follows those that `state` has seen; the state advances by one step."""
        x = self._embed(code[:, None, : self.config.edit_layers], state.step)[:, 0]
        for index, layer in enumerate(self.decoder):
            x, state.past[index] = layer(x, state.keys_values[index], memory_mask=state.mask, past=state.past[index])
        state.step += 1
        return self._finish(code[:, None], x[:, None])[:, 0]

    def align(self, codes: Float[Tensor, "B T L D"], start: Float[Tensor, "B L D"]) -> Float[Tensor, "B T L D"]:
        """Codes whose edited layers all change from `start` by the mean of their changes.

        In the variant `paper`, every layer keeps its own change. Align after the regularizer, which restores each layer
        on its own.
        """
        if self.config.variant == "paper":
            return codes
        edited = self.config.edit_layers
        change = codes[:, :, :edited] - start[:, None, :edited]
        aligned = change.mean(dim=2, keepdim=True).expand_as(change)
        return torch.cat([start[:, None, :edited] + aligned, codes[:, :, edited:]], dim=2)

    def _read_drags(self, maps: Tensor, drags: DragBatch) -> tuple[Tensor, Tensor]:
        """Tokens of the drags and which are valid: N drags, or N handles and N targets (`paper`)."""
        config = self.config
        window = square(PATCH // 2, config.image_height / config.feature_height).to(drags.handles)  # (P, 2)
        both = torch.cat([drags.handles, drags.targets], dim=1)  # (B, 2 * N, 2)
        values = sample(maps, (both[:, :, None] + window).flatten(1, 2), config.image)  # (B, C, 2 * N * P)
        values = values / self.feature_scale[:, None]
        patches = values.unflatten(2, (both.shape[1], -1)).permute(0, 2, 1, 3).flatten(2).chunk(2, dim=1)
        handles, targets = self.handle_patch(patches[0]), self.target_patch(patches[1])  # (B, N, W)
        if config.variant == "paper":
            tokens = torch.cat([handles + self.kind[1], targets + self.kind[2]], dim=1)
            return tokens, torch.cat([drags.valid, drags.valid], dim=1)
        displacement = (drags.targets - drags.handles) / config.image_height
        positions = [
            *_positions(to_unit(both, config.image)).chunk(2, dim=1),
            displacement * 8,
            fourier_positions(displacement, BANDS),
        ]
        return handles + targets + self.kind[1] + self.drag_position(torch.cat(positions, dim=2)), drags.valid

    def _embed(self, codes: Float[Tensor, "B T E D"], first: int) -> Float[Tensor, "B T E W"]:
        positions = self.step_positions[first : first + codes.shape[1], None] + self.layer_positions
        return self.embed_code(self.frame.coordinates(codes)) + positions

    def _finish(self, codes: Tensor, x: Float[Tensor, "B T E W"]) -> Tensor:
        """Whole codes (B, T, L, D) from the decoder's inputs and outputs."""
        edited = self.config.edit_layers
        values = self.frame.offset(self.head(self.norm(x))).to(codes.dtype)
        origin = self.frame.mean if self.config.variant == "paper" else codes[:, :, :edited]
        return torch.cat([origin + values, codes[:, :, edited:]], dim=2)


def _positions(unit: Float[Tensor, "*N 2"]) -> Float[Tensor, "*N P"]:
    """Positions in [-1, 1] with their Fourier features."""
    return torch.cat([unit, fourier_positions(unit, BANDS)], dim=-1)


def _cell_positions(rows: int, columns: int, device: torch.device) -> Float[Tensor, "M P"]:
    """Positions of the cells of a grid, row by row."""
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) * 2 / rows - 1
    x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) * 2 / columns - 1
    return _positions(torch.cartesian_prod(y, x).flip(1))
