"""Errors that a user can correct. A message is one sentence with the value, the expectation and the next step."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class AutodragError(ValueError):
    """Invalid input. The command line prints the message after `error: ` and exits with code 2."""


class CheckpointError(AutodragError):
    """A checkpoint or latent file that is missing, broken, or belongs to another generator."""


class NothingToDo(AutodragError):
    """Every handle already lies on its target. The command line prints the message and exits with code 0."""


PHRASES = {
    r"^Input should be ": "",
    r"^String should (have|match) ": "a string with ",
    r"^Input is not a valid path.*": "a string",
    r"^a valid dictionary.*": "an object",
    r"^a valid tuple": "a list",
    r"^a valid boolean": "true or false",
    r"^a valid integer": "a whole number",
    r"^a valid ": "a ",
    r"^greater than or equal to": "at least",
    r"^less than or equal to": "at most",
    r", got a number with.*": "",
}
"""Regular expressions for phrases in pydantic's messages, and their replacements in terms of JSON."""


def validation_sentence(error: ValidationError) -> str:
    """Describe the first validation error of pydantic in one line: the field, its value, the expected value."""
    problem = error.errors(include_url=False)[0]
    kind, context = problem["type"], problem.get("ctx", {})
    place = place_of(problem["loc"]) or "the document"
    if kind == "value_error":  # raised by this package, with a complete sentence
        return str(context["error"])
    if kind in ("missing", "missing_argument"):
        return f"{place} is missing; add it"
    if kind == "unexpected_keyword_argument":
        return f"{place} is not a known field; remove it or correct its name"
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"{place} has {len(problem['input'])} items; expected {bound}"
    expected = problem["msg"]
    for phrase, ours in PHRASES.items():
        expected = re.sub(phrase, ours, expected)
    return f"{place} is {quoted(problem['input'])}; expected {expected}"


def place_of(keys: tuple[int | str, ...]) -> str:
    """Format the location of a field: ("drags", 0, "handle") gives `drags[0].handle`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)[:120].lstrip(".")


def quoted(value: object) -> str:
    """`repr` of a value for an error message, shortened to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def unknown_field(place: str, name: str, names: Iterable[str]) -> str:
    """Error message for an unknown field, with the closest of the known `names`."""
    names = list(names)
    return f"{place} is not a known field; {closest(name, names) or 'expected one of ' + ', '.join(names)}"


def closest(name: str, names: Iterable[str]) -> str | None:
    """A hint with the entry of `names` most similar to `name`; None if no entry is similar."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {close[0]}?" if close else None
