"""Paired reconstruction, DragGAN's Table 2 (Pan et al. 2023, section 4.2, after Endo 2022), on any generator.

A code w1 is perturbed to w2; of the optical flow between their images I1 and I2, 32 random pixels are the drags; the
result I' shall be I2: 100 * mean((I' - I2)^2) and 10 * LPIPS, at most 100 steps.

Published: 32 points, 100 steps, 1000 pairs. Our choices: the perturbation is the formula of UserControllableLT's
training, with its psi of 0.3 for w1 (see `Perturbation`); the flow is OpenCV's DIS; images are in [-1, 1]; SSIM is
added.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from autodrag.eval import perceptual
from autodrag.eval.metrics import mean_distance, quartiles
from autodrag.eval.perceptual import HEADS, Similarity, score_cells, score_columns, score_rows
from autodrag.eval.plots import keep_picture, write_sheet
from autodrag.eval.run import (
    Bench,
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
from autodrag.eval.tasks import Pair, add_flow_options, flow_pairs, flow_setup, read_flow


def evaluate(
    bench: Bench, measures: dict[str, Similarity], pairs: Sequence[Pair], points: tuple[int, ...]
) -> list[Record]:
    """Runs what is missing of the table; returns its records."""

    def work(task: Record) -> Record:
        pair, name = pairs[task["pair"]], task["method"]
        _, handles, targets = pair.drags(task["points"])
        edited = drag(bench, name, pair.latent, handles, targets)
        keep_picture(bench, task, edited)
        goal = bench.image(pair.goal)
        scores = {key: measure(edited.image, goal) for key, measure in measures.items()}
        return {"seed": pair.seed, "initial": mean_distance(handles, targets)} | scores | edited.record()

    return run_drags(bench, points, len(pairs), work)


def summarise(records: Sequence[Record], measures: Sequence[str]) -> list[Record]:
    """One row per number of points and method: mean and quartiles of every measure, and of time."""
    rows = []
    for n, name in dict.fromkeys((r["points"], r["method"]) for r in records):
        drags = [r for r in records if (r["points"], r["method"]) == (n, name)]
        row: Record = {"points": n, "method": name, "drags": len(drags)} | score_rows(drags, measures)
        row["mean_drag_px"] = sum(r["initial"] for r in drags) / len(drags)
        row["seconds"] = list(quartiles([r["seconds"] for r in drags]))
        row["mean_steps"] = sum(r["steps"] for r in drags) / len(drags)
        rows.append(row)
    return rows


def table(rows: Sequence[Record]) -> str:
    """The rows as a Markdown table."""
    measures = [key for key in HEADS if key in rows[0]]
    columns = ["points", "method", "mean drag, px", *score_columns(measures)]
    lines = []
    for row in rows:
        line = [str(row["points"]), row["method"], f"{row['mean_drag_px']:.2f}", *score_cells(row, measures)]
        lines.append([*line, spread(row["seconds"], 3), f"{row['mean_steps']:.0f}"])
    return markdown([*columns, "seconds, median (quartiles)", "steps"], lines)


def main(argv: list[str]) -> int:
    """`autodrag eval paired`."""
    parser = argparse.ArgumentParser(
        prog="autodrag eval paired", description="Rebuild a perturbed image from the flow between the two."
    )
    add_options(parser, steps=100, psi=0.3)
    parser.add_argument("--points", default="32", help="numbers of flow pixels, such as 8,32 (default: 32)")
    add_flow_options(parser, 0.1)
    perceptual.add_option(parser)
    args = parser.parse_args(argv)

    bench = open_bench(args, ["eval", "paired", *argv])
    height, width = bench.generator.config.image_size
    points = read_points(args.points, height * width)
    how, flow = read_flow(args, bench)
    measures = perceptual.similarities(args.metrics, bench.device)
    bench.claim("paired", measures=sorted(measures), **flow_setup(args))
    pairs = flow_pairs(bench, flow, how, points=max(points))
    records = evaluate(bench, measures, pairs, points)
    for n in points:
        of = [r for r in records if r["points"] == n]
        write_sheet(bench, pairs, of, bench.out / f"sheet-{n}.png")
    rows = summarise(records, list(measures))
    finish(bench.out, rows, table(rows))
    return 0
