"""The legacy TensorFlow pickles: a tuple (G, D, Gs) of dnnlib networks, Gs being the averaged generator.

Facts: dnnlib/tflib/network.py (`__getstate__`: version, static_kwargs, components, variables, and source code
that its own loader executes and this one ignores), training/networks_stylegan2.py and stylegan2-ada's
networks.py (names), stylegan2-ada-pytorch's legacy.py (the relation of the layouts to NVIDIA's PyTorch code).
Convolutions are stored (k, k, I, O), dense layers (I, O), upsampling convolutions turned by 180 degrees,
and a style's bias without its constant 1.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from autodrag.convert.matching import BLOCKS, MAX_MAPPING_LAYERS, Foreign, Weight, unchanged
from autodrag.convert.pickles import Record
from autodrag.convert.tensors import MAX_TENSORS, StoredTensor, as_number, as_tensor
from autodrag.errors import CheckpointError

# Settings that change the image, with the one value that our network has (besides being absent)...
_FIXED: dict[str, tuple[Any, ...]] = {
    "nonlinearity": ("lrelu",),
    "mapping_nonlinearity": ("lrelu",),
    "resample_kernel": ([1, 3, 3, 1], (1, 3, 3, 1)),
    "normalize_latents": (True,),
    "num_channels": (3,),
    "fmap_const": (None,),
    "mapping_func": ("G_mapping",),
    "synthesis_func": ("G_synthesis", "G_synthesis_stylegan2", "G_synthesis_stylegan_revised"),
}
# ...and those that the shapes tell, that are read below, or that matter only in training or for speed.
_KNOWN = {
    *(
        "latent_size",
        "label_size",
        "dlatent_size",
        "resolution",
        "mapping_layers",
        "label_fmaps",
        "architecture",
    ),
    *("fmap_base", "fmap_max", "fmap_min", "fmap_decay", "mapping_fmaps", "mapping_lrmul", "use_noise"),
    *("conv_clamp", "num_fp16_res", "dtype", "fused_modconv", "randomize_noise", "structure", "w_avg_beta"),
    *("truncation_psi", "truncation_cutoff", "truncation_psi_val", "truncation_cutoff_val"),
    *("dlatent_avg_beta", "style_mixing_prob"),
}


def _names() -> dict[str, str]:
    """TensorFlow's variable name → ours, for every size."""
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
    """The record of Gs, or None where the value is no (G, D, Gs) tuple of TensorFlow networks."""
    if isinstance(value, (tuple, list)) and len(value) == 3 and None not in [_state(net) for net in value]:
        return value[2]
    return None


def read(network: Record) -> Foreign:
    """The averaged generator's tensors and settings.

    Raises:
        CheckpointError: it is an older architecture, or was made with settings that ours does not have.
    """
    state = _state(network)
    assert state is not None
    components = state.get("components")
    parts = {"": state}
    for name in ("mapping", "synthesis"):
        part = _state(components.get(name)) if isinstance(components, dict) else None
        if part is None:
            raise CheckpointError(
                f"not a StyleGAN2 generator: the network has no part {name!r}; give a StyleGAN2 pickle"
            )
        parts[name] = part
    stored: dict[str, StoredTensor] = {}
    for name, part in parts.items():
        stored |= _variables(f"{name}/" if name else "", part)
    if any("StyleMod/" in name or "/AdaIN" in name for name in stored):
        raise CheckpointError("this is a first StyleGAN, which is not supported; give a StyleGAN2 one")
    if "mapping/LabelConcat/weight" in stored:
        raise CheckpointError(
            "this conditional network joins label and z before normalising them ('mapping/LabelConcat'), as "
            "StyleGAN2 did before ADA; only ADA's way ('mapping/LabelEmbed') is supported"
        )
    settings = state.get("static_kwargs")
    settings = settings if isinstance(settings, dict) else {}
    _check_settings(settings)
    # Progressive growing (configs B-D) leaves RGB layers of the coarser sizes behind; grown out, only the
    # last one counts, and the network is then NVIDIA's `orig`.
    for name in ("lod", "synthesis/lod"):
        if name in stored and as_number(stored.pop(name)) != 0:
            raise CheckpointError(f"its growing is not finished ({name!r} is not 0); give a trained one")
    finest = max((size for size in BLOCKS if f"synthesis/{size}x{size}/Conv1/weight" in stored), default=4)
    weights: dict[str, Weight] = {}
    for name, tensor in stored.items():
        grown = re.fullmatch(r"synthesis/ToRGB_lod(\d{1,2})/(\w+)", name)
        if grown and grown[1] != "0":
            continue
        ours = NAMES.get(f"synthesis/{finest}x{finest}/ToRGB/{grown[2]}" if grown else name, name)
        weights[name if ours in weights else ours] = _weight(ours, name, tensor)
    z_dim = settings.get("latent_size")
    return Foreign(
        format="TensorFlow StyleGAN2 pickle",
        weights=weights,
        z_dim=z_dim if type(z_dim) is int and 0 < z_dim < 2**20 else None,
        conv_clamp=_positive(settings, "conv_clamp", None),
        mapping_lr_multiplier=_positive(settings, "mapping_lrmul", 0.01) or 0.01,
        no_noise=settings.get("use_noise") is False,
        source_names={ours: name for name, ours in NAMES.items()},
    )


def _state(value: Any) -> dict[str, Any] | None:
    if isinstance(value, Record) and str(value.source) == "dnnlib.tflib.network.Network":
        return value.state if isinstance(value.state, dict) else None
    return None


def _variables(prefix: str, state: dict[str, Any]) -> dict[str, StoredTensor]:
    """Name → tensor of one network's own variables."""
    found = {}
    listed = state.get("variables")
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise CheckpointError("a TensorFlow network without a list of variables; the file is damaged")
    for item in listed:
        match item:
            case (str(name), Record() as value) if len(name) < 200:
                tensor = as_tensor(value)
                if tensor is not None:
                    found[prefix + name] = tensor
                    continue
        raise CheckpointError("a TensorFlow variable that is not a name and an array; the file is damaged")
    return found


def _check_settings(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        plain = value if isinstance(value, (str, int, float, type(None))) else None
        if name in _FIXED:
            numbers = value if isinstance(value, (list, tuple)) and len(value) < 10 else None
            flat = numbers is not None and all(isinstance(item, (int, float)) for item in numbers)
            if (numbers if flat else plain) not in _FIXED[name]:
                raise CheckpointError(
                    f"the network was made with {name} = {numbers if flat else plain!r:.60}; "
                    f"only {_FIXED[name][0]!r} is supported"
                )
        elif name not in _KNOWN:
            raise CheckpointError(
                f"the network was made with the setting {name!r:.60}, whose effect on the image is unknown; "
                "only NVIDIA's own settings are supported"
            )


def _weight(ours: str, name: str, stored: StoredTensor) -> Weight:
    if ours.endswith("affine.bias"):
        return Weight(name, stored, _plus_one)
    if re.fullmatch(r"mapping\..*\.weight|synthesis\..*\.affine\.weight", ours):
        return Weight(name, stored, _transposed)
    if re.fullmatch(r"synthesis\.b\d+\.(conv0|skip)\.weight", ours):
        return Weight(name, stored, _turned)
    if re.fullmatch(r"synthesis\.b\d+\.(conv1|torgb)\.weight", ours):
        return Weight(name, stored, _out_in_first)
    if ours.endswith("noise_const"):
        return Weight(name, stored, _plane)
    if ours == "synthesis.b4.const":
        return Weight(name, stored, _first)
    return Weight(name, stored, unchanged)


def _plus_one(tensor: Tensor) -> Tensor:
    return tensor + 1


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.permute(1, 0)


def _out_in_first(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 2, 0, 1)


def _turned(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 2, 0, 1).flip(2, 3)


def _plane(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0).squeeze(0)


def _first(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0)


def _positive(settings: dict[str, Any], name: str, default: float | None) -> float | None:
    value = settings.get(name)
    if value is None:
        return default
    number = as_number(value)
    if number is None or not 0 < number < 1e9:
        raise CheckpointError(f"the network's {name} is not a positive number; the file is damaged")
    return number
