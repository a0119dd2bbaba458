"""NVIDIA's PyTorch pickles: stylegan2-ada-pytorch, the StyleGAN2 of stylegan3, StyleGAN-Human and DragGAN's variants.

torch_utils/persistence.py pickles a module as a call of `_reconstruct_persistent_obj` with a dict of `class_name`,
`module_src` (source code, which NVIDIA's loader executes and this module ignores) and `state`, the module's attributes.
training/networks.py and networks_stylegan2.py define the tensor names. StyleGAN-Human has a constant of shape
(C, 4, 2). DragGAN's generators have the setting `resize`, and StyleGAN-Human's the setting `padding`; both change the
image after synthesis.
"""

from __future__ import annotations

import re
from typing import Any

from autodrag.convert.matching import SourceGenerator, Weight, check_filter, check_settings, positive
from autodrag.convert.pickles import Record
from autodrag.convert.tensors import MAX_TENSORS, StoredTensor, as_number, require_tensor
from autodrag.errors import CheckpointError

MAX_MODULES = 1_000  # a 1024 px generator has 90
_GENERATOR = ("mapping", "synthesis")
# Constructor arguments that change the image, with the supported values.
_FIXED: dict[str, tuple[Any, ...]] = {
    "img_channels": (3,),
    "activation": ("lrelu",),
    "resample_filter": ([1, 3, 3, 1],),
    "kernel_size": (3,),
}
# Constructor arguments that are inferred from shapes or attributes, or that affect only training or speed.
_KNOWN = (
    "z_dim c_dim w_dim img_resolution channel_base channel_max num_fp16_res conv_clamp architecture "
    "use_noise num_layers embed_features layer_features lr_multiplier w_avg_beta num_ws square resize "
    "padding fp16_channels_last fused_modconv_default class_name"
)


def recognise(value: Any) -> Record | None:
    """The averaged generator's record, or None if there is none."""
    if not isinstance(value, dict):
        return value if _state(value) is not None and isinstance(value, Record) else None
    network = value.get("G_ema")
    if isinstance(network, Record):
        if _state(network) is None:
            raise CheckpointError(f"'G_ema' is {network}, but a network was expected; save the generator's weights")
        return network
    if network is None and _state(value.get("G")) is not None:
        raise CheckpointError("it holds 'G' but not 'G_ema', the averaged generator; give a file with 'G_ema'")
    return None


def read(network: Record) -> SourceGenerator:
    """The generator's tensors and settings.

    Raises:
        CheckpointError: the network is not a StyleGAN2 generator, or has an unsupported setting.
    """
    modules = _modules(network)
    tensors = _tensors(modules)
    weights = read_tensors(tensors)
    for path, state in modules.items():
        expected = "lrelu" if re.fullmatch(r"mapping\.fc\d+|synthesis\.b\d+\.conv[01]", path) else "linear"
        activation = state.get("activation", expected)
        if activation != expected:
            shown = repr(activation[:40]) if isinstance(activation, str) else "(unreadable)"
            raise CheckpointError(
                f"{path!r} has the activation {shown}, but only {expected!r} is supported there; "
                "give a generator with StyleGAN2's activations"
            )
    _check_arguments(modules[""], tensors)
    layers = [state for path, state in modules.items() if re.fullmatch(r"synthesis\.b\d+\.conv[01]", path)]
    clamps = {_clamp(state.get("conv_clamp")) for state in layers}
    if len(clamps) != 1:
        raise CheckpointError(
            f"its layers have {len(clamps)} different conv_clamp values; give one with a single value"
        )
    multiplier = as_number(modules.get("mapping.fc0", {}).get("bias_gain", 0.01))
    z_dim = modules[""].get("z_dim")
    const = tensors.get("synthesis.b4.const")
    return SourceGenerator(
        format="StyleGAN-Human (NVIDIA pickle)" if const and const.shape[1:] == (4, 2) else "NVIDIA StyleGAN2 pickle",
        weights=weights,
        z_dim=z_dim if type(z_dim) is int and 0 < z_dim < 2**20 else None,
        conv_clamp=clamps.pop(),
        mapping_lr_multiplier=positive(multiplier, "mapping learning rate"),
        without_noise=all(state.get("use_noise") is False for state in layers),
    )


def read_tensors(tensors: dict[str, StoredTensor]) -> dict[str, Weight]:
    """Check the names and resampling filters of a generator's tensors, and return the weights."""
    stylegan3 = sorted(name for name in tensors if re.match(r"synthesis\.(L\d+_\d+_\d+|input)\.", name))
    if stylegan3:
        raise CheckpointError(f"this is a StyleGAN3 network (it has {stylegan3[0]!r}); give a StyleGAN2 one")
    if not any(re.match(r"synthesis\.b\d+\.conv1\.", name) for name in tensors):
        names = ", ".join(repr(name[:60]) for name in list(tensors)[:3]) or "no tensors"
        raise CheckpointError(
            f"this is not a StyleGAN2 generator: it has {names}, but 'synthesis.b4.conv1.weight' was expected; "
            "give a StyleGAN2 generator"
        )
    for name, tensor in tensors.items():
        if re.fullmatch(r"synthesis\.b\d+(\.conv0|\.skip)?\.resample_filter", name):
            check_filter(tensor, name)
    return {name: Weight(name, t) for name, t in tensors.items() if not name.endswith(".resample_filter")}


def _check_arguments(state: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
    """Raise CheckpointError for unsupported constructor arguments that change the image."""
    arguments = state.get("_init_kwargs")
    arguments = arguments if isinstance(arguments, dict) else {}
    groups = {
        f"{key}.": value for key, value in arguments.items() if isinstance(value, dict) and str(key).endswith("_kwargs")
    }
    own = {key: value for key, value in arguments.items() if f"{key}." not in groups}
    for name, settings in ({"": own} | groups).items():
        check_settings({str(key): value for key, value in settings.items()}, _FIXED, _KNOWN.split(), name)

    heights = [int(match[1]) for name in tensors if (match := re.match(r"synthesis\.b(\d{1,6})\.", name))]
    const = tensors.get("synthesis.b4.const")
    square = const is None or const.shape[-1:] != (2,)
    for source in (state, arguments):
        resize = source.get("resize")
        if resize and not (square and resize == max(heights)):
            shown = resize if isinstance(resize, (int, float, str)) else "an unreadable value"
            raise CheckpointError(
                f"the generator resizes its images of {max(heights)} px after synthesis (resize = {shown!r:.40}), "
                "which autodrag does not; give a checkpoint without `resize`"
            )
        if source.get("padding") and not square:
            raise CheckpointError(
                "the generator pads its images to squares after synthesis (padding), which autodrag does not; "
                "give a checkpoint without `padding`"
            )


def _state(value: Any) -> dict[str, Any] | None:
    """Attributes of a pickled module, either one of NVIDIA's persistent classes or a plain torch module."""
    if not isinstance(value, Record):
        return None
    state = value.state
    if value.name == "torch_utils.persistence._reconstruct_persistent_obj":
        meta = value.args[0] if value.args else None
        state = meta.get("state") if isinstance(meta, dict) else None
    return state if isinstance(state, dict) and isinstance(state.get("_modules"), dict) else None


def _modules(network: Record) -> dict[str, dict[str, Any]]:
    """Attributes of all modules of the generator, by path. The path "" is the generator itself."""
    modules: dict[str, dict[str, Any]] = {}
    pending: list[tuple[str, Any, int]] = [("", network, 0)]
    while pending:
        path, value, depth = pending.pop()
        state = _state(value)
        if state is None:
            if value is None or not path.startswith(_GENERATOR):
                continue
            found = str(value) if isinstance(value, Record) else f"of type {type(value).__name__}"
            raise CheckpointError(f"{path!r} is {found}, but a module was expected; save the generator's weights")
        # A pickle may contain itself, so depth and number are bounded.
        if depth > 6 or len(modules) + len(pending) > MAX_MODULES:
            raise CheckpointError("its modules contain each other, so it is damaged; download it again")
        modules[path] = state
        for name, child in state["_modules"].items():
            if isinstance(name, str) and len(name) < 100:
                pending.append((f"{path}.{name}" if path else name, child, depth + 1))
    return modules


def _tensors(modules: dict[str, dict[str, Any]]) -> dict[str, StoredTensor]:
    """All parameters and buffers, by name."""
    tensors: dict[str, StoredTensor] = {}
    for path, state in modules.items():
        for table in (state.get("_parameters"), state.get("_buffers")):
            for name, value in table.items() if isinstance(table, dict) else ():
                full = f"{path}.{name}" if path else str(name)
                if value is not None:
                    tensors[full] = require_tensor(value, full)
                if len(tensors) > MAX_TENSORS:
                    raise CheckpointError(f"it has more than {MAX_TENSORS} tensors; give a StyleGAN2 generator")
    return tensors


def _clamp(value: Any) -> float | None:
    return None if value is None else positive(as_number(value), "conv_clamp")
