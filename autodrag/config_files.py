"""Config dataclasses from YAML files and the command line.

The dataclass defines everything: its fields are the options, the field docstrings are the help texts, and
`__post_init__` checks the values.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

from autodrag.arguments import ArgumentParser
from autodrag.errors import AutodragError, unknown_field, validation_sentence
from autodrag.files import read_bounded

Config = TypeVar("Config")

MAX_BYTES = 2**20


def read_config(config: type[Config], prog: str, argv: Sequence[str]) -> Config:
    """A config dataclass from `--config FILE.yaml` and `--group.field VALUE` options, which override the file.

    A field that is true or false needs no value: `--group.field` sets it. `-` in a name is read as `_`. Values are read
    as YAML and converted to the type of their field by pydantic. Fields that neither names keep their default, also
    inside groups.

    Raises:
        AutodragError: an unknown field, a value of another type, or values that the config refuses.
    """
    from pydantic import TypeAdapter, ValidationError

    values = _defaults(config)
    parser = ArgumentParser(prog=prog, description=(config.__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", metavar="FILE.yaml", help="YAML file with any of the fields below")
    for name, kind, text in _options(config, values):
        optional: dict[str, Any] = {"nargs": "?", "const": "true"} if kind == "BOOL" else {}
        text = text.replace("%", "%%")
        parser.add_argument(f"--{name}", metavar=kind, help=text, default=argparse.SUPPRESS, **optional)
    given = vars(parser.parse_args([_underscored(word) for word in argv]))
    file = given.pop("config")
    if file is not None:
        document = _load(read_bounded(file, MAX_BYTES, "config"), f"config {file!r} is not YAML")
        _update(values, {} if document is None else document, config, f"config {file!r}: ")
    for name, text in given.items():
        *groups, field = name.split(".")
        part = values
        for group in groups:
            part = part[group]
        # YAML would read a colour such as #808080 as a comment.
        part[field] = text if text.startswith("#") else _load(text, f"--{name} {text!r} is not a YAML value")
    try:
        return TypeAdapter(config).validate_python(values, extra="forbid")
    except ValidationError as error:
        raise AutodragError(validation_sentence(error)) from error


def _underscored(word: str) -> str:
    """`--data.skip_broken=1` for `--data.skip-broken=1`; values and short options are unchanged."""
    name, separator, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + separator + value if word.startswith("--") else word


def _load(text: str | bytes, sentence: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AutodragError(f"{sentence} ({' '.join(str(error).split())})") from error


def _fields(config: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    types = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        yield field, types[field.name]


def _options(config: Any, defaults: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, type and help text (docstring and default) of each field of a config and its groups."""
    documented = _docstrings(config)
    for field, kind in _fields(config):
        name = prefix + field.name
        if dataclasses.is_dataclass(kind):
            yield from _options(kind, defaults[field.name], f"{name}.")
            continue
        default = f" (default: {defaults[field.name]})" if field.name in defaults else ""
        yield name, _type_name(kind), documented.get(field.name, "") + default


def _type_name(kind: Any) -> str:
    """`FLOAT` for float and for float | None, `a|b` for a choice."""
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    options = [part for part in typing.get_args(kind) if part is not type(None)]
    if len(options) == 1 and type(None) in typing.get_args(kind):
        return _type_name(options[0])
    return getattr(kind, "__name__", str(kind)).upper()


def _docstrings(config: Any) -> dict[str, str]:
    """Docstrings by field name, each joined to one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _defaults(config: Any) -> dict[str, Any]:
    """Default values of a config as nested dictionaries; required fields are absent."""
    values: dict[str, Any] = {}
    for field, kind in _fields(config):
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(kind):
            known = {} if default is dataclasses.MISSING else dataclasses.asdict(default)
            values[field.name] = _defaults(kind) | known
        elif default is not dataclasses.MISSING:
            values[field.name] = default
    return values


def _update(values: dict[str, Any], document: object, config: Any, where: str, place: str = "") -> None:
    """Replace defaults with the values of a YAML document."""
    if not isinstance(document, dict):
        raise AutodragError(f"{where}{place.rstrip('.') or 'the document'} is not a mapping of fields")
    kinds = {field.name: kind for field, kind in _fields(config)}
    for name, value in document.items():
        if name not in kinds:
            raise AutodragError(where + unknown_field(f"{place}{name}", str(name), kinds))
        if dataclasses.is_dataclass(kinds[name]):
            _update(values[name], value, kinds[name], where, f"{place}{name}.")
        else:
            values[name] = value
