"""The one edit schema: command-line file, batch line, HTTP body, saved session.

`edit.schema.json` beside this file is the published form (JSON Schema, draft 2020-12); `parse_edits` is the
only reader and `edit_document` the only writer. Documents are untrusted: size, depth and numbers are bounded,
NaN, Infinity and repeated names are refused, and a path may not leave the folder of the document.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from autodrag.errors import AutodragError
from autodrag.files import read_bounded, write_json

Point = tuple[float, float]
Preset = Literal["default", "draggan"]
Method = Literal["auto", "refine", "predict", "both"]

MAX_BYTES = 2**20
MAX_DEPTH = 12
DEFAULT_CHECKPOINT = "checkpoints/critters"


@dataclass(frozen=True)
class PointPair:
    """One handle and where it should go; (x, y) in px of the output image."""

    handle: Point
    """Where the point is now."""
    target: Point
    """Where it should be."""


@dataclass(frozen=True)
class Parameters:
    """How to edit. None leaves the preset's own value."""

    preset: Preset = "default"
    """Named settings of the refiner: ours, or the published ones."""
    rounds: int | None = None
    """Most predictions in a row; left out, 2 for one point and 6 for several."""
    steps: int | None = None
    """Most optimisation steps."""
    budget_s: float | None = None
    """Most seconds."""
    lr: float | None = None
    """Adam's learning rate."""
    space: Literal["w", "w+"] | None = None
    """Whether the edited layers share one vector."""
    edit_layers: int | None = None
    """How many layers of W+, from the first, may change."""
    feature_block: int | None = None
    """Index of the block whose features are tracked."""
    stop_px: float | None = None
    """Distance at which a point has arrived, px of the output image."""
    keep_references: bool = False
    """Track the features of the edit before instead of those of the present image."""

    def overrides(self) -> dict[str, Any]:
        """The settings that differ from the preset's."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: v for k, v in values.items() if k not in ("preset", "keep_references") and v is not None}


@dataclass(frozen=True)
class Edit:
    """One edit of one image. With neither seed nor latent it goes on from the edit before it in a session."""

    drags: tuple[PointPair, ...]
    """What to move, at least one."""
    checkpoint: str = DEFAULT_CHECKPOINT
    """Checkpoint folder."""
    fingerprint: str | None = None
    """Fingerprint of the generator that the edit was made for; None accepts any."""
    seed: int | None = None
    """Seed of the image."""
    latent: Path | None = None
    """Latent file to start from."""
    psi: float = 0.7
    """Truncation of a seed's latent."""
    label: int | None = None
    """Class of a conditional generator."""
    anchors: tuple[Point, ...] = ()
    """Points that must stay."""
    mask: Path | None = None
    """Mask image, True = may move."""
    method: Method = "auto"
    """Refiner, predictor, or both; auto takes both where there is a predictor and no mask, otherwise the refiner."""
    parameters: Parameters = field(default_factory=Parameters)
    """How to edit."""

    @property
    def handles(self) -> list[Point]:
        """The handles, in order."""
        return [drag.handle for drag in self.drags]

    @property
    def targets(self) -> list[Point]:
        """The targets, in order."""
        return [drag.target for drag in self.drags]


def schema() -> dict[str, Any]:
    """The published JSON Schema of an edit document."""
    return dict(_schema())


def parse_edits(text: str | bytes, *, folder: str | Path, where: str) -> list[Edit]:
    """Read an edit or a session.

    Args:
        text: the JSON document, at most 1 MiB.
        folder: what its relative paths start from and may not leave.
        where: what to call the document in an error, such as "edit file 'a.json'".

    Raises:
        AutodragError: one sentence with the place in the document.
    """
    document = _parse_json(text, where)
    _validate(document, where)
    items = document["edits"] if "autodrag_session" in document else [document]
    return [_edit(item, Path(folder), where) for item in items]


def read_edits(path: str | Path) -> list[Edit]:
    """Read an edit file or a saved session; paths in it are relative to its own folder."""
    path = Path(path)
    return parse_edits(read_bounded(path, MAX_BYTES, "edit file"), folder=path.parent, where=f"edit file {str(path)!r}")


def edit_document(edit: Edit, folder: str | Path) -> dict[str, Any]:
    """One edit as a JSON value; `latent` and `mask` are written relative to `folder`, and must lie in it."""
    document: dict[str, Any] = {"checkpoint": edit.checkpoint}
    for name in ("fingerprint", "seed", "label"):
        if getattr(edit, name) is not None:
            document[name] = getattr(edit, name)
    for name in ("latent", "mask"):
        if getattr(edit, name) is not None:
            document[name] = _relative(getattr(edit, name), Path(folder))
    document["psi"] = edit.psi
    document["drags"] = [{"handle": list(drag.handle), "target": list(drag.target)} for drag in edit.drags]
    if edit.anchors:
        document["anchors"] = [list(anchor) for anchor in edit.anchors]
    document["method"] = edit.method
    keep = {"keep_references": True} if edit.parameters.keep_references else {}
    document["parameters"] = {"preset": edit.parameters.preset, **edit.parameters.overrides(), **keep}
    return document


def session_document(edits: Sequence[Edit], folder: str | Path) -> dict[str, Any]:
    """A list of edits as a JSON value."""
    return {"autodrag_session": 1, "edits": [edit_document(edit, folder) for edit in edits]}


def write_session(path: str | Path, edits: Sequence[Edit]) -> None:
    """Write a session file; latent and mask files must already lie in its folder."""
    path = Path(path)
    if not edits:
        raise AutodragError(f"session {str(path)!r} would be empty; make an edit first")
    write_json(path, session_document(edits, path.parent))


def parse_point(text: str) -> Point:
    """Read `x,y`."""
    parts = text.split(",")
    try:
        point = tuple(float(part) for part in parts)
    except ValueError:
        point = ()
    if len(point) != 2 or "_" in text:
        raise AutodragError(f"{text!r} is not a point; expected x,y in pixels, such as 60,70")
    if not all(math.isfinite(value) for value in point):
        raise AutodragError(f"point {text!r} is not finite; expected x,y in pixels, such as 60,70")
    return point[0], point[1]


def parse_drag(text: str) -> PointPair:
    """Read `x,y:x,y`, handle and target."""
    parts = text.split(":")
    if len(parts) != 2:
        raise AutodragError(f"{text!r} is not a drag; expected handle:target as x,y:x,y, such as 60,70:80,66")
    return PointPair(parse_point(parts[0]), parse_point(parts[1]))


# --- reading, step by step ----------------------------------------------------------------------------------


@functools.cache
def _schema() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(Path(__file__).with_name("edit.schema.json").read_text(encoding="utf-8"))
    return value


@functools.cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(_schema())


def _parse_json(text: str | bytes, where: str) -> Any:
    if len(text) > MAX_BYTES:
        raise AutodragError(f"{where} is larger than the limit of {MAX_BYTES} bytes")

    def constant(name: str) -> float:
        raise AutodragError(f"{where}: {name} is not a number that JSON knows; expected a finite number")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits[:20])

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise AutodragError(f"{where}: a name is given twice among {', '.join(k for k, _ in pairs)[:80]}")
        return table

    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        document = json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=members)
    except AutodragError:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise AutodragError(f"{where} is not JSON: {error.msg} at {place}") from error
    except RecursionError as error:
        raise AutodragError(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # text that is not UTF-8, or an integer of thousands of digits
        raise AutodragError(f"{where} is not JSON: {str(error)[:100]}") from error
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise AutodragError(f"{where} is nested deeper than {MAX_DEPTH} levels")
    return document


def _validate(document: Any, where: str) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(document))
    if error is None:
        return
    message = error.message if len(error.message) <= 160 else error.message[:160] + "..."
    if error.json_path == "$.drags" and error.validator == "minItems":
        message = "there are no points; give at least one drag"
    elif error.validator == "not":
        message = "seed and latent are both given; an edit starts from one of them"
    raise AutodragError(f"{where}: at {error.json_path}: {message}")


def _edit(item: dict[str, Any], folder: Path, where: str) -> Edit:
    values = dict(item)
    values["drags"] = tuple(PointPair(_point(drag["handle"]), _point(drag["target"])) for drag in item["drags"])
    values["anchors"] = tuple(_point(anchor) for anchor in item.get("anchors", ()))
    values["parameters"] = Parameters(**_numbers(item.get("parameters", {})))
    for name in ("latent", "mask"):
        if values.get(name) is not None:
            values[name] = _inside(values[name], folder, f"{where}: {name}")
    return Edit(**_numbers(values))


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema calls 7.0 an integer and 1 a number; Python's types are made to say the same."""
    integers, floats = (
        ("seed", "label", "steps", "edit_layers", "feature_block"),
        ("psi", "budget_s", "lr", "stop_px"),
    )
    return {
        name: int(value)
        if name in integers and value is not None
        else float(value)
        if name in floats and value is not None
        else value
        for name, value in values.items()
    }


def _point(value: Sequence[float]) -> Point:
    return float(value[0]), float(value[1])


def _inside(text: str, folder: Path, what: str) -> Path:
    """`text` as a path in `folder`; links are followed before the check."""
    if "\0" in text:
        raise AutodragError(f"{what} {text!r} is not a path")
    path = (folder / text).resolve()
    if Path(text).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise AutodragError(f"{what} {text!r} leaves its file's folder; expected a path relative to it")
    return path


def _relative(path: Path, folder: Path) -> str:
    resolved, root = path.resolve(), folder.resolve()
    if not resolved.is_relative_to(root):
        raise AutodragError(f"{str(path)!r} lies outside of {str(folder)!r}; copy it there to refer to it")
    return resolved.relative_to(root).as_posix()
