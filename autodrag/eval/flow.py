"""Optical flow by RAFT, for evaluation. OpenCV's flows are in `autodrag.data.flow`."""

from __future__ import annotations

import functools
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from autodrag.errors import AutodragError

RAFT_FILE = "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
RAFT_URL = f"https://download.pytorch.org/models/{RAFT_FILE}"

_RAFT_PX = 128


class RaftFlow:
    """RAFT (Teed and Deng 2020), torchvision's large model. Its weights are never downloaded.

    Images under 128 px, RAFT's minimum, are enlarged. Sides are rounded to multiples of eight.
    """

    def __init__(self, device: torch.device, weights: Path | None = None) -> None:
        """weights: a file of torchvision's weights; None looks in PyTorch's hub folder.

        Raises:
            AutodragError: torchvision or the weights are missing, or the file holds something else.
        """
        if importlib.util.find_spec("torchvision") is None:
            raise AutodragError("RAFT needs the package torchvision; install it: pip install torchvision")
        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / RAFT_FILE
        if not path.is_file():
            raise AutodragError(
                f"RAFT needs its weights at {str(path)!r}, which is not there; get them from {RAFT_URL}"
            )
        try:
            from torchvision.models.optical_flow import raft_large
        except (ImportError, RuntimeError) as problem:  # built for another torch
            raise AutodragError(
                f"torchvision cannot be imported ({problem}); install the one of this torch"
            ) from problem

        net = raft_large(weights=None, progress=False)
        try:
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as problem:
            raise AutodragError(
                f"{str(path)!r} does not hold the weights of RAFT; get them from {RAFT_URL}"
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


@functools.cache
def load_raft(device: torch.device, weights: Path | None) -> RaftFlow:
    """RAFT, loaded once for each device and file."""
    return RaftFlow(device, weights)
