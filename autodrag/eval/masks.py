"""What a mask is worth: how much does the image change where nothing may move, with the mask and without it?

Ours; no paper measures it. The drags are those of `autodrag eval mdd`. The mask is an ellipse around handles and
targets with a margin of 15 % of the image's height; outside of it, the mean absolute change of the image (in [-1, 1])
is taken of the same drag with and without the mask, and the distance left of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.eval.detectors import Detector
from autodrag.eval.metrics import mean_distance, quartiles
from autodrag.eval.ruler import make_ruler
from autodrag.eval.run import Bench, Record, add_options, drag, finish, markdown, open_bench, run_drags, spread
from autodrag.eval.tasks import Pair, add_source_options, read_source
from autodrag.points import Size

MARGIN = 0.15
"""Room of the ellipse around handles and targets, as a share of the image's height."""


def ellipse(
    handles: Float[Tensor, "N 2"], targets: Float[Tensor, "N 2"], image: Size, margin: float = MARGIN
) -> Bool[Tensor, "H W"]:
    """True inside an ellipse that holds all points (px) with `margin` image heights of room."""
    points = torch.cat([handles, targets])
    low, high = points.amin(dim=0), points.amax(dim=0)
    # The ellipse through the corners of a rectangle is larger than it by the square root of two.
    axes = (high - low) / 2 * 2**0.5 + margin * image[0]
    y, x = torch.meshgrid(torch.arange(image[0]), torch.arange(image[1]), indexing="ij")
    away = (torch.stack([x, y], dim=2).to(points) - (low + high) / 2) / axes
    return away.square().sum(dim=2) <= 1


def change_outside(
    before: Float[Tensor, "1 3 H W"], after: Float[Tensor, "1 3 H W"], mask: Bool[Tensor, "H W"]
) -> float:
    """Mean absolute change of an image in [-1, 1] where the mask is False."""
    return float((after - before).abs().mean(dim=(0, 1))[~mask].mean())


def evaluate(bench: Bench, detector: Detector | None, pairs: Sequence[Pair], points: tuple[int, ...]) -> list[Record]:
    """Runs what is missing of the table; returns its records. DragBatch whose mask fills the image are skipped."""
    image = bench.generator.config.image_size

    def work(task: Record) -> Record:
        pair, name = pairs[task["pair"]], task["method"]
        _, handles, targets = pair.drags(task["points"])
        mask, before = ellipse(handles, targets, image), bench.image(pair.latent)
        if bool(mask.all()):
            return {"seed": pair.seed, "share": 1.0}
        free = drag(bench, name, pair.latent, handles, targets)
        held = drag(bench, name, pair.latent, handles, targets, mask=mask)
        ruler = make_ruler(bench, detector, pair, task["points"])
        return {
            "seed": pair.seed,
            "share": float(mask.float().mean()),
            "initial": mean_distance(handles, targets),
            "free_change": change_outside(before, free.image, mask),
            "held_change": change_outside(before, held.image, mask),
            "free_distance": ruler(free.latent),
            "held_distance": ruler(held.latent),
        }

    return run_drags(bench, points, len(pairs), work)


def summarise(records: Sequence[Record]) -> list[Record]:
    """One row per number of points and method: mean changes, their ratio, and mean distances left."""
    rows = []
    for n, name in dict.fromkeys((r["points"], r["method"]) for r in records):
        drags = [r for r in records if (r["points"], r["method"]) == (n, name) and r["share"] < 1]
        if not drags:
            continue
        row: Record = {"points": n, "method": name, "drags": len(drags)}
        for field in ("free_change", "held_change", "free_distance", "held_distance"):
            known = [r[field] for r in drags if r[field] is not None]
            row[field] = sum(known) / len(known) if known else None
        row["ratio"] = row["held_change"] / row["free_change"] if row["free_change"] else None
        ratios = [r["held_change"] / r["free_change"] for r in drags if r["free_change"]]
        row["ratios"] = list(quartiles(ratios)) if ratios else None
        rows.append(row)
    return rows


def table(rows: Sequence[Record]) -> str:
    """The rows as a Markdown table."""
    lines = []
    for r in rows:
        left = ["–" if r[f] is None else f"{r[f]:.2f}" for f in ("free_distance", "held_distance")]
        ratio = "–" if r["ratio"] is None else f"{100 * r['ratio']:.0f} %"
        each = "–" if r["ratios"] is None else spread([100 * value for value in r["ratios"]], 0)
        changes = [f"{r['free_change']:.4f}", f"{r['held_change']:.4f}"]
        lines.append([str(r["points"]), r["method"], str(r["drags"]), *changes, ratio, each, *left])
    columns = ["points", "method", "drags", "change outside, without mask", "with mask", "ratio of means"]
    columns += ["ratios, %, median (quartiles)", "left without mask, px", "left with mask, px"]
    return markdown(columns, lines)


def main(argv: list[str]) -> int:
    """`autodrag eval masks`."""
    parser = argparse.ArgumentParser(prog="autodrag eval masks", description="Drag with a mask and without one.")
    add_options(parser, steps=300, psi=0.7)
    add_source_options(parser)
    args = parser.parse_args(argv)

    bench = open_bench(args, ["eval", "masks", *argv])
    source = read_source(args, bench)
    bench.claim("masks", **source.setup)
    rows = summarise(evaluate(bench, source.detector, source.sample(), source.points))
    if not rows:
        raise AutodragError("every mask fills its image; drag fewer points with --points")
    finish(bench.out, rows, table(rows))
    return 0
