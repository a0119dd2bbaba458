from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autodrag.errors import AutodragError
from autodrag.eval.identity import digest, identities
from autodrag.eval.methods import METHODS, Settings
from autodrag.eval.run import (
    Bench,
    Record,
    claim,
    drag,
    markdown,
    read_log,
    read_points,
    read_settings,
    run_drags,
    run_tasks,
    spread,
)
from autodrag.infer.refine import RefineConfig

TASKS: list[Record] = [{"method": name, "pair": k} for k in range(3) for name in ("a", "b")]


class Worker:
    """Counts its calls from `start`, and is interrupted at call number `end`."""

    def __init__(self, start: int = 0, end: int | None = None) -> None:
        self.start, self.end = start, end
        self.ran: list[Record] = []

    def __call__(self, task: Record) -> Record:
        if len(self.ran) == self.end:
            raise KeyboardInterrupt
        self.ran.append(task)
        return {"value": self.start + len(self.ran)}


def test_every_task_is_run_once_and_in_order(tmp_path: Path) -> None:
    log = tmp_path / "run" / "drags.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_tasks(log, TASKS, Worker(end=4))
    assert len(log.read_text().splitlines()) == 4
    again = Worker(start=10)
    records = run_tasks(log, TASKS, again)
    assert again.ran == TASKS[4:]
    assert records == [task | {"value": value} for task, value in zip(TASKS, (1, 2, 3, 4, 11, 12), strict=True)]
    assert run_tasks(log, TASKS[:2], Worker(end=0)) == records[:2]


@given(cut=st.integers(1, 200))
def test_a_torn_last_line_is_removed(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("torn") / "drags.jsonl"
    text = "".join(json.dumps(task | {"value": 1}) + "\n" for task in TASKS).encode()
    log.write_bytes(text[:-cut])
    whole = text[:-cut].count(b"\n")
    assert [record["pair"] for record in read_log(log)] == [task["pair"] for task in TASKS[:whole]]
    worker = Worker()
    run_tasks(log, TASKS, worker)
    assert worker.ran == TASKS[whole:]
    assert len(read_log(log)) == len(TASKS)


@pytest.mark.parametrize("line", ["{broken}", "[1]", ""])
def test_a_broken_line_within_is_named(line: str, tmp_path: Path) -> None:
    log = tmp_path / "drags.jsonl"
    log.write_text(f'{{"method": "a"}}\n{line}\n{{"method": "b"}}\n')
    with pytest.raises(AutodragError, match=r"line 2 of '.*drags.jsonl' is not a JSON object"):
        read_log(log)


def test_lines_of_other_tasks_are_kept_and_left_out(tmp_path: Path) -> None:
    log = tmp_path / "drags.jsonl"
    log.write_text('{"method": "a", "pair": 9, "value": 1}\n{"else": 1}\n')
    records = run_tasks(log, TASKS, lambda task: {"value": 0})
    assert [r["value"] for r in records] == [0] * len(TASKS)
    assert len(read_log(log)) == 2 + len(TASKS)


def test_no_tasks(tmp_path: Path) -> None:
    assert run_tasks(tmp_path / "drags.jsonl", [], lambda task: {}) == []


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0, "sizes": (1, 2)})
    claim(tmp_path, {"seed": 0, "sizes": (1, 2)})
    with pytest.raises(AutodragError, match="holds a run with seed 0, and this one has 1"):
        claim(tmp_path, {"seed": 1, "sizes": (1, 2)})
    for text in ("{", "[]", '{"seed": 0}'):
        (tmp_path / "setup.json").write_text(text)
        with pytest.raises(AutodragError, match=r"setup.json' does not say what was run; choose another --out"):
            claim(tmp_path, {"seed": 0})


def test_methods_join_a_folder_and_must_stay_what_they_are(tmp_path: Path) -> None:
    made_of = {"refiner": "1", "predictor": "2", "userlt": "3"}
    claim(tmp_path, {"seed": 0}, made_of, ["predictor"])
    claim(tmp_path, {"seed": 0}, made_of | {"userlt": "4"}, ["refiner"])  # not measured here
    assert json.loads((tmp_path / "setup.json").read_text())["methods"] == {"predictor": "2", "refiner": "1"}
    with pytest.raises(
        AutodragError, match=r"'predictor' from before its networks or settings changed; choose .* --out"
    ):
        claim(tmp_path, {"seed": 0}, made_of | {"predictor": "5"}, ["refiner"])  # its rows would stay in the table


def test_identities_follow_networks_and_settings(tmp_path: Path) -> None:
    before = identities(tmp_path, (64, 64))
    assert set(before) == set(METHODS) and before == identities(tmp_path, (64, 64))
    (tmp_path / "predictor.safetensors").write_bytes(b"one")
    after = identities(tmp_path, (64, 64))
    assert {name for name in METHODS if after[name] != before[name]} == {"predictor", "hybrid"}
    (tmp_path / "predictor.safetensors").write_bytes(b"two")
    (tmp_path / "userlt.safetensors").write_bytes(b"one")
    again = identities(tmp_path, (64, 64))
    assert {name for name in METHODS if again[name] != after[name]} == {"predictor", "hybrid", "userlt"}
    assert digest(RefineConfig()) != digest(RefineConfig(steps=7)) != digest(RefineConfig(steps=8))
    published = RefineConfig.preset("draggan", (64, 64))
    assert digest(replace(published, prior=7.0).in_use()) == before["draggan"]  # a setting of the other objective
    assert digest(replace(published, lr=7.0).in_use()) != before["draggan"]


def test_what_was_measured_before_is_part_of_the_answer(make_bench: Callable[..., Bench]) -> None:
    def run(methods: str, points: tuple[int, ...], pairs: int) -> tuple[list[Record], int]:
        worker = Worker()
        records = run_drags(make_bench("--methods", methods), points, pairs, worker)
        return [{key: r[key] for key in ("method", "points", "pair")} for r in records], len(worker.ran)

    def drags(*groups: tuple[str, int]) -> list[Record]:
        return [{"method": name, "points": n, "pair": k} for name, n in groups for k in range(2)]

    assert run("none,refiner", (1,), 2) == (drags(("none", 1), ("refiner", 1)), 4)
    assert run("draggan", (1,), 2) == (drags(("none", 1), ("refiner", 1), ("draggan", 1)), 2)
    all_three = drags(("none", 1), ("refiner", 1), ("draggan", 1), ("none", 5))
    assert run("none", (5,), 2) == (all_three, 2)
    longer, ran = run("none", (1,), 3)  # the others have no third pair yet
    assert ran == 1 and {(r["method"], r["points"]) for r in longer} == {("none", 1)} and len(longer) == 3


def test_read_points() -> None:
    assert read_points("1,5,all", 11) == (1, 5, 11)
    assert read_points("all,11", 11) == (11,)
    for text in ("", "0", "12", "one", "1,,2", "-1"):
        with pytest.raises(AutodragError, match="expected numbers from 1 to 11"):
            read_points(text, 11)


def test_read_settings() -> None:
    assert read_settings("300", "paper") == Settings(300, "paper")
    assert read_settings("own", "own") == Settings(None, "own")
    assert read_settings("5", "0.5") == Settings(5, 0.5)
    for steps, stop in (("x", "paper"), ("-1", "paper"), ("5", "0"), ("5", "nan"), ("5", "soon")):
        with pytest.raises(AutodragError, match=f"--steps {steps} --stop {stop}"):
            read_settings(steps, stop)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--methods", "none,magic"], "method 'magic' is unknown"),
        (["--methods", "predictor"], "need a predictor"),
        (["--pairs", "0"], "--pairs 0: expected 1 to"),
        (["--seed", "-1"], "--seed -1: expected 0 to"),
        (["--seed", "4293"], "--seed 4293: expected 0 to"),
        (["--psi", "nan"], "--psi nan: expected a number"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--label", "3"], "--label 3: expected none"),
        (["--checkpoint", "nowhere"], "checkpoint 'nowhere' does not exist"),
    ],
)
def test_options_are_checked_first(options: list[str], sentence: str, make_bench: Callable[..., Bench]) -> None:
    with pytest.raises(AutodragError, match=sentence):
        make_bench(*options)


def test_seeds_do_not_meet(make_bench: Callable[..., Bench]) -> None:
    first, second = make_bench("--seed", "0"), make_bench("--seed", "4292")
    assert first.base_seed == 1_000_000
    assert second.base_seed + 1_000_000 <= 2**32  # what RandomState takes
    assert not torch.equal(first.latent(first.base_seed), second.latent(second.base_seed))


def test_a_conditional_generator(make_generator: Callable[..., Any], tmp_path: Path, make_bench: Any) -> None:
    from autodrag.checkpoint import save_generator

    save_generator(tmp_path / "classes", make_generator(c_dim=3))
    with pytest.raises(AutodragError, match="--label None: expected 0 to 2"):
        make_bench("--methods", "none", checkpoint=tmp_path / "classes")
    one, two = (
        make_bench("--methods", "none", "--label", label, checkpoint=tmp_path / "classes") for label in ("1", "2")
    )
    assert not torch.equal(one.latent(7), two.latent(7))
    assert one.map(torch.zeros(4, 32), psi=1.0).shape == (4, 8, 32)


def test_a_drag_is_timed_with_its_image(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("--methods", "none")
    latent = bench.latent(3)
    edited = drag(bench, "none", latent, torch.zeros(1, 2), torch.ones(1, 2))
    assert torch.equal(edited.image, bench.image(latent)) and edited.picture.shape == (32, 32, 3)
    assert edited.seconds > 0 and edited.record()["reason"] == "none"


def test_markdown() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert spread((1.0, 2.0, 3.0), 1) == "2.0 (1.0–3.0)"
