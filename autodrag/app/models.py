"""JSON bodies of the HTTP API. Edits have the schema of `autodrag.edits`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Coordinate = Annotated[float, Field(allow_inf_nan=False)]
XY = tuple[Coordinate, Coordinate]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1, description="Seed of the image.")]
Psi = Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False, description="Truncation: 1 = none, 0 = average image.")]
Label = Annotated[int | None, Field(ge=0, le=1_000_000, description="Class of a conditional generator.")]


class Problem(BaseModel):
    """The reason of a refusal, in one sentence."""

    detail: str


class OpenRequest(BaseModel):
    """An image to open."""

    model_config = ConfigDict(extra="forbid", strict=True)

    checkpoint: Annotated[str | None, Field(max_length=200)] = None
    """Name of an available checkpoint; None: that of the session, or critters for a new session."""
    seed: Seed = 0
    psi: Psi = 0.7
    label: Label = None


class PointState(BaseModel):
    """A dragged point, px of the image."""

    handle: XY
    """Present position."""
    target: XY
    """Desired position."""
    distance: float | None = None
    """Distance between the two according to the tracker; None before the first drag."""
    confidence: float | None = None
    """Confidence of the tracker, 0 to 1."""
    uncertainty: float | None = None
    """How far the point may be from its true position, px; None before the first drag."""
    lost: bool = False
    """Whether the point was lost; its position and distance are then unreliable."""
    landmark_distance: float | None = None
    """Distance left according to the landmark net; None without a net, or without a landmark nearby."""


class Scene(BaseModel):
    """Points, anchors and mask of an image."""

    points: list[PointState] = []
    anchors: list[XY] = []
    mask: str | None = None
    """Name of an uploaded mask; None: all pixels may change."""


class PointRequest(BaseModel):
    """A handle and its target, px of the image."""

    model_config = ConfigDict(extra="forbid")

    handle: XY
    target: XY


class SceneRequest(BaseModel):
    """Points, anchors and mask that a client sets."""

    model_config = ConfigDict(extra="forbid")

    points: Annotated[list[PointRequest], Field(max_length=1000)] = []
    anchors: Annotated[list[XY], Field(max_length=1000)] = []
    mask: Annotated[str | None, Field(max_length=100)] = None
    """Name of an uploaded mask; None: all pixels may change."""
    revision: int | None = None
    """Revision of the state that the client has seen. If an edit ended since, its handles are moved to their new
    positions."""


class SaveRequest(BaseModel):
    """A named copy of a session."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]


class Saved(BaseModel):
    """A named copy of a session on disk."""

    save: str
    """Secret key of the copy; everyone who knows it may open or delete it."""
    name: str
    steps: int
    """Number of steps of its history."""


class EditOutcome(BaseModel):
    """How the last edit ended."""

    method: str
    """predict, refine or both."""
    steps: int
    seconds: float
    reason: str
    """Why it ended: arrived, rounds, steps, budget, stopped, stalled or lost."""
    outcome: str | None = None
    """arrived, nearer or failed. A failed edit left the image as it was."""
    advice: str | None = None
    """Why it did not arrive and what to try, in a sentence."""


class SessionState(BaseModel):
    """A session without its pixels."""

    key: str
    """Secret of the session; everyone who knows it may edit."""
    checkpoint: str
    fingerprint: str
    width: int
    height: int
    classes: int
    """Number of classes of a conditional generator, otherwise 0."""
    can_predict: bool
    """Whether the checkpoint has a predictor; without a predictor, `method` must be refine or auto."""
    seed: int | None
    """None: opened from a latent, or the oldest edits were dropped."""
    psi: float
    label: int | None
    revision: int
    """Grows with every change of the present image."""
    images: list[int]
    """Ids of the images of the history, one for each step, from the first step to the last one that redo restores.
    A step that changes only points, anchors or mask repeats the id of the step before it."""
    present: int
    """Index of the present step in `images`, which is the number of steps that undo can take back."""
    opened: int
    """Id of the image that was opened, before the edits of the present image."""
    edits: int
    """Number of edits of the opened image."""
    scene: Scene
    outcome: EditOutcome | None
    """Result of the edit that led to the present image."""
    saved: bool
    """Whether the present state is on disk. False before the first step, and if the disk is full."""


class CheckpointInfo(BaseModel):
    """An available checkpoint."""

    name: str


class About(BaseModel):
    """The server and its limits."""

    version: str
    checkpoints: list[CheckpointInfo]
    points: int
    edit_seconds: float
    body_bytes: int
    idle_seconds: float
