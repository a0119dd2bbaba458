"""A loss that preserves mean and covariance of the codes, so that edited images vary as much as unedited images.

An editor trained only to move points uses a few preferred directions. The variance of some coordinates then grows,
others shrink, and edited images become more similar to each other. A batch is too small to estimate these moments, so
the loss uses running averages over many steps. Auto DragGAN has no such loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

DECAY = 0.99
"""Decay of the running averages, which corresponds to about a hundred steps."""
DIRECTIONS = 32
"""Number of leading directions that the loss uses. The noise of the averages grows with this number: over all 256
directions of critters, noise dominated, while 20 directions contain 96 % of the change made by edits."""


class Moments(nn.Module):
    """Running differences of first and second moments of codes before and after an edit, per layer and sample group.

    At most the first `DIRECTIONS` of `width` coordinates are used. The buffers are part of the training state.
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
        """A loss with the gradient of 4 |E[c' - c]|^2 + |E[c' c'^T - c c^T]|^2, averaged over layers and samples.

        Near the standard normal distribution, this expression is four times the Fréchet distance.

        Args:
            before: codes in standard coordinates, leading directions first.
            after: the edited codes, which receive the gradient.
            group: index of each sample's group, from 0.
            reduce: computes the mean over processes that share a batch.

        Returns:
            2 R g - R^2, with the running difference R and the difference g of the batch. It equals R^2 for g = R.
        """
        before, after = (codes[..., : self.width].float() for codes in (before.detach(), after))
        weights = nn.functional.one_hot(group, len(self.mean)).to(after) / len(after)  # (B, G)
        gaps = (
            ("mean", 4.0, torch.einsum("bg,bld->gld", weights, after - before)),
            ("square", 1.0, _second(weights, after) - _second(weights, before)),
        )
        self.share.lerp_(reduce(weights.sum(dim=0)), 1 - DECAY)
        share, loss = self.share.clone(), after.new_zeros(())
        for name, weight, gap in gaps:
            running = getattr(self, name)
            running.lerp_(reduce(gap.detach()), 1 - DECAY)
            squares = weight * (2 * running.clone() * gap - running.square()).flatten(1).sum(dim=1)
            loss = loss + (squares / share).sum() / running.shape[1]
        return loss


def _second(weights: Float[Tensor, "B G"], codes: Float[Tensor, "B L D"]) -> Float[Tensor, "G L D D"]:
    return torch.stack([torch.einsum("bld,ble->lde", codes * w[:, None, None], codes) for w in weights.t()])
