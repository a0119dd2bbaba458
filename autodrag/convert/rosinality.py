"""rosinality's checkpoints: a table with the state dict `g_ema` and, often, `latent_avg`.

Facts: rosinality/stylegan2-pytorch, model.py (names) and convert_weight.py (their relation to NVIDIA's).
Convolutions carry a leading 1 and have the same orientation as NVIDIA's; style.0 is the normalisation of z.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from torch import Tensor

from autodrag.convert.matching import BLOCKS, MAX_MAPPING_LAYERS, Foreign, Weight, check_filter, unchanged
from autodrag.convert.tensors import MAX_TENSORS, StoredTensor, as_tensor
from autodrag.errors import CheckpointError

_KERNEL = re.compile(r"(convs\.\d+\.conv\.blur|to_rgbs\.\d+\.upsample)\.kernel")


def _names() -> dict[str, str]:
    """rosinality's tensor name → ours, for every size."""
    names = {"input.input": "synthesis.b4.const", "latent_avg": "mapping.w_avg"}
    for index in range(MAX_MAPPING_LAYERS):
        for part in ("weight", "bias"):
            names[f"style.{index + 1}.{part}"] = f"mapping.fc{index}.{part}"
    modulated = {
        "conv.weight": "weight",
        "conv.modulation.weight": "affine.weight",
        "conv.modulation.bias": "affine.bias",
    }
    for k, size in enumerate(BLOCKS):
        block = f"synthesis.b{size}"
        layers = {f"convs.{2 * k - 2}": "conv0", f"convs.{2 * k - 1}": "conv1"} if k else {"conv1": "conv1"}
        for source, layer in layers.items():
            for part, our_part in (modulated | {"noise.weight": "noise_strength", "activate.bias": "bias"}).items():
                names[f"{source}.{part}"] = f"{block}.{layer}.{our_part}"
        for part, our_part in (modulated | {"bias": "bias"}).items():
            names[f"{f'to_rgbs.{k - 1}' if k else 'to_rgb1'}.{part}"] = f"{block}.torgb.{our_part}"
        if k:
            names[f"noises.noise_{2 * k - 1}"] = f"{block}.conv0.noise_const"
        names[f"noises.noise_{2 * k}"] = f"{block}.conv1.noise_const"
    return names


NAMES = _names()


def recognise(value: Any) -> dict[str, Any] | None:
    """The checkpoint's table, or None where the value is something else."""
    if not isinstance(value, dict):
        return None
    state = value.get("g_ema")
    if isinstance(state, dict) and any(isinstance(name, str) and name.startswith("convs.") for name in state):
        return value
    return None


def read(table: dict[str, Any]) -> Foreign:
    """The averaged generator's tensors.

    Raises:
        CheckpointError: it holds something that is not a tensor, or a filter that ours does not have.
    """
    weights: dict[str, Weight] = {}
    if len(table["g_ema"]) > MAX_TENSORS:
        raise CheckpointError(f"'g_ema' holds more than {MAX_TENSORS} entries; no StyleGAN2 has so many")
    for name, value in table["g_ema"].items():
        stored = as_tensor(value)
        if not isinstance(name, str) or stored is None:
            raise CheckpointError(f"'g_ema' holds {name!r:.60}, not a tensor; it should be a state dict")
        if _KERNEL.fullmatch(name):
            check_filter(stored, name, gain=4.0)
        else:
            weights[NAMES.get(name, name)] = _weight(name, stored)
    average = as_tensor(table.get("latent_avg"))
    if average is not None:
        weights["mapping.w_avg"] = Weight("latent_avg", average, _flat)
    # z is as long as w here.
    widths = Counter(
        weight.stored.shape[-1]
        for name, weight in weights.items()
        if name.endswith(".affine.weight") and weight.stored.shape
    )
    return Foreign(
        format="rosinality",
        weights=weights,
        z_dim=widths.most_common(1)[0][0] if widths else None,
        average_missing=average is None,
        source_names={ours: name for name, ours in NAMES.items()},
    )


def _weight(name: str, stored: StoredTensor) -> Weight:
    if name.endswith("conv.weight") or name == "input.input":
        return Weight(name, stored, _first)  # (1, O, I, k, k), (1, C, 4, 4)
    if name.startswith("noises."):
        return Weight(name, stored, _plane)  # (1, 1, H, W)
    if name.endswith("noise.weight"):
        return Weight(name, stored, _scalar)  # (1,)
    if re.fullmatch(r"to_rgb.*\.bias", name) and ".conv." not in name:
        return Weight(name, stored, _flat)  # (1, 3, 1, 1)
    return Weight(name, stored, unchanged)


def _first(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0)


def _plane(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0).squeeze(0)


def _scalar(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.squeeze(-1).squeeze(-1).squeeze(0) if tensor.ndim == 4 else tensor.squeeze(0)
