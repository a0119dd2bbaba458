"""Edits run for the command line, and the files they produce: pictures, animation, latent, JSON result.

An output folder holds the files of one run: before writing, `write_outcome` removes those of an earlier run by name.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodrag import __version__
from autodrag.edits import Edit
from autodrag.files import write_json

if TYPE_CHECKING:
    import numpy as np

    from autodrag.infer.editor import DragEditor
    from autodrag.infer.task import DragResult
    from autodrag.nets.layers import Layers

MAX_FRAMES = 48
LEAP_FRAMES = 16  # frames between the start and the result of a predictor
GIF_PX = 320  # minimum side; smaller than in the MP4, because the size of a GIF grows faster with its area
FILES = [
    *("result.json", "before.png", "after.png", "annotated.png", "animation.mp4", "animation.gif"),
    *("latent.safetensors", "edit.json", "edit.latent.safetensors", "edit.mask-*.png"),
]
"""Files of a run. result.json is removed first and written last, so that it confirms all others."""


@dataclass
class Outcome:
    """Result of a list of edits, in order."""

    edits: list[Edit]
    """The edits as they were run."""
    before: np.ndarray
    """The image that the first edit opened, HWC uint8."""
    results: list[DragResult]
    """One per edit."""
    masks: list[np.ndarray | None]
    """One per edit, None: everything may move."""
    path: list[tuple[int, Layers, list[list[float]]]] = field(default_factory=list)
    """Every step, with interpolated frames for predictions: number of the edit, code of the image, points."""
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds by part."""


def run_edits(
    editor: DragEditor,
    edits: Sequence[Edit],
    *,
    record: bool = True,
    callback: Callable[[DragResult], None] | None = None,
) -> Outcome:
    """Apply edits one after another.

    `record` keeps the latent of each step. The animation is drawn from them afterwards, so that drawing does not
    slow the drag down. `callback` gets each step, for a progress bar.
    """
    start = time.perf_counter()
    before = _open(editor, edits[0])
    outcome = Outcome(list(edits), before, [], [])
    outcome.timing["open"] = time.perf_counter() - start
    for number, edit in enumerate(edits):

        def step(state: DragResult, number: int = number) -> None:
            if record:
                outcome.path.append((number, state.layers, state.points.tolist()))
            if callback is not None:
                callback(state)

        outcome.masks.append(_mask(editor, edit))
        follow = edit.replaced(seed=None, latent=None) if number == 0 else edit
        origin, first = editor.layers, len(outcome.path)
        result = editor.apply(follow, callback=step)
        outcome.results.append(result)
        if record and result.rounds:
            refined = outcome.path[first:]
            code, points = refined[0][1:] if refined else (result.layers, result.points.tolist())
            leap = _between(number, origin, code, result.handles.tolist(), points)
            outcome.path[first:] = [*leap, *refined]
    outcome.timing["drag"] = sum(result.seconds for result in outcome.results)
    outcome.timing["total"] = time.perf_counter() - start
    return outcome


def write_outcome(
    editor: DragEditor, outcome: Outcome, folder: Path, *, animation: bool, extra: dict[str, Any]
) -> None:
    """Write all files of a drag and remove those of an earlier run; other files in the folder stay."""
    from autodrag.checkpoint import save_code
    from autodrag.images import write_animation, write_png
    from autodrag.infer.draw import annotate, contact_sheet

    for pattern in FILES:
        for stale in folder.glob(pattern):
            stale.unlink()
    first, last, edit, mask = outcome.edits[0], outcome.results[-1], outcome.edits[-1], outcome.masks[-1]
    origin = outcome.before if len(outcome.results) == 1 else outcome.results[-2].image
    write_png(folder / "before.png", outcome.before)
    write_png(folder / "after.png", last.image)
    marks: dict[str, Any] = {"targets": last.targets, "anchors": edit.anchors or None}
    pair = [
        annotate(origin, handles=last.handles, mask=mask, **marks),
        annotate(last.image, handles=last.handles, points=last.points, **marks),
    ]
    write_png(folder / "annotated.png", contact_sheet(pair, 2, gap=8))
    if animation:
        frames = _frames(editor, outcome)
        write_animation(folder / "animation.mp4", [annotate(**frame) for frame in frames])
        write_animation(folder / "animation.gif", [annotate(**frame, least=GIF_PX) for frame in frames])
    origin_of = {"seed": first.seed, "psi": first.psi, "label": first.label}
    save_code(folder / "latent.safetensors", last.layers, {"generator": editor.fingerprint, **origin_of})
    editor.save_session(folder / "edit.json")
    height, width = editor.image_size
    write_json(
        folder / "result.json",
        {
            "checkpoint": editor.checkpoint,
            "fingerprint": editor.fingerprint,
            "image_size": {"width": width, "height": height},
            **origin_of,
            "noise": "const",
            "edits": [
                {"preset": edit.parameters.preset, **result.report()}
                for edit, result in zip(outcome.edits, outcome.results, strict=True)
            ],
            "timing_s": {name: round(seconds, 4) for name, seconds in outcome.timing.items()},
            "device": str(editor.device),
            "versions": versions(),
            **extra,
        },
    )


def describe(outcome: Outcome) -> list[str]:
    """Lines for a person: the distance left for each point, the outcome, and what to try if the drag did not arrive."""
    lines = []
    for number, result in enumerate(outcome.results, start=1):
        lead = "" if len(outcome.results) == 1 else f"edit {number}: "
        for point in result.report()["points"]:
            (hx, hy), (tx, ty) = point["handle"], point["target"]
            seen = (
                "" if point["landmark_distance"] is None else f", {point['landmark_distance']:.2f} by the landmark net"
            )
            state = ", lost" if point["lost"] else f" ± {point['uncertainty'] or 0:.1f}"
            lines.append(f"{lead}{hx:g},{hy:g} to {tx:g},{ty:g}: {point['distance']:.2f} px left{state}{seen}")
        work = [_count(result.rounds, "prediction")] if result.rounds else []
        work += [_count(result.steps, "step")] if result.steps or not work else []
        unchanged = "; the image was left as it was" if result.outcome == "failed" else ""
        lines.append(f"{lead}{result.outcome} after {' and '.join(work)}, {result.seconds:.3f} s{unchanged}")
        lines += [lead + line for line in _advice(outcome.edits[number - 1], result)]
    return lines


def _advice(edit: Edit, result: DragResult) -> list[str]:
    """Why a drag did not arrive, and the settings that can help."""
    from autodrag.infer.trust import ADVICE

    if result.obstacle is None:
        return []
    tries = []
    if result.method == "predict":
        tries.append("--method both")
    elif result.reason in ("steps", "budget"):
        tries.append("more --steps" if result.reason == "steps" else "a larger --budget")
    if result.method != "predict" and edit.parameters.space != "w+" and result.obstacle == "generator":
        tries.append("--space w+")
    also = f"; also try {' or '.join(tries)}" if tries else ""
    return [f"{ADVICE[result.obstacle]}{also}"]


def versions() -> dict[str, str]:
    """Versions of the programs that made a result."""
    import torch

    return {"autodrag": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _open(editor: DragEditor, edit: Edit) -> np.ndarray:
    from autodrag.errors import AutodragError

    if edit.seed is None and edit.latent is None:
        raise AutodragError("the first edit names neither a seed nor a latent; give one, such as --seed 7")
    return editor.open(edit.seed, edit.psi, edit.label, edit.latent)


def _mask(editor: DragEditor, edit: Edit) -> np.ndarray | None:
    from autodrag.images import read_mask

    return None if edit.mask is None else read_mask(edit.mask, editor.image_size)


def _between(
    number: int, start: Layers, end: Layers, handles: list[list[float]], points: list[list[float]]
) -> list[tuple[int, Layers, list[list[float]]]]:
    """Frames of a prediction: codes interpolated between start and end, points along with them."""
    frames = []
    for k in range(1, LEAP_FRAMES + 1):
        share = k / LEAP_FRAMES
        pairs = zip(handles, points, strict=True)
        frames.append(
            (
                number,
                start.toward(end, share),
                [[a + share * (b - a) for a, b in zip(p, q, strict=True)] for p, q in pairs],
            )
        )
    return frames


def _frames(editor: DragEditor, outcome: Outcome) -> list[dict[str, Any]]:
    """Arguments of `annotate` for about MAX_FRAMES frames, with a pause on the first and on the last."""
    stride = -(-len(outcome.path) // MAX_FRAMES) or 1
    first, last = outcome.results[0], outcome.results[-1]
    moving = [
        {"image": editor.render(code), "handles": points, "targets": outcome.results[number].targets}
        for number, code, points in outcome.path[::stride]
    ]
    start = {"image": outcome.before, "handles": first.handles, "targets": first.targets}
    end = {"image": last.image, "handles": last.points, "targets": last.targets}
    return [start] * 6 + moving + [end] * 12
