from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autodrag.errors import AutodragError
from autodrag.eval.bench import Bench, read_limits, read_points
from autodrag.eval.methods import Limits
from autodrag.infer.task import Drag


def test_read_points() -> None:
    assert read_points("1,5,all", 11) == (1, 5, 11)
    assert read_points("all,11", 11) == (11,)
    for text in ("", "0", "12", "one", "1,,2", "-1"):
        with pytest.raises(AutodragError, match="expected numbers from 1 to 11"):
            read_points(text, 11)


def test_read_limits() -> None:
    assert read_limits("300", "paper") == Limits(300, "paper")
    assert read_limits("own", "own") == Limits(None, "own")
    assert read_limits("5", "0.5") == Limits(5, 0.5)
    for steps, stop in (("x", "paper"), ("-1", "paper"), ("5", "0"), ("5", "nan"), ("5", "soon")):
        with pytest.raises(AutodragError, match=f"--steps {steps} --stop {stop}"):
            read_limits(steps, stop)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--methods", "none,magic"], "method 'magic' is unknown"),
        (["--methods", "predict"], "need a predictor"),
        (["--pairs", "0"], "--pairs 0: expected 1 to"),
        (["--seed", "-1"], "--seed -1: expected 0 to"),
        (["--seed", "4293"], "--seed 4293: expected 0 to"),
        (["--psi", "nan"], "--psi nan: expected a number"),
        (["--jobs", "0"], "--jobs 0: expected at least 1"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--label", "3"], "--label 3: expected none"),
        (["--checkpoint", "nowhere"], "checkpoint 'nowhere' does not exist"),
    ],
)
def test_options_are_checked(options: list[str], sentence: str, make_bench: Callable[..., Bench]) -> None:
    with pytest.raises(AutodragError, match=sentence):
        make_bench(*options)


def test_runs_with_different_seeds_share_no_images(make_bench: Callable[..., Bench]) -> None:
    first, second = make_bench("--methods", "none"), make_bench("--methods", "none", "--seed", "4292")
    assert first.base_seed == 1_000_000
    assert second.base_seed + 1_000_000 <= 2**32  # the maximum seed of RandomState
    assert not torch.equal(first.latent(first.base_seed), second.latent(second.base_seed))


def test_conditional_generator(make_generator: Callable[..., Any], tmp_path: Path, make_bench: Any) -> None:
    from autodrag.checkpoint import save_generator

    save_generator(tmp_path / "classes", make_generator(c_dim=3))
    with pytest.raises(AutodragError, match="--label None: expected 0 to 2"):
        make_bench("--methods", "none", checkpoint=tmp_path / "classes")
    one, two = (
        make_bench("--methods", "none", "--label", label, checkpoint=tmp_path / "classes") for label in ("1", "2")
    )
    assert not torch.equal(one.latent(7), two.latent(7))
    assert one.map(torch.zeros(4, 32), psi=1.0).shape == (4, 8, 32)


def test_time_of_a_drag_includes_its_image(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("--methods", "none")
    latent = bench.latent(3)
    edited = bench.run("none", latent, Drag(torch.zeros(1, 2), torch.ones(1, 2)))
    assert torch.equal(edited.image, bench.image(latent)) and edited.picture.shape == (32, 32, 3)
    assert edited.seconds > 0 and edited.record()["reason"] == "none"
