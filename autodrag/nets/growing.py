"""Growing a generator to a higher resolution or more channels, starting from the images of the smaller generator.

Progressive growing (Karras et al. 2018) without fading weights: the RGB layers of new blocks start at zero, so the
first images are the old images, upsampled. Channels are added as in Net2WiderNet (Chen et al. 2016): new channels have
random weights, and the weights from new to old channels are zero.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from autodrag.nets.stylegan2 import Generator, GeneratorConfig

_MAY_GROW = ("resolution", "channel_base", "channel_max")


def check_growth(old: GeneratorConfig, new: GeneratorConfig) -> None:
    """Raise ValueError, naming the settings to change, unless `new` is `old` with more blocks or channels."""
    different = [
        f"--generator.{field.name} {getattr(old, field.name)}"
        for field in dataclasses.fields(GeneratorConfig)
        if field.name not in _MAY_GROW and getattr(old, field.name) != getattr(new, field.name)
    ]
    if different:
        raise ValueError(f"the generator to start from has different settings; pass {' '.join(different)}.")
    if new.resolution < old.resolution or any(new.channels(r) < old.channels(r) for r in old.block_resolutions):
        raise ValueError(
            f"resolution {new.resolution} with channel_base {new.channel_base} and channel_max {new.channel_max} is "
            f"smaller than the generator to start from ({old.resolution}, {old.channel_base}, {old.channel_max}); "
            "expected sizes at least as large."
        )
    if new.resolution > old.resolution and old.architecture != "skip":
        raise ValueError(f"a generator of architecture {old.architecture!r} cannot grow; expected 'skip'.")


@torch.no_grad()
def grow_generator(old: Generator, config: GeneratorConfig) -> Generator:
    """Build a generator of `config` whose images are those of `old`, upsampled, for equal w and constant noise.

    Old noise maps are copied. The noise strength of new blocks is zero. Raises ValueError as in `check_growth`.
    """
    check_growth(old.config, config)
    grown = Generator(config)
    state, old_state = grown.state_dict(), old.state_dict()
    for name, value in state.items():
        if name in old_state:
            _copy_corner(value, old_state[name])
            if name.endswith("torgb.weight"):  # its gain is 1 / sqrt(channels)
                value.mul_((value.shape[1] / old_state[name].shape[1]) ** 0.5)
        elif ".torgb." in name and "affine" not in name:
            value.zero_()
    return grown


def _copy_corner(new: Tensor, old: Tensor) -> None:
    """Copy `old` into the leading channels of `new`. Old outputs ignore new inputs; new outputs stay random."""
    if new.dim() == 4:  # convolution weights (O, I, k, k)
        new[: old.shape[0]] = 0
    new[tuple(slice(n) for n in old.shape)] = old
