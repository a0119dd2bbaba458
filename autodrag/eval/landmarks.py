"""Landmark manipulation, DragGAN's Table 1 (Pan et al. 2023, section 4.2), on any generator with a landmark model.

Two images A and B are sampled, and landmarks found in both. A drag takes l_A(S) to l_B(S) for a random subset S of
one, five or all landmarks; then landmarks are detected again on the result: MD = mean of ||l_result - l_B|| over S, px.

Our choices where the paper leaves them open: psi 0.7 as in its interface; S is drawn among the landmarks inside
the frame in both images; every method sees the same pairs, the same step limit (300, published) and the same stop rule,
and its time includes the final synthesis and excludes loading. What the landmark model does not find has no distance.

"Torn" is the share of results in which it finds nothing, or landmarks that lie together more strangely than those of
95 % of 1000 other unedited images do (`metrics.strangeness`), the same for any number of pairs. `benchmarks/torn.py`
tears images on purpose and shows what this sees of it, and what the model's own confidence does not.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from autodrag.eval import detectors, perceptual
from autodrag.eval.detectors import Detection, Detector
from autodrag.eval.metrics import drag_accuracy, frechet_distance, mean_distance, quartiles, strangeness
from autodrag.eval.perceptual import Features
from autodrag.eval.plots import keep_picture, plot_distances, write_sheet
from autodrag.eval.run import (
    MAX_PAIRS,
    Bench,
    Edited,
    Record,
    add_options,
    drag,
    finish,
    markdown,
    open_bench,
    read_points,
    run_drags,
    spread,
)
from autodrag.eval.tasks import Pair, landmark_pairs
from autodrag.files import write_json

GAMMAS = (1, 5, 10, 20)
USUAL = 1000
"""Unedited images that say how landmarks usually lie together."""


def evaluate(
    bench: Bench, detector: Detector, features: Features | None, pairs: list[Pair], points: tuple[int, ...]
) -> list[Record]:
    """Runs what is missing of the table; returns its records."""

    def work(task: Record) -> Record:
        pair, name = pairs[task["pair"]], task["method"]
        chosen, handles, targets = pair.drags(task["points"])
        edited = drag(bench, name, pair.latent, handles, targets)
        keep_picture(bench, task, edited)
        measured = _measure(bench, edited, pair, handles, targets, chosen, detector(edited.image))
        if features is not None:
            measured["features"] = [round(value, 4) for value in features.of(edited.image).tolist()]
        return {"seed": pair.seed, "landmarks": chosen} | measured | edited.record()

    return run_drags(bench, points, len(pairs), work)


def _measure(
    bench: Bench,
    edited: Edited,
    pair: Pair,
    handles: Tensor,
    targets: Tensor,
    chosen: list[int],
    found: Detection | None,
) -> Record:
    """The distances of one result; None for what the landmark model does not say."""
    before = bench.image(pair.latent)
    fitting = [gamma for gamma in GAMMAS if 2 * gamma < min(bench.generator.config.image_size) / 2]
    return {
        "distance": None if found is None else mean_distance(found.points[chosen], targets),
        "initial": mean_distance(handles, targets),
        "confidence": None if found is None else found.confidence,
        "shape": None if found is None else _rounded(found.points),
        "found": None if found is None else found.points[chosen].tolist(),
        "dai": {str(gamma): drag_accuracy(before, edited.image, handles, targets, gamma) for gamma in fitting},
    }


def _rounded(points: Tensor) -> list[list[float]]:
    """Positions in thousandths of a px."""
    return [[round(value, 3) for value in point] for point in points.tolist()]


def usual_shapes(bench: Bench, detector: Detector) -> Float[Tensor, "M K 2"]:
    """Landmarks of `USUAL` unedited images that no pair shows, px, without those in which none are found.

    The run's folder keeps them. They cost as many syntheses, whatever the number of pairs: with fewer, neither the
    directions in which landmarks vary nor the limit of what is usual would be known.
    """
    kept = bench.out / "usual.json"
    if not kept.exists():
        shapes = []
        first = bench.base_seed + 2 * MAX_PAIRS
        for k in tqdm(range(USUAL), desc="usual", unit="image", leave=False, disable=None):
            found = detector(bench.image(bench.latent(first + k)))
            if found is not None:
                shapes.append(_rounded(found.points))
        write_json(kept, shapes)
    return torch.tensor(json.loads(kept.read_text())).view(-1, detector.count, 2)  # also where none are found


def summarise(records: list[Record], size: int, usual: Float[Tensor, "M K 2"] | None = None) -> list[Record]:
    """One row per number of points and method: distances, time, Fréchet distance, share of torn results.

    size: height of the images, px. usual: landmarks of unedited images; without two of them nothing is called torn.
    """
    rows = []
    known = usual if usual is not None and len(usual) > 1 else None
    for n in dict.fromkeys(r["points"] for r in records):
        of: dict[str, list[Record]] = {}
        for r in records:
            if r["points"] == n:
                of.setdefault(r["method"], []).append(r)
        initial = of.get("none", [])
        for name, drags in of.items():
            rows.append({"points": n, "method": name} | _row(drags, initial, size, known))
    return rows


def _row(drags: list[Record], initial: list[Record], size: int, known: Tensor | None) -> Record:
    distances = [r["distance"] for r in drags if r["distance"] is not None]
    row: dict[str, Any] = {"drags": len(drags)}
    if distances:
        low, middle, high = quartiles(distances)
        mean = sum(distances) / len(distances)
        start = sum(r["initial"] for r in drags) / len(drags)
        row |= {"mean_px": mean, "median_px": middle, "quartiles_px": [low, high]}
        row |= {"share_of_none": mean / start if start else None, "share_of_size": mean / size}
    fast, usual, slow = quartiles([r["seconds"] for r in drags])
    row |= {"median_s": usual, "quartiles_s": [fast, slow], "mean_steps": sum(r["steps"] for r in drags) / len(drags)}
    row["dai"] = {gamma: sum(r["dai"][gamma] for r in drags) / len(drags) for gamma in drags[0]["dai"]}
    if len(initial) > 1 and len(drags) > 1 and all("features" in r for r in (*drags, *initial)):
        before = torch.tensor([r["features"] for r in initial])
        row["frechet"] = frechet_distance(torch.tensor([r["features"] for r in drags]), before)
    if known is not None and all("shape" in r for r in drags):
        limit = strangeness(known, known).quantile(0.95)
        shapes = [r["shape"] for r in drags if r["shape"] is not None]
        strange = int((strangeness(torch.tensor(shapes), known) > limit).sum()) if shapes else 0
        row["torn"] = (strange + len(drags) - len(shapes)) / len(drags)
    return row


def table(rows: list[Record], frechet: str = "Fréchet") -> str:
    """The rows as a Markdown table; `frechet` is what the distance between sets of images is called."""
    columns = ["points", "method", "mean distance, px", "of no edit", "median (quartiles), px"]
    columns += ["seconds, median (quartiles)", "steps", frechet, "torn", "DAI, γ = " + " / ".join(rows[0]["dai"])]
    lines = []
    for r in rows:
        distances = ["–", "–", "–"]
        if "mean_px" in r:
            share = "–" if r["share_of_none"] is None else f"{100 * r['share_of_none']:.0f} %"
            low, high = r["quartiles_px"]
            distances = [f"{r['mean_px']:.2f}", share, spread((low, r["median_px"], high), 2)]
        fast, slow = r["quartiles_s"]
        lines.append(
            [
                str(r["points"]),
                r["method"],
                *distances,
                spread((fast, r["median_s"], slow), 3),
                f"{r['mean_steps']:.0f}",
                f"{r['frechet']:.4f}" if "frechet" in r else "–",
                f"{100 * r['torn']:.1f} %" if "torn" in r else "–",
                " / ".join(f"{value:.3f}" for value in r["dai"].values()),
            ]
        )
    return markdown(columns, lines)


def main(argv: list[str]) -> int:
    """`autodrag eval landmarks`."""
    parser = argparse.ArgumentParser(prog="autodrag eval landmarks", description="Drag landmarks and find them again.")
    add_options(parser, steps=300, psi=0.7)
    parser.add_argument("--points", default="1", help="numbers of points, such as 1,5,all")
    detectors.add_options(parser)
    perceptual.add_option(parser)
    args = parser.parse_args(argv)

    bench = open_bench(args, ["eval", "landmarks", *argv])
    detector = detectors.require_detector(args, bench.net, bench.generator.config.image_size, bench.device)
    points = read_points(args.points, detector.count)
    features = perceptual.load_features(args.metrics, bench.net, bench.device)
    title = "Fréchet" if features is None else features.title
    bench.claim("landmarks", landmarks=detector.identity, features=title)
    pairs = landmark_pairs(bench, detector)
    records = evaluate(bench, detector, features, pairs, points)
    rows = summarise(records, bench.generator.config.resolution, usual_shapes(bench, detector))
    finish(bench.out, rows, table(rows, title))
    for n in points:
        of = [r for r in records if r["points"] == n]
        plot_distances(of, bench.out / f"distance-{n}.png", f"{n} of {detector.count} landmarks")
        write_sheet(bench, pairs, of, bench.out / f"sheet-{n}.png")
    return 0
