"""What is made once is made once for each size, and serves in training after inference."""

from __future__ import annotations

import torch
from torch import Tensor

from autodrag import constant as module
from autodrag.constant import collected, constant


def test_one_tensor_for_each_size_which_can_be_trained_with() -> None:
    made: list[int] = []

    @constant
    def ramp(count: int, *, step: float = 1.0) -> Tensor:
        """Numbers in a row."""
        made.append(count)
        return torch.arange(count) * step

    with torch.inference_mode():
        first = ramp(3)
    assert ramp(3) is first and ramp(4) is not first and made == [3, 4]
    assert ramp(3, step=2.0).tolist() == [0.0, 2.0, 4.0]
    assert ramp.__doc__ == "Numbers in a row."
    weight = torch.ones(3, requires_grad=True)
    (ramp(3) * weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [0.0, 1.0, 2.0]


def test_only_so_many_are_kept() -> None:
    made: list[int] = []

    @constant
    def zeros(count: int) -> Tensor:
        made.append(count)
        return torch.zeros(count)

    for count in range(module.MOST + 1):
        zeros(count)
    zeros(module.MOST), zeros(0)
    assert made == [*range(module.MOST + 1), 0]


def test_what_is_asked_for_can_be_collected() -> None:
    @constant
    def ones(count: int) -> Tensor:
        return torch.ones(count)

    known = ones(1)
    with collected() as outer:
        two = ones(2)
        with collected() as inner:
            ones(1)
        ones(3)
    ones(4)
    assert inner[0] is known and len(inner) == 1
    assert outer[0] is two and len(outer) == 2


def test_where_it_is_asked_for_first_is_where_nobody_else_has_to_be() -> None:
    @constant
    def ones(count: int) -> Tensor:
        return torch.ones(count)

    with torch.device("meta"):
        ones(2)
    assert ones(2).tolist() == [1.0, 1.0]
