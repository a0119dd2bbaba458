"""Optical flow between two images, with OpenCV or RAFT.

A flow is (H, W, 2) px, (dx, dy): the content at p in the first image is at p + flow[p] in the second.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from autodrag.errors import AutodragError

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Computes the flow between two HWC uint8 RGB images."""

RAFT_FILE = "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
RAFT_URL = f"https://download.pytorch.org/models/{RAFT_FILE}"

_DIS_PX = 256
_RAFT_PX = 128


def dis_flow(first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 2"]:
    """Dense inverse search (Kroeger et al. 2016) on grey values, with OpenCV's medium preset.

    Images smaller than 256 px are enlarged (bicubic) by an integer factor to at least 256 px, because the method starts
    at a quarter of the resolution; the flow is scaled back. Method and size are our choices; the papers do not name
    their flow.
    """
    height, width = first.shape[:2]
    factor = max(1, -(-_DIS_PX // min(height, width)))
    size = (width * factor, height * factor)
    grey = [cv2.resize(_grey(image), size, interpolation=cv2.INTER_CUBIC) for image in (first, second)]
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    large = method.calc(grey[0], grey[1], None)  # type: ignore[call-overload]
    return np.asarray(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA) / factor, dtype=np.float32)


def farneback_flow(first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 2"]:
    """Polynomial expansion (Farnebäck 2003) on grey values, with 3 levels and a window of 15 px."""
    start = np.zeros((*first.shape[:2], 2), np.float32)
    return cv2.calcOpticalFlowFarneback(_grey(first), _grey(second), start, 0.5, 3, 15, 3, 5, 1.2, 0)


class RaftFlow:
    """RAFT (Teed and Deng 2020), torchvision's large model. Weights are not downloaded.

    Images smaller than 128 px, the minimum of RAFT, are enlarged. Sides are rounded to multiples of eight.
    """

    def __init__(self, device: torch.device, weights: Path | None = None) -> None:
        """Load the network.

        Args:
            device: device of the network.
            weights: file of torchvision's weights; None uses the file in PyTorch's hub folder.

        Raises:
            AutodragError: torchvision or the weights are missing, or the file does not contain RAFT's weights.
        """
        if importlib.util.find_spec("torchvision") is None:
            raise AutodragError("RAFT needs the package torchvision; install it: pip install torchvision")
        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / RAFT_FILE
        if not path.is_file():
            raise AutodragError(
                f"RAFT needs its weights at {str(path)!r}, but the file does not exist; get it from {RAFT_URL}"
            )
        try:
            from torchvision.models.optical_flow import raft_large
        except (ImportError, RuntimeError) as problem:  # built for another version of torch
            raise AutodragError(
                f"torchvision cannot be imported ({problem}); install the version that matches torch"
            ) from problem

        net = raft_large(weights=None, progress=False)
        try:
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as problem:
            raise AutodragError(
                f"{str(path)!r} does not contain the weights of RAFT; get them from {RAFT_URL}"
            ) from problem
        self._net = net.to(device).eval().requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def __call__(
        self, first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"]
    ) -> Float[np.ndarray, "H W 2"]:
        height, width = first.shape[:2]
        factor = max(1.0, _RAFT_PX / min(height, width))
        size = (8 * round(height * factor / 8), 8 * round(width * factor / 8))
        large = self._net(self._input(first, size), self._input(second, size))[-1]  # (1, 2, h, w), the last refinement
        flow = F.interpolate(large, (height, width), mode="bilinear", align_corners=False, antialias=True)
        found: np.ndarray = (
            (flow[0].permute(1, 2, 0) * flow.new_tensor([width / size[1], height / size[0]])).cpu().numpy()
        )
        return found

    def _input(self, image: np.ndarray, size: tuple[int, int]) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self._device).permute(2, 0, 1)[None]
        return F.interpolate(pixels.float().div(127.5).sub(1), size, mode="bilinear", align_corners=False)


def log_expansion(flow: Float[np.ndarray, "H W 2"]) -> Float[np.ndarray, "H W"]:
    """Log-expansion around each pixel: log(sqrt(|det(1 + grad flow)|)), clipped to [log 1/4, log 4].

    It is zero for translations and rotations, and log s for a scaling by s.
    """
    dy, dx = np.gradient(flow, axis=(0, 1))  # (H, W, 2) each: derivatives of (u, v)
    area = (1 + dx[..., 0]) * (1 + dy[..., 1]) - dx[..., 1] * dy[..., 0]
    expansion: np.ndarray = (0.5 * np.log(np.clip(np.abs(area), 1 / 16, 16))).astype(np.float32)
    return expansion


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
