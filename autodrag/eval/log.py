"""The folder of a run: `setup.json` names its settings, `drags.jsonl` holds one JSON object per measured drag.

A line is written as soon as its drag is measured. An interrupted run continues where it ended, and further methods,
points and pairs join the lines that are there. A run with other settings is refused, and so is a method whose networks
or settings have changed since its drags were measured.
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
    """Makes `out` the folder of a run, or continues the run that is there.

    Args:
        setup: the settings that both runs must share, as JSON values.
        identities: the present digest of each method; those that the folder knows must be the same.
        methods: names of the methods that join.

    Raises:
        AutodragError: the run there has other settings, or one of its methods has changed.
    """
    marker = out / "setup.json"
    setup = json.loads(json.dumps(setup))  # as it will be read
    identities, known = identities or {}, {}
    if marker.exists():
        try:
            there = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            there = None
        if not isinstance(there, dict) or not isinstance(there.get("methods"), dict):
            raise AutodragError(f"{str(marker)!r} is not the setup of a run; choose another --out or delete the folder")
        known = there["methods"]
        for name, value in setup.items():
            if there.get(name) != value:
                raise AutodragError(
                    f"{str(out)!r} holds a run with {name} {there.get(name)!r}, and this one has {value!r}; "
                    "choose another --out or delete it"
                )
        for name, identity in known.items():
            if identities.get(name, identity) != identity:
                raise AutodragError(
                    f"{str(out)!r} holds drags of the method {name!r} from before its networks or settings changed; "
                    "choose another --out or delete it"
                )
    write_json(marker, setup | {"methods": known | {name: identities[name] for name in methods}})


def read_log(out: Path) -> list[Record]:
    """The lines of a run. A last line that was cut off is removed from the file."""
    log = out / LOG
    if not log.exists():
        return []
    data = log.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with log.open("r+b") as stream:
            stream.truncate(len(whole))
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
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
    """The line of each task, None where it is missing. A task is a dict of the fields that identify it."""
    if not tasks:
        return []
    fields = tuple(tasks[0])
    found = {_key(record, fields): record for record in read_log(out) if all(field in record for field in fields)}
    return [found.get(_key(task, fields)) for task in tasks]


def _key(record: Record, fields: tuple[str, ...]) -> str:
    return json.dumps([record[field] for field in fields])
