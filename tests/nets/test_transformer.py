"""The transformer blocks, compared with torch's attention, and the key-value cache."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autodrag.nets.transformer import Attention, DecoderLayer, EncoderLayer, fourier_positions


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(24, 3)


def torchs(attention: Attention) -> nn.MultiheadAttention:
    """torch's attention module with the same weights."""
    other = nn.MultiheadAttention(24, 3, batch_first=True)
    other.in_proj_weight.data = torch.cat([attention.query.weight, attention.key_value.weight]).detach()
    other.in_proj_bias.data = torch.cat([attention.query.bias, attention.key_value.bias]).detach()
    other.out_proj.load_state_dict(attention.out.state_dict())
    return other


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch_attention(attention: Attention, masked: bool) -> None:
    x, memory = random(2, 5, 24), random(2, 7, 24, seed=1)
    mask = random(5, 7, seed=2) > -0.5 if masked else None
    ours = attention(x, attention.project(memory), mask)
    theirs, _ = torchs(attention)(x, memory, memory, attn_mask=None if mask is None else ~mask)  # True = masked
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_attention_and_gradients_equal_those_of_the_fused_kernel(attention: Attention) -> None:
    """A GPU uses torch's fused kernel; on a CPU, attention with gradients is computed explicitly."""
    mask = torch.tensor([[[[True, True, True, False]]], [[[True, False, True, True]]]])  # padding of each row

    def fused(x: Tensor) -> Tensor:
        query = attention.query(x).unflatten(2, (3, 8)).transpose(1, 2)
        return attention.out(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))

    key, value = attention.project(random(2, 4, 24, seed=1))
    a, b = random(2, 5, 24).requires_grad_(), random(2, 5, 24).requires_grad_()
    ours, theirs = attention(a, (key, value), mask), fused(b)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (first,) = torch.autograd.grad(ours.square().sum(), a)
    (second,) = torch.autograd.grad(theirs.square().sum(), b)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def test_attention_in_bf16_is_close(attention: Attention) -> None:
    x = random(2, 5, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = attention(x, attention.project(x))
    torch.testing.assert_close(fast.float(), attention(x, attention.project(x)), atol=2e-2, rtol=2e-2)


def test_encoder_layer_equals_torch_with_norm_first() -> None:
    torch.manual_seed(0)
    ours = EncoderLayer(24, 3, 2.0)
    theirs = nn.TransformerEncoderLayer(24, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs.self_attn = torchs(ours.attention)
    theirs.norm1, theirs.norm2 = ours.norm1, ours.norm2
    theirs.linear1, theirs.linear2 = ours.mlp[0], ours.mlp[2]  # type: ignore[assignment]
    x = random(2, 5, 24)
    torch.testing.assert_close(ours(x), theirs.train()(x), atol=1e-5, rtol=1e-5)


def test_decoder_layer_equals_torch_with_norm_first() -> None:
    torch.manual_seed(0)
    ours = DecoderLayer(24, 3, 2.0)
    theirs = nn.TransformerDecoderLayer(24, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs.self_attn, theirs.multihead_attn = torchs(ours.attention), torchs(ours.cross)
    theirs.norm1, theirs.norm2, theirs.norm3 = ours.norm1, ours.norm2, ours.norm3
    theirs.linear1, theirs.linear2 = ours.mlp[0], ours.mlp[2]  # type: ignore[assignment]
    x, memory = random(2, 5, 24), random(2, 7, 24, seed=1)
    causal = torch.ones(5, 5).tril().bool()
    y, _ = ours(x, ours.cross.project(memory), mask=causal)
    torch.testing.assert_close(y, theirs(x, memory, tgt_mask=~causal), atol=1e-5, rtol=1e-5)


def test_cached_decoding_equals_causal_attention() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(24, 3, 2.0)
    x, memory = random(2, 5, 24), layer.cross.project(random(2, 7, 24, seed=1))
    whole, _ = layer(x, memory, mask=torch.ones(5, 5).tril().bool())
    past, parts = None, []
    for k in range(5):
        part, past = layer(x[:, k : k + 1], memory, past=past)
        assert past[0].shape == (2, 3, k + 1, 8)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_masked_memory_tokens_are_ignored() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(24, 3, 2.0)
    x, memory = random(1, 5, 24), random(1, 7, 24, seed=1)
    mask = torch.tensor([True] * 4 + [False] * 3)
    with_padding, _ = layer(x, layer.cross.project(memory), memory_mask=mask)
    without, _ = layer(x, layer.cross.project(memory[:, :4]))
    torch.testing.assert_close(with_padding, without, atol=1e-6, rtol=1e-5)


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 6))
def test_fourier_positions(x: float, y: float, bands: int) -> None:
    values = fourier_positions(torch.tensor([[x, y]], dtype=torch.float64), bands)[0].tolist()
    expected = [math.sin(math.pi * 2**k * p) for p in (x, y) for k in range(bands)]
    expected += [math.cos(math.pi * 2**k * p) for p in (x, y) for k in range(bands)]
    assert values == pytest.approx(expected, abs=1e-9)
