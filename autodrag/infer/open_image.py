"""An open image: its latent, and everything that is computed once per image and reused by every drag of it.

The same split as `set_image` / `predict` in SAM 2: opening is expensive, and drags of the open image are cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.checkpoint import load_code
from autodrag.errors import AutodragError
from autodrag.images import to_uint8
from autodrag.infer.task import References
from autodrag.nets.editor import ImageMemory, LearnedEditor
from autodrag.nets.layers import LayeredGenerator, Layers, Rendered
from autodrag.nets.stylegan2 import Features, Generator, GeneratorConfig, seed_z
from autodrag.tracking import Look, look


@dataclass(frozen=True)
class OpenImage:
    """A batch of B images (B = 1 in an editor) with features, appearance and network memory, each computed on demand.

    Everything is computed without gradients. It belongs to one generator and one learned editor.
    """

    synthesis: LayeredGenerator
    """The images as a function of `latent`."""
    editor: LearnedEditor | None = None
    """The learned editor, where the checkpoint has one."""
    known: Features | None = field(default=None, repr=False)
    """Block outputs that are already known, from the first block on."""
    _looks: dict[tuple[int, int], Look] = field(default_factory=dict, init=False, repr=False)

    @staticmethod
    def of(
        generator: Generator,
        code: Float[Tensor, "B L D"] | Layers,
        editor: LearnedEditor | None = None,
        known: Features | None = None,
    ) -> OpenImage:
        """Opens images of latents, or one image in layers."""
        layers = Layers.of(code) if isinstance(code, Tensor) else code
        return OpenImage(LayeredGenerator(generator, layers.stack), editor, known)

    def within(self, mask: Bool[Tensor, "H W"] | None, handle: Float[Tensor, " 2"]) -> OpenImage:
        """The same image for an edit that keeps everything outside a mask, at a handle (x, y) px.

        Raises:
            AutodragError: too many different masks, see `Layers.split`.
        """
        layers = self.layers
        if mask is None and len(layers) == 1:
            return self
        kept, changing = layers.split(mask)
        background, known = None, None
        if kept == layers.stack:
            background = self.rendered
        elif kept == self.synthesis.kept:
            background = self.synthesis.background
        # The blended features of unchanged latents are known if no layer was cut by the mask.
        if len(layers) == 1 or (kept == self.synthesis.kept and len(changing) == len(self.synthesis.changing)):
            known = self.features
        active = Layers(changing).at(handle)
        synthesis = LayeredGenerator(self.synthesis.generator, changing, kept, active=active, background=background)
        return OpenImage(synthesis, self.editor, known)

    def origin(self, references: References | None) -> OpenImage:
        """The image that defines the appearance of the handles: an earlier one, or this one."""
        if references is None or references.layers.stack == self.layers.stack:
            return self
        return OpenImage.of(self.synthesis.generator, references.layers)

    @property
    def latent(self) -> Float[Tensor, "B L D"]:
        """W+ of the layer that an edit changes."""
        return self.synthesis.latent

    @property
    def layers(self) -> Layers:
        """The code of the image."""
        return self.synthesis.layers

    @cached_property
    @torch.no_grad()
    def features(self) -> Features:
        """Outputs of all blocks that trackers and networks read."""
        block = feature_block(self.synthesis.config)
        if self.editor is not None:
            block = max(block, self.editor.predictor.config.track_block)
        if self.known is not None and len(self.known.outputs) > block:
            return self.known
        return self.synthesis.features(self.latent, block=block)

    @cached_property
    def rendered(self) -> Rendered:
        """All block outputs and the picture."""
        # Inference tensors could not take part in a backward pass later.
        with torch.inference_mode(False), torch.no_grad():
            features = self.synthesis.features(self.latent, block=len(self.synthesis.config.block_resolutions) - 1)
            return Rendered(features, self.synthesis.image(self.latent, features))

    @torch.no_grad()
    def output(self, block: int) -> Float[Tensor, "B C h w"]:
        """Output of one block."""
        if block < len(self.features.outputs):
            return self.features.outputs[block]
        return self.synthesis.features(self.latent, block=block).last

    def outputs(self, blocks: slice) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Outputs of some blocks, coarse to fine."""
        known = self.features
        if blocks.stop > len(known.outputs):
            with torch.no_grad():
                known = self.synthesis.features(self.latent, block=blocks.stop - 1)
        return known.outputs[blocks]

    @property
    def picture(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image, HWC uint8 RGB; the first one of a batch."""
        with torch.no_grad():
            return to_uint8(self.synthesis.image(self.latent, self.features))[0]

    @torch.no_grad()
    def look(self, blocks: slice) -> Look:
        """Standardised features of some blocks, for reading the appearance of points."""
        key = (blocks.start, blocks.stop)
        if key not in self._looks:
            self._looks[key] = look(self.outputs(blocks))
        return self._looks[key]

    @cached_property
    @torch.no_grad()
    def memory(self) -> ImageMemory:
        """What the networks compute once per image. Only with a learned editor."""
        assert self.editor is not None
        maps = self.features.outputs[self.editor.predictor.config.feature_block]
        return self.editor.open(self.latent, maps)


FEATURE_BLOCK = 5
"""Index from 0 of the block with 128 x 128 features, "the 6th block" of DragGAN."""


def feature_block(config: GeneratorConfig, block: int = FEATURE_BLOCK) -> int:
    """The block that is tracked: `block`, or the last one of a smaller generator."""
    return min(block, len(config.block_resolutions) - 1)


TRACKED_BLOCKS = 3
"""Points are tracked in the feature block and the blocks before it, this many in all."""


def tracked_blocks(config: GeneratorConfig, block: int = FEATURE_BLOCK) -> slice:
    """The blocks in which the refiner tracks points, up to `block`."""
    last = feature_block(config, block)
    return slice(max(0, last + 1 - TRACKED_BLOCKS), last + 1)


def opened_code(
    generator: Generator,
    *,
    seed: int | None,
    psi: float,
    label: int | None,
    latent: Tensor | str | Path | None,
    fingerprint: str,
) -> Layers:
    """The code of an image to open; see `DragEditor.open` for the arguments.

    Args:
        fingerprint: of the generator; a latent file of another generator is refused.

    Raises:
        AutodragError: not exactly one of seed and latent, or values that this generator cannot use.
    """
    if (seed is None) == (latent is None):
        raise AutodragError("give either a seed or a latent to open, such as seed=7")
    config = generator.config
    if isinstance(latent, Tensor):
        expected = (1, config.latent_layers, config.w_dim)
        if latent.shape != expected or not torch.isfinite(latent).all():
            raise AutodragError(f"latent has shape {tuple(latent.shape)}; expected finite values of {expected}")
        return Layers.of(latent.detach().float())
    if latent is not None:
        return load_code(latent, config, generator=fingerprint)
    assert seed is not None
    return Layers.of(seed_latent(generator, seed, psi, label))


MAX_PSI = 2.0


@torch.no_grad()
def seed_latent(generator: Generator, seed: int, psi: float, label: int | None) -> Float[Tensor, "1 L D"]:
    """W+ of a seed, truncated by `psi`; a label is given exactly where the generator has classes."""
    config, device = generator.config, generator.mapping.w_avg.device
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise AutodragError(f"seed {seed!r} is not usable; expected a whole number from 0 to {2**32 - 1}")
    if not np.isfinite(psi) or abs(psi) > MAX_PSI:
        raise AutodragError(f"psi {psi:g} is not usable; expected a number from -2 to 2, such as 0.7")
    if config.c_dim == 0 and label is not None:
        raise AutodragError(f"label {label} is given, but this generator has no classes; leave it out")
    if config.c_dim and (label is None or not 0 <= label < config.c_dim):
        raise AutodragError(f"label {label} is not a class of this generator; expected 0 to {config.c_dim - 1}")
    labels = None if label is None else torch.eye(config.c_dim, device=device)[label][None]
    return generator.map(seed_z(seed, config.z_dim).to(device), labels, psi=psi)
