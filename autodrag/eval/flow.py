"""Optical flow between two generated images, for the paired protocol.

A flow is (H, W, 2) px, (dx, dy): what lies at p in the first image lies at p + flow[p] in the second.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from autodrag.eval.weights import RAFT, require

FlowName = Literal["dis", "raft"]
FLOWS: tuple[FlowName, ...] = ("dis", "raft")

_DIS_PX = 256
_RAFT_PX = 128


def dis_flow(first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 2"]:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's medium preset, on grey values.

    Images under 256 px are enlarged to it first (bicubic), because the method starts at a quarter of the resolution;
    the flow is scaled back. Both are our choice; the papers do not name their flow.
    """
    height, width = first.shape[:2]
    factor = max(1, -(-_DIS_PX // min(height, width)))
    size = (width * factor, height * factor)
    grey = [
        cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC)
        for image in (first, second)
    ]
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    large = method.calc(grey[0], grey[1], None)  # type: ignore[call-overload]
    flow = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA) / factor
    return np.asarray(flow, dtype=np.float32)


class RaftFlow:
    """RAFT (Teed and Deng 2020), torchvision's large model, where it and its weights are at hand.

    Images under 128 px, the least it takes, are enlarged; sides are brought to multiples of eight.
    Nothing is downloaded.
    """

    def __init__(self, device: torch.device) -> None:
        require(RAFT)
        from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

        self._net = raft_large(weights=Raft_Large_Weights.C_T_SKHT_V2, progress=False).to(device).eval()
        self._device = device

    @torch.no_grad()
    def __call__(
        self, first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"]
    ) -> Float[np.ndarray, "H W 2"]:
        height, width = first.shape[:2]
        factor = max(1.0, _RAFT_PX / min(height, width))
        size = tuple(8 * round(side * factor / 8) for side in (height, width))
        a, b = (self._input(image, size) for image in (first, second))
        large = self._net(a, b)[-1]  # (1, 2, h, w), the last refinement
        flow = F.interpolate(large, (height, width), mode="bilinear", align_corners=False, antialias=True)
        scale = flow.new_tensor([width / size[1], height / size[0]])
        return (flow[0].permute(1, 2, 0) * scale).cpu().numpy()

    def _input(self, image: np.ndarray, size: tuple[int, ...]) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self._device).permute(2, 0, 1)[None]
        scaled = pixels.float().div(127.5).sub(1)
        return F.interpolate(scaled, size, mode="bilinear", align_corners=False)
