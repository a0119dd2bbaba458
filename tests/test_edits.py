"""The edit format: round trips, and one clear error message for any invalid input."""

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
    Edit,
    Parameters,
    PointPair,
    edit_document,
    parse_edits,
    parse_pair,
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
# The strategy draws arguments, not edits: beartype uses random numbers, which hypothesis forbids inside strategies.
edits = st.fixed_dictionaries(
    {
        "drags": st.lists(st.tuples(points, points), min_size=1, max_size=5),
        "checkpoint": st.text("abc/", min_size=1),
        "fingerprint": st.none() | st.text("0123456789abcdef", min_size=16, max_size=16),
        "seed": st.none() | st.integers(0, 2**32 - 1),
        "psi": st.floats(-2, 2),
        "label": st.none() | st.integers(0, 1000),
        "anchors": st.lists(points, max_size=3).map(tuple),
        "mask": st.none() | st.just(FOLDER / "masks" / "m.png"),
        "method": st.sampled_from(["auto", "both"]),  # `build` leaves `outside` exact for edits that predict
        "parameters": st.fixed_dictionaries(
            {
                "preset": st.just("draggan"),
                "rounds": st.none() | st.integers(1, 100),
                "steps": st.none() | st.integers(0, 1000),
                "budget_s": optional_float,
                "lr": optional_float,
                "space": st.sampled_from([None, "w", "w+"]),
                "edit_layers": st.none() | st.integers(1, 18),
                "feature_block": st.none() | st.integers(0, 8),
                "stop_px": optional_float,
                "outside": st.sampled_from(["exact", "soft"]),
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
    """Build an edit from arguments drawn by the strategy `edits`."""
    drags = [{"handle": handle, "target": target} for handle, target in arguments["drags"]]
    outside = arguments["parameters"]["outside"] if arguments["method"] == "auto" else "exact"
    return Edit.of(**{**arguments, "drags": drags, "parameters": {**arguments["parameters"], "outside": outside}})


@given(st.lists(edits, min_size=1, max_size=3))
def test_session_round_trip(arguments: list[dict[str, Any]]) -> None:
    session = [build(item) for item in arguments]
    document = session_document(session, FOLDER)
    jsonschema.Draft202012Validator(schema()).validate(document)
    assert parse(document) == session


@given(edits)
def test_edit_round_trip(arguments: dict[str, Any]) -> None:
    edit = build(arguments)
    assert parse(edit_document(edit, FOLDER)) == [edit]


@given(json_values)
def test_any_json_gives_an_edit_or_a_clear_error(document: Any) -> None:
    try:
        parse(document)
    except AutodragError as error:
        assert str(error).startswith("the edit")


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_random_bytes_give_a_clear_error(text: str | bytes) -> None:
    with pytest.raises(AutodragError, match=r"^the edit"):
        parse(text)


@given(points, points)
def test_pair_argument_round_trip(handle: tuple[float, float], target: tuple[float, float]) -> None:
    assert parse_pair(f"{handle[0]},{handle[1]}:{target[0]},{target[1]}") == PointPair(handle=handle, target=target)


@given(st.text(max_size=30))
def test_any_pair_argument_gives_a_pair_or_a_clear_error(text: str) -> None:
    try:
        parse_pair(text)
    except AutodragError as error:
        assert any(word in str(error) for word in ("drag", "point", "handle", "target"))


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "1;2", "1_0,2"])
def test_invalid_points(text: str) -> None:
    with pytest.raises(AutodragError, match="is not a point; expected x,y in pixels, such as 60,70"):
        parse_point(text)


@pytest.mark.parametrize("text", ["nan,1", "1,inf", "1,-infinity"])
def test_points_that_are_not_finite(text: str) -> None:
    with pytest.raises(AutodragError, match="is not finite"):
        parse_point(text)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "drags is missing; add it"),
        ({"drags": []}, "there are no points to drag; give at least one drag"),
        ({"drags": [{"handle": [1, 2]}]}, r"drags\[0\]\.target is missing; add it"),
        ({"drags": [{"handle": [1, "2"], "target": [1, 2]}]}, r"drags\[0\]\.handle\[1\] is '2'; expected a number"),
        ({"drags": [{"handle": [1, 2, 3], "target": [1, 2]}]}, r"handle has 3 items; expected at most 2"),
        ({"drags": [{"handle": [1, 2e6], "target": [1, 2]}]}, r"handle\[1\] is 2000000.0; expected at most 1000000"),
        ({"drags": [DRAG] * 1001}, "drags has 1001 items; expected at most 1000"),
        ({"drags": [1] * 100_000}, r"drags\[0\] is 1; expected an object"),
        ({"drags": [DRAG], "seed": -1}, "seed is -1; expected at least 0"),
        ({"drags": [DRAG], "seed": 2.5}, "seed is 2.5; expected a whole number"),
        ({"drags": [DRAG], "seed": True}, "seed is True; expected a whole number"),
        ({"drags": [DRAG], "psi": 1e9}, "psi is 1000000000.0; expected at most 2"),
        ({"drags": [DRAG], "seed": 1, "latent": "a"}, "seed and latent are both given"),
        ({"drags": [DRAG], "method": "magic"}, "method is 'magic'; expected 'auto', 'predict', 'refine' or 'both'"),
        ({"drags": [DRAG], "mehtod": "both"}, "mehtod is not a known field; did you mean method"),
        ({"drags": [DRAG], "xyz": 1}, "xyz is not a known field; expected one of seed, latent"),
        ({"drags": [DRAG], "fingerprint": "xyz"}, "fingerprint is 'xyz'; expected a string with pattern"),
        ({"drags": [DRAG], "checkpoint": ""}, "checkpoint is ''; expected a string with at least 1 character"),
        ({"drags": [DRAG], "mask": 3}, "mask is 3; expected a string"),
        ({"drags": [DRAG], "mask": ""}, "mask '' is not a path; expected 1 to 1000 characters"),
        ({"drags": [DRAG], "mask": "\ud800"}, "contains half of a surrogate pair"),
        ({"drags": [DRAG], "parameters": {"steps": -1}}, r"parameters\.steps is -1; expected at least 0"),
        ({"drags": [DRAG], "parameters": {"keep_references": 1}}, "keep_references is 1; expected true or false"),
        ({"drags": [DRAG], "parameters": {"lr": 1}}, "lr 1 has no effect with the preset default"),
        (
            {"drags": [DRAG], "method": "predict", "parameters": {"preset": "draggan"}},
            "preset 'draggan' has no effect with the method predict; use refine or both",
        ),
        (
            {"drags": [DRAG], "method": "predict", "parameters": {"feature_block": 3}},
            "feature_block has no effect with the method predict; leave it out",
        ),
        (
            {"drags": [DRAG], "method": "predict", "parameters": {"outside": "soft"}},
            "outside 'soft' has no effect with the preset default; use draggan, or outside exact",
        ),
        (
            {"drags": [DRAG], "method": "both", "parameters": {"preset": "draggan", "outside": "soft"}},
            "outside 'soft' has no effect with the method both; use refine",
        ),
        ({"drags": [DRAG], "parameters": {"outside": "no"}}, r"\.outside is 'no'; expected 'exact' or 'soft'"),
        (
            {"drags": [DRAG], "method": "refine", "parameters": {"rounds": 3}},
            "rounds has no effect with the method refine; use predict or both",
        ),
        ({"autodrag_session": 1, "edits": []}, "edits has 0 items; expected at least 1"),
        ({"autodrag_session": 2, "edits": [{"drags": [DRAG]}]}, "autodrag_session is 2; expected 1"),
        (
            {"autodrag_session": 1, "edits": [{"drags": [DRAG]}, {"drags": [DRAG], "seed": 1, "latent": "a"}]},
            r"edits\[1\]: seed and latent are both given",
        ),
        ([1], r"the document is \[1\]; expected an object"),
        ('{"drags": [{"handle": [NaN, 1], "target": [1, 2]}]}', "NaN is not a JSON number"),
        ('{"psi": -Infinity}', "-Infinity is not a JSON number"),
        ('{"psi": 1e999}', "1e999 is not a JSON number"),
        ('{"seed": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"seed": 1, "seed": 2}', "a key occurs twice in seed, seed"),
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
    with pytest.raises(AutodragError, match=r"leaves the folder of the document|is not a path"):
        parse_edits(text, folder=tmp_path / "edits", where="the edit")


def test_whole_numbers_may_be_written_as_decimals() -> None:
    (edit,) = parse({"seed": 7.0, "psi": 1, "drags": [DRAG], "parameters": {"rounds": 2.0, "steps": 3.0}})
    values = (edit.seed, edit.psi, edit.drags[0].handle[0], edit.parameters.rounds, edit.parameters.steps)
    assert [(type(value), value) for value in values] == [(int, 7), (float, 1), (float, 1), (int, 2), (int, 3)]


def test_session_files(tmp_path: Path) -> None:
    (pair,) = parse({"drags": [DRAG]})[0].drags
    session = [Edit(drags=(pair,), seed=1), Edit(drags=(pair,))]
    write_session(tmp_path / "s.json", session)
    assert read_edits(tmp_path / "s.json") == session
    with pytest.raises(AutodragError, match="would be empty"):
        write_session(tmp_path / "t.json", [])
    with pytest.raises(AutodragError, match="lies outside"):
        write_session(tmp_path / "t.json", [session[1].replaced(mask=tmp_path.parent / "m.png")])
    with pytest.raises(AutodragError, match=r"edit file '.*missing\.json' does not exist"):
        read_edits(tmp_path / "missing.json")


def test_values_are_checked_in_python_too() -> None:
    with pytest.raises(AutodragError, match=r"^steps is -1; expected at least 0$"):
        Parameters.of(steps=-1)
    with pytest.raises(AutodragError, match=r"^edit_layer is not a known field; did you mean edit_layers\?$"):
        Parameters.of(edit_layer=3)
    edit = Edit.of(drags=[DRAG], method="both", parameters={"preset": "draggan"})
    with pytest.raises(AutodragError, match="preset 'draggan' has no effect"):
        edit.replaced(method="predict")
    assert edit.replaced(seed=3).seed == 3


def test_schema_agrees_with_the_parser() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    for document in ({"drags": [DRAG], "parameters": {"rounds": 2.0}}, {"drags": [DRAG], "seed": 1, "latent": None}):
        assert validator.is_valid(document) and parse(document)
    changes: list[dict[str, Any]] = [
        {"seed": 1, "latent": "a"},
        {"psi": 3},
        {"typo": 1},
        {"drags": []},
        {"parameters": {"steps": True}},
    ]
    for change in changes:
        document = {"drags": [DRAG], **change}
        assert not validator.is_valid(document)
        with pytest.raises(AutodragError):
            parse(document)
    fields = schema()["$defs"]["Edit"]["properties"] | schema()["$defs"]["Parameters"]["properties"]
    assert all(field.get("description") for field in fields.values())
