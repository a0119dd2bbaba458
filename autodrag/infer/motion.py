"""What the refiner minimises: losses over generator features that move handles to targets and keep the rest.

`motion_supervision` and `fixed_region` are DragGAN's two terms (Pan et al. 2023, eq. 1).
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.points import Size, disk, sample, sample_resized


def motion_supervision(
    maps: Float[Tensor, "1 C h w"],
    points: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    image: Size,
    *,
    radius: int,
) -> Float[Tensor, ""]:
    """DragGAN's motion loss: the features one pixel further toward the target shall become those of the patch here.

    For every point farther than 1 px from its target: mean L1 over channels and over the pixels within `radius` px
    (the centre at least), shifted by the unit vector toward the target; the source patch is constant. Summed over
    points. 0 where every point is within 1 px.
    """
    way = targets - points
    length = way.norm(dim=1, keepdim=True)
    direction = way / (length + 1e-7)
    patch = points.round()[:, None] + disk(radius).to(points)  # (N, P, 2)
    shifted = patch + direction[:, None]
    count = patch.shape[:2]
    here = sample(maps.detach(), patch.flatten(0, 1)[None], image)[0].unflatten(1, count)  # (C, N, P)
    there = sample_resized(maps, shifted.flatten(0, 1)[None], image)[0].unflatten(1, count)
    each = (here - there).abs().mean(dim=(0, 2))  # (N,)
    # Patches are clipped at the border in DragGAN; here their outside pixels repeat the border.
    return (each * (length[:, 0] > 1)).sum()


def fixed_region(
    maps: Float[Tensor, "1 C h w"], initial: Float[Tensor, "1 C h w"], movable: Float[Tensor, "h w"]
) -> Float[Tensor, ""]:
    """DragGAN's mask loss: mean L1 change of the features where nothing may move, over the whole map."""
    return ((maps - initial) * (1 - movable)).abs().mean()


def held_points(
    maps: Float[Tensor, "1 C h w"],
    initial: Float[Tensor, "1 C h w"],
    anchors: Float[Tensor, "M 2"],
    image: Size,
    radius: int,
) -> Float[Tensor, ""]:
    """Mean L1 change of the features within `radius` px of the anchors, summed over anchors."""
    patch = (anchors[:, None] + disk(radius).to(anchors)).flatten(0, 1)[None]
    change = (sample(maps, patch, image) - sample(initial, patch, image)).abs()
    return change.mean() * len(anchors)


def movable_share(mask: Bool[Tensor, "H W"] | None, size: Size) -> Float[Tensor, "h w"] | None:
    """A mask (True = may move) at the size of a feature map; None where everything may move."""
    from autodrag.points import resize_mask

    if mask is None or bool(mask.all()):
        return None
    return resize_mask(mask, size)
