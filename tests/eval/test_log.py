from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autodrag.errors import AutodragError
from autodrag.eval.log import LOG, Record, append, claim, find_records, read_log

TASKS: list[Record] = [{"method": name, "pair": k} for k in range(3) for name in ("a", "b")]


def test_records_are_found_by_their_task(tmp_path: Path) -> None:
    assert find_records(tmp_path, TASKS) == [None] * 6
    for task in (TASKS[2], {"method": "a", "pair": 9}, {"else": 1}):
        append(tmp_path, task | {"value": 1})
    assert find_records(tmp_path, TASKS) == [None, None, TASKS[2] | {"value": 1}, None, None, None]
    assert find_records(tmp_path, []) == []


@given(cut=st.integers(1, 200))
def test_incomplete_last_line_is_removed(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    text = "".join(json.dumps(task | {"value": 1}) + "\n" for task in TASKS).encode()
    (folder / LOG).write_bytes(text[:-cut])
    whole = text[:-cut].count(b"\n")
    assert [record["pair"] for record in read_log(folder)] == [task["pair"] for task in TASKS[:whole]]
    append(folder, TASKS[0])  # starts on a new line
    assert len(read_log(folder)) == whole + 1


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(AutodragError, match=r"drags\.jsonl' cannot be written: the disk is full; free some space, and"):
        append(tmp_path, TASKS[0])


@pytest.mark.parametrize("line", ["{broken}", "[1]", ""])
def test_error_names_an_invalid_line(line: str, tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(f'{{"method": "a"}}\n{line}\n{{"method": "b"}}\n')
    with pytest.raises(AutodragError, match=r"line 2 of '.*drags.jsonl' is not a JSON object"):
        read_log(tmp_path)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0, "sizes": (1, 2)})
    claim(tmp_path, {"seed": 0, "sizes": (1, 2)})
    with pytest.raises(AutodragError, match="holds a run with seed 0, but this run has 1"):
        claim(tmp_path, {"seed": 1, "sizes": (1, 2)})
    for text in ("{", "[]", '{"seed": 0}'):
        (tmp_path / "setup.json").write_text(text)
        with pytest.raises(AutodragError, match=r"setup.json' is not the setup of a run; choose another --out"):
            claim(tmp_path, {"seed": 0})


def test_methods_can_be_added_but_must_not_change(tmp_path: Path) -> None:
    identities = {"refine": "1", "predict": "2", "userlt": "3"}
    claim(tmp_path, {"seed": 0}, identities, ["predict"])
    claim(tmp_path, {"seed": 0}, identities | {"userlt": "4"}, ["refine"])  # method without measured drags
    assert json.loads((tmp_path / "setup.json").read_text())["methods"] == {"predict": "2", "refine": "1"}
    with pytest.raises(AutodragError, match=r"method 'predict' have changed since .*; choose another --out"):
        claim(tmp_path, {"seed": 0}, identities | {"predict": "5"}, ["refine"])  # its old rows would remain
