"""StyleGAN2 discriminator with residual blocks (Karras et al., CVPR 2020), used only to train a generator.

All layers use equalised learning rates. Without them, small networks do not converge in short trainings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from autodrag.nets.stylegan2 import FullyConnected, blur

_SLOPE = 0.2
_GAIN = math.sqrt(2.0)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator."""

    resolution: int = 64
    """Height of the image in pixels: a power of two, at least 8."""
    base_width: int = 4
    """Width of the map whose height is 4: 4 for square images, 2 for images half as wide as high."""
    channel_base: int = 32768
    """A map of resolution r has min(channel_base // r, channel_max) channels."""
    channel_max: int = 512
    """Maximum number of channels."""
    group_size: int = 4
    """Group size of the minibatch standard deviation; reduced to a divisor of the batch size."""

    def channels(self, resolution: int) -> int:
        """Number of channels of the map at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)


class EqualisedConv(nn.Module):
    """Convolution with an equalised learning rate: weights are stored as N(0, 1). `down` halves the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.weight_gain = 1.0 / math.sqrt(inputs * kernel * kernel)
        self.down = down

    def forward(self, x: Tensor, *, gain: float = 1.0, activate: bool = True) -> Tensor:
        gain = gain * _GAIN if activate else gain
        weight = self.weight * (self.weight_gain * gain)
        bias = None if self.bias is None else self.bias * gain
        kernel = self.weight.shape[-1]
        if not self.down:
            x = F.conv2d(x, weight, bias, padding=kernel // 2)
        elif kernel == 1:
            x = F.conv2d(blur(x, padding=1, gain=1.0, stride=2), weight, bias)
        else:
            x = F.conv2d(blur(x, padding=2, gain=1.0), weight, bias, stride=2)
        return F.leaky_relu(x, _SLOPE) if activate else x


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = EqualisedConv(inputs, inputs, 3)
        self.conv1 = EqualisedConv(inputs, outputs, 3, down=True)
        self.skip = EqualisedConv(inputs, outputs, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        gain = math.sqrt(0.5)  # the sum of the two branches keeps the variance
        return self.conv1(self.conv0(x), gain=gain) + self.skip(x, gain=gain, activate=False)


def minibatch_deviation(x: Float[Tensor, "B C H W"], group_size: int) -> Float[Tensor, "B C+1 H W"]:
    """Append a channel with the mean standard deviation over groups of samples (Karras et al. 2018)."""
    batch, _, height, width = x.shape
    group = math.gcd(batch, group_size)
    y = x.float().reshape(group, batch // group, *x.shape[1:])
    deviation = (y.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (B / group,)
    channel = deviation.repeat(group).reshape(batch, 1, 1, 1).expand(-1, 1, height, width)
    return torch.cat([x, channel.to(x.dtype)], dim=1)


class Discriminator(nn.Module):
    """Maps images (B, 3, H, W) in [-1, 1] to logits (B, 1); high values mean real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        resolutions = [config.resolution >> k for k in range(int(math.log2(config.resolution)) - 2)]
        self.from_rgb = EqualisedConv(3, config.channels(config.resolution), 1)
        self.blocks = nn.Sequential(*(_ResidualBlock(config.channels(r), config.channels(r // 2)) for r in resolutions))
        channels = config.channels(4)
        self.conv = EqualisedConv(channels + 1, channels, 3)
        self.fc = FullyConnected(channels * 4 * config.base_width, channels)
        self.out = FullyConnected(channels, 1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1"]:
        x = self.blocks(self.from_rgb(images))
        x = self.conv(minibatch_deviation(x, self.config.group_size))
        x = F.leaky_relu(self.fc(x.flatten(1)), _SLOPE) * _GAIN
        return self.out(x).float()
