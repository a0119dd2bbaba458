"""Shared fixtures. Tests check the shapes and types of signatures at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("autodrag", "typechecker.check")  # must run before the package is imported

if TYPE_CHECKING:
    from fakes import FakeRefiner

    from autodrag.nets.stylegan2 import Generator

hypothesis.settings.register_profile("loaded machine", deadline=None)
hypothesis.settings.load_profile("loaded machine")
torch.set_num_threads(1)  # the networks are too small to benefit from a second thread


@pytest.fixture(autouse=True)
def keep_denormals() -> Iterator[None]:
    """Reset the process-wide flush-to-zero mode, which training enables; hypothesis draws denormals."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def make_generator() -> Callable[..., Generator]:
    """Build a tiny generator with fixed random weights; keyword arguments override its config."""

    def build(seed: int = 0, **overrides: Any) -> Generator:
        from autodrag.nets.stylegan2 import Generator, GeneratorConfig

        config = {
            "resolution": 32,
            "z_dim": 32,
            "w_dim": 32,
            "mapping_layers": 2,
            "channel_base": 256,
        } | overrides
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = Generator(GeneratorConfig(**config))
        return generator.eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def tiny_generator(make_generator: Callable[..., Generator]) -> Generator:
    """A random 32 px generator. Read-only: tests that change weights must build their own generator."""
    return make_generator()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder that contains only the tiny generator. Read-only."""
    from autodrag.checkpoint import save_generator

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_generator(folder, tiny_generator)
    return folder


@pytest.fixture
def fake_refiner(monkeypatch: pytest.MonkeyPatch) -> FakeRefiner:
    """Both refiners of `run_drag`, replaced by one that takes no time, and a tracker that is sure of its points."""
    from fakes import FakeRefiner, sure_cues

    from autodrag.infer import drag, trust

    refiner = FakeRefiner()
    monkeypatch.setattr(drag, "locate", refiner.locate)
    monkeypatch.setattr(drag, "draggan", refiner.draggan)
    monkeypatch.setattr(trust, "cues_of", sure_cues)
    return refiner
