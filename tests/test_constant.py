"""Cached constants: equal arguments give the same tensor, which can be used in training and lies on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from autodrag.constant import collected, constant


def test_constant_created_in_inference_mode_supports_autograd() -> None:
    @constant
    def ramp(count: int, *, step: float = 1.0) -> Tensor:
        """An arithmetic sequence."""
        return torch.arange(count) * step

    with torch.inference_mode():
        first = ramp(3)
    assert ramp(3) is first and ramp(4).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert ramp(3, step=2.0).tolist() == [0.0, 2.0, 4.0]
    assert ramp.__doc__ == "An arithmetic sequence."
    weight = torch.ones(3, requires_grad=True)
    (ramp(3) * weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [0.0, 1.0, 2.0]


def test_collected_constants() -> None:
    @constant
    def ones(count: int) -> Tensor:
        return torch.ones(count)

    one = ones(1)
    with collected() as outer:
        two = ones(2)
        with collected() as inner:
            ones(1)
        ones(3)
    ones(4)
    assert inner[0] is one and len(inner) == 1
    assert outer[0] is two and len(outer) == 2


def test_device_context_of_the_first_call_is_ignored() -> None:
    @constant
    def ones(count: int) -> Tensor:
        return torch.ones(count)

    with torch.device("meta"):
        ones(2)
    assert ones(2).tolist() == [1.0, 1.0]
