"""State dicts with rosinality's or NVIDIA's names, plain or inside a training checkpoint.

rosinality/stylegan2-pytorch defines the names in model.py and their relation to NVIDIA's in convert_weight.py.
Convolution weights have an additional leading dimension of 1, style.0 is the normalisation of z, and z has the length
of w.

A generator is found by its tensor names. The text before these names is a prefix (`module.`, `g_ema.`, ...). A state
dict has no settings, so NVIDIA's defaults apply: no clamp and a mapping multiplier of 0.01.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autodrag.convert import nvidia
from autodrag.convert.matching import BLOCKS, MAX_MAPPING_LAYERS, Change, SourceGenerator, Weight, check_filter
from autodrag.convert.tensors import MAX_TENSORS, as_tensor, require_tensor
from autodrag.errors import CheckpointError

MAX_NAMES = 500_000  # maximum number of dict entries that are searched; a dict may occur in several others
MAX_GENERATORS = 9  # maximum number of prefixes per dict; more than one generator is an error
# Tensor names, after the prefix, that only a generator has. The second pattern includes names of StyleGAN3.
_ROSINALITY = re.compile(r"(?:.*?\.)??(?=(to_rgb1|to_rgbs\.\d+|convs\.\d+\.conv|input\.input)\b)")
_NVIDIA = re.compile(r"(?:.*?\.)??(?=synthesis\.(b\d+|L\d+_\d+_\d+|input)\.)")
_KERNEL = re.compile(r"(convs\.\d+\.conv\.blur|to_rgbs\.\d+\.upsample)\.kernel")
# Conversions of rosinality's layout by pattern of our tensor name; the first match counts.
_CHANGES: tuple[tuple[str, Change], ...] = (
    (r".*(conv\d|torgb)\.weight|.*\.const|.*\.noise_strength", lambda t: t.squeeze(0)),
    (r".*\.noise_const", lambda t: t.squeeze(0).squeeze(0)),
    (r".*torgb\.bias", lambda t: t.squeeze(0).squeeze(-1).squeeze(-1)),
)


def _names() -> dict[str, str]:
    """Map rosinality's tensor names to ours, for all sizes."""
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


@dataclass(frozen=True)
class StateDict:
    """A generator's state dict inside a file."""

    place: str
    """Keys and prefix of the tensors, such as `state_dict.generator`; empty at the top level of the file."""
    tensors: dict[str, Any]
    """Records of the tensors, by name without the prefix."""
    average: Any
    """rosinality's `latent_avg`, which is stored next to the state dict; None if it is missing."""
    nvidia: bool
    """True for NVIDIA's names, False for rosinality's."""


def recognise(value: Any) -> StateDict | None:
    """The state dict of the averaged generator, or None if there is no generator.

    Raises:
        CheckpointError: there are several generators and no unique average, or only a generator without average.
    """
    found = list(_search(value))
    averaged = [state for state in found if re.search("ema|average", state.place, re.IGNORECASE)]
    chosen = averaged or found
    if len(chosen) > 1:
        places = ", ".join(repr(state.place[:60]) for state in chosen[:4])
        raise CheckpointError(
            f"it holds several generators ({places}), but one with 'ema' in its name was expected; "
            "save the state dict of one generator and convert that file"
        )
    if chosen and re.search(r"(^|\.)g$", chosen[0].place, re.IGNORECASE):
        name = chosen[0].place[-1]
        raise CheckpointError(
            f"it holds {name!r} but not '{name}_ema', the averaged generator; give a file with '{name}_ema'"
        )
    return chosen[0] if chosen else None


def read(state: StateDict) -> SourceGenerator:
    """The generator's tensors.

    Raises:
        CheckpointError: an entry is not a tensor, or a resampling filter is not supported.
    """
    if len(state.tensors) > MAX_TENSORS:
        raise CheckpointError(f"it has more than {MAX_TENSORS} tensors; give a StyleGAN2 generator")
    prefix = f"{state.place}." if state.place else ""
    tensors = {name: require_tensor(value, prefix + name) for name, value in state.tensors.items()}
    if state.nvidia:
        return SourceGenerator(format="NVIDIA state dict", weights=nvidia.read_tensors(tensors))
    weights: dict[str, Weight] = {}
    for name, stored in tensors.items():
        if _KERNEL.fullmatch(name):
            check_filter(stored, name, gain=4.0)
            continue
        ours = NAMES.get(name, name)
        change = next((change for pattern, change in _CHANGES if re.fullmatch(pattern, ours)), None)
        weights[ours] = Weight(name, stored, change)
    average = as_tensor(state.average)
    if average is not None:
        weights["mapping.w_avg"] = Weight("latent_avg", average, lambda t: t.squeeze(0))
    widths = Counter(w.stored.shape[-1] for name, w in weights.items() if name.endswith("affine.weight") and w.shape)
    return SourceGenerator(
        format="rosinality",
        weights=weights,
        z_dim=widths.most_common(1)[0][0] if widths else None,
        without_average="mapping.w_avg" not in weights,
        source_names={ours: name for name, ours in NAMES.items()},
    )


def _search(value: Any) -> Iterator[StateDict]:
    """Find generators in the nested dicts of a file, down to the third level."""
    pending = [("", value, None)] if isinstance(value, dict) else []
    names_left = MAX_NAMES
    for place, table, average in pending:  # the list grows during the loop
        names_left -= len(table)
        if names_left < 0:
            return
        average = table.get("latent_avg", average)
        for pattern in (_ROSINALITY, _NVIDIA):
            matches = (pattern.match(name) for name in table if isinstance(name, str))
            prefixes = dict.fromkeys(match[0] for match in matches if match)
            for prefix in itertools.islice(prefixes, MAX_GENERATORS):
                entries = ((name, entry) for name, entry in table.items() if str(name).startswith(prefix))
                tensors = {str(name)[len(prefix) :]: entry for name, entry in entries if name != "latent_avg"}
                yield StateDict(f"{place}.{prefix}".strip("."), tensors, average, nvidia=pattern is _NVIDIA)
        if place.count(".") < 2:
            children = ((name, child) for name, child in table.items() if isinstance(child, dict))
            pending.extend((f"{place}.{name}".strip("."), child, average) for name, child in children)
