from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autodrag.errors import AutodragError
from autodrag.eval import perceptual
from autodrag.eval.perceptual import MEASURES, load_features, similarities
from autodrag.eval.weights import FID, LPIPS, Weights, missing, path_of, require
from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet

CPU = torch.device("cpu")
SOME = Weights("Some metric", "net-1a2b3c4d.pth", "https://example.org/net-1a2b3c4d.pth", ("torch",))


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_missing_weights_are_named(hub: Path) -> None:
    with pytest.raises(
        AutodragError, match=r"needs its weights at '.*/checkpoints/net-1a2b3c4d.pth', .*https://example.org"
    ):
        require(SOME)
    assert path_of(SOME) == hub / "net-1a2b3c4d.pth"


def test_hash_of_the_weight_file_is_checked(hub: Path) -> None:
    (hub / SOME.file).write_bytes(b"abc")
    with pytest.raises(AutodragError, match="its hash differs"):
        require(SOME)


def known(hub: Path, value: object, *packages: str) -> Weights:
    """Save a value to a file with its hash in the name."""
    torch.save(value, hub / "net.pth")
    digest = hashlib.sha256((hub / "net.pth").read_bytes()).hexdigest()
    (hub / "net.pth").rename(hub / f"net-{digest[:8]}.pth")
    return Weights("Some metric", f"net-{digest[:8]}.pth", SOME.url, packages)


def test_missing_package_for_existing_weights(hub: Path) -> None:
    require(known(hub, {"weight": torch.zeros(2)}, "torch"))
    with pytest.raises(AutodragError, match=r"needs the package no_such_package .*pip install 'autodrag\[eval\]'"):
        require(known(hub, {"weight": torch.ones(2)}, "torch", "no_such_package"))


class Code:
    """Would execute a call when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("it ran",)


def test_weight_files_with_code_are_refused(hub: Path) -> None:
    with pytest.raises(AutodragError, match="is not a plain weight file"):
        require(known(hub, {"weight": Code()}, "torch"))


def test_published_metrics_need_their_weights() -> None:
    with pytest.raises(AutodragError, match=r"LPIPS needs its weights at .*alexnet"):
        similarities("torchmetrics", CPU)
    with pytest.raises(AutodragError, match=r"FID needs its weights at .*inception"):
        load_features("torchmetrics", None, CPU)
    assert missing(LPIPS) and missing(FID)


@pytest.mark.parametrize("choice", ["auto", "own"])
def test_own_metrics(choice: str) -> None:
    measures = similarities(choice, CPU)
    assert list(measures) == ["mse", "ssim"]
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert measures["mse"](image, image) == 0 and measures["mse"](image, -image) > 0
    assert load_features(choice, None, CPU) is None
    net = LandmarkNet(LandmarkConfig(resolution=16, width=8, depth=2, names=("nose",)))
    features = load_features(choice, net, CPU)
    assert features is not None and features.title == "Fréchet"
    assert torch.equal(features.of(image), net(image).features[0])


def test_lpips_is_added_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], float]:
        return lambda a, b: 0.25

    monkeypatch.setattr(perceptual, "missing", lambda _: None)
    monkeypatch.setattr(perceptual, "load_lpips", load)
    assert list(similarities("auto", CPU)) == ["mse", "ssim", "lpips"]
    assert list(similarities("own", CPU)) == ["mse", "ssim"]


def test_scores_are_printed_as_in_the_papers() -> None:
    """MSE times 100, LPIPS times 10."""
    assert {name: measure.factor for name, measure in MEASURES.items()} == {"mse": 100, "lpips": 10, "ssim": 1}
    assert [measure.title for measure in MEASURES.values()][:2] == ["MSE × 10²", "LPIPS × 10"]
