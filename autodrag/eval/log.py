"""The folder of a run: `setup.json` contains its settings, and `drags.jsonl` one JSON object per measured drag.

A line is written as soon as its drag is measured. An interrupted run can be resumed, and further methods, points and
pairs can be added. A run with other settings is refused. A method is refused if its networks or settings have changed
since its drags were measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autodrag.errors import AutodragError
from autodrag.files import is_disk_full, write_json

Record = dict[str, Any]
"""One line of `drags.jsonl`, or one row of a table, as JSON values."""

LOG = "drags.jsonl"


def claim(out: Path, setup: Record, identities: Mapping[str, str] | None = None, methods: Iterable[str] = ()) -> None:
    """Create the folder of a run, or check that an existing run can be resumed.

    Args:
        out: the folder.
        setup: settings that both runs must share, as JSON values.
        identities: current digest of each method, which must equal the digest stored in the folder.
        methods: names of the methods of this run.

    Raises:
        AutodragError: the existing run has other settings, or one of its methods has changed.
    """
    marker = out / "setup.json"
    setup = json.loads(json.dumps(setup))  # convert to the types that reading returns
    identities, old_methods = identities or {}, {}
    if marker.exists():
        try:
            old = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            old = None
        if not isinstance(old, dict) or not isinstance(old.get("methods"), dict):
            raise AutodragError(f"{str(marker)!r} is not the setup of a run; choose another --out or delete the folder")
        old_methods = old["methods"]
        for name, value in setup.items():
            if old.get(name) != value:
                raise AutodragError(
                    f"{str(out)!r} holds a run with {name} {old.get(name)!r}, but this run has {value!r}; "
                    "choose another --out or delete the folder"
                )
        for name, identity in old_methods.items():
            if identities.get(name, identity) != identity:
                raise AutodragError(
                    f"the networks or settings of method {name!r} have changed since its drags in {str(out)!r} were "
                    "measured; choose another --out or delete the folder"
                )
    write_json(marker, setup | {"methods": old_methods | {name: identities[name] for name in methods}})


def read_log(out: Path) -> list[Record]:
    """Read the lines of a run. An incomplete last line is removed from the file."""
    log = out / LOG
    if not log.exists():
        return []
    data = log.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if len(complete) < len(data):
        with log.open("r+b") as stream:
            stream.truncate(len(complete))
    records = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise AutodragError(f"line {number} of {str(log)!r} is not a JSON object; remove the line")
        records.append(record)
    return records


def append(out: Path, record: Record) -> None:
    """Adds a line. If the disk is full, AutodragError is raised; `read_log` removes the part that was written."""
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with (out / LOG).open("a", encoding="utf-8") as stream:
            stream.write(line)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise AutodragError(
            f"{str(out / LOG)!r} cannot be written: the disk is full; free some space, and run the same command again "
            "to continue"
        ) from error


def find_records(out: Path, tasks: Sequence[Record]) -> list[Record | None]:
    """The record of each task, or None if it is missing. A task is a dict of the fields that identify it."""
    if not tasks:
        return []
    fields = tuple(tasks[0])
    found = {_key(record, fields): record for record in read_log(out) if all(field in record for field in fields)}
    return [found.get(_key(task, fields)) for task in tasks]


def _key(record: Record, fields: tuple[str, ...]) -> str:
    return json.dumps([record[field] for field in fields])
