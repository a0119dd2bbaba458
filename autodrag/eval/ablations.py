"""What DragGAN's loop owes to its choices: Tables 3 and 4 of Pan et al. 2023, and the tracker comparison of Table 1.

Landmarks are dragged as in `autodrag eval landmarks`, by the published loop with one thing changed at a time:

* which block's features are supervised, and which are tracked, the other staying as published; `5+6` puts two side by
  side. Blocks count from 1; the published one is the 6th, or the last of a generator that has fewer.
* r1, the radius of the supervised disk, in px of the image. The paper's 1 to 5 are px at 512 px.
* the tracker: the nearest feature by L2 (its code) or L1 (its text), RAFT where it is at hand, or none. RAFT follows
  the flow from the image before the drag to the present one, which the paper leaves open.

Figures are MD, the mean distance in px of landmarks found again; all variants see the same pairs, steps and stop rule,
and what is published is run once for all tables.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autodrag.errors import AutodragError
from autodrag.eval import detectors
from autodrag.eval.flow import load_raft
from autodrag.eval.identity import digest
from autodrag.eval.landmarks import evaluate, summarise
from autodrag.eval.methods import refiner_method
from autodrag.eval.run import Record, add_options, finish, markdown, open_bench, read_points
from autodrag.eval.tasks import landmark_pairs
from autodrag.infer.refine import RefineConfig
from autodrag.nets.stylegan2 import GeneratorConfig

Blocks = tuple[int, ...]
"""Blocks from 0, side by side."""
PUBLISHED = 6
"""The published block, counted from 1."""


@dataclass(frozen=True)
class Cell:
    """One figure of a table."""

    table: str
    row: str
    column: str
    name: str
    """Of the variant: what is changed, or `published`. A run goes on with what it has by this name."""
    config: RefineConfig


def default_blocks(count: int) -> str:
    """Table 3's choice around the published block, for a generator of `count` blocks: 4,5,6,7,5+6,6+7."""
    base = min(PUBLISHED, count)
    near = [k for k in range(base - 2, base + 2) if 1 <= k <= count]
    pairs = [f"{k}+{k + 1}" for k in (base - 1, base) if k >= 1 and k + 1 <= count]
    return ",".join([*map(str, near), *pairs])


def default_radii(height: int) -> str:
    """Table 4's 1 to 5, in px of an image; never finer than a pixel."""
    return ",".join(str(max(1, height // 512) * r) for r in range(1, 6))


def read_blocks(text: str, count: int) -> dict[str, Blocks]:
    """`4,5,5+6`, counted from 1, as blocks from 0 by name; AutodragError for what is not in a generator of `count`."""
    chosen = {}
    for name in text.split(","):
        parts = name.split("+")
        if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= count for part in parts):
            raise AutodragError(f"--blocks {text}: {name!r} is none; expected 1 to {count}, or two such as 1+2")
        chosen[name] = tuple(int(part) - 1 for part in parts)
    return chosen


def read_radii(text: str) -> dict[str, int]:
    """`1,2,3` as numbers by name."""
    names = text.split(",")
    if not all(name.isascii() and name.isdigit() and int(name) <= 1024 for name in names):
        raise AutodragError(f"--radii {text}: expected whole numbers of px, such as 1,2,3")
    return {name: int(name) for name in names}


def make_cells(
    generator: GeneratorConfig,
    blocks: dict[str, Blocks],
    radii: dict[str, int],
    trackers: tuple[str, ...],
    raft_weights: Path | None,
) -> list[Cell]:
    """Every figure of the tables, with the settings that it is measured with."""
    published = RefineConfig.preset("draggan", generator.image_size)
    # Named, so that a column that means what is published anyway is equal to it.
    base = (min(published.feature_block, len(generator.block_resolutions) - 1),)
    published = replace(published, supervised_blocks=base, tracked_blocks=base)
    known: dict[str, dict[str, Any]] = {
        "l2": {"norm": "l2"},
        "l1": {"norm": "l1"},
        "none": {"tracker": "none"},
        "raft": {"tracker": "raft", "raft_weights": raft_weights},
    }
    for name in trackers:
        if name not in known:
            raise AutodragError(f"--trackers {name}: expected some of {', '.join(known)}")
    changes: list[tuple[str, str, str, dict[str, Any]]] = [
        *(("blocks", "supervised", name, {"supervised_blocks": chosen}) for name, chosen in blocks.items()),
        *(("blocks", "tracked", name, {"tracked_blocks": chosen}) for name, chosen in blocks.items()),
        *(("r1", "MD, px", name, {"supervision_radius": radius}) for name, radius in radii.items()),
        *(("tracker", "MD, px", name, known[name]) for name in trackers),
    ]
    cells = []
    for table, row, column, change in changes:
        config = replace(published, **change)
        changed = f"{row if table == 'blocks' else table}-{column}"
        cells.append(Cell(table, row, column, "published" if config == published else changed, config))
    return cells


def tables(cells: list[Cell], rows: list[Record]) -> str:
    """The figures as Markdown, one table for each thing that is changed and each number of points."""
    text = ""
    for points in dict.fromkeys(row["points"] for row in rows):
        found = {row["method"]: row for row in rows if row["points"] == points}
        for title in dict.fromkeys(cell.table for cell in cells):
            own = [cell for cell in cells if cell.table == title]
            lines = []
            for name in dict.fromkeys(cell.row for cell in own):
                drags = [found[cell.name] for cell in own if cell.row == name]
                lines.append([name, *(f"{row['mean_px']:.2f}" if "mean_px" in row else "–" for row in drags)])
                if title != "blocks":
                    lines.append(["seconds", *(f"{row['median_s']:.2f}" for row in drags)])
            columns = [f"{title}, {points} point{'s' if points > 1 else ''}"]
            text += markdown([*columns, *dict.fromkeys(cell.column for cell in own)], lines) + "\n"
    return text


def at_hand(device: torch.device, weights: Path | None) -> str:
    """The trackers that can run here: RAFT where it is at hand."""
    try:
        load_raft(device, weights)
    except AutodragError:
        if weights is not None:
            raise
        return "l2,l1,none"
    return "l2,l1,none,raft"


def main(argv: list[str]) -> int:
    """`autodrag eval ablations`."""
    parser = argparse.ArgumentParser(
        prog="autodrag eval ablations",
        description="Drag landmarks by DragGAN's loop with one choice changed at a time.",
    )
    add_options(parser, steps=300, psi=0.7, pairs=50, choose=False)
    parser.add_argument("--points", default="1", help="numbers of points, such as 1,5,all (default: 1, as published)")
    parser.add_argument("--blocks", help="blocks from 1, such as 4,5,6,7,5+6,6+7 (the default where there are so many)")
    parser.add_argument(
        "--radii", help="values of r1 in px of the image (default: 1 to 5, and as many for each 512 px)"
    )
    parser.add_argument("--trackers", help="of l2,l1,none,raft (default: all that can run here)")
    parser.add_argument("--raft-weights", type=Path, metavar="FILE", help="RAFT's weights, where PyTorch has none")
    detectors.add_options(parser)
    args = parser.parse_args(argv)

    bench = open_bench(args, ["eval", "ablations", *argv])
    generator, height = bench.generator.config, bench.generator.config.resolution
    count = len(generator.block_resolutions)
    trackers = args.trackers or at_hand(bench.device, args.raft_weights)
    cells = make_cells(
        generator,
        read_blocks(args.blocks or default_blocks(count), count),
        read_radii(args.radii or default_radii(height)),
        tuple(trackers.split(",")),
        args.raft_weights,
    )
    if "raft" in trackers.split(","):
        load_raft(bench.device, args.raft_weights)
    detector = detectors.require_detector(args, bench.net, generator.image_size, bench.device)
    points = read_points(args.points, detector.count)
    variants = {cell.name: refiner_method(bench.generator, cell.config, bench.settings) for cell in cells}
    made_of = {cell.name: digest(cell.config) for cell in cells}
    bench = replace(bench, methods=variants, identities=made_of)
    bench.claim("ablations", landmarks=detector.identity)
    pairs = landmark_pairs(bench, detector)
    records = evaluate(bench, detector, None, pairs, points)
    # Figures of earlier runs that these tables have no place for stay in the log.
    rows = summarise([r for r in records if r["points"] in points and r["method"] in variants], height)
    finish(bench.out, rows, tables(cells, rows))
    return 0
