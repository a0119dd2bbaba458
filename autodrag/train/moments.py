"""That edited codes stay spread as the codes they were made of: their mean and covariance, over many steps.

An editor that is only asked to bring points to their targets learns a few convenient directions: one coordinate then
varies more than among images and another less, and the edited images look more alike than the ones before. A batch is
too small to tell, so that running averages are kept, and a step changes the edits against what they have come to.
Ours; Auto DragGAN has no such loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

DECAY = 0.99
"""Of the averages: they remember some hundred steps."""
DIRECTIONS = 32
"""So many leading directions are counted. The averages are noisy, the more so the more there are: over all 256
directions of critters most of what they showed was noise, where 20 hold 96 % of what edits change."""


class Moments(nn.Module):
    """Running gap between mean and second moments of codes before and after an edit, per layer and group of samples.

    Of `width` coordinates the first `DIRECTIONS` are counted. Its buffers are saved with the training that it belongs
    to.
    """

    share: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, groups: int, layers: int, width: int) -> None:
        super().__init__()
        self.width = width = min(width, DIRECTIONS)
        self.register_buffer("share", torch.full((groups,), 1 / groups))
        self.register_buffer("mean", torch.zeros(groups, layers, width))
        self.register_buffer("square", torch.zeros(groups, layers, width, width))

    def forward(
        self,
        before: Float[Tensor, "B L D"],
        after: Float[Tensor, "B L D"],
        group: Int[Tensor, " B"],
        reduce: Callable[[Tensor], Tensor] = lambda gap: gap,
    ) -> Float[Tensor, ""]:
        """A loss whose gradient is that of 4 |E[c' - c]|^2 + |E[c' c'^T - c c^T]|^2, averaged over layers and samples.

        Near the standard normal distribution that is four times the Fréchet distance of two of them.

        Args:
            before: codes in standard coordinates, leading directions first.
            after: the same codes edited; the gradient goes to these.
            group: which samples are counted together, from 0.
            reduce: the mean over processes that share a batch.

        Returns:
            2 R g - R^2, with R the running gap and g that of the batch: R^2 where they are alike.
        """
        before, after = (codes[..., : self.width].float() for codes in (before.detach(), after))
        mine = nn.functional.one_hot(group, len(self.mean)).to(after) / len(after)  # (B, G)
        gaps = (
            ("mean", 4.0, torch.einsum("bg,bld->gld", mine, after - before)),
            ("square", 1.0, _second(mine, after) - _second(mine, before)),
        )
        self.share.lerp_(reduce(mine.sum(dim=0)), 1 - DECAY)
        share, loss = self.share.clone(), after.new_zeros(())
        for name, weight, gap in gaps:
            running = getattr(self, name)
            running.lerp_(reduce(gap.detach()), 1 - DECAY)
            squares = weight * (2 * running.clone() * gap - running.square()).flatten(1).sum(dim=1)
            loss = loss + (squares / share).sum() / running.shape[1]
        return loss


def _second(weights: Float[Tensor, "B G"], codes: Float[Tensor, "B L D"]) -> Float[Tensor, "G L D D"]:
    return torch.stack([torch.einsum("bld,ble->lde", codes * w[:, None, None], codes) for w in weights.t()])
