"""There and back, FreeDrag's CCSD (Ling et al. 2024): how alike is an image to itself after a drag p -> t and t -> p?

The perceptual distance between the first image and the last. It rewards doing nothing, so the distance that the first
drag left is beside it. Our choices: MSE (in [-1, 1]) and SSIM beside LPIPS, or instead of it where its weights are not
at hand; the second drag starts at the targets, wherever the first has ended; drags as in `autodrag eval mdd`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from autodrag.eval import perceptual
from autodrag.eval.detectors import Detector
from autodrag.eval.metrics import mean_distance, quartiles
from autodrag.eval.perceptual import HEADS, Similarity, score_cells, score_columns, score_rows
from autodrag.eval.plots import keep_picture, write_sheet
from autodrag.eval.ruler import make_ruler
from autodrag.eval.run import Bench, Record, add_options, drag, finish, markdown, open_bench, run_drags, spread
from autodrag.eval.tasks import Pair, add_source_options, read_source


def evaluate(
    bench: Bench,
    detector: Detector | None,
    measures: dict[str, Similarity],
    pairs: Sequence[Pair],
    points: tuple[int, ...],
) -> list[Record]:
    """Runs what is missing of the table; returns its records."""

    def work(task: Record) -> Record:
        pair, name = pairs[task["pair"]], task["method"]
        _, handles, targets = pair.drags(task["points"])
        there = drag(bench, name, pair.latent, handles, targets)
        back = drag(bench, name, there.latent, targets, handles)
        keep_picture(bench, task, back)
        before = bench.image(pair.latent)
        scores: Record = {key: measure(before, back.image) for key, measure in measures.items()}
        scores["initial"] = mean_distance(handles, targets)
        scores["distance"] = make_ruler(bench, detector, pair, task["points"])(there.latent)
        scores |= {"seconds": there.seconds + back.seconds, "steps": there.steps + back.steps}
        return {"seed": pair.seed} | scores | {"reason": f"{there.reason}, {back.reason}"}

    return run_drags(bench, points, len(pairs), work)


def summarise(records: Sequence[Record], measures: Sequence[str]) -> list[Record]:
    """One row per number of points and method: quartiles of every measure, of the distance left, and of time."""
    rows = []
    for n, name in dict.fromkeys((r["points"], r["method"]) for r in records):
        drags = [r for r in records if (r["points"], r["method"]) == (n, name)]
        row: Record = {"points": n, "method": name, "drags": len(drags)} | score_rows(drags, measures)
        left = [r["distance"] for r in drags if r["distance"] is not None]
        row["distance_px"] = list(quartiles(left)) if left else None
        row["seconds"] = list(quartiles([r["seconds"] for r in drags]))
        rows.append(row)
    return rows


def table(rows: Sequence[Record]) -> str:
    """The rows as a Markdown table."""
    measures = [key for key in HEADS if key in rows[0]]
    columns = ["points", "method", *score_columns(measures)]
    lines = []
    for row in rows:
        line = [str(row["points"]), row["method"], *score_cells(row, measures)]
        line.append("–" if row["distance_px"] is None else spread(row["distance_px"], 2))
        lines.append([*line, spread(row["seconds"], 3)])
    return markdown([*columns, "left by the first drag, px", "seconds of both, median (quartiles)"], lines)


def main(argv: list[str]) -> int:
    """`autodrag eval ccsd`."""
    parser = argparse.ArgumentParser(prog="autodrag eval ccsd", description="Drag there and back, and compare.")
    add_options(parser, steps=300, psi=0.7)
    add_source_options(parser)
    perceptual.add_option(parser)
    args = parser.parse_args(argv)

    bench = open_bench(args, ["eval", "ccsd", *argv])
    source = read_source(args, bench)
    measures = perceptual.similarities(args.metrics, bench.device)
    bench.claim("ccsd", measures=sorted(measures), **source.setup)
    pairs = source.sample()
    records = evaluate(bench, source.detector, measures, pairs, source.points)
    for n in source.points:
        write_sheet(bench, pairs, [r for r in records if r["points"] == n], bench.out / f"sheet-{n}.png")
    rows = summarise(records, list(measures))
    finish(bench.out, rows, table(rows))
    return 0
