"""A second, plain implementation of StyleGAN2 as a reference for conversions: NumPy, double precision, one image.

It shares no code with autodrag. Each format is computed from its own tensors, names and layout. Modulated weights are
explicit, a convolution is a sum over its taps, and upsampling is zero insertion followed by the explicit [1, 3, 3, 1]
filter. Source: Karras et al. 2020, section 2 and figure 7. The docstrings state how each format stores upsampling
weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array]


def normalise(x: Array) -> Array:
    return x / math.sqrt(float((x**2).mean()) + 1e-8)


def leaky(x: Array, gain: float = 1.0, clamp: float | None = None) -> Array:
    y = np.where(x > 0, x, 0.2 * x) * math.sqrt(2) * gain
    return y if clamp is None else y.clip(-clamp * gain, clamp * gain)


def dense(x: Array, weight: Array, bias: Array, multiplier: float = 1.0) -> Array:
    """x (I,), weight (O, I)."""
    return weight @ x * (multiplier / math.sqrt(weight.shape[1])) + bias * multiplier


def correlate(x: Array, weight: Array) -> Array:
    """Correlation without padding, as a sum over the taps. x (I, H, W), weight (O, I, k, k)."""
    size = weight.shape[2]
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    return sum(
        np.einsum("oi,ihw->ohw", weight[:, :, i, j], x[:, i : i + height, j : j + width])
        for i in range(size)
        for j in range(size)
    )


def pad(x: Array, before: int, after: int) -> Array:
    return np.pad(x, ((0, 0), (before, after), (before, after)))


def doubled(x: Array, before: int, after: int) -> Array:
    """Zero insertion, padding, and the [1, 3, 3, 1] filter with gain 4."""
    spread = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2]))
    spread[:, ::2, ::2] = x
    spread = pad(spread, before, after)
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64 * 4
    height, width = spread.shape[1] - 3, spread.shape[2] - 3
    shifts = [(i, j) for i in range(4) for j in range(4)]
    return sum(taps[i, j] * spread[:, i : i + height, j : j + width] for i, j in shifts)


def layer(
    x: Array,
    weight: Array,
    style: Array,
    noise: Array,
    bias: Array,
    *,
    up: bool,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Array:
    """Modulated 3x3 convolution; `weight` (O, I, 3, 3) is correlated with the upsampled input."""
    modulated = weight * style[None, :, None, None]
    modulated = modulated / np.sqrt((modulated**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
    padded = doubled(x, 3, 2) if up else pad(x, 1, 1)
    return leaky(correlate(padded, modulated) + noise + bias[:, None, None], gain, clamp)


def to_rgb(x: Array, weight: Array, style: Array, bias: Array, clamp: float | None = None) -> Array:
    modulated = weight * style[None, :, None, None] / math.sqrt(weight.shape[1])
    y = correlate(x, modulated) + bias[:, None, None]
    return y if clamp is None else y.clip(-clamp, clamp)


def nvidia_image(
    t: Tensors,
    z: Array,
    label: Array | None = None,
    *,
    psi: float = 1.0,
    architecture: str = "skip",
    clamp: float | None = None,
    multiplier: float = 0.01,
) -> Array:
    """Image (3, H, W) of NVIDIA's PyTorch tensors. Upsampling weights are stored rotated by 180 degrees."""
    x = normalise(z)
    if label is not None:
        embedded = dense(label, t["mapping.embed.weight"], t["mapping.embed.bias"])
        x = np.concatenate([x, normalise(embedded)])
    for i in range(sum(name.startswith("mapping.fc") for name in t) // 2):
        x = leaky(dense(x, t[f"mapping.fc{i}.weight"], t[f"mapping.fc{i}.bias"], multiplier))
    w = t["mapping.w_avg"] + psi * (x - t["mapping.w_avg"])

    def style(name: str) -> Array:
        return dense(w, t[f"{name}.affine.weight"], t[f"{name}.affine.bias"])

    def run(x: Array, name: str, up: bool, gain: float = 1.0) -> Array:
        weight = t[f"{name}.weight"]
        noise = t[f"{name}.noise_const"] * t[f"{name}.noise_strength"]
        weight = weight[:, :, ::-1, ::-1] if up else weight
        return layer(x, weight, style(name), noise, t[f"{name}.bias"], up=up, gain=gain, clamp=clamp)

    image: Array | None = None
    x = t["synthesis.b4.const"]
    size = 4
    while f"synthesis.b{size}.conv1.weight" in t:
        block = f"synthesis.b{size}"
        if size > 4:
            before = x
            x = run(x, f"{block}.conv0", up=True)
            resnet = architecture == "resnet"
            x = run(x, f"{block}.conv1", up=False, gain=math.sqrt(0.5) if resnet else 1.0)
            if resnet:
                skip = t[f"{block}.skip.weight"]
                x = x + correlate(doubled(before, 2, 1), skip / math.sqrt(skip.shape[1])) * math.sqrt(0.5)
            image = None if image is None else doubled(image, 2, 1)
        else:
            x = run(x, f"{block}.conv1", up=False)
        if f"{block}.torgb.weight" in t:
            name = f"{block}.torgb"
            y = to_rgb(x, t[f"{name}.weight"], style(name), t[f"{name}.bias"], clamp)
            image = y if image is None else image + y
        size *= 2
    assert image is not None
    return image


def tensorflow_image(
    t: Tensors,
    z: Array,
    label: Array | None = None,
    *,
    psi: float = 1.0,
    architecture: str = "skip",
    clamp: float | None = None,
    multiplier: float = 0.01,
) -> Array:
    """Image (3, H, W) of TensorFlow's variables. Weights (k, k, I, O) are correlated as stored."""
    x = normalise(z)
    if label is not None:
        embedded = dense(label, t["mapping/LabelEmbed/weight"].T, t["mapping/LabelEmbed/bias"])
        x = np.concatenate([x, normalise(embedded)])
    for i in range(sum(name.startswith("mapping/Dense") for name in t) // 2):
        x = leaky(dense(x, t[f"mapping/Dense{i}/weight"].T, t[f"mapping/Dense{i}/bias"], multiplier))
    w = t["dlatent_avg"] + psi * (x - t["dlatent_avg"])

    def style(name: str) -> Array:
        return dense(w, t[f"{name}/mod_weight"].T, t[f"{name}/mod_bias"]) + 1

    def run(x: Array, name: str, index: int, up: bool) -> Array:
        weight = np.einsum("hwio->oihw", t[f"{name}/weight"])
        noise = t[f"synthesis/noise{index}"][0, 0] * t[f"{name}/noise_strength"]
        return layer(x, weight, style(name), noise, t[f"{name}/bias"], up=up, clamp=clamp)

    def rgb(x: Array, name: str) -> Array:
        weight = np.einsum("hwio->oihw", t[f"{name}/weight"])
        return to_rgb(x, weight, style(name), t[f"{name}/bias"], clamp)

    x = run(t["synthesis/4x4/Const/const"][0], "synthesis/4x4/Conv", 0, up=False)
    image = rgb(x, "synthesis/4x4/ToRGB") if architecture == "skip" else None
    size, index = 8, 1
    while f"synthesis/{size}x{size}/Conv1/weight" in t:
        block = f"synthesis/{size}x{size}"
        before = x
        x = run(x, f"{block}/Conv0_up", index, up=True)
        x = run(x, f"{block}/Conv1", index + 1, up=False)
        if architecture == "resnet":
            skip = np.einsum("hwio->oihw", t[f"{block}/Skip/weight"])
            x = (x + correlate(doubled(before, 2, 1), skip / math.sqrt(skip.shape[1]))) * math.sqrt(0.5)
        if architecture == "skip":
            assert image is not None
            image = doubled(image, 2, 1) + rgb(x, f"{block}/ToRGB")
        size, index = size * 2, index + 2
    if architecture == "resnet":
        image = rgb(x, f"synthesis/{size // 2}x{size // 2}/ToRGB")
    if architecture == "orig":
        image = rgb(x, "synthesis/ToRGB_lod0")
    assert image is not None
    return image


def rosinality_image(t: Tensors, average: Array, z: Array, *, psi: float = 1.0) -> Array:
    """Image (3, H, W) of rosinality's state dict: weights have a leading 1, and transposed convolutions rotate them."""
    x = normalise(z)
    for i in range(sum(name.startswith("style.") for name in t) // 2):
        x = leaky(dense(x, t[f"style.{i + 1}.weight"], t[f"style.{i + 1}.bias"], 0.01))
    w = average + psi * (x - average)

    def style(name: str) -> Array:
        return dense(w, t[f"{name}.conv.modulation.weight"], t[f"{name}.conv.modulation.bias"])

    def run(x: Array, name: str, index: int, up: bool) -> Array:
        weight = t[f"{name}.conv.weight"][0]
        weight = weight[:, :, ::-1, ::-1] if up else weight
        noise = t[f"noises.noise_{index}"][0, 0] * t[f"{name}.noise.weight"][0]
        return layer(x, weight, style(name), noise, t[f"{name}.activate.bias"], up=up)

    def rgb(x: Array, name: str) -> Array:
        return to_rgb(x, t[f"{name}.conv.weight"][0], style(name), t[f"{name}.bias"].reshape(3))

    x = run(t["input.input"][0], "conv1", 0, up=False)
    image = rgb(x, "to_rgb1")
    k = 0
    while f"to_rgbs.{k}.bias" in t:
        x = run(x, f"convs.{2 * k}", 2 * k + 1, up=True)
        x = run(x, f"convs.{2 * k + 1}", 2 * k + 2, up=False)
        image = doubled(image, 2, 1) + rgb(x, f"to_rgbs.{k}")
        k += 1
    return image
