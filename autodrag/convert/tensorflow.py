"""The legacy TensorFlow pickles: a tuple (G, D, Gs) of dnnlib networks, where Gs is the averaged generator.

Sources: dnnlib/tflib/network.py (`__getstate__`: version, static_kwargs, components, variables, and source code, which
NVIDIA's loader executes and this module ignores), training/networks_stylegan2.py and stylegan2-ada's networks.py
(names), stylegan2-ada-pytorch's legacy.py (conversion of the layouts to NVIDIA's PyTorch code). Convolutions are stored
as (k, k, I, O), dense layers as (I, O), upsampling convolutions rotated by 180 degrees, and style biases without the
constant 1.
"""

from __future__ import annotations

import re
from typing import Any

from autodrag.convert.matching import (
    BLOCKS,
    MAX_MAPPING_LAYERS,
    Change,
    SourceGenerator,
    Weight,
    check_settings,
    positive,
)
from autodrag.convert.pickles import Record
from autodrag.convert.tensors import MAX_TENSORS, StoredTensor, as_number, require_tensor
from autodrag.errors import CheckpointError

# Settings that change the image, with the supported values.
_FIXED: dict[str, tuple[Any, ...]] = {
    "nonlinearity": ("lrelu", None),
    "mapping_nonlinearity": ("lrelu", None),
    "resample_kernel": ([1, 3, 3, 1], None),
    "normalize_latents": (True, None),
    "num_channels": (3, None),
    "fmap_const": (None,),
    "mapping_func": ("G_mapping", None),
    "synthesis_func": ("G_synthesis", "G_synthesis_stylegan2", "G_synthesis_stylegan_revised", None),
}
# Settings that are inferred from shapes, that are read below, or that affect only training or speed.
_KNOWN = (
    "latent_size label_size dlatent_size resolution mapping_layers label_fmaps architecture fmap_base "
    "fmap_max fmap_min fmap_decay mapping_fmaps mapping_lrmul use_noise conv_clamp num_fp16_res dtype "
    "fused_modconv randomize_noise structure w_avg_beta truncation_psi truncation_cutoff "
    "truncation_psi_val truncation_cutoff_val dlatent_avg_beta style_mixing_prob"
)
# Conversions of the layout by pattern of our tensor name; the first match counts.
_CHANGES: tuple[tuple[str, Change], ...] = (
    (r".*affine\.bias", lambda t: t + 1),
    (r"mapping\..*\.weight|.*\.affine\.weight", lambda t: t.permute(1, 0)),
    (r".*\.(conv0|skip)\.weight", lambda t: t.permute(3, 2, 0, 1).flip(2, 3)),
    (r".*\.(conv1|torgb)\.weight", lambda t: t.permute(3, 2, 0, 1)),
    (r".*noise_const", lambda t: t.squeeze(0).squeeze(0)),
    (r"synthesis\.b4\.const", lambda t: t.squeeze(0)),
)


def _names() -> dict[str, str]:
    """Map TensorFlow's variable names to our tensor names, for all sizes."""
    names = {"dlatent_avg": "mapping.w_avg", "synthesis/4x4/Const/const": "synthesis.b4.const"}
    for part in ("weight", "bias"):
        names[f"mapping/LabelEmbed/{part}"] = f"mapping.embed.{part}"
        for index in range(MAX_MAPPING_LAYERS):
            names[f"mapping/Dense{index}/{part}"] = f"mapping.fc{index}.{part}"
    modulated = {"weight": "weight", "bias": "bias", "mod_weight": "affine.weight", "mod_bias": "affine.bias"}
    for k, size in enumerate(BLOCKS):
        source, block = f"synthesis/{size}x{size}", f"synthesis.b{size}"
        layers = {"Conv0_up": "conv0", "Conv1": "conv1"} if k else {"Conv": "conv1"}
        for name, layer in layers.items():
            for part, our_part in (modulated | {"noise_strength": "noise_strength"}).items():
                names[f"{source}/{name}/{part}"] = f"{block}.{layer}.{our_part}"
        for part, our_part in modulated.items():
            names[f"{source}/ToRGB/{part}"] = f"{block}.torgb.{our_part}"
        if k:
            names[f"{source}/Skip/weight"] = f"{block}.skip.weight"
            names[f"synthesis/noise{2 * k - 1}"] = f"{block}.conv0.noise_const"
        names[f"synthesis/noise{2 * k}"] = f"{block}.conv1.noise_const"
    return names


NAMES = _names()


def recognise(value: Any) -> Record | None:
    """The record of Gs, or None if the value is not a (G, D, Gs) tuple of TensorFlow networks."""
    if isinstance(value, (tuple, list)) and len(value) == 3 and _state(value[2]) is not None:
        return value[2]
    return None


def read(network: Record) -> SourceGenerator:
    """The averaged generator's tensors and settings.

    Raises:
        CheckpointError: the network has an older architecture or an unsupported setting.
    """
    state = _state(network) or {}
    components = state.get("components")
    stored = _variables("", state)
    for name in ("mapping", "synthesis"):
        part = _state(components.get(name)) if isinstance(components, dict) else None
        if part is None:
            raise CheckpointError(
                f"this is not a StyleGAN2 generator: it has no part {name!r}; give a StyleGAN2 pickle"
            )
        stored |= _variables(f"{name}/", part)
    if any("StyleMod/" in name or "/AdaIN" in name for name in stored):
        raise CheckpointError("this is a StyleGAN1 network, which is not supported; give a StyleGAN2 one")
    if "mapping/LabelConcat/weight" in stored:
        raise CheckpointError(
            "this conditional network joins label and z before normalisation ('mapping/LabelConcat'), as StyleGAN2 did "
            "before ADA; give one with ADA's 'mapping/LabelEmbed'"
        )
    settings = state.get("static_kwargs")
    settings = {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}
    check_settings(settings, _FIXED, _KNOWN.split())
    # Progressive growing has one RGB layer per size and blends two of them according to `lod`. At lod 0 only the finest
    # layer (lod0) is used, and the network is NVIDIA's `orig` architecture.
    for name in ("lod", "synthesis/lod"):
        if name in stored and stored.pop(name).read().any():
            raise CheckpointError(f"its progressive growing is not finished ({name!r} is not 0); give a finished one")
    finest = max((size for size in BLOCKS if f"synthesis/{size}x{size}/Conv1/weight" in stored), default=4)
    weights: dict[str, Weight] = {}
    for name, tensor in stored.items():
        grown = re.fullmatch(r"synthesis/ToRGB_lod(\d{1,2})/(\w+)", name)
        if grown and grown[1] != "0":
            continue
        ours = NAMES.get(f"synthesis/{finest}x{finest}/ToRGB/{grown[2]}" if grown else name, name)
        change = next((change for pattern, change in _CHANGES if re.fullmatch(pattern, ours)), None)
        weights[name if ours in weights else ours] = Weight(name, tensor, change)
    z_dim, clamp, multiplier = (settings.get(key) for key in ("latent_size", "conv_clamp", "mapping_lrmul"))
    return SourceGenerator(
        format="TensorFlow StyleGAN2 pickle",
        weights=weights,
        z_dim=z_dim if type(z_dim) is int and 0 < z_dim < 2**20 else None,
        conv_clamp=None if clamp is None else positive(as_number(clamp), "conv_clamp"),
        mapping_lr_multiplier=0.01 if multiplier is None else positive(as_number(multiplier), "mapping_lrmul"),
        without_noise=settings.get("use_noise") is False,
        source_names={ours: name for name, ours in NAMES.items()},
    )


def _state(value: Any) -> dict[str, Any] | None:
    if isinstance(value, Record) and value.name == "dnnlib.tflib.network.Network":
        return value.state if isinstance(value.state, dict) else None
    return None


def _variables(prefix: str, state: dict[str, Any]) -> dict[str, StoredTensor]:
    """Tensors of one network's own variables, by name."""
    variables = state.get("variables")
    if not isinstance(variables, list) or len(variables) > MAX_TENSORS:
        raise CheckpointError("a TensorFlow network has no list of variables, so it is damaged; download it again")
    tensors = {}
    for item in variables:
        match item:
            case (str(name), value) if len(name) < 200:
                tensors[prefix + name] = require_tensor(value, prefix + name)
            case _:
                raise CheckpointError("a TensorFlow variable has no name, so the file is damaged; download it again")
    return tensors
