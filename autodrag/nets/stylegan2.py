"""StyleGAN2 generator in plain PyTorch.

Follows Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), with the tensor names and
shapes of NVIDIA's stylegan2-ada-pytorch: its state dicts load after removing the constant `resample_filter` buffers.
Written from the papers and the published tensor names.

The results equal those of NVIDIA's code, but the computation differs in two points:

* Modulation scales the input, convolves with shared weights and scales the output. This is equivalent to per-sample
  weights, and much faster on a CPU than grouped convolution.
* Synthesis can stop after a block (`Generator.features`) and continue from there (`Generator.image`). RGB is computed
  only in `image`, because the inner loop of point dragging needs features but no image.

Block k has resolution 4 * 2**k. The "6th block" of the DragGAN paper is `block=5`, 128 x 128.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from autodrag.acceleration import Precomputing, Replayable, accelerate
from autodrag.constant import constant

NoiseMode = Literal["const", "random", "none"]
Blend = Callable[[int, Tensor], Tensor]
"""Called with the index and the output of every block; returns what the next block reads."""

_SLOPE = 0.2  # negative slope of all leaky ReLUs
_GAIN = math.sqrt(2.0)  # preserves the variance of activations after a leaky ReLU
_REPLAYED = 1024 * 1024  # maximum number of px of a batch for CUDA graphs; larger batches keep a GPU busy without them


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of a StyleGAN2 generator. The config is sufficient to rebuild the network from its tensors."""

    resolution: int = 64
    """Height of the image in pixels: a power of two from 8 to 1024."""
    base_width: int = 4
    """Width of the learned constant, whose height is 4: 4 for square images, 2 for StyleGAN-Human (1024 x 512)."""
    z_dim: int = 512
    """Length of the Gaussian input code."""
    w_dim: int = 512
    """Length of one intermediate latent vector."""
    c_dim: int = 0
    """Length of the class label; 0 for an unconditional network."""
    mapping_layers: int = 8
    """Number of fully connected layers from z to w."""
    channel_base: int = 32768
    """A block of resolution r has min(channel_base // r, channel_max) channels."""
    channel_max: int = 512
    """Maximum number of channels of a block."""
    architecture: Literal["skip", "resnet", "orig"] = "skip"
    """`skip` sums the RGB outputs of all blocks; `resnet` adds residual connections; `orig` has neither."""
    conv_clamp: float | None = None
    """Bound on activations. NVIDIA uses 256 for mixed precision and None otherwise."""
    mapping_lr_multiplier: float = 0.01
    """Learning-rate multiplier of the mapping layers; it scales their stored weights."""

    def __post_init__(self) -> None:
        if self.resolution not in (8, 16, 32, 64, 128, 256, 512, 1024):
            raise ValueError(f"resolution {self.resolution}: expected a power of two from 8 to 1024.")
        if self.base_width not in (2, 4):
            raise ValueError(f"base_width {self.base_width}: expected 4 (square) or 2 (half as wide as high).")
        if self.architecture not in ("skip", "resnet", "orig"):
            raise ValueError(f"architecture {self.architecture!r}: expected skip, resnet or orig.")
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1.")
        if self.channel_base < self.resolution:
            raise ValueError(
                f"channel_base {self.channel_base}: expected at least the resolution, {self.resolution}, "
                "so that every block has a channel."
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self.resolution, self.resolution * self.base_width // 4

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        """Heights of the blocks' outputs, coarse to fine: 4, 8, ..., resolution."""
        return tuple(4 * 2**k for k in range(int(math.log2(self.resolution)) - 1))

    @property
    def latent_layers(self) -> int:
        """L, the number of latent vectors of the synthesis network (NVIDIA's num_ws)."""
        return 2 * len(self.block_resolutions)

    def channels(self, resolution: int) -> int:
        """Number of channels of the block at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)


@dataclass(frozen=True)
class Features:
    """Outputs of synthesis blocks 0..k, coarse to fine, each (B, C, h, w)."""

    outputs: tuple[Tensor, ...]

    @property
    def last(self) -> Tensor:
        """Output of the finest computed block, (B, C, h, w)."""
        return self.outputs[-1]


def seed_z(seed: int, z_dim: int) -> Float[Tensor, "1 Z"]:
    """z of a seed, as in the code of NVIDIA and DragGAN: `RandomState(seed).randn(1, z_dim)`, converted to fp32."""
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).to(torch.float32)


# --- filters ---------------------------------------------------------------------------------------------------------


@constant
def _fir_2d(device: torch.device, dtype: torch.dtype, channels: int, gain: float) -> Tensor:
    """The separable [1, 3, 3, 1] low-pass filter as depthwise weights (channels, 1, 4, 4) that sum to `gain`."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device, dtype=dtype) / 8.0
    return (torch.outer(taps, taps) * gain).expand(channels, 1, 4, 4)


def upsample(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 2*H 2*W"]:
    """Upsample by 2: zero insertion, then the [1, 3, 3, 1] filter (StyleGAN2's upsample2d)."""
    weight = _fir_2d(x.device, x.dtype, x.shape[1], 4.0)
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def blur(x: Float[Tensor, "B C H W"], padding: int, gain: float, stride: int = 1) -> Tensor:
    """Apply the [1, 3, 3, 1] low-pass filter with zero padding on each side."""
    return F.conv2d(x, _fir_2d(x.device, x.dtype, x.shape[1], gain), padding=padding, stride=stride, groups=x.shape[1])


# --- layers ----------------------------------------------------------------------------------------------------------


def _in_fp32(device: str) -> contextlib.AbstractContextManager[object]:
    """Context without autocast. Entering `torch.autocast` is slow, so it is skipped if autocast is not active."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


class FullyConnected(Precomputing):
    """Linear layer with an equalised learning rate (Karras et al. 2018): weights are stored as N(0, 1/lr)."""

    frozen_weight: Tensor | None

    def __init__(self, inputs: int, outputs: int, *, bias_init: float = 0.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias_init)))
        self.weight_gain = lr_multiplier / math.sqrt(inputs)
        self.bias_gain = lr_multiplier
        self.register_buffer("frozen_weight", None, persistent=False)

    def precompute(self) -> None:
        """Compute the scaled weight."""
        self.frozen_weight = self.weight.detach() * self.weight_gain

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B O"]:
        bias = self.bias if self.bias_gain == 1.0 else self.bias * self.bias_gain
        weight = self.weight * self.weight_gain if self.frozen_weight is None else self.frozen_weight
        return F.linear(x, weight, bias)


def _normalise_2nd_moment(x: Tensor) -> Tensor:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Module):
    """Mapping network: z and an optional class label to w. Its buffer w_avg is the centre of truncation."""

    w_avg: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        inputs = config.z_dim
        if config.c_dim:
            self.embed = FullyConnected(config.c_dim, config.w_dim)
            inputs += config.w_dim
        for i in range(config.mapping_layers):
            layer = FullyConnected(
                inputs if i == 0 else config.w_dim, config.w_dim, lr_multiplier=config.mapping_lr_multiplier
            )
            self.add_module(f"fc{i}", layer)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Float[Tensor, "B Z"], labels: Float[Tensor, "B K"] | None = None) -> Float[Tensor, "B D"]:
        x = _normalise_2nd_moment(z.to(self.w_avg.dtype))
        if self.config.c_dim:
            if labels is None or labels.shape != (len(z), self.config.c_dim):
                got = "none" if labels is None else str(tuple(labels.shape))
                raise ValueError(
                    f"labels {got}: this network is conditional, expected ({len(z)}, {self.config.c_dim})."
                )
            x = torch.cat([x, _normalise_2nd_moment(self.embed(labels.to(x.dtype)))], dim=1)
        for i in range(self.config.mapping_layers):
            x = F.leaky_relu(self.get_submodule(f"fc{i}")(x), _SLOPE) * _GAIN
        return x


class SynthesisLayer(Precomputing):
    """Modulated and demodulated 3x3 convolution, noise, bias and leaky ReLU. `up` doubles the size.

    A leaky ReLU is positively homogeneous. Its gain and `gain` are therefore folded into demodulation, noise and bias,
    which are small tensors.
    """

    noise_const: Tensor
    frozen_energy: Tensor | None
    frozen_transposed: Tensor | None
    frozen_bias: Tensor | None
    frozen_noise: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, w_dim: int, size: tuple[int, int], up: bool, *, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.up = up
        self.gain = gain * _GAIN
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(size))
        for name in ("energy", "transposed", "bias", "noise"):
            self.register_buffer(f"frozen_{name}", None, persistent=False)

    def precompute(self) -> None:
        """Compute tensors that depend only on the weights. On a CPU, channels-last weights are 20 % faster."""
        order = torch.channels_last if self.weight.device.type == "cpu" else torch.contiguous_format
        self.frozen_energy, self.frozen_bias, self.frozen_noise = None, None, None  # discard values of old weights
        with torch.no_grad():
            self.frozen_energy, self.frozen_bias = self.energy(), self.summand()
            self.frozen_noise = self.noise(1, "const")
        self.weight.data = self.weight.data.contiguous(memory_format=order)
        if self.up:
            self.frozen_transposed = self.weight.detach().transpose(0, 1).contiguous(memory_format=order)

    def energy(self) -> Tensor:
        """Squared weight norm per input-output pair, divided by the squared gain, (O, I); used by demodulation."""
        if self.frozen_energy is not None:
            return self.frozen_energy
        return self.weight.float().square().sum(dim=(2, 3)) / self.gain**2

    def summand(self) -> Tensor:
        """The scaled bias, (O, 1, 1)."""
        return (self.bias * self.gain)[:, None, None] if self.frozen_bias is None else self.frozen_bias

    def modulation(self, w: Float[Tensor, "B D"]) -> tuple[Tensor, Tensor]:
        """Input scales (B, I) and output scales (B, O) of the modulated convolution, for output variance `gain`^2."""
        style = self.affine(w)
        # The sum has up to 512 * 9 squares, so it is computed in fp32 regardless of the convolution's dtype.
        with _in_fp32(w.device.type):
            squares = F.linear(style.float().square(), self.energy())
        return style, (squares + 1e-8 / self.gain**2).rsqrt()

    def convolve(self, x: Tensor) -> Tensor:
        """Convolution with the shared weights, including the upsampling of the layer."""
        if not self.up:
            return F.conv2d(x, self.weight, padding=1)
        weight = self.weight.transpose(0, 1) if self.frozen_transposed is None else self.frozen_transposed
        return blur(F.conv_transpose2d(x, weight, stride=2), padding=1, gain=4.0)

    def noise(self, batch: int, mode: NoiseMode) -> Tensor | None:
        """The scaled noise, (1 or B, 1, H, W); None for the mode `none`."""
        if mode == "none":
            return None
        if mode == "const":
            if self.frozen_noise is not None:
                return self.frozen_noise
            return (self.noise_const * (self.noise_strength * self.gain))[None, None]
        height, width = self.noise_const.shape
        return torch.randn(batch, 1, height, width, device=self.bias.device) * (self.noise_strength * self.gain)

    def forward(self, x: Tensor, w: Float[Tensor, "B D"], noise: NoiseMode, clamp: float | None) -> Tensor:
        style, demodulation = self.modulation(w)
        x = self.convolve(x * style[:, :, None, None].to(x.dtype))
        x = x * demodulation[:, :, None, None].to(x.dtype)
        perturbation = self.noise(len(x), noise)
        if perturbation is not None:
            x = x.add_(perturbation.to(x.dtype))
        x = F.leaky_relu_(x.add_(self.summand().to(x.dtype)), _SLOPE)
        return x if clamp is None else x.clamp(-clamp * self.gain / _GAIN, clamp * self.gain / _GAIN)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to RGB, without demodulation."""

    def __init__(self, inputs: int, w_dim: int) -> None:
        super().__init__()
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.weight_gain = 1.0 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Float[Tensor, "B D"], clamp: float | None) -> Tensor:
        style = self.affine(w) * self.weight_gain
        # Per-sample weights are small here (3 x I); a scaled copy of x would be large.
        if len(x) == 1:
            y = F.conv2d(x, (self.weight * style[:, :, None, None]).to(x.dtype))
        else:
            weight = self.weight[:, :, 0, 0] * style[:, None]  # (B, 3, I)
            y = torch.einsum("boi,bihw->bohw", weight.to(x.dtype), x)
        y = y + self.bias[:, None, None].to(y.dtype)
        return y if clamp is None else y.clamp(-clamp, clamp)


class _Skip(nn.Module):
    """Residual branch of the `resnet` architecture: 1x1 convolution and upsampling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.weight_gain = 1.0 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return upsample(F.conv2d(x, (self.weight * (self.weight_gain * math.sqrt(0.5))).to(x.dtype)))


class SynthesisBlock(nn.Module):
    """Layers of one resolution: conv0 (upsampling), conv1, torgb. The first block has a constant instead of conv0."""

    def __init__(self, config: GeneratorConfig, index: int) -> None:
        super().__init__()
        self.config = config
        resolution = config.block_resolutions[index]
        size = (resolution, resolution * config.base_width // 4)
        channels = config.channels(resolution)
        self.first = index == 0
        self.has_rgb = config.architecture == "skip" or resolution == config.resolution
        if self.first:
            self.const = nn.Parameter(torch.randn(channels, *size))
        else:
            inputs = config.channels(resolution // 2)
            self.conv0 = SynthesisLayer(inputs, channels, config.w_dim, size, up=True)
            if config.architecture == "resnet":
                self.skip = _Skip(inputs, channels)
        gain = math.sqrt(0.5) if config.architecture == "resnet" and not self.first else 1.0
        self.conv1 = SynthesisLayer(channels, channels, config.w_dim, size, up=False, gain=gain)
        if self.has_rgb:
            self.torgb = ToRGB(channels, config.w_dim)

    def forward(self, x: Tensor | None, ws: Float[Tensor, "B V D"], noise: NoiseMode) -> Tensor:
        """Compute features from those of the previous block (None for the first). `ws` starts at the first layer."""
        clamp = self.config.conv_clamp
        if self.first:
            x = self.const.expand(len(ws), -1, -1, -1)
            return self.conv1(x, ws[:, 0], noise, clamp)
        assert x is not None
        y = self.conv1(self.conv0(x, ws[:, 0], noise, clamp), ws[:, 1], noise, clamp)
        return self.skip(x) + y if self.config.architecture == "resnet" else y

    def rgb(self, x: Tensor, image: Tensor | None, w: Float[Tensor, "B D"]) -> Tensor | None:
        """Upsample the image of the coarser blocks, and add the RGB output of this block in fp32."""
        if image is not None:
            image = upsample(image)
        if not self.has_rgb:
            return image
        own = self.torgb(x, w, self.config.conv_clamp).float()
        return own if image is None else image + own


class Synthesis(nn.Module):
    """Synthesis network: blocks b4, b8, ..., each with its own part of the latent vectors."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        for index, resolution in enumerate(config.block_resolutions):
            self.add_module(f"b{resolution}", SynthesisBlock(config, index))

    @property
    def blocks(self) -> list[SynthesisBlock]:
        """The blocks, coarse to fine."""
        return [self.get_submodule(f"b{r}") for r in self.config.block_resolutions]  # type: ignore[misc]

    @staticmethod
    def first_layer(index: int) -> int:
        """Index in W+ of a block's first layer. The RGB layer shares its vector with the next block's first layer."""
        return 0 if index == 0 else 2 * index - 1


class Generator(Replayable):
    """Mapping and synthesis networks. Latents are W+ (B, L, D); images are (B, 3, H, W), approximately in [-1, 1]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config)
        self.synthesis = Synthesis(config)

    def freeze(self) -> Generator:
        """Prepare for editing (evaluation mode, no parameter gradients, acceleration) and return self."""
        return accelerate(self)

    def map(
        self,
        z: Float[Tensor, "B Z"],
        labels: Float[Tensor, "B K"] | None = None,
        *,
        psi: float = 1.0,
        cutoff: int | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Map z to W+, with the same vector in all layers.

        Args:
            z: Gaussian codes.
            labels: one-hot class labels, required by conditional networks.
            psi: truncation; 1 leaves w unchanged, 0 gives the average latent.
            cutoff: number of first layers to truncate; None truncates all layers.

        Raises:
            ValueError: a conditional network gets no labels, or labels of the wrong shape.
        """
        ws = self.mapping(z, labels)[:, None].repeat(1, self.config.latent_layers, 1)
        if psi == 1.0:
            return ws
        end = self.config.latent_layers if cutoff is None else cutoff
        truncated = self.mapping.w_avg.lerp(ws[:, :end], psi)
        return torch.cat([truncated, ws[:, end:]], dim=1)

    def features(
        self, latent: Float[Tensor, "B L D"], *, block: int, noise: NoiseMode = "const", blend: Blend | None = None
    ) -> Features:
        """Runs blocks 0..`block` (from 0; 5 is DragGAN's 128 x 128) without RGB; `blend` replaces their outputs."""

        def run(latent: Tensor) -> tuple[Tensor, ...]:
            return self._run(latent, (), block, noise, blend)

        if blend is not None:
            return Features(run(latent))
        return Features(self._synthesise(("features", block), run, latent, noise=noise))

    def image(
        self,
        latent: Float[Tensor, "B L D"],
        features: Features,
        *,
        noise: NoiseMode = "const",
        blend: Blend | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """The image whose first blocks gave `features`; runs only the missing blocks, with `blend` as in `features`."""

        def run(latent: Tensor, *known: Tensor) -> tuple[Tensor]:
            blocks = self.synthesis.blocks
            outputs = self._run(latent, known, len(blocks) - 1, noise, blend)
            image: Tensor | None = None
            for index, block in enumerate(blocks):
                rgb_layer = self.synthesis.first_layer(index) + (1 if index == 0 else 2)
                image = block.rgb(outputs[index], image, latent[:, rgb_layer])
            assert image is not None
            return (image,)

        if blend is not None:
            return run(latent, *features.outputs)[0]
        return self._synthesise("image", run, latent, *features.outputs, noise=noise)[0]

    def forward(self, latent: Float[Tensor, "B L D"], *, noise: NoiseMode = "const") -> Float[Tensor, "B 3 H W"]:
        """Synthesise images. noise: `const` uses the stored noise maps, `random` is for training, `none` for tests."""
        return self.image(latent, Features(()), noise=noise)

    def _synthesise(
        self, name: Hashable, run: Callable[..., tuple[Tensor, ...]], latent: Tensor, *known: Tensor, noise: NoiseMode
    ) -> tuple[Tensor, ...]:
        """Outputs of `run`, replayed where that pays: fixed noise, and an image small enough to leave a GPU idle."""
        height, width = self.config.image_size
        if noise != "const" or len(latent) * height * width > _REPLAYED:
            return run(latent, *known)
        return self.replay(name, run, latent, *known)

    def _run(
        self, latent: Tensor, done: tuple[Tensor, ...], last: int, noise: NoiseMode, blend: Blend | None
    ) -> tuple[Tensor, ...]:
        if latent.shape[1:] != (self.config.latent_layers, self.config.w_dim):
            expected = f"(B, {self.config.latent_layers}, {self.config.w_dim})"
            raise ValueError(f"latent {tuple(latent.shape)}: expected {expected} for this generator.")
        outputs, blocks = list(done), self.synthesis.blocks
        x = outputs[-1] if outputs else None
        for index in range(len(outputs), last + 1):
            start = self.synthesis.first_layer(index)
            x = blocks[index](x, latent[:, start : start + 2], noise)
            x = x if blend is None else blend(index, x)
            outputs.append(x)
        return tuple(outputs)
