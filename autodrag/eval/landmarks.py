"""Landmark manipulation, DragGAN's Table 1 (Pan et al. 2023, section 4.2), on any generator with a landmark model.

Two images A and B are sampled, and landmarks are detected in both. A drag moves l_A(S) to l_B(S) for a random subset S
of one, five or all landmarks. Landmarks are then detected in the result: MD = mean of ||l_result - l_B|| over S, px.

The paper leaves some choices open. Our choices: psi is 0.7, as in the paper's interface; S is drawn from the landmarks
inside both images; all methods get the same pairs, step limit (300, published) and stop rule; the time includes the
final synthesis and excludes loading. A result without detected landmarks has no distance.

The column "patch" is a second distance, which does not use landmarks: the patch around each handle is searched near its
target by normalised cross-correlation (`metrics.correlated_points`).

"Torn" is the fraction of results without detected landmarks, or with landmark positions that are less likely than those
of 95 % of 1000 other unedited images (`metrics.strangeness`). `benchmarks/torn.py` validates this metric on
artificially torn images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.eval import detectors, perceptual
from autodrag.eval.bench import MAX_PAIRS, Bench
from autodrag.eval.detectors import Detector
from autodrag.eval.log import Record
from autodrag.eval.metrics import correlated_points, drag_accuracy, frechet_distance, mean_distance, strangeness
from autodrag.eval.plots import plot_distances, write_sheet
from autodrag.eval.run import Experiment, Measured, evaluate
from autodrag.eval.tables import Columns, Measure, optional
from autodrag.eval.tasks import LandmarkSource, Pair
from autodrag.files import write_json
from autodrag.images import to_uint8
from autodrag.progress import track

GAMMAS = (1, 5, 10, 20)
"""Radii of the patches of DAI, px."""
USUAL = 1000
"""Number of unedited images that define the usual landmark positions."""


class LandmarkExperiment(Experiment):
    """Drag landmarks of one image to their positions in another image, and detect them again."""

    name = "landmarks"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.features = perceptual.load_features(args.metrics, self.bench.net, self.bench.device)
        side = min(self.bench.generator.config.image_size)
        self.gammas = [gamma for gamma in GAMMAS if 2 * gamma < side / 2]
        self.usual_file = args.out / "usual.json"
        self.measures = {
            "distance": Measure("distance, px", 2),
            "patch_distance": Measure("patch, px", 2),
            "seconds": Measure("seconds", 3),
        }

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        detectors.add_options(parser)
        perceptual.add_option(parser)

    def read_source(self, args: argparse.Namespace) -> LandmarkSource:
        image = self.bench.generator.config.image_size
        self.detector = detectors.require_detector(args, self.bench.net, image, self.bench.device)
        return LandmarkSource.of(args, self.detector)

    @property
    def setup(self) -> Record:
        return {"features": self.frechet_title}

    @property
    def frechet_title(self) -> str:
        """Name of the distance between sets of images."""
        return "Fréchet" if self.features is None else self.features.title

    def measure(self, method: str, pair: Pair, points: int) -> Measured:
        bench, chosen = self.bench, pair.chosen(points)
        latent, drag = pair.latent.to(bench.device), pair.drag(points, bench.device)
        edited = bench.run(method, latent, drag)
        before, found = bench.image(latent), self.detector(edited.image)
        places, scores = correlated_points(to_uint8(before)[0], edited.picture, drag.handles.cpu(), drag.targets.cpu())
        record: Record = {
            "landmarks": chosen,
            "initial": mean_distance(drag.handles, drag.targets),
            "distance": None,
            "found": None,
            "shape": None,
            "patch_distance": mean_distance(places, drag.targets.cpu()),
            "patch_score": float(scores.mean()),
            "dai": {
                str(gamma): drag_accuracy(before, edited.image, drag.handles, drag.targets, gamma)
                for gamma in self.gammas
            },
        }
        if found is not None:
            record["distance"] = mean_distance(found.points[chosen], drag.targets)
            record["found"] = found.points[chosen].tolist()
            record["shape"] = _rounded(found.points)
        if self.features is not None:
            record["features"] = [round(value, 4) for value in self.features.of(edited.image).tolist()]
        return record | edited.record(), edited.picture

    def extras(self, drags: list[Record], unedited: list[Record]) -> Record:
        count = len(drags)
        row: Record = {"mean_steps": sum(r["steps"] for r in drags) / count}
        row["mean_initial"] = sum(r["initial"] for r in drags) / count
        distances = [r["distance"] for r in drags if r["distance"] is not None]
        start = row["mean_initial"]
        row["share_of_none"] = sum(distances) / len(distances) / start if distances and start else None
        row["dai"] = {gamma: sum(r["dai"][gamma] for r in drags) / count for gamma in drags[0]["dai"]}
        row["frechet"] = _frechet(drags, unedited)
        row["torn"] = torn_share([r["shape"] for r in drags], self.usual_shapes())
        return row

    @property
    def extra_columns(self) -> Columns:
        dai = "DAI, γ = " + " / ".join(map(str, self.gammas))
        return {
            "of no edit": lambda row: optional(row["share_of_none"], ".0%"),
            "steps": lambda row: f"{row['mean_steps']:.0f}",
            self.frechet_title: lambda row: optional(row["frechet"], ".4f"),
            "torn": lambda row: optional(row["torn"], ".1%"),
            dai: lambda row: " / ".join(f"{value:.3f}" for value in row["dai"].values()),
        }

    def draw(self, out: Path, pairs: Sequence[Pair], records: Sequence[Record], points: int) -> None:
        plot_distances(records, out / f"distance-{points}.png", f"{points} of {self.detector.count} landmarks")
        write_sheet(self.bench, out, pairs, records, points)

    def usual_shapes(self) -> Float[Tensor, "M K 2"]:
        """Usual landmark positions, cached in the run folder because they need 1000 syntheses."""
        if not self.usual_file.exists():
            write_json(self.usual_file, usual_shapes(self.bench, self.detector))
        return torch.tensor(json.loads(self.usual_file.read_text())).view(-1, self.detector.count, 2)


def usual_shapes(bench: Bench, detector: Detector) -> list[list[list[float]]]:
    """Landmarks (px) of `USUAL` unedited images that no pair uses. Images without detections are skipped.

    The number does not depend on the number of pairs, because fewer images would not be sufficient to estimate the
    variation of the landmarks and the 95 % limit.
    """
    shapes = []
    first = bench.base_seed + 2 * MAX_PAIRS
    for k in track(range(USUAL), "usual distances", unit="image"):
        found = detector(bench.image(bench.latent(first + k)))
        if found is not None:
            shapes.append(_rounded(found.points))
    return shapes


def torn_share(shapes: Sequence[list[list[float]] | None], usual: Float[Tensor, "M K 2"]) -> float | None:
    """Fraction of shapes that are missing or less likely than 95 % of the usual shapes.

    None with fewer than two usual shapes.
    """
    if len(usual) < 2:
        return None
    limit = strangeness(usual, usual).quantile(0.95)
    detected = [shape for shape in shapes if shape is not None]
    strange = int((strangeness(torch.tensor(detected), usual) > limit).sum()) if detected else 0
    return (strange + len(shapes) - len(detected)) / len(shapes)


def _frechet(drags: Sequence[Record], unedited: Sequence[Record]) -> float | None:
    """Fréchet distance between results and unedited images; None without features or with fewer than two images."""
    if min(len(drags), len(unedited)) < 2 or not all("features" in r for r in (*drags, *unedited)):
        return None
    edited, before = (torch.tensor([r["features"] for r in records]) for records in (drags, unedited))
    return frechet_distance(edited, before)


def _rounded(points: Tensor) -> list[list[float]]:
    """Positions rounded to 0.001 px."""
    return [[round(value, 3) for value in point] for point in points.tolist()]


main = partial(evaluate, LandmarkExperiment)
"""`autodrag eval landmarks`."""
