"""Uncertainty of tracked points, lost points and outcomes, compared with a landmark model.

Ours; no paper measures it. Three quarters of the drags go between the landmarks of two images, one quarter in random
directions, mostly too far. The error of a tracked point is its distance from the landmark that the model finds in the
edited image; above 1/16 of the image height (4 px at 64 px) the point is wrong.

Every pair also has one impossible drag, of eight kinds in turn, whose obstacle is known. The kinds are those that
`infer.trust.find_obstacle` has rules for, so that the share of right obstacles tests the rules on new images, and says
nothing about drags that fail for other reasons.

`--calibrate` fits the uncertainty to these drags and writes it to the checkpoint as trust.json. Measure with another
`--seed` afterwards.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from autodrag.edits import Parameters
from autodrag.errors import AutodragError, NothingToDo
from autodrag.eval import detectors
from autodrag.eval.log import Record
from autodrag.eval.methods import Limits
from autodrag.eval.run import Experiment, Measured, evaluate
from autodrag.eval.tables import Columns, Measure, optional
from autodrag.eval.tasks import LandmarkSource, Pair
from autodrag.files import write_json
from autodrag.infer.drag import choose_method, choose_settings, run_drag
from autodrag.infer.editor import DragEditor
from autodrag.infer.open_image import OpenImage, tracked_blocks
from autodrag.infer.task import Control, Obstacle
from autodrag.infer.trust import TRUST_FILE, Calibration, cues_of, settle
from autodrag.nets.latent_space import LatentBasis
from autodrag.points import Size

WRONG = 1 / 16
"""A tracked point farther than this share of the image height from its true position is wrong."""
HARD = 0.25
"""Share of the drags in random directions."""
LEAST_POINTS = 30
"""Fewest points that a calibration is fitted to."""
OURS = ("predict", "refine", "both")


class TrustExperiment(Experiment):
    """Compare the uncertainties and outcomes that results report with a landmark model."""

    name = "trust"
    points = "1,5"

    def __init__(self, args: argparse.Namespace) -> None:
        args.methods = args.methods or ",".join(OURS)
        super().__init__(args)
        if self.bench.limits != Limits():
            raise AutodragError("--steps and --stop have no effect on eval trust; leave them out")
        others = set(self.bench.methods) - set(OURS)
        if others:
            raise AutodragError(f"--methods {','.join(sorted(others))}: expected some of {', '.join(OURS)}")
        self.editor = DragEditor.load(self.bench.folder, device=self.bench.device)
        self.basis = LatentBasis.of(self.editor.generator)
        self.calibrate: bool = args.calibrate
        self.measures = {"seconds": Measure("seconds", 3, spread=False)}

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        detectors.add_options(parser)
        parser.add_argument("--calibrate", action="store_true", help=f"write {TRUST_FILE} to the checkpoint")

    def read_source(self, args: argparse.Namespace) -> LandmarkSource:
        image = self.bench.generator.config.image_size
        self.detector = detectors.require_detector(args, self.bench.net, image, self.bench.device)
        return LandmarkSource.of(args, self.detector)

    @property
    def setup(self) -> Record:
        calibration = self.editor.calibration
        return {"calibration": [*calibration.weights, calibration.bias, calibration.lost]}

    def measure(self, method: str, pair: Pair, points: int) -> Measured:
        editor, size = self.editor, self.editor.image_size
        opened = OpenImage.of(editor.generator, pair.latent.to(editor.device), editor.learned)
        chosen, drag = pair.chosen(points), pair.drag(points, self.bench.device)
        rng = np.random.default_rng(pair.seed)
        hard = bool(rng.random() < HARD)
        if hard:
            targets = thrown(drag.handles.cpu().double().numpy(), size, rng)
            drag = dataclasses.replace(drag, targets=torch.from_numpy(targets).to(drag.handles))
        named = choose_method(method, can_predict=editor.can_predict, checkpoint=editor.checkpoint)
        settings = choose_settings(Parameters(), named, editor.generator.config)
        result = run_drag(opened, drag, settings, Control(), self.basis)
        edited = OpenImage(result.synthesis.moved(result.latent), editor.learned, result.features)
        blocks = tracked_blocks(editor.generator.config)
        settled = settle(opened, edited, drag, result, editor.calibration, blocks)
        found = self.detector(self.bench.image(result.layers))
        record: Record = {"hard": hard, "seconds": result.seconds, "steps": result.rounds + result.steps}
        record |= {"reason": result.reason, "outcome": settled.outcome, "points_of": []}
        if found is not None:
            errors = np.hypot(*(result.points - found.points[chosen].cpu().double().numpy()).T) / size[0]
            cues = cues_of(opened, edited, drag, result.points, blocks)
            said = editor.calibration.uncertainties(cues, size[0]) / size[0]
            lost = result.lost | (said > editor.calibration.lost)
            columns = {"error": errors, "uncertainty": said, "lost": lost}
            record["points_of"] = [
                {name: column[k].item() for name, column in columns.items()} | {"cues": cues[k].tolist()}
                for k in range(len(errors))
            ]
        return record | self.impossible_drag(method, pair, rng), result.image

    def impossible_drag(self, method: str, pair: Pair, rng: np.random.Generator) -> Record:
        """Runs one impossible drag and records the outcome and the obstacle that the result reports."""
        editor = self.editor
        before = editor.open(latent=pair.latent)
        kind = KINDS[pair.seed // 2 % len(KINDS)]
        task = impossible(kind, pair.source.double().numpy(), editor.image_size, rng)
        try:
            result = editor.drag(**task, method=method)
        except (NothingToDo, AutodragError):
            return {"kind": None}
        unchanged = bool(np.array_equal(result.image, before))
        return {"kind": kind, "said": result.outcome, "obstacle": result.obstacle, "unchanged": unchanged}

    def extras(self, drags: list[Record], unedited: list[Record]) -> Record:
        points = [point for record in drags for point in record["points_of"]]
        error, said = (np.array([p[key] for p in points]) for key in ("error", "uncertainty"))
        lost = np.array([p["lost"] for p in points], dtype=bool)
        wrong = error > WRONG
        height = self.editor.image_size[0]
        near = said <= 1 / height
        failures = [record for record in drags if record["kind"] is not None]
        failed = [record for record in failures if record["said"] == "failed"]
        return {
            "wrong": _share(wrong),
            "auc": area_under_curve(said, wrong),
            "recall": _share(lost[wrong]),
            "false_alarms": _share(lost[~wrong]),
            "near": len(error[near]),
            "near_right": _share(error[near] <= 2 / height),
            "within_twice": _share(error <= 2 * said),
            "impossible": len(failures),
            "not_arrived": _share(np.array([r["said"] != "arrived" for r in failures])),
            "failed": _share(np.array([r["said"] == "failed" for r in failures])),
            "unchanged": _share(np.array([r["unchanged"] for r in failed])),
            "obstacle_right": _share(np.array([r["obstacle"] == OBSTACLES[r["kind"]] for r in failures])),
        }

    def conclude(self, records: Sequence[Record]) -> None:
        """With `--calibrate`, fits the uncertainty to all points and writes it to the checkpoint."""
        if not self.calibrate:
            return
        points = [point for record in records for point in record["points_of"]]
        if len(points) < LEAST_POINTS:
            raise AutodragError(f"{len(points)} points are too few to calibrate; use more --pairs")
        cues, errors = np.array([p["cues"] for p in points]), np.array([p["error"] for p in points])
        fitted = Calibration.fit(cues, errors, WRONG)
        write_json(self.bench.folder / TRUST_FILE, {"generator": self.bench.fingerprint, **dataclasses.asdict(fitted)})

    @property
    def extra_columns(self) -> Columns:
        return {
            "wrong points": lambda row: optional(row["wrong"], ".0%"),
            "AUC": lambda row: optional(row["auc"], ".2f"),
            "found": lambda row: optional(row["recall"], ".0%"),
            "false alarms": lambda row: optional(row["false_alarms"], ".0%"),
            "said within 1 px": lambda row: str(row["near"]),
            "of these within 2 px": lambda row: optional(row["near_right"], ".0%"),
            "within twice the uncertainty": lambda row: optional(row["within_twice"], ".0%"),
            "impossible drags": lambda row: str(row["impossible"]),
            "not called arrived": lambda row: optional(row["not_arrived"], ".0%"),
            "called failed": lambda row: optional(row["failed"], ".0%"),
            "of these unchanged": lambda row: optional(row["unchanged"], ".0%"),
            "obstacle right": lambda row: optional(row["obstacle_right"], ".0%"),
        }

    def draw(self, out: Path, pairs: Sequence[Pair], records: Sequence[Record], points: int) -> None:
        """No pictures."""


OBSTACLES: dict[str, Obstacle] = {
    "border": "frame",
    "long": "far",
    "one place": "contradiction",
    "swapped": "contradiction",
    "anchored": "contradiction",
    "handle outside the mask": "mask",
    "target outside the mask": "mask",
    "no texture": "texture",
}
"""The kinds of impossible drags, and the obstacle of each."""
KINDS = tuple(OBSTACLES)


def thrown(handles: Float[np.ndarray, "N 2"], size: Size, rng: np.random.Generator) -> Float[np.ndarray, "N 2"]:
    """Targets in random directions, 10 to 40 % of the image height away, inside the image."""
    angle = rng.uniform(0, 2 * np.pi, len(handles))
    length = rng.uniform(0.1, 0.4, len(handles)) * size[0]
    offset = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length[:, None]
    moved: np.ndarray = np.clip(handles + offset, 1, [size[1] - 2, size[0] - 2])
    return moved


def impossible(kind: str, landmarks: Float[np.ndarray, "K 2"], size: Size, rng: np.random.Generator) -> Record:
    """Arguments of `DragEditor.drag` for an impossible drag. landmarks: of the image, px."""
    height, width = size
    inside = landmarks[((landmarks > 0.1 * height) & (landmarks < 0.9 * height)).all(axis=1)]
    places = inside if len(inside) > 1 else np.array([[0.4 * width, 0.5 * height], [0.6 * width, 0.5 * height]])
    first, second = places[rng.permutation(len(places))[:2]]
    centre = np.array([width / 2, height / 2])
    away = (first - centre) / max(float(np.hypot(*(first - centre))), 1e-6)
    mask = np.zeros(size, dtype=bool)
    if kind == "border":
        return {"handles": [first], "targets": [[first[0], 0.5]]}
    if kind == "long":
        target = np.clip(first - away * 0.6 * height, 0.12 * height, 0.88 * height)
        return {"handles": [first], "targets": [target]}
    if kind == "one place":
        return {"handles": [first, second], "targets": [(first + second) / 2] * 2}
    if kind == "swapped":
        return {"handles": [first, second], "targets": [second, first]}
    if kind == "anchored":
        target = first - away * 0.25 * height
        return {"handles": [first], "targets": [target], "anchors": [first + away * 0.04 * height]}
    target = first - away * 0.15 * height
    if kind == "no texture":
        corner = np.array([0.05 * width, 0.05 * height])
        return {"handles": [corner], "targets": [corner + 0.2 * height]}
    near = np.hypot(*(np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2) - first).transpose(2, 0, 1))
    mask[near < 0.1 * height] = True  # around the handle
    if kind == "handle outside the mask":
        mask = ~mask
    return {"handles": [first], "targets": [target], "mask": mask}


def area_under_curve(scores: Float[np.ndarray, " M"], positive: np.ndarray) -> float | None:
    """Probability that a positive has a higher score than a negative; None without both."""
    above, below = scores[positive], scores[~positive]
    if not len(above) or not len(below):
        return None
    return float((above[:, None] > below).mean() + (above[:, None] == below).mean() / 2)


def _share(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def main(argv: list[str]) -> int:
    """`autodrag eval trust`."""
    return evaluate(TrustExperiment, argv)
