"""Landmark models for evaluation: the checkpoint's landmark net, dlib's 68 points, or any TorchScript or ONNX model.

A detection is K points (x, y) in px of the output image, integers at pixel centres, or None if nothing is found. A
TorchScript or ONNX model gets one RGB image (1, 3, H, W) as float32 in [-1, 1]. It returns (1, K, 2), points in px of
its input, or (1, K, 3) with confidences as third values.

Loading a TorchScript file executes its code, so such files are loaded only with `--trust-torchscript`. ONNX and dlib
files contain only data.
"""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from autodrag.checkpoint import fingerprint
from autodrag.errors import AutodragError
from autodrag.images import to_uint8
from autodrag.infer.measure import find_landmarks
from autodrag.nets.landmarks import LandmarkNet
from autodrag.points import Size, rescale

SUFFIXES = {".dat": "dlib", ".onnx": "ONNX", ".pt": "TorchScript", ".ts": "TorchScript", ".torchscript": "TorchScript"}


@dataclass(frozen=True)
class Detection:
    """Landmarks of one image."""

    points: Float[Tensor, "K 2"]
    """px of the image; may lie outside the image."""
    confidence: float | None
    """Confidence, on a model-specific scale; None if the model has none."""


@runtime_checkable
class Detector(Protocol):
    """A landmark model; `count` is its number of landmarks, `identity` identifies it in the setup of a run."""

    count: int
    identity: str

    def __call__(self, image: Float[Tensor, "1 3 H W"]) -> Detection | None: ...


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options `--landmarks`, `--landmarks-size` and `--trust-torchscript`."""
    parser.add_argument(
        "--landmarks",
        type=Path,
        metavar="FILE",
        help="landmark model: .dat (dlib), .onnx, or TorchScript (.pt, .ts); default: the checkpoint's landmark net",
    )
    parser.add_argument(
        "--landmarks-size", type=int, metavar="PX", help="side to which images are resized for the landmark model"
    )
    parser.add_argument(
        "--trust-torchscript", action="store_true", help="load a TorchScript model, which executes code in the file"
    )


def load_detector(
    args: argparse.Namespace, net: LandmarkNet | None, image: Size, device: torch.device
) -> Detector | None:
    """Load the landmark model chosen by the options, and test it on a grey image; None if there is no model.

    Args:
        args: parsed options of `add_options`.
        net: the checkpoint's landmark net, used if no file is given.
        image: (height, width) of the images.
        device: device of the model.

    Raises:
        AutodragError: the file or a package is missing, or the model does not accept the images.
    """
    path: Path | None = args.landmarks
    if path is None:
        return None if net is None else _own(net, image, args.landmarks_size)
    if not path.is_file():
        raise AutodragError(f"landmark model {str(path)!r} does not exist; check the path")
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise AutodragError(f"landmark model {str(path)!r} has an unknown suffix; expected {', '.join(SUFFIXES)}")
    if kind == "dlib":
        return Dlib(path)
    if kind == "ONNX":
        run, side = _open_onnx(path)
    else:
        if not args.trust_torchscript:
            raise AutodragError(
                f"{str(path)!r} is a TorchScript model, and loading it executes its code; "
                "add --trust-torchscript if you trust its source, or export it to ONNX"
            )
        run, side = _open_torchscript(path, device), None
    size = args.landmarks_size
    if side is not None and (size or image) not in (side[0] if side[0] == side[1] else side, side):
        raise AutodragError(
            f"landmark model {str(path)!r} takes images of {side[1]}x{side[0]} px, not of "
            f"{size or image[1]}x{size or image[0]}; give --landmarks-size {side[0]} to resize them"
        )
    return Foreign(path, run, image if size is None else (size, size), image, device)


def require_detector(args: argparse.Namespace, net: LandmarkNet | None, image: Size, device: torch.device) -> Detector:
    """As `load_detector`, but raises AutodragError if there is no model."""
    detector = load_detector(args, net, image, device)
    if detector is None:
        raise AutodragError(
            f"{args.checkpoint} has no landmarks.safetensors; train one with autodrag train landmarks, "
            "or give a model with --landmarks FILE"
        )
    return detector


def _own(net: LandmarkNet, image: Size, size: int | None) -> Detector:
    side = net.config.resolution
    if (size or image) not in (side, (side, side)):
        raise AutodragError(
            f"the checkpoint's landmark net takes images of {side}x{side} px, but this generator makes "
            f"{image[1]}x{image[0]}; give --landmarks-size {side} to resize them"
        )
    return Own(net)


class Own:
    """The landmark net of a checkpoint."""

    def __init__(self, net: LandmarkNet) -> None:
        self.net, self.count = net, len(net.config.names)
        self.identity = f"own {fingerprint(net.state_dict())}"

    def __call__(self, image: Float[Tensor, "1 3 H W"]) -> Detection | None:
        found = find_landmarks(self.net, image)
        return _finite(found.points[0], float(found.confidence.mean()))


class Dlib:
    """dlib's shape predictor (King 2009) for the face with the highest detection score, as used by DragGAN.

    Images smaller than 512 px are upsampled by 2 for face detection. Without a face, the result is None.
    """

    def __init__(self, path: Path) -> None:
        dlib = _package("dlib", f"landmark model {str(path)!r}", "faces")
        try:
            self._shape = dlib.shape_predictor(str(path))
        except RuntimeError as error:
            raise AutodragError(f"landmark model {str(path)!r} cannot be read by dlib: {error}") from error
        self._dlib, self._faces = dlib, dlib.get_frontal_face_detector()
        self.count, self.identity = int(self._shape.num_parts), f"dlib {path.name} {path.stat().st_size}"

    def __call__(self, image: Float[Tensor, "1 3 H W"]) -> Detection | None:
        pixels = to_uint8(image)[0]
        boxes, scores, _ = self._faces.run(pixels, int(min(pixels.shape[:2]) < 512), 0.0)
        if not len(boxes):
            return None
        best = int(np.argmax(scores))
        parts = self._shape(pixels, boxes[best])
        points = [(parts.part(i).x, parts.part(i).y) for i in range(parts.num_parts)]
        return _finite(torch.tensor(points, dtype=torch.float32, device=image.device), float(scores[best]))


class Foreign:
    """A TorchScript or ONNX model. Images are resized to its input size (bilinear, antialiased)."""

    def __init__(self, path: Path, run: Callable[[Tensor], Any], side: Size, image: Size, device: torch.device) -> None:
        self._path, self._run, self._side = path, run, side
        self.identity = f"{path.name} {path.stat().st_size}"
        self.count = self._points(torch.zeros(1, 3, *image, device=device)).shape[1]

    def __call__(self, image: Float[Tensor, "1 3 H W"]) -> Detection | None:
        found = self._points(image)
        points = rescale(found[0, :, :2], self._side, (image.shape[2], image.shape[3]))
        return _finite(points, float(found[0, :, 2].mean()) if found.shape[2] == 3 else None)

    @torch.no_grad()
    def _points(self, image: Tensor) -> Tensor:
        if image.shape[2:] != self._side:
            image = F.interpolate(image, self._side, mode="bilinear", align_corners=False, antialias=True)
        size = f"{self._side[1]}x{self._side[0]}"
        try:
            found = self._run(image)
        except Exception as error:  # external models may raise any exception
            raise AutodragError(
                f"landmark model {str(self._path)!r} fails on an image of {size} px "
                f"({str(error).strip().splitlines()[-1]}); give its input size with --landmarks-size"
            ) from error
        if isinstance(found, np.ndarray):
            found = torch.from_numpy(found)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[0] != 1 or found.shape[2] not in (2, 3):
            raise AutodragError(
                f"landmark model {str(self._path)!r} returns {shape}; expected (1, K, 2), the points in px of its "
                "input, or (1, K, 3) with confidences"
            )
        return found.float().to(image.device)


def _finite(points: Tensor, confidence: float | None) -> Detection | None:
    """The detection, or None if the points are not finite, as for a broken image."""
    return Detection(points, confidence) if bool(torch.isfinite(points).all()) else None


def _open_onnx(path: Path) -> tuple[Callable[[Tensor], Any], Size | None]:
    """The model as a function, and its input size (height, width); None if it accepts any size."""
    runtime = _package("onnxruntime", f"landmark model {str(path)!r}", "eval")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise AutodragError(f"landmark model {str(path)!r} cannot be loaded as an ONNX model: {error}") from error
    first, *others = session.get_inputs()
    if others or len(first.shape) != 4:
        raise AutodragError(f"landmark model {str(path)!r} takes {first.shape}; expected one input (1, 3, H, W)")
    height, width = first.shape[2:]
    side = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return lambda image: session.run(None, {first.name: image.float().cpu().numpy()})[0], side


def _open_torchscript(path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    try:
        with warnings.catch_warnings():  # torch warns that TorchScript is deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise AutodragError(f"landmark model {str(path)!r} is not a TorchScript file; export it again") from error
    model.eval()
    return lambda image: model(image)


def _package(name: str, user: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AutodragError(f"{user} needs the package {name}; install it: pip install 'autodrag[{extra}]'") from error
