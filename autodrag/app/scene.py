"""Points, anchors and mask of an image: what a client may set, and what an edit makes of it."""

from __future__ import annotations

import math

from autodrag.app.config import AppConfig
from autodrag.app.models import XY, EditOutcome, PointState, Scene, SceneRequest
from autodrag.edits import Edit
from autodrag.errors import AutodragError
from autodrag.infer.task import DragResult
from autodrag.infer.trust import ADVICE


def scene_of(edit: Edit, mask: str | None) -> Scene:
    """The scene that an edit describes. `mask` is the name of its mask."""
    points = [PointState(handle=drag.handle, target=drag.target) for drag in edit.drags]
    return Scene(points=points, anchors=list(edit.anchors), mask=mask)


def scene_after(asked: Scene, result: DragResult, image: tuple[int, int]) -> Scene:
    """The scene after an edit: handles at their tracked positions inside the image, the rest as in `asked`."""
    height, width = image
    points = []
    landmarks = result.landmark_distances or (None,) * len(result.points)
    for index, old in enumerate(asked.points):
        x, y = result.points[index].tolist()
        points.append(
            PointState(
                handle=(round(min(max(x, 0.0), width - 1.0), 3), round(min(max(y, 0.0), height - 1.0), 3)),
                target=old.target,
                distance=round(float(result.distances[index]), 3),
                confidence=round(float(result.confidences[index]), 3),
                uncertainty=None if result.uncertainties is None else round(float(result.uncertainties[index]), 3),
                lost=bool(result.lost[index]),
                landmark_distance=landmarks[index],
            )
        )
    return Scene(points=points, anchors=asked.anchors, mask=asked.mask)


def outcome_of(result: DragResult) -> EditOutcome:
    """The numbers of a result that the state shows."""
    return EditOutcome(
        method=result.method,
        steps=result.steps,
        seconds=round(result.seconds, 3),
        reason=result.reason,
        outcome=result.outcome,
        advice=None if result.obstacle is None else ADVICE[result.obstacle],
    )


def check_scene(scene: SceneRequest, config: AppConfig, image: tuple[int, int]) -> None:
    """Refuse too many points, and points outside the image."""
    height, width = image
    for name, places in (
        ("handles", [point.handle for point in scene.points]),
        ("targets", [point.target for point in scene.points]),
        ("anchors", scene.anchors),
    ):
        if len(places) > config.points:
            raise AutodragError(f"{len(places)} {name} are more than this server's limit of {config.points}")
        for x, y in places:
            if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
                raise AutodragError(
                    f"({x:g}, {y:g}) of the {name} is outside the image of {width}x{height} px; move it inside"
                )


def arranged(scene: SceneRequest, present: Scene, before: Scene | None) -> Scene:
    """The scene that a client has set. A handle that did not move keeps the facts of the tracker.

    Args:
        present: the scene of the present image.
        before: the scene of the edit that led to the present image, if the client has not seen its result yet. Handles
            of that scene are replaced by their tracked positions.
    """
    known: dict[XY, PointState] = {point.handle: point for point in present.points}
    if before is not None:
        known = {old.handle: new for old, new in zip(before.points, present.points, strict=False)} | known
    points = []
    for point in scene.points:
        old = known.get(point.handle)
        if old is None:
            points.append(PointState(handle=point.handle, target=point.target))
            continue
        distance = old.distance
        if distance is not None and point.target != old.target:
            distance = round(math.dist(old.handle, point.target), 3)
        landmark = old.landmark_distance if point.target == old.target else None
        changes = {"target": point.target, "distance": distance, "landmark_distance": landmark}
        points.append(old.model_copy(update=changes))
    return Scene(points=points, anchors=scene.anchors, mask=scene.mask)
