"""Images in layers: outside a mask, an edit changes nothing.

An edit with a mask is synthesised with a new latent inside the mask and blended with the features of the image before
it after every block (Suzuki et al., "Spatially Controllable Image Synthesis with Internal Representation Collaging",
2018; proposed for masks in the discussion of DragGAN, 2023). The features that trackers and networks read are the
blended ones. Finally the picture is composited over the picture before it, with a feather inside the mask. An edited
image is therefore a stack: a latent for the whole image and, above it, latents that each fill a mask.

Masks are (H, W), True where a layer lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.nets.stylegan2 import Blend, Features, Generator, GeneratorConfig
from autodrag.points import resize_mask

FEATHER = 1 / 32
"""Width of the transition inside a mask, as a share of the image height: 2 px at 64 px, 16 px at 512 px."""
MAX_LAYERS = 16
"""Largest number of layers of an image. Consecutive edits with the same mask share a layer."""


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image. Layers of the same part share one object."""

    mask: Bool[Tensor, "H W"]

    @cached_property
    def shares(self) -> tuple[Float[Tensor, "1 1 h w"], ...]:
        """Share of each cell that lies in the region, for the blocks of 4 px, 8 px and so on."""
        height, width = self.mask.shape
        sizes = [(4 * 2**k, 4 * 2**k * width // height) for k in range((height // 4).bit_length())]
        # Inference tensors could not take part in a backward pass later.
        with torch.inference_mode(False):
            return tuple(resize_mask(self.mask, size)[None, None] for size in sizes)

    @cached_property
    def feather(self) -> Float[Tensor, "H W"]:
        """Opacity of a picture: 0 outside the region, rising to 1 within `FEATHER` of its border."""
        depth = cv2.distanceTransform(self.mask.cpu().numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        width = max(1, round(FEATHER * len(depth)))
        with torch.inference_mode(False):
            return torch.from_numpy(depth / (width + 1)).clamp(0, 1).to(self.mask.device)


@dataclass(frozen=True, eq=False)
class Layer:
    """A latent and the region that it fills."""

    latent: Float[Tensor, "B L D"]
    """W+. B is 1 if there is a region."""
    region: Region | None = None
    """None: the whole image."""


@dataclass(frozen=True, eq=False)
class Layers:
    """The code of an image: its layers, from the bottom to the top. The first fills the whole image."""

    stack: tuple[Layer, ...]

    @staticmethod
    def of(latent: Float[Tensor, "B L D"]) -> Layers:
        """Images of one latent each."""
        return Layers((Layer(latent),))

    def __len__(self) -> int:
        return len(self.stack)

    def to(self, device: torch.device | str) -> Layers:
        """The same layers on a device."""
        moved = {id(a.region): Region(a.region.mask.to(device)) for a in self.stack if a.region is not None}
        return Layers(tuple(Layer(a.latent.to(device), moved.get(id(a.region))) for a in self.stack))

    def split(self, mask: Bool[Tensor, "H W"] | None) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
        """The layers that an edit with a mask keeps, and the layers above them that it changes.

        Without a mask, everything changes. Layers that the changed ones hide are left out. A hidden layer below a kept
        one stays, because the features of the kept one depend on it.

        Raises:
            AutodragError: there would be more than `MAX_LAYERS` layers.
        """
        if mask is None:
            return (), self.stack
        regions = [layer.region for layer in self.stack if layer.region is not None]
        changing: list[Layer] = []
        hidden = torch.zeros_like(mask)
        for layer in reversed(self.stack):
            inside = mask if layer.region is None else layer.region.mask & mask
            if bool((inside & ~hidden).any()):
                changing.insert(0, Layer(layer.latent, _region(inside, regions)))
                hidden = hidden | inside
        kept = list(self.stack)
        while kept[-1].region is not None and not bool((kept[-1].region.mask & ~hidden).any()):
            kept.pop()
        if len(kept) + len(changing) > MAX_LAYERS:
            raise AutodragError(
                f"the image consists of {len(self)} regions, and this mask would make more than {MAX_LAYERS} of them; "
                "use the last mask again, or drag without a mask"
            )
        return tuple(kept), tuple(changing)

    def toward(self, later: Layers, share: float) -> Layers:
        """A frame between this image (share 0) and the result of one edit of it (share 1)."""

        def origin(layer: Layer) -> Layer:
            """The uppermost layer here from which an edit could have made a layer."""
            if layer in self.stack or layer.region is None:
                return layer if layer in self.stack else self.stack[0]
            for own in reversed(self.stack):
                if own.region is None or bool((own.region.mask | ~layer.region.mask).all()):
                    return own
            return self.stack[0]

        return Layers(tuple(Layer(origin(a).latent.lerp(a.latent, share), a.region) for a in later.stack))

    def tensors(self) -> dict[str, Tensor]:
        """The layers as tensors, for a file: `latent` (1, L, D); with more layers, `upper` (K, L, D) and `regions`
        (K, H, W), fp16 zeros and ones."""
        base, *upper = self.stack
        tensors = {"latent": base.latent.float()}
        if upper:
            masks = [layer.region.mask for layer in upper if layer.region is not None]
            tensors["upper"] = torch.cat([layer.latent for layer in upper]).float()
            tensors["regions"] = torch.stack(masks).half()
        return tensors

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], config: GeneratorConfig) -> Layers:
        """The layers of `tensors` for a generator; the tensors are untrusted.

        Raises:
            AutodragError: other names, shapes or values than `tensors` gives.
        """
        code = (config.latent_layers, config.w_dim)
        base, upper, regions = (tensors.get(name) for name in ("latent", "upper", "regions"))
        if base is None or (upper is None) != (regions is None) or len(tensors) != (1 if upper is None else 3):
            raise AutodragError(f"it holds {sorted(tensors)}; expected latent, or latent, upper and regions")
        if base.shape != (1, *code):
            raise AutodragError(f"its latent has shape {tuple(base.shape)}; this generator needs {(1, *code)}")
        if upper is None or regions is None:
            return Layers.of(base.float())
        count = upper.shape[0] if upper.dim() else 0
        if not 1 <= count < MAX_LAYERS or upper.shape != (count, *code) or regions.shape != (count, *config.image_size):
            raise AutodragError(
                f"its upper layers have shapes {tuple(upper.shape)} and {tuple(regions.shape)}; this generator needs "
                f"{('K', *code)} and {('K', *config.image_size)}, K below {MAX_LAYERS}"
            )
        known: list[Region] = []
        stack = [Layer(base.float())]
        for latent, mask in zip(upper.float(), regions > 0.5, strict=True):
            stack.append(Layer(latent[None], _region(mask, known)))
        return Layers(tuple(stack))

    def at(self, point: Float[Tensor, " 2"]) -> int:
        """Index of the uppermost layer that fills a point (x, y) in px; the uppermost of all if none does."""
        x, y = (round(value) for value in point.tolist())
        for index in range(len(self) - 1, -1, -1):
            region = self.stack[index].region
            if region is None:
                return index
            height, width = region.mask.shape
            if 0 <= y < height and 0 <= x < width and bool(region.mask[y, x]):
                return index
        return len(self) - 1


def _region(mask: Bool[Tensor, "H W"], known: list[Region]) -> Region:
    """The region of a mask, from `known` if it has one; otherwise a new one, which is appended to `known`."""
    region = next((one for one in known if torch.equal(one.mask, mask)), None)
    if region is None:
        region = Region(mask)
        known.append(region)
    return region


@dataclass(frozen=True)
class Rendered:
    """All block outputs and the picture of some layers."""

    features: Features
    picture: Float[Tensor, "B 3 H W"]


class LayeredGenerator:
    """An image in layers as a function of one latent; all changing layers follow the change of that latent.

    The kept layers are rendered once. With a single layer, it is the generator itself.
    """

    def __init__(
        self,
        generator: Generator,
        changing: tuple[Layer, ...],
        kept: tuple[Layer, ...] = (),
        *,
        active: int = -1,
        background: Rendered | None = None,
    ) -> None:
        """Takes the results of `Layers.split`.

        Args:
            active: index of the changing layer whose latent is the argument of the image.
            background: of the kept layers, if it is known.
        """
        self.generator, self.kept, self.changing, self.active = generator, kept, changing, active
        self._background = background

    @property
    def config(self) -> GeneratorConfig:
        """The generator's config."""
        return self.generator.config

    @property
    def latent(self) -> Float[Tensor, "B L D"]:
        """The latent of the active layer before the edit."""
        return self.changing[self.active].latent

    @property
    def background(self) -> Rendered | None:
        """The kept layers; None without any."""
        if self._background is None and self.kept:
            # Inference tensors could not take part in a backward pass later.
            with torch.inference_mode(False), torch.no_grad():
                below: Rendered | None = None
                for layer in self.kept:
                    known = self._features(layer, layer.latent, _features_of(below), self._last)
                    below = self._over(layer, layer.latent, known, below)
            self._background = below  # assigned once complete, because other threads may read it
        return self._background

    def features(self, latent: Float[Tensor, "B L D"], *, block: int) -> Features:
        """Blended outputs of blocks 0..`block`."""
        known = _features_of(self.background)
        for layer in self.changing:
            known = self._features(layer, self._moved(layer, latent), known, block)
        assert known is not None
        return known

    def image(self, latent: Float[Tensor, "B L D"], features: Features) -> Float[Tensor, "B 3 H W"]:
        """The picture whose first blended blocks gave `features`."""
        below = self.background
        for layer in self.changing:
            moved, known = self._moved(layer, latent), features
            if layer is not self.changing[-1]:
                known = self._features(layer, moved, _features_of(below), self._last)
            below = self._over(layer, moved, known, below)
        assert below is not None
        return below.picture

    @property
    def layers(self) -> Layers:
        """The code of the image before the edit."""
        return Layers((*self.kept, *self.changing))

    def moved(self, latent: Float[Tensor, "B L D"]) -> LayeredGenerator:
        """The same image after an edit that ended at `latent`."""
        latent = latent.detach().to(self.latent.device)
        changing = tuple(Layer(self._moved(layer, latent), layer.region) for layer in self.changing)
        return LayeredGenerator(self.generator, changing, self.kept, active=self.active, background=self._background)

    @property
    def _last(self) -> int:
        return len(self.config.block_resolutions) - 1

    def _moved(self, layer: Layer, latent: Tensor) -> Tensor:
        return latent if layer.latent is self.latent else layer.latent + (latent - self.latent)

    def _features(self, layer: Layer, latent: Tensor, below: Features | None, block: int) -> Features:
        return self.generator.features(latent, block=block, blend=_blend(layer, below))

    def _over(self, layer: Layer, latent: Tensor, known: Features, below: Rendered | None) -> Rendered:
        """A layer over others, from the features that are known of it."""
        picture = self.generator.image(latent, known, blend=_blend(layer, _features_of(below)))
        if layer.region is not None and below is not None:
            picture = below.picture.lerp(picture, layer.region.feather)
        return Rendered(known, picture)


def _features_of(rendered: Rendered | None) -> Features | None:
    return None if rendered is None else rendered.features


def _blend(layer: Layer, below: Features | None) -> Blend | None:
    """Keeps the features below a layer outside its mask."""
    region = layer.region
    if region is None or below is None:
        return None
    return lambda index, output: below.outputs[index].lerp(output, region.shares[index].to(output.dtype))
