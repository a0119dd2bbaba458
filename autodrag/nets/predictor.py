"""The Latent Predictor of Auto DragGAN (2024, section 3.2): from handles and targets to a sequence of latent codes.

Tokens of the image's features F_0 (a convolution of the map) and of 7 x 7 patches of F_0 at handles and targets go
through encoder layers and are keys and values; the codes so far, w_0 ... w_i, are the queries of causal decoder layers,
which give w_1 ... w_(i+1) (Eq. 8-11).

Two readings of the paper. With `pairs` off and `positions` off a patch is a token of its own that knows nothing of its
place, as printed. The default makes one token of each drag, from both patches, both places and the way between them: a
set of any size and order, anchors being drags of no length; map tokens know their place and the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from autodrag.constant import constant
from autodrag.nets.latent_space import LatentFrame
from autodrag.nets.transformer import DecoderLayer, EncoderLayer, KeysValues, fourier_positions
from autodrag.points import Size, sample, square, to_unit

BANDS = 6
"""Fourier bands of a position: the finest has a period of 1/32 of the image."""


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of the predictor and what it is told; it fits the one generator that it was made for."""

    layers: int = 16
    """Latent vectors of the generator's W+."""
    w_dim: int = 512
    """Their width."""
    image_height: int = 512
    """Height of the images, px."""
    image_width: int = 512
    """Width of the images, px."""
    feature_block: int = 5
    """Block whose output is F, from 0."""
    feature_channels: int = 512
    """Channels of F."""
    feature_height: int = 128
    """Rows of F."""
    track_block: int = 5
    """Points are looked for in the outputs of the block before `feature_block` and of all from there to this one."""
    edit_layers: int = 6
    """The first so many latent vectors are edited."""
    steps: int = 5
    """Codes w_1 ... w_n that a motion is split into."""
    width: int = 512
    """Width of the tokens."""
    heads: int = 8
    """Attention heads."""
    encoder_layers: int = 6
    """Self-attention layers on tokens of the map and of the patches."""
    decoder_layers: int = 16
    """Causal layers on the codes."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward nets relative to `width`."""
    token_rows: int = 16
    """Rows of map tokens; F is convolved down to them."""
    patch: int = 7
    """Side of the patches, in cells of F."""
    positions: bool = True
    """Tell tokens and patches where they are."""
    pairs: bool = True
    """One token per drag instead of one per patch."""
    residual: bool = True
    """Predict steps from the code before, in standard coordinates, instead of whole codes."""
    together: bool = False
    """Change all edited layers alike wherever no mask holds anything: layers that were the same stay the same. With a
    mask each changes on its own."""

    def __post_init__(self) -> None:
        if not 0 < self.edit_layers < self.layers:
            raise ValueError(f"edit_layers {self.edit_layers} of {self.layers}: some layers must stay.")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}.")
        if self.encoder_layers < 0 or self.decoder_layers < 1 or self.steps < 1 or self.mlp_ratio <= 0:
            raise ValueError("expected encoder_layers >= 0, decoder_layers >= 1, steps >= 1 and mlp_ratio > 0.")
        if self.patch < 1 or self.patch % 2 == 0:
            raise ValueError(f"patch {self.patch}: expected an odd number of cells.")
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
        """The blocks in which points are looked for."""
        return slice(max(0, self.feature_block - 1), self.track_block + 1)

    @property
    def image(self) -> Size:
        """(height, width) of the images, px."""
        return self.image_height, self.image_width


@dataclass(frozen=True)
class DragBatch:
    """DragBatch of B images, padded to N points each."""

    handles: Float[Tensor, "B N 2"]
    """Where the points are, px."""
    targets: Float[Tensor, "B N 2"]
    """Where they should be, px; an anchor's target is its handle."""
    valid: Bool[Tensor, "B N"]
    """False where a row is padding."""
    movable: Float[Tensor, "B h w"] | None = None
    """Share of each cell of F that may move, in [0, 1]; None: everything may."""


@dataclass
class Memory:
    """What the decoder attends to; `past` grows with every step that is decoded."""

    keys_values: list[KeysValues]
    """Of the cross-attention, per decoder layer."""
    mask: Tensor | None
    """True = a token, False = padding; (B, 1, 1, tokens). None: no padding."""
    past: list[KeysValues | None]
    """Keys and values of the codes decoded so far, per decoder layer."""
    step: int = 0
    """Codes decoded so far."""


class Predictor(nn.Module):
    """Features and drags to motion: `encode` once, then `decode` a known sequence or `next_code` one by one."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.frame = LatentFrame(config.w_dim)
        self.register_buffer("feature_scale", torch.ones(config.feature_channels))
        # F with its mask, halved until it has `token_rows` rows; narrow where the maps are large.
        convolutions: list[nn.Module] = []
        halvings, inputs = (config.feature_height // config.token_rows).bit_length() - 1, config.feature_channels + 1
        for left in range(halvings - 1, -1, -1):
            outputs = max(width >> left, min(width, 32))
            convolutions += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GELU()]
            inputs = outputs
        self.tokens = nn.Sequential(*convolutions, nn.Conv2d(inputs, width, 1 if convolutions else 3, padding="same"))
        cells = config.feature_channels * config.patch**2
        self.handle_patch, self.target_patch = nn.Linear(cells, width), nn.Linear(cells, width)
        place = 2 + 4 * BANDS
        self.token_position = nn.Linear(place, width)
        self.drag_position = nn.Linear(3 * place, width)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        # What is not used is not trained either: data-parallel training waits for every gradient.
        self.token_position.requires_grad_(config.positions)
        self.drag_position.requires_grad_(config.positions and config.pairs)
        self.kind = nn.Parameter(torch.randn(3, width) * 0.02)  # of tokens: map, handle or drag, target
        block = (width, config.heads, config.mlp_ratio)
        self.encoder = nn.ModuleList(EncoderLayer(*block) for _ in range(config.encoder_layers))
        self.norm_memory, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.embed_code = nn.Sequential(nn.Linear(config.w_dim, width), nn.GELU(), nn.Linear(width, width))
        self.layer_positions = nn.Parameter(torch.randn(config.edit_layers, width) * 0.02)
        self.step_positions = nn.Parameter(torch.randn(config.steps, width) * 0.02)
        self.decoder = nn.ModuleList(DecoderLayer(*block) for _ in range(config.decoder_layers))
        self.head = nn.Linear(width, config.w_dim)
        if config.residual:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    feature_scale: Tensor

    def encode(self, maps: Float[Tensor, "B C h w"], drags: DragBatch) -> Memory:
        """What the decoder attends to, from F of the present image and the drags."""
        return self.attend(*self.tokenise(maps, drags))

    def tokenise(
        self, maps: Float[Tensor, "B C h w"], drags: DragBatch, read: Float[Tensor, "B M D"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Tokens of the map and of the drags, and which are real. read: of `read_map`, where it is known."""
        read = self.read_map(maps, drags.movable) if read is None else read
        drawn, valid = self._patches(maps, drags)
        return torch.cat([read, drawn], dim=1), torch.cat([valid.new_ones(read.shape[:2]), valid], dim=1)

    def read_map(
        self, maps: Float[Tensor, "B C h w"], movable: Float[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """Tokens of F and of what may move: they hold for all drags of one image."""
        share = maps.new_ones(maps[:, :1].shape) if movable is None else movable[:, None].to(maps.dtype)
        tokens = self.tokens(torch.cat([maps / self.feature_scale[:, None, None], share], dim=1))
        rows, columns = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2) + self.kind[0]
        if self.config.positions:
            tokens = tokens + self.token_position(_cell_positions(rows, columns, tokens.device))
        return tokens

    def attend(self, tokens: Float[Tensor, "B N D"], known: Bool[Tensor, "B N"]) -> Memory:
        """What the decoder attends to, from the tokens; where `known` is False they are padding."""
        tokens = tokens + self.mix(tokens)
        # Looked for on a CPU alone: a GPU would have to be waited for, and a graph of it could not be recorded.
        mask = None if known.device.type == "cpu" and bool(known.all()) else known[:, None, None]
        for layer in self.encoder:
            tokens = layer(tokens, mask)
        tokens = self.norm_memory(tokens)
        keys_values = [layer.cross.project(tokens) for layer in self.decoder]  # type: ignore[union-attr, operator]
        return Memory(keys_values, mask, [None] * len(self.decoder))

    def decode(self, memory: Memory, codes: Float[Tensor, "B T L D"]) -> Float[Tensor, "B T L D"]:
        """Teacher forcing: the codes after each of w_0 ... w_(T-1), none of which sees a later one."""
        edited = self.config.edit_layers
        count = codes.shape[1]
        x = self._embed(codes[:, :, :edited], 0).flatten(1, 2)  # (B, T * E, width)
        step = torch.arange(count, device=x.device).repeat_interleave(edited)
        causal = step[:, None] >= step
        for layer, keys_values in zip(self.decoder, memory.keys_values, strict=True):
            x, _ = layer(x, keys_values, mask=causal, memory_mask=memory.mask)
        return self._finish(codes, x.unflatten(1, (count, edited)))

    def next_code(self, memory: Memory, code: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The code after `code`, which comes after those that `memory` has seen; memory is moved on by one step."""
        edited = self.config.edit_layers
        x = self._embed(code[:, None, :edited], memory.step)[:, 0]
        for index, layer in enumerate(self.decoder):
            x, memory.past[index] = layer(
                x, memory.keys_values[index], memory_mask=memory.mask, past=memory.past[index]
            )
        memory.step += 1
        return self._finish(code[:, None], x[:, None])[:, 0]

    def align(
        self, codes: Float[Tensor, "B T L D"], start: Float[Tensor, "B L D"], drags: DragBatch
    ) -> Float[Tensor, "B T L D"]:
        """With `together`, codes whose edited layers have all changed from `start` by the mean of their changes.

        Samples with a mask stay as they are, and without `together` all do. It comes last, after the regularizer, which
        restores each layer by itself.
        """
        if not self.config.together:
            return codes
        edited = self.config.edit_layers
        change = codes[:, :, :edited] - start[:, None, :edited]
        alike = change.mean(dim=2, keepdim=True).expand_as(change)
        if drags.movable is not None:
            held = (drags.movable < 1).flatten(1).any(dim=1)
            alike = torch.where(held[:, None, None, None], change, alike)
        return torch.cat([start[:, None, :edited] + alike, codes[:, :, edited:]], dim=2)

    def _patches(self, maps: Tensor, drags: DragBatch) -> tuple[Tensor, Tensor]:
        """Tokens of the drags, and which are real: N drags, or N handles and N targets."""
        config = self.config
        cell = config.image_height / config.feature_height
        window = square(config.patch // 2, cell).to(drags.handles)  # (P, 2)

        both = torch.cat([drags.handles, drags.targets], dim=1)  # (B, 2 * N, 2)
        values = sample(maps, (both[:, :, None] + window).flatten(1, 2), config.image)  # (B, C, 2 * N * P)
        values = values / self.feature_scale[:, None]
        patches = values.unflatten(2, (both.shape[1], -1)).permute(0, 2, 1, 3).flatten(2).chunk(2, dim=1)
        handles, targets = self.handle_patch(patches[0]), self.target_patch(patches[1])
        places = _place(both, config.image).chunk(2, dim=1)
        if not config.pairs:
            if config.positions:
                handles = handles + self.token_position(places[0])
                targets = targets + self.token_position(places[1])
            both = torch.cat([handles + self.kind[1], targets + self.kind[2]], dim=1)
            return both, torch.cat([drags.valid, drags.valid], dim=1)
        tokens = handles + targets + self.kind[1]
        if config.positions:
            way = (drags.targets - drags.handles) / config.image_height
            way = torch.cat([way * 8, fourier_positions(way, BANDS)], dim=2)
            tokens = tokens + self.drag_position(torch.cat([*places, way], dim=2))
        return tokens, drags.valid

    def _embed(self, codes: Float[Tensor, "B T E D"], first: int) -> Float[Tensor, "B T E W"]:
        positions = self.step_positions[first : first + codes.shape[1], None] + self.layer_positions
        return self.embed_code(self.frame.coordinates(codes)) + positions

    def _finish(self, codes: Tensor, x: Float[Tensor, "B T E W"]) -> Tensor:
        """Whole codes (B, T, L, D) from the decoder's outputs and the codes that were its inputs."""
        edited = self.config.edit_layers
        values = self.frame.offset(self.head(self.norm(x))).to(codes.dtype)
        start = codes[:, :, :edited] if self.config.residual else self.frame.mean
        return torch.cat([start + values, codes[:, :, edited:]], dim=2)


def _place(points: Float[Tensor, "B N 2"], image: Size) -> Float[Tensor, "B N P"]:
    """Positions in px as numbers in [-1, 1], and their Fourier features."""
    unit = to_unit(points, image)
    return torch.cat([unit, fourier_positions(unit, BANDS)], dim=2)


@constant
def _cell_positions(rows: int, columns: int, device: torch.device) -> Float[Tensor, "N P"]:
    """Places of the cells of a grid, row by row."""
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) * 2 / rows - 1
    x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) * 2 / columns - 1
    unit = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=2).flatten(0, 1)
    return torch.cat([unit, fourier_positions(unit, BANDS)], dim=1)
