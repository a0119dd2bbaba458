"""What goes over HTTP, besides the edit itself, whose schema is that of `autodrag.edits`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Coordinate = Annotated[float, Field(allow_inf_nan=False)]
XY = tuple[Coordinate, Coordinate]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1, description="Seed of the image.")]
Psi = Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False, description="Truncation: 1 = none, 0 = average image.")]
Label = Annotated[int | None, Field(ge=0, le=1_000_000, description="Class of a conditional generator.")]


class Problem(BaseModel):
    """Why something was refused, in one sentence."""

    detail: str


class OpenRequest(BaseModel):
    """An image to open."""

    model_config = ConfigDict(extra="forbid", strict=True)

    checkpoint: Annotated[str | None, Field(max_length=200)] = None
    """Name of a checkpoint on offer; None takes the session's, or critters for a new one."""
    seed: Seed = 0
    psi: Psi = 0.7
    label: Label = None


class PointState(BaseModel):
    """A dragged point, px of the image."""

    handle: XY
    """Where its content is now."""
    target: XY
    """Where it should be."""
    distance: float | None = None
    """Between the two, as the tracker sees it; None before the first drag."""
    confidence: float | None = None
    """How sure the tracker is, 0 to 1."""
    lost: bool = False
    """No longer recognised: its distance means little."""
    landmark_distance: float | None = None
    """Distance left by the landmark net, where there is one and a landmark is near."""


class Scene(BaseModel):
    """What is in force beside the image."""

    points: list[PointState] = []
    anchors: list[XY] = []
    mask: str | None = None
    """Name of an uploaded mask; None: everything may move."""


class EditOutcome(BaseModel):
    """How the last edit ended."""

    method: str
    """predict, refine or both."""
    steps: int
    seconds: float
    reason: str
    """arrived, steps, budget, stopped, stalled or lost."""


class SessionState(BaseModel):
    """Everything about a session but its pixels."""

    key: str
    """The secret that opens the session; whoever knows it, may edit."""
    checkpoint: str
    fingerprint: str
    width: int
    height: int
    classes: int
    """Number of classes of a conditional generator, else 0."""
    can_predict: bool
    """Whether the checkpoint has a predictor; without one, `method` must be refine."""
    seed: int | None
    """None: opened from a latent."""
    psi: float
    label: int | None
    revision: int
    """Grows with every change of the present image."""
    images: list[int]
    """Ids of the images of the history, from the opened one on, those that redo brings back included."""
    present: int
    """Index of the present image among them: the number of edits that undo can take back."""
    scene: Scene
    outcome: EditOutcome | None
    """Of the edit that led to the present image."""
    saved: bool
    """Whether the present state is kept on disk."""


class CheckpointInfo(BaseModel):
    """A checkpoint on offer."""

    name: str


class About(BaseModel):
    """The server and its bounds."""

    version: str
    checkpoints: list[CheckpointInfo]
    points: int
    edit_seconds: float
    body_bytes: int
    idle_seconds: float
