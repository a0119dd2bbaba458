"""The JSON format of edits, for command-line files, batch lines, HTTP bodies and saved sessions.

The models below define the format. `schema` generates the JSON Schema, `parse_edits` reads documents and
`edit_document` writes them. Documents are untrusted input: their size, depth and numbers are limited. NaN, Infinity,
repeated keys and paths outside the folder of the document are refused.

Points are (x, y) in px of the output image, integers at pixel centres, y down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

from autodrag.errors import AutodragError, place_of, quoted, unknown_field, validation_sentence
from autodrag.files import read_bounded, write_json

Preset = Literal["default", "draggan"]
Outside = Literal["exact", "soft"]
Method = Literal["auto", "predict", "refine", "both"]

MAX_BYTES = 2**20
MAX_DEPTH = 12
MAX_ITEMS = 1000
MAX_PATH = 1000  # characters
DEFAULT_CHECKPOINT = "checkpoints/critters"


def _whole(value: object) -> object:
    """Convert 2.0 to 2, because JSON Schema treats both as integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _path(value: object, info: Any) -> object:
    """Validate a path from a document. After resolving links it must lie in the document's folder.

    info: pydantic's ValidationInfo, whose context holds the folder. Paths from Python code have no context.
    """
    if not isinstance(value, str):
        return value
    if not 0 < len(value) <= MAX_PATH or "\0" in value:
        raise ValueError(f"{info.field_name} {quoted(value)} is not a path; expected 1 to {MAX_PATH} characters")
    if not info.context:
        return Path(value)
    folder = info.context["folder"].resolve()
    path = (folder / value).resolve()
    if Path(value).is_absolute() or not path.is_relative_to(folder):
        name = f"{info.field_name} {quoted(value)}"
        raise ValueError(f"{name} leaves the folder of the document; expected a path relative to that folder")
    return path


WHOLE = BeforeValidator(_whole)
Coordinate = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
Point = tuple[Coordinate, Coordinate]
File = Annotated[Path, BeforeValidator(_path), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_PATH})]
Self = TypeVar("Self", bound="Model")


class Model(BaseModel):
    """Immutable base model without unknown fields. `Model(...)` raises pydantic's error; use `of` for user input."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def of(cls: type[Self], **values: Any) -> Self:
        """Build from user input. Raises AutodragError with one sentence."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise AutodragError(_sentence(error)) from error

    def replaced(self: Self, **values: Any) -> Self:
        """A copy with other values, validated as in `of`."""
        return self.of(**{**{name: getattr(self, name) for name in type(self).model_fields}, **values})


class PointPair(Model):
    """A handle and its target."""

    handle: Point
    """Current position of the point."""
    target: Point
    """Desired position of the point."""


class Parameters(Model):
    """Settings of an edit. The preset defines settings that are null."""

    preset: Preset = "default"
    """Settings of the refiner. default: this package's refiner; draggan: the published DragGAN loop."""
    rounds: Annotated[int, Field(strict=True, ge=1, le=100), WHOLE] | None = None
    """Maximum number of predictions; null: 2 for one point, 6 for several."""
    steps: Annotated[int, Field(strict=True, ge=0, le=100_000), WHOLE] | None = None
    """Maximum number of optimisation steps."""
    budget_s: Annotated[float, Field(strict=True, gt=0, le=86_400)] | None = None
    """Maximum time in seconds."""
    lr: Annotated[float, Field(strict=True, gt=0, le=10)] | None = None
    """Learning rate of Adam. Only the preset draggan uses it."""
    space: Literal["w", "w+"] | None = None
    """w: the edited layers share one vector; w+: each layer has its own vector."""
    edit_layers: Annotated[int, Field(strict=True, ge=1, le=18), WHOLE] | None = None
    """Number of layers of W+, counted from the first, that may change."""
    feature_block: Annotated[int, Field(strict=True, ge=0, le=8), WHOLE] | None = None
    """Index of the generator block whose features are tracked."""
    stop_px: Annotated[float, Field(strict=True, gt=0, le=1000)] | None = None
    """Distance in px at which a point has arrived."""
    outside: Outside = "exact"
    """Outside the mask. exact: nothing changes; soft: the preset draggan penalises changes, as published."""
    keep_references: Annotated[bool, Field(strict=True)] = False
    """Track the features of the previous edit instead of the features of the current image."""

    @model_validator(mode="after")
    def _refuse_unused(self) -> Parameters:
        if self.outside == "soft" and self.preset == "default":
            raise ValueError("outside 'soft' has no effect with the preset default; use draggan, or outside exact")
        if self.lr is not None and self.preset == "default":
            raise ValueError(f"lr {self.lr:g} has no effect with the preset default; leave it out or use draggan")
        return self

    def overrides(self) -> dict[str, Any]:
        """The settings that replace values of the preset."""
        return self.model_dump(exclude={"preset", "outside", "keep_references"}, exclude_none=True)


class Source(Model):
    """The image that an edit starts from."""

    seed: Annotated[int, Field(strict=True, ge=0, le=2**32 - 1), WHOLE] | None = None
    """Seed of the image. An edit without seed and latent starts from the result of the previous edit."""
    latent: File | None = None
    """A latent.safetensors file to start from instead of a seed."""
    psi: Annotated[float, Field(strict=True, ge=-2, le=2)] = 0.7
    """Truncation of a seed's latent: 1 leaves the latent unchanged, 0 gives the average image."""
    label: Annotated[int, Field(strict=True, ge=0, le=1_000_000), WHOLE] | None = None
    """Class of a class-conditional generator."""

    @model_validator(mode="after")
    def _refuse_two(self) -> Source:
        if self.seed is not None and self.latent is not None:
            raise ValueError("seed and latent are both given; an edit starts from one of them")
        return self


class Edit(Source):
    """One edit of one image. Paths are relative to the folder of the document."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "required": ["seed", "latent"],
                "properties": {"seed": {"type": "integer"}, "latent": {"type": "string"}},
            }
        }
    )

    checkpoint: Annotated[str, Field(min_length=1, max_length=MAX_PATH)] = DEFAULT_CHECKPOINT
    """Checkpoint folder, relative to the working directory or beside the package."""
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = None
    """Fingerprint of the generator. The edit is refused for any other generator; null accepts all."""
    drags: Annotated[tuple[PointPair, ...], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    """Points to move and their targets."""
    anchors: Annotated[tuple[Point, ...], Field(max_length=MAX_ITEMS, fail_fast=True)] = ()
    """Points that must not move."""
    mask: File | None = None
    """Image of the output size: pixels brighter than 127 may move. Null: all pixels may move."""
    method: Method = "auto"
    """predict: the learned predictor; refine: the optimisation loop; both: first predict, then refine;
    auto: both if the checkpoint has a predictor, otherwise refine; with the preset draggan, refine."""
    parameters: Parameters = Parameters()
    """Settings of the method."""

    @model_validator(mode="after")
    def _refuse_unused(self) -> Edit:
        if self.method == "predict":
            if self.parameters.preset != "default":
                raise ValueError("preset 'draggan' has no effect with the method predict; use refine or both")
            for name in ("edit_layers", "feature_block"):
                if getattr(self.parameters, name) is not None:
                    raise ValueError(f"{name} has no effect with the method predict; leave it out")
        if self.parameters.outside == "soft" and self.method in ("predict", "both"):
            raise ValueError(f"outside 'soft' has no effect with the method {self.method}; use refine")
        if self.method == "refine" and self.parameters.rounds is not None:
            raise ValueError("rounds has no effect with the method refine; use predict or both")
        return self

    @property
    def handles(self) -> list[Point]:
        """The handles, in order."""
        return [pair.handle for pair in self.drags]

    @property
    def targets(self) -> list[Point]:
        """The targets, in order."""
        return [pair.target for pair in self.drags]


class SessionFile(Model):
    """A list of edits. Each edit starts from the result of the previous one."""

    autodrag_session: Literal[1]
    """Version of this format."""
    edits: Annotated[tuple[Edit, ...], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    """The edits, in order."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a document: an edit or a session."""
    _, definitions = models_json_schema([(Edit, "validation"), (SessionFile, "validation")])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "autodrag edit or session",
        "description": (__doc__ or "").rpartition("\n\n")[2].strip(),
        "if": {"required": ["autodrag_session"]},
        "then": {"$ref": "#/$defs/SessionFile"},
        "else": {"$ref": "#/$defs/Edit"},
        "$defs": definitions["$defs"],
    }


def parse_edits(text: str | bytes, *, folder: str | Path, where: str) -> list[Edit]:
    """Read an edit or a session.

    Args:
        text: the JSON document, at most 1 MiB.
        folder: relative paths start from this folder and may not leave it.
        where: name of the document in errors, such as "edit file 'a.json'".

    Raises:
        AutodragError: the document is invalid; the message names the field.
    """
    document = _parse_json(text, where)
    context = {"folder": Path(folder)}
    try:
        if isinstance(document, dict) and "autodrag_session" in document:
            return list(SessionFile.model_validate(document, context=context).edits)
        return [Edit.model_validate(document, context=context)]
    except ValidationError as error:
        raise AutodragError(f"{where}: {_sentence(error)}") from error


def read_edits(path: str | Path) -> list[Edit]:
    """Read an edit file or a saved session. Paths in the file are relative to its folder."""
    path = Path(path)
    return parse_edits(read_bounded(path, MAX_BYTES, "edit file"), folder=path.parent, where=f"edit file {str(path)!r}")


def edit_document(edit: Edit, folder: str | Path) -> dict[str, Any]:
    """Convert an edit to a JSON value. `latent` and `mask` must lie in `folder`; their paths become relative to it."""
    document = edit.model_dump(mode="json", exclude_none=True)
    for name in ("latent", "mask"):
        if name in document:
            document[name] = _relative(getattr(edit, name), Path(folder))
    return document


def session_document(edits: Sequence[Edit], folder: str | Path) -> dict[str, Any]:
    """Convert a list of edits to a JSON value."""
    return {"autodrag_session": 1, "edits": [edit_document(edit, folder) for edit in edits]}


def write_session(path: str | Path, edits: Sequence[Edit]) -> None:
    """Write a session file. Latent and mask files must already lie in its folder."""
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


def parse_pair(text: str) -> PointPair:
    """Read `x,y:x,y`, a handle and its target."""
    parts = text.split(":")
    if len(parts) != 2:
        raise AutodragError(f"{text!r} is not a drag; expected handle:target as x,y:x,y, such as 60,70:80,66")
    return PointPair.of(handle=parse_point(parts[0]), target=parse_point(parts[1]))


# --- reading and writing, step by step ------------------------------------------------------------------------


def _parse_json(text: str | bytes, where: str) -> Any:
    if len(text) > MAX_BYTES:
        raise AutodragError(f"{where} is larger than the limit of {MAX_BYTES} bytes")

    def constant(name: str) -> float:
        raise AutodragError(f"{where}: {name} is not a JSON number; expected a finite number")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits[:20])

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise AutodragError(f"{where}: a key occurs twice in {', '.join(key for key, _ in pairs)[:80]}")
        return table

    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        document = json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=members)
        json.dumps(document, ensure_ascii=False).encode()
    except AutodragError:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise AutodragError(f"{where} is not JSON: {error.msg} at {place}") from error
    except UnicodeEncodeError as error:  # "\\ud800" is valid JSON, but not valid Unicode text
        raise AutodragError(f"{where} contains half of a surrogate pair; expected Unicode text") from error
    except RecursionError as error:
        raise AutodragError(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # invalid UTF-8, or an integer with thousands of digits
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


def _sentence(error: ValidationError) -> str:
    """`validation_sentence` with hints specific to the models of this module."""
    problem = error.errors(include_url=False)[0]
    kind, keys = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        models: dict[object, type[Model]] = {"edits": Edit, "drags": PointPair, "parameters": Parameters}
        models |= {model.__name__: model for model in (Edit, Parameters, PointPair, SessionFile, Source)}
        parent = next((key for key in keys[-2::-1] if key in models), error.title)
        return unknown_field(place_of(keys), str(keys[-1]), models[parent].model_fields)
    if kind == "too_short" and keys[-1] == "drags":
        return "there are no points to drag; give at least one drag"
    number = f"{place_of(keys[:2])}: " if kind == "value_error" and keys[:1] == ("edits",) else ""
    return number + validation_sentence(error)


def _relative(path: Path, folder: Path) -> str:
    resolved, root = path.resolve(), folder.resolve()
    if not resolved.is_relative_to(root):
        raise AutodragError(f"{str(path)!r} lies outside {str(folder)!r}; copy it into that folder")
    return resolved.relative_to(root).as_posix()
