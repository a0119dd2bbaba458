from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autodrag.checkpoint import fingerprint
from autodrag.errors import AutodragError
from autodrag.eval.detectors import Detector, add_options, load_detector, require_detector
from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet

CPU = torch.device("cpu")


def load(*options: str, net: LandmarkNet | None = None, image: tuple[int, int] = (32, 32)) -> Detector | None:
    """Load the detector chosen by options."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return load_detector(parser.parse_args(list(options)), net, image, CPU)


class Brightest(nn.Module):
    """Returns the brightest pixel of the red channel, as (1, 1, 2)."""

    def forward(self, image: Tensor) -> Tensor:
        index = image[0, 0].flatten().argmax()
        side = image.shape[3]
        return torch.stack([index % side, torch.div(index, side, rounding_mode="floor")]).float()[None, None]


class Constant(nn.Module):
    """Returns a fixed output."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> Tensor:
        return self.answer + 0 * image.sum()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[nn.Module], str]:
    """Returns a function that saves a module as TorchScript."""

    def save(module: nn.Module) -> str:
        path = tmp_path / "model.pt"
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            torch.jit.trace(module, torch.zeros(1, 3, 16, 16)).save(str(path))
        return str(path)

    return save


def dot(x: int, y: int, side: int = 32) -> Tensor:
    """A black image with a white pixel."""
    image = torch.full((1, 3, side, side), -1.0)
    image[:, :, y, x] = 1
    return image


def own_net(side: int = 32) -> LandmarkNet:
    return LandmarkNet(LandmarkConfig(resolution=side, width=8, depth=2, names=("nose", "chin"))).eval()


def test_landmark_net_of_the_checkpoint() -> None:
    net = own_net()
    detector = load(net=net)
    assert detector is not None and (detector.count, detector.identity) == (2, f"own {fingerprint(net.state_dict())}")
    found = detector(dot(3, 4))
    assert found is not None and torch.equal(found.points, net(dot(3, 4)).points[0].detach())
    assert detector(dot(3, 4) * float("nan")) is None  # a broken image, as a method may produce


def test_no_detector() -> None:
    assert load() is None
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint")
    add_options(parser)
    with pytest.raises(AutodragError, match=r"there has no landmarks.safetensors; train one with"):
        require_detector(parser.parse_args(["--checkpoint", "there"]), None, (32, 32), CPU)


def test_landmark_net_for_another_image_size() -> None:
    with pytest.raises(AutodragError, match=r"takes images of 16x16 px.* makes 32x32; give --landmarks-size 16"):
        load(net=own_net(16))
    detector = load("--landmarks-size", "16", net=own_net(16))
    assert detector is not None
    found = detector(dot(3, 4))
    assert found is not None and found.points.shape == (2, 2)


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match="does not exist"):
        load("--landmarks", str(tmp_path / "none.onnx"))
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(AutodragError, match=r"unknown suffix; expected \.dat, \.onnx"):
        load("--landmarks", str(tmp_path / "model.bin"))


def test_torchscript_needs_trust_torchscript(
    script: Callable[[nn.Module], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(Brightest())
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("its code would run"))
        with pytest.raises(AutodragError, match="loading it executes its code; add --trust-torchscript"):
            load("--landmarks", path)
    detector = load("--landmarks", path, "--trust-torchscript")
    assert detector is not None and detector.count == 1 and detector.identity.startswith("model.pt ")
    found = detector(dot(20, 9))
    assert found is not None and found.points.tolist() == [[20.0, 9.0]] and found.confidence is None


def test_images_are_resized_and_points_rescaled(script: Callable[[nn.Module], str]) -> None:
    """The centre of pixel 10 of 32 lies midway between pixels 20 and 21 of 64."""
    options = ("--landmarks", script(Brightest()), "--trust-torchscript", "--landmarks-size", "64")
    detector = load(*options)
    assert detector is not None
    found = detector(dot(10, 6))
    assert found is not None and (found.points - torch.tensor([[10.0, 6.0]])).abs().max() <= 0.25


def test_confidences(script: Callable[[nn.Module], str]) -> None:
    answer = torch.tensor([[[1.0, 2.0, 0.5], [3.0, 4.0, 1.0]]])
    detector = load("--landmarks", script(Constant(answer)), "--trust-torchscript")
    assert detector is not None
    found = detector(dot(0, 0))
    assert found is not None and found.points.tolist() == [[1.0, 2.0], [3.0, 4.0]] and found.confidence == 0.75


@pytest.mark.parametrize("shape", [(4, 2), (1, 4, 5), (2, 4, 2), (1, 4)])
def test_outputs_of_wrong_shape(shape: tuple[int, ...], script: Callable[[nn.Module], str]) -> None:
    with pytest.raises(AutodragError, match=r"returns \(.*\); expected \(1, K, 2\)"):
        load("--landmarks", script(Constant(torch.zeros(shape))), "--trust-torchscript")


def test_torchscript_model_for_another_image_size(script: Callable[[nn.Module], str]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.Unflatten(1, (2, 2)))
    path = script(model)
    with pytest.raises(AutodragError, match=r"fails on an image of 32x32 px .*--landmarks-size"):
        load("--landmarks", path, "--trust-torchscript")
    detector = load("--landmarks", path, "--trust-torchscript", "--landmarks-size", "16")
    assert detector is not None and detector.count == 2


def test_invalid_torchscript_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"no")
    with pytest.raises(AutodragError, match="is not a TorchScript file"):
        load("--landmarks", str(tmp_path / "model.pt"), "--trust-torchscript")


@pytest.fixture
def onnx_model(tmp_path: Path) -> str:
    """An ONNX model for images of 16 px, whose two points are channel means."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gather", ["mean", "channels"], ["points"], axis=1),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
        helper.make_tensor("channels", TensorProto.INT64, [2, 2], [0, 1, 1, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("points", TensorProto.FLOAT, [1, 2, 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "model.onnx"))
    return str(tmp_path / "model.onnx")


def test_onnx(onnx_model: str) -> None:
    with pytest.raises(AutodragError, match=r"takes images of 16x16 px, not of 32x32; give --landmarks-size 16"):
        load("--landmarks", onnx_model)
    detector = load("--landmarks", onnx_model, "--landmarks-size", "16")
    assert detector is not None and detector.count == 2
    image = torch.tensor([-0.5, 0.25, 1.0])[None, :, None, None].expand(1, 3, 32, 32)
    found = detector(image)
    # Points of the 16 px input are rescaled to 32 px: 2 (p + 0.5) - 0.5.
    assert found is not None and found.points.tolist() == [[-0.5, 1.0], [1.0, 2.5]]


def test_invalid_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no")
    with pytest.raises(AutodragError, match="cannot be loaded as an ONNX model"):
        load("--landmarks", str(tmp_path / "model.onnx"))


@pytest.mark.parametrize(("name", "suffix"), [("dlib", ".dat"), ("onnxruntime", ".onnx")])
def test_missing_packages(name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"no")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(AutodragError, match=f"needs the package {name}; install it: pip install 'autodrag"):
        load("--landmarks", str(path))


class FakeDlib:
    """A fake of the used functions of dlib. It detects two faces in every image that is not black."""

    seen: tuple[int, ...] = ()
    upsampled = -1

    @staticmethod
    def shape_predictor(path: str) -> Any:
        if Path(path).read_bytes() == b"broken":
            raise RuntimeError("unexpected end")

        class Predictor:
            num_parts = 68

            def __call__(self, pixels: np.ndarray, box: int) -> Any:
                parts = [SimpleNamespace(x=box + i, y=2 * i) for i in range(68)]
                return SimpleNamespace(num_parts=68, part=lambda i: parts[i])

        return Predictor()

    @staticmethod
    def get_frontal_face_detector() -> Any:
        def run(pixels: np.ndarray, upsample: int, threshold: float) -> tuple[list[int], list[float], list[int]]:
            FakeDlib.seen, FakeDlib.upsampled = pixels.shape, upsample
            return ([], [], []) if pixels.max() == 0 else ([100, 200], [0.25, 1.5], [0, 0])

        return SimpleNamespace(run=run)


def test_dlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dlib = ModuleType("dlib")  # building the real dlib takes long
    vars(dlib).update(vars(FakeDlib))
    monkeypatch.setitem(sys.modules, "dlib", dlib)
    path = tmp_path / "shape.dat"
    path.write_bytes(b"fine")
    detector = load("--landmarks", str(path))
    assert detector is not None and detector.count == 68
    found = detector(dot(3, 4))
    assert found is not None and found.confidence == 1.5
    assert found.points.shape == (68, 2) and found.points[3].tolist() == [
        203.0,
        6.0,
    ]  # the best face
    assert FakeDlib.seen == (32, 32, 3) and FakeDlib.upsampled == 1
    assert detector(torch.full((1, 3, 32, 32), -1.0)) is None
    path.write_bytes(b"broken")
    with pytest.raises(AutodragError, match="cannot be read by dlib: unexpected end"):
        load("--landmarks", str(path))
