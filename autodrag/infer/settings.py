"""How the refiner works: its settings, and the two named sets of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autodrag.infer.tracking import Norm, Tracker
from autodrag.points import Size

ALONE = {
    "draggan": ("lr", "supervision_radius", "tracking_radius", "norm", "tracker", "raft_weights"),
    "locate": ("reach", "damping", "prior", "reuse", "gain", "patience"),
}
"""Settings that one objective alone reads. Both read which blocks are supervised and tracked, `locate` to see none."""


@dataclass(frozen=True)
class RefineConfig:
    """How to drag. Lengths are pixels of the output image; use `preset` to get them for an image size."""

    objective: Literal["draggan", "locate"] = "locate"
    """The published loss, or ours."""
    steps: int = 30
    """Most optimisation steps."""
    budget_s: float | None = None
    """Wall-clock limit in seconds; None for none."""
    lr: float = 0.05
    """`draggan`: Adam's learning rate."""
    space: Literal["auto", "w", "w+"] = "w+"
    """Move the edited layers together (W) or each on its own (W+). `locate` alone: auto is W, and W+ with a mask, which
    each on its own they keep better. Together they stay more plausible: `benchmarks/tuning.py --only space`."""
    edit_layers: int = 6
    """The first so many latent vectors may change; the rest keep the appearance."""
    feature_block: int = 5
    """Block whose output is the feature map, from 0; the last one where a generator has fewer."""
    supervision_radius: int = 3
    """Radius r1 of the supervised disk, px."""
    tracking_radius: int = 12
    """Half width r2 of the tracker's window, px."""
    stop_px: float = 2.0
    """A point has arrived at this distance from its target."""
    mask_weight: float = 20.0
    """Weight of the change where nothing may move."""
    anchor_weight: float = 1.0
    """Weight of the change around points that must stay."""
    norm: Norm = "l2"
    """Feature distance of the tracker."""
    tracker: Tracker = "nearest"
    """`draggan`: nearest feature (published), RAFT on the images, or none: every step pulls at the first places."""
    raft_weights: Path | None = None
    """File of RAFT's weights; None looks in PyTorch's hub folder."""
    supervised_blocks: tuple[int, ...] = ()
    """`draggan`: blocks whose outputs, side by side, are supervised; none: `feature_block`."""
    tracked_blocks: tuple[int, ...] = ()
    """`draggan`: blocks whose outputs, side by side, are tracked and kept by the mask; none: `feature_block`."""
    reach: float = 1 / 32
    """`locate`: how far one step tries to move a point, at most, as a share of the height; halved where it fails."""
    damping: float = 0.5
    """`locate`: Levenberg and Marquardt's at the first step, as a share of the mean squared gradient of a position."""
    prior: float = 5.0
    """`locate`: square px (at 64) that an edit of one standard deviation costs, of the one code in W, of every
    layer's in W+: of all edits the likely one is wanted. Without it points come nearer by the tracker, but no nearer
    by a landmark net, by edits up to thrice as long. Less than this brings single points nearer, more than this makes
    edits that are shorter still: `benchmarks/tuning.py --only prior`."""
    reuse: int = 1
    """`locate`: so many steps after one that took gradients go on with its slopes, mended by what has come of them;
    with a mask none do. As near with 1 as with 0 in less time: `benchmarks/tuning.py --only reuse`."""
    gain: float = 0.02
    """`locate`: a step that lowers the loss by less than this share counts as one that brought nothing."""
    lost_confidence: float = 0.35
    """A point whose confidence is below this is lost: reported, and no longer followed or pulled."""
    patience: int = 3
    """`locate`: stop after so many steps in a row that brought nothing."""

    def __post_init__(self) -> None:
        if (
            self.objective not in ("draggan", "locate")
            or self.space not in ("auto", "w", "w+")
            or self.norm not in ("l1", "l2")
        ):
            raise ValueError(f"objective {self.objective!r}, space {self.space!r} or norm {self.norm!r} is unknown.")
        if self.objective == "draggan" and self.space == "auto":
            raise ValueError("space auto is for the objective locate alone; expected w or w+.")
        if self.steps < 0 or self.lr <= 0 or self.stop_px <= 0:
            raise ValueError("expected steps >= 0, lr > 0 and stop_px > 0.")
        if self.budget_s is not None and not self.budget_s > 0:
            raise ValueError(f"budget_s {self.budget_s}: expected a positive number of seconds, or none.")
        if self.edit_layers < 1 or self.feature_block < 0:
            raise ValueError("expected edit_layers >= 1 and feature_block >= 0.")
        if self.objective == "locate" and (self.tracker != "nearest" or self.supervised_blocks or self.tracked_blocks):
            raise ValueError("tracker, supervised_blocks and tracked_blocks are for the objective draggan alone.")
        if min((*self.supervised_blocks, *self.tracked_blocks), default=0) < 0:
            raise ValueError("expected blocks from 0 on.")
        if self.supervision_radius < 0 or self.tracking_radius < 1:
            raise ValueError("expected supervision_radius >= 0 and tracking_radius >= 1.")

    def in_use(self) -> dict[str, Any]:
        """The settings that its objective reads, by name; what the others are makes no difference."""
        unread = {name for objective, names in ALONE.items() if objective != self.objective for name in names}
        return {name: value for name, value in vars(self).items() if name not in unread}

    @staticmethod
    def preset(name: str, image_size: Size) -> RefineConfig:
        """The named settings for images of (H, W) px; raises ValueError for another name.

        `draggan` runs as the official code does where that and the paper differ: L2 tracking (paper: L1), a square
        window clipped at the border, mean instead of sum in the motion loss, the 128 x 128 features, radii and stop
        distance r1 = 3, r2 = 12, 2 px at 512 px scaled by the height, the last at least 2 px, Adam at 1e-3, mask
        weight 20 (what both of its interfaces send). Pixels are exact where its disk uses a grid stretched by
        h / (h - 1). Where a radius would round to 0 (images under 128 px) it is 1.

        `default` was chosen on drags of the shipped 64 px critters; `benchmarks/tuning.py` compares settings.
        """
        scale = image_size[0] / 512
        if name == "draggan":
            return RefineConfig(
                objective="draggan",
                steps=300,
                lr=1e-3,
                supervision_radius=max(1, round(3 * scale)),
                tracking_radius=max(1, round(12 * scale)),
                stop_px=max(2 * scale, 2.0),
                lost_confidence=0.0,
            )
        if name == "default":
            return RefineConfig(
                space="auto",
                stop_px=max(scale, 0.5),
                mask_weight=5000.0,
            )
        raise ValueError(f"preset {name!r}: expected default or draggan.")
