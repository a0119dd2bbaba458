"""Writes docs/results.md from the tables in benchmarks/results/.

    python benchmarks/results.py            # write the page
    python benchmarks/results.py --check    # fail if the page differs from what the tables give

A table is a JSON file that a command with `--results FILE` wrote (`autodrag.eval.results.Table`). Its kind chooses the
section. A section without a table is left out.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autodrag.errors import AutodragError
from autodrag.eval.log import Record
from autodrag.eval.methods import METHODS
from autodrag.eval.results import Table, read_table
from autodrag.eval.tables import MISSING, markdown
from autodrag.files import write_text

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    text: str
    """What was measured and how to read the columns."""


SECTIONS = {
    "landmarks": Section(
        "Landmarks",
        """\
Landmarks of one image are dragged to those of another and detected again in the result (DragGAN's Table 1). All methods
get the same drags, the same step limit and the same stop rule.

- *patch*: a second measure of the distance. It searches the dragged patch by cross-correlation and does not use
  landmarks.
- *of no edit*: the mean distance as a share of the distance before the drag.
- *Fréchet*: distance of the results to the unedited images in features of the landmark net. It is not FID, and it
  depends on the number of images.
- *torn*: share of the results whose landmarks are less likely than those of 95 % of 1000 other unedited images.
- *DAI*: difference of the patches at handle and target, for radii γ in px.
""",
    ),
    "torn": Section(
        "What *torn* detects",
        """\
Images are torn on purpose: the head below a random row is shifted to the side, by a share of the height. Other images
are edited along random directions of W; the length is in standard deviations. A cell is the share that a measure calls
torn. Its threshold calls 5 % of the unedited images torn. `autodrag eval landmarks` uses the constellation of
landmarks.
""",
    ),
    "paired": Section(
        "Paired reconstruction",
        """\
Drags between two images with known latents. The result is compared with the second image (DragGAN's Table 2). Images
are in [-1, 1], so that MSE is four times that of images in [0, 1].
""",
    ),
    "mdd": Section(
        "Mean distance decay",
        """\
The distance left after a given time, as a share of the distance before the drag.
""",
    ),
    "ccsd": Section(
        "There and back",
        """\
A drag, and then the opposite drag. The last image is compared with the first. The measure rewards methods that do
nothing: read it beside the distance that the first drag left.
""",
    ),
    "masks": Section(
        "Masks",
        """\
Every drag runs without a mask, with a mask of the whole object (*whole*: the hull of all landmarks with a margin),
and with one that cuts through it (*cut*: an ellipse around the drag). *exact* keeps the image outside the mask by
construction, *soft* is the published penalty. Changes and seams are in levels of 255: the largest and the mean change
outside the mask, and the mean step across its border after the edit minus that before it. A mask that cuts through a
rigid head contradicts the drag.
""",
    ),
    "trust": Section(
        "Trust",
        """\
The uncertainties and outcomes that results report, compared with the landmark net. A quarter of the drags go in
random directions. A tracked point is *wrong* if it lies more than 1/16 of the image height (4 px) from where the
landmark net finds it; *found* is the share of the wrong points that are called lost, *false alarms* the share of the
others. *AUC* is that of the uncertainty. Each pair has one impossible drag of eight kinds: a target at the border, a
long drag, two handles to one place, swapped handles, an anchor beside the handle, handle or target outside the mask,
and a handle without texture. The program has a rule for each of these kinds, so that *obstacle right* says how well
the rules hold on new images, and nothing about drags that fail for other reasons.
""",
    ),
    "speed": Section(
        "Cost of an edit",
        """\
`draggan` and `refine` are measured by the step, `predict` by the whole edit: all rounds of its closed loop and the
image. *Ratio* divides the median by that of a plain synthesis in the same process. Quote the ratio, because seconds
depend on the load of the machine. Memory is the resident size on a CPU, with weights and libraries, and the memory that
torch allocated on a GPU.
""",
    ),
    "app": Section(
        "The app",
        """\
Clients send 60 positions per second over the WebSocket, as the page does, and release the pointer every two seconds.
Times are those that a client sees. Server and clients share the machine.
""",
    ),
    "convert": Section(
        "Conversion",
        """\
A file with one StyleGAN2 generator of random weights is converted. Peak memory is counted above what the process held
before, with PyTorch imported; the last column divides it by the size of the file.
""",
    ),
    "training": Section(
        "Training",
        """\
The distance left on held-out drags during a training, as a share of the distance before the drag. The averaged weights
edit in a closed loop of three rounds. The first command trains, the second reads the logs.
""",
    ),
    "tracking": Section(
        "Tracking",
        """\
Landmarks of one head are tracked while its latent moves toward another head. The error is the distance to where the
landmark net detects them. *Mutual* is the share of points whose match leads back to them. The refiner and the closed
loop track the blocks in the last row of each group.
""",
    ),
}
"""Kind of a table to its section, in the order of the page."""

INTRODUCTION = """\
# Results

<!-- Made by `make results` from benchmarks/results/*.json. Edit benchmarks/results.py, not this page. -->

The command above each table measured it, on the machine and at the commit in the line below the command. The machines
are shared and noisy: compare times within one table only.
"""

PICTURE = """\
![Drags of one point: the image before, then the result of each method](drags.jpg)

Red is where the point was detected, blue its target. The drags are the first ones of the run, without selection. The
picture is made by `python benchmarks/drags.py out/eval-landmarks/sheet-1.png` after the command of the section
*Landmarks*.
"""

LIMITS = """\
**Limits**

- All drags are on *critters* at 64 px, animal heads drawn by our own renderer. Nothing here was measured on
  photographs, on faces, or on a published checkpoint.
- The shipped predictor predicts one code (n = 1) and edits without a regularizer. It is not the network of the paper,
  whose variant (`configs/paper.yaml`) has not been trained to the end.
- The landmark net that measures distances has a mean error of 0.48 px itself (`checkpoints/critters/README.md`).
- `draggan` has the published learning rate, which was not tuned to critters; a tuned loop may need fewer steps.
- FID and LPIPS are missing: their weights were not available.
"""


def page(tables: Sequence[Table]) -> str:
    """The text of docs/results.md."""
    parts = [INTRODUCTION]
    landmarks = next((table for table in tables if table.kind == "landmarks"), None)
    if landmarks is not None:
        parts += ["## Summary\n", *summary(landmarks), PICTURE, LIMITS]
    for kind, section in SECTIONS.items():
        found = [table for table in tables if table.kind == kind]
        if found:
            parts += [f"## {section.title}\n", section.text, *map(measurement, found)]
    return "\n".join(parts)


def summary(table: Table) -> list[str]:
    """Distance and time of each method, from a table of `autodrag eval landmarks`."""
    try:
        counts = list(dict.fromkeys(row["points"] for row in table.rows))
        found = {row["method"] for row in table.rows}
        by_task = {(row["points"], row["method"]): row for row in table.rows}
        titles = ["method"]
        for count in counts:
            titles += [f"{named(count)}: left, px (of no edit)", "seconds"]
        lines = []
        for method in METHODS:
            if method in found:
                line = [f"`{method}`"]
                for count in counts:
                    row = by_task.get((count, method))
                    line += [MISSING, MISSING] if row is None else [distance(row), seconds(row, by_task)]
                lines.append(line)
        drags = " to ".join(str(n) for n in sorted({row["drags"] for row in table.rows}))
        note = f"""
            Distances are means over {drags} drags for each number of points, by the landmark net. `draggan` is the
            published loop with its published constants. `refine` is our optimisation loop. `predict` is the learned
            editor alone. `both` runs the refiner after the predictor if a point has not arrived. Seconds are medians
            that include the final image; in parentheses, the share of the time of `draggan`.
        """
        return [markdown(titles, lines), paragraph(note), second_measure(table.rows)]
    except (KeyError, TypeError) as error:
        raise AutodragError(
            f"the table of `{table.command}` lacks the field {error}; repeat the command with this version"
        ) from error


def named(count: int) -> str:
    """A number of points in words."""
    return f"{count} point" if count == 1 else f"{count} points"


def second_measure(rows: Sequence[Record]) -> str:
    """What the search for the dragged patch finds, as a sentence."""
    parts = []
    for count in dict.fromkeys(row["points"] for row in rows):
        drags = [row for row in rows if row["points"] == count and row["method"] != "none"]
        if drags:
            means, initial = [row["patch_distance"]["mean"] for row in drags], drags[0]["mean_initial"]
            parts.append(f"{min(means):.1f} to {max(means):.1f} of {initial:.1f} px with {named(count)}")
    if not parts:
        return ""
    return paragraph(
        f"""
        A second measure searches the dragged patch by cross-correlation. On average it finds that the methods leave
        {", ".join(parts)}. The medians are in the section *Landmarks*.
        """
    )


def paragraph(text: str) -> str:
    """Text in lines of up to 120 characters."""
    return textwrap.fill(" ".join(text.split()), width=120) + "\n"


def distance(row: Record) -> str:
    """Mean distance left, and its share of the distance before the drag."""
    if row["distance"] is None:
        return MISSING
    return f"{row['distance']['mean']:.2f} ({row['share_of_none']:.0%})"


def seconds(row: Record, by_task: dict[tuple[int, str], Record]) -> str:
    """Median seconds, and their share of the published loop's."""
    median: float = row["seconds"]["quartiles"][1]
    published = by_task.get((row["points"], "draggan"))
    if row["method"] == "none":
        return MISSING
    if published is None or row["method"] == "draggan":
        return f"{median:.2f}"
    return f"{median:.2f} ({median / published['seconds']['quartiles'][1]:.1%})"


def measurement(table: Table) -> str:
    """The command, machine and commit of a table, and the table."""
    commit = f"commit `{table.commit}`" if table.commit else ""
    where = ", ".join(part for part in (table.date, commit, table.machine) if part)
    return f"```\n{table.command}\n```\n\n{where}\n\n{table.markdown}"


def read_tables(folder: Path) -> list[Table]:
    """All tables of a folder, by file name."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise AutodragError(
            f"{str(folder)!r} has no tables (*.json); make one with a command such as "
            "autodrag eval landmarks --results benchmarks/results/landmarks.json"
        )
    tables = [read_table(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table.kind not in SECTIONS:
            raise AutodragError(
                f"{str(file)!r} holds a table of the kind {table.kind!r}, which has no section; "
                f"expected one of {', '.join(SECTIONS)}"
            )
    return tables


def main(argv: Sequence[str]) -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description="Write docs/results.md from the tables in benchmarks/results/.")
    parser.add_argument("--tables", type=Path, default=TABLES, metavar="FOLDER", help="JSON files of the tables")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the page (default: docs/results.md)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    args = parser.parse_args(argv)
    text = page(read_tables(args.tables))
    if not args.check:
        write_text(args.page, text)
    elif not args.page.exists() or args.page.read_text(encoding="utf-8") != text:
        raise AutodragError(f"{str(args.page)!r} differs from what the tables give; run make results")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AutodragError as error:
        sys.exit(f"error: {error}")
