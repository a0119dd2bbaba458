"""The edit schema: round trips, refusals with their place, and nothing else for any input at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autodrag.edits import (
    MAX_BYTES,
    Drag,
    Edit,
    Parameters,
    edit_document,
    parse_drag,
    parse_edits,
    parse_point,
    read_edits,
    schema,
    session_document,
    write_session,
)
from autodrag.errors import AutodragError

FOLDER = Path("/tmp/edits")
DRAG = {"handle": [1, 2], "target": [3, 4.5]}

coordinates = st.floats(-1e6, 1e6, allow_nan=False)
points = st.tuples(coordinates, coordinates)
optional_float = st.none() | st.floats(1e-6, 5)
# Arguments, not edits: the type checker draws random numbers, which a strategy may not.
edits = st.fixed_dictionaries(
    {
        "drags": st.lists(st.tuples(points, points), min_size=1, max_size=5),
        "checkpoint": st.text("abc/", min_size=1),
        "fingerprint": st.none() | st.text("0123456789abcdef", min_size=16, max_size=16),
        "seed": st.none() | st.integers(0, 2**32 - 1),
        "psi": st.floats(-4, 4),
        "label": st.none() | st.integers(0, 1000),
        "anchors": st.lists(points, max_size=3).map(tuple),
        "mask": st.none() | st.just(FOLDER / "masks" / "m.png"),
        "method": st.sampled_from(["refine", "predict", "both"]),
        "parameters": st.fixed_dictionaries(
            {
                "preset": st.sampled_from(["default", "draggan"]),
                "steps": st.none() | st.integers(0, 1000),
                "budget_s": optional_float,
                "lr": optional_float,
                "space": st.sampled_from([None, "w", "w+"]),
                "edit_layers": st.none() | st.integers(1, 18),
                "feature_block": st.none() | st.integers(0, 8),
                "stop_px": optional_float,
                "keep_references": st.booleans(),
            }
        ),
    }
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def parse(document: Any) -> list[Edit]:
    """Parse a document, given as text or as a JSON value."""
    text = document if isinstance(document, (str, bytes)) else json.dumps(document)
    return parse_edits(text, folder=FOLDER, where="the edit")


def build(arguments: dict[str, Any]) -> Edit:
    """An edit from what `edits` draws."""
    drags = tuple(Drag(handle, target) for handle, target in arguments["drags"])
    return Edit(**{**arguments, "drags": drags, "parameters": Parameters(**arguments["parameters"])})


@given(st.lists(edits, min_size=1, max_size=3))
def test_sessions_come_back(arguments: list[dict[str, Any]]) -> None:
    session = [build(item) for item in arguments]
    document = session_document(session, FOLDER)
    jsonschema.Draft202012Validator(schema()).validate(document)
    assert parse(document) == session


@given(edits)
def test_edits_come_back(arguments: dict[str, Any]) -> None:
    edit = build(arguments)
    assert parse(edit_document(edit, FOLDER)) == [edit]


@given(json_values)
def test_any_json_is_an_edit_or_a_clear_error(document: Any) -> None:
    try:
        parse(document)
    except AutodragError as error:
        assert str(error).startswith("the edit")


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_an_edit_or_a_clear_error(text: str | bytes) -> None:
    with pytest.raises(AutodragError, match=r"^the edit"):
        parse(text)


@given(points, points)
def test_drag_arguments_come_back(handle: tuple[float, float], target: tuple[float, float]) -> None:
    assert parse_drag(f"{handle[0]},{handle[1]}:{target[0]},{target[1]}") == Drag(handle, target)


@given(st.text(max_size=30))
def test_any_drag_argument_is_a_drag_or_a_clear_error(text: str) -> None:
    try:
        parse_drag(text)
    except AutodragError as error:
        assert "drag" in str(error) or "point" in str(error)


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "1;2", "1_0,2"])
def test_points_that_are_none(text: str) -> None:
    with pytest.raises(AutodragError, match="is not a point; expected x,y in pixels, such as 60,70"):
        parse_point(text)


@pytest.mark.parametrize("text", ["nan,1", "1,inf", "1,-infinity"])
def test_points_that_are_not_finite(text: str) -> None:
    with pytest.raises(AutodragError, match="is not finite"):
        parse_point(text)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, r"at \$: 'drags' is a required property"),
        ({"drags": []}, r"at \$\.drags: there are no points"),
        ({"drags": [{"handle": [1, 2]}]}, r"at \$\.drags\[0\]: 'target' is a required property"),
        (
            {"drags": [{"handle": [1, "2"], "target": [1, 2]}]},
            r"at \$\.drags\[0\]\.handle\[1\]: '2' is not of type",
        ),
        ({"drags": [{"handle": [1, 2, 3], "target": [1, 2]}]}, r"at \$\.drags\[0\]\.handle: .*is too long"),
        ({"drags": [DRAG] * 1001}, r"at \$\.drags: "),
        ({"drags": [DRAG], "seed": -1}, r"at \$\.seed: -1 is less than the minimum"),
        ({"drags": [DRAG], "seed": 1, "latent": "a"}, r"at \$: seed and latent are both given"),
        ({"drags": [DRAG], "method": "magic"}, r"at \$\.method: 'magic' is not one of"),
        ({"drags": [DRAG], "typo": 1}, r"at \$: .*'typo' was unexpected"),
        ({"drags": [DRAG], "parameters": {"steps": -1}}, r"at \$\.parameters\.steps: -1 is less than"),
        ({"drags": [DRAG], "fingerprint": "xyz"}, r"at \$\.fingerprint: 'xyz' does not match"),
        ({"autodrag_session": 1, "edits": []}, r"at \$\.edits: "),
        ({"autodrag_session": 2, "edits": [{"drags": [DRAG]}]}, r"at \$\.autodrag_session: 1 was expected"),
        ([1], r"at \$: \[1\] is not of type 'object'"),
        ('{"drags": [{"handle": [NaN, 1], "target": [1, 2]}]}', "NaN is not a number that JSON knows"),
        ('{"psi": -Infinity}', "-Infinity is not a number that JSON knows"),
        ('{"psi": 1e999}', "1e999 is not a number that JSON knows"),
        ('{"seed": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"seed": 1, "seed": 2}', "a name is given twice among seed, seed"),
        ("[" * 100_000, "is nested deeper than 12 levels"),
        ("[" * 20 + "]" * 20, "is nested deeper than 12 levels"),
        ("{", "is not JSON: .* at line 1, column 2"),
        (b"\xff\xfe{", "is not JSON"),
        (" " * (MAX_BYTES + 1), "is larger than the limit"),
    ],
)
def test_bad_documents(document: Any, message: str) -> None:
    with pytest.raises(AutodragError, match=message) as caught:
        parse(document)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["latent", "mask"])
@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "link/x", "a\0b"])
def test_paths_stay_in_the_folder(tmp_path: Path, name: str, path: str) -> None:
    (tmp_path / "edits").mkdir()
    (tmp_path / "edits" / "link").symlink_to(tmp_path)
    text = json.dumps({"drags": [DRAG], name: path})
    with pytest.raises(AutodragError, match=r"leaves its file's folder|is not a path"):
        parse_edits(text, folder=tmp_path / "edits", where="the edit")


def test_whole_numbers_are_integers_whatever_json_says() -> None:
    (edit,) = parse('{"seed": 7.0, "psi": 1, "drags": [{"handle": [1, 2], "target": [3, 4]}]}')
    assert (type(edit.seed), type(edit.psi), type(edit.drags[0].handle[0])) == (int, float, float)


def test_session_files(tmp_path: Path) -> None:
    session = [Edit((Drag((1.0, 2.0), (3.0, 4.0)),), seed=1), Edit((Drag((0.0, 0.0), (1.0, 1.0)),))]
    write_session(tmp_path / "s.json", session)
    assert read_edits(tmp_path / "s.json") == session
    with pytest.raises(AutodragError, match="would be empty"):
        write_session(tmp_path / "t.json", [])
    with pytest.raises(AutodragError, match="lies outside of"):
        write_session(tmp_path / "t.json", [Edit(session[0].drags, mask=tmp_path.parent / "m.png")])
    with pytest.raises(AutodragError, match=r"edit file '.*missing\.json' does not exist"):
        read_edits(tmp_path / "missing.json")


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    defaults = schema()["$defs"]["edit"]["properties"]
    assert defaults["psi"]["default"] == Edit.psi
    assert defaults["checkpoint"]["default"] == Edit.checkpoint
    assert set(schema()["$defs"]["parameters"]["properties"]) == set(Parameters.__dataclass_fields__)
    assert set(defaults) == set(Edit.__dataclass_fields__)
