"""Optical flow of known motions."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from autodrag.errors import AutodragError
from autodrag.eval.flow import Flow, RaftFlow, dis_flow, farneback_flow, log_expansion

CPU = torch.device("cpu")


def texture(size: int = 64) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (size + 16, size + 16, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2.0)


@pytest.mark.parametrize("flow", [dis_flow, farneback_flow])
@pytest.mark.parametrize("shift", [(3, 0), (-2, 1)])
def test_a_shift_is_found(flow: Flow, shift: tuple[int, int]) -> None:
    big = texture()
    dx, dy = shift
    found = flow(big[8:72, 8:72], big[8 - dy : 72 - dy, 8 - dx : 72 - dx])
    assert found.shape == (64, 64, 2) and found.dtype == np.float32
    assert np.median(found[16:48, 16:48], axis=(0, 1)) == pytest.approx([dx, dy], abs=0.35)


def test_expansion_of_known_flows() -> None:
    y, x = np.mgrid[:12, :10].astype(np.float32)
    grow = np.stack([0.1 * x, 0.1 * y], axis=2)
    assert log_expansion(grow) == pytest.approx(np.full((12, 10), np.log(1.1)), abs=1e-5)
    assert log_expansion(np.ones((5, 5, 2), np.float32)) == pytest.approx(np.zeros((5, 5)))
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.stack([c * x - s * y - x, s * x + c * y - y], axis=2)
    assert log_expansion(turn) == pytest.approx(np.zeros((12, 10)), abs=1e-5)


def test_raft_names_missing_packages_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(AutodragError, match="RAFT needs the package torchvision; install it"):
            RaftFlow(CPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(AutodragError, match=r"RAFT needs its weights at .*raft_large.*get it from https"):
        RaftFlow(CPU)
    with pytest.raises(AutodragError, match=r"RAFT needs its weights at .*mine.pth"):
        RaftFlow(CPU, tmp_path / "mine.pth")


def test_incompatible_torchvision_gives_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    weights = tmp_path / "mine.pth"
    weights.touch()
    with pytest.raises(AutodragError, match=r"torchvision cannot be imported .*; install the version"):
        RaftFlow(CPU, weights)


class FakeNet(torch.nn.Module):
    """Returns a flow of a tenth of the image size for every pair."""

    def __init__(self) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor([0.0, 0.0]))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        assert a.shape == b.shape and a.shape[2] % 8 == a.shape[3] % 8 == 0 and min(a.shape[2:]) >= 128
        assert float(a.amin()) >= -1 and float(a.amax()) <= 1
        size = torch.tensor([a.shape[3], a.shape[2]])
        return [(self.share * size)[None, :, None, None].expand(1, 2, *a.shape[2:])]


def test_raft_flows_are_in_pixels_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes, scaling and wrong weights, with a fake of torchvision's network."""
    from types import ModuleType

    fake = ModuleType("torchvision.models.optical_flow")
    fake.raft_large = lambda weights, progress: FakeNet()  # type: ignore[attr-defined]
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({"share": torch.tensor([0.1, -0.2])}, good)
    torch.save({"other": torch.zeros(1)}, bad)
    image = np.random.default_rng(0).integers(0, 255, (60, 100, 3)).astype(np.uint8)
    flow = RaftFlow(CPU, good)(image, image)
    assert flow.shape == (60, 100, 2)
    assert flow.reshape(-1, 2).mean(axis=0) == pytest.approx([10.0, -12.0], abs=1e-3)
    for path in (bad, Path(__file__)):
        with pytest.raises(AutodragError, match="does not contain the weights of RAFT"):
            RaftFlow(CPU, path)
