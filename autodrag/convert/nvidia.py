"""NVIDIA's PyTorch pickles: stylegan2-ada-pytorch, the StyleGAN2 of stylegan3, and StyleGAN-Human.

Facts: torch_utils/persistence.py pickles a module as a call of `_reconstruct_persistent_obj` with a table of
`class_name`, `module_src` (source code, which NVIDIA's loader executes and this one ignores) and `state`,
the module's attributes. Tensors are named by training/networks.py and networks_stylegan2.py; ours are too.
StyleGAN-Human (training_scripts/sg2) differs only in the widths: a constant of (C, 4, 2).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

from autodrag.convert.matching import Foreign, Weight, check_filter
from autodrag.convert.pickles import Record
from autodrag.convert.tensors import MAX_TENSORS, StoredTensor, as_number, as_tensor
from autodrag.errors import CheckpointError

MAX_MODULES = 1_000  # a 1024 px generator has 90


def recognise(value: Any) -> Record | None:
    """The generator's record in what a pickle holds, or None where it holds something else."""
    if isinstance(value, dict) and _state(value.get("G_ema")) is not None:
        return value["G_ema"]
    if isinstance(value, dict) and _state(value.get("G")) is not None:
        raise CheckpointError("the pickle holds 'G' but not 'G_ema', the averaged generator to be used")
    return value if _state(value) is not None and isinstance(value, Record) else None


def read(network: Record) -> Foreign:
    """The generator's tensors and settings.

    Raises:
        CheckpointError: it is a StyleGAN3 network, no StyleGAN2 generator, or uses what ours does not have.
    """
    modules = _modules(network)
    alien = sorted(name for name in modules if re.match(r"synthesis\.(L\d+_\d+_\d+|input$)", name))
    if alien:
        raise CheckpointError(
            f"this is a StyleGAN3 network (it has {alien[0]!r}), which is not supported; give a StyleGAN2 one"
        )
    stored = _tensors(modules)
    if not any(re.match(r"synthesis\.b\d+\.conv1\.", name) for name in stored):
        raise CheckpointError(
            f"not a StyleGAN2 generator: it has no tensor 'synthesis.b4.conv1.weight', but {_some(stored)}; "
            "give a checkpoint of StyleGAN2"
        )
    for path, state in modules.items():
        name = f"{path}.resample_filter"
        if path.endswith(".conv0") or re.fullmatch(r"synthesis\.b\d+", path):
            check_filter(stored.get(name), name)
        expected = "lrelu" if re.fullmatch(r"mapping\.fc\d+|synthesis\.b\d+\.conv[01]", path) else "linear"
        found = state.get("activation", expected)
        if found != expected:
            shown = repr(found[:40]) if isinstance(found, str) else "of no name"
            raise CheckpointError(f"{path!r} has an activation {shown}; only {expected!r} is supported there")
    layers = [state for path, state in modules.items() if re.fullmatch(r"synthesis\.b\d+\.conv[01]", path)]
    clamps = {_clamp(state.get("conv_clamp")) for state in layers}
    if len(clamps) != 1:
        raise CheckpointError(f"its layers clamp at {len(clamps)} different values; one was expected")
    multiplier = as_number(modules.get("mapping.fc0", {}).get("bias_gain"))
    z_dim = modules[""].get("z_dim")
    return Foreign(
        format=_format(stored),
        weights={
            name: Weight(name, tensor) for name, tensor in stored.items() if not name.endswith(".resample_filter")
        },
        z_dim=z_dim if type(z_dim) is int and 0 < z_dim < 2**20 else None,
        conv_clamp=clamps.pop(),
        mapping_lr_multiplier=0.01 if multiplier is None else _positive(multiplier, "mapping learning rate"),
        no_noise=bool(layers) and all(state.get("use_noise") is False for state in layers),
    )


def _state(value: Any) -> dict[str, Any] | None:
    """The attributes of a pickled module: of NVIDIA's persistent kind, or of torch's own."""
    if not isinstance(value, Record):
        return None
    state = value.state
    if str(value.source) == "torch_utils.persistence._reconstruct_persistent_obj":
        meta = value.args[0] if value.args else None
        state = meta.get("state") if isinstance(meta, dict) else None
    return state if isinstance(state, dict) and isinstance(state.get("_modules"), dict) else None


def _modules(network: Record) -> dict[str, dict[str, Any]]:
    """Path → attributes of every module; "" is the network itself."""
    found: dict[str, dict[str, Any]] = {}
    pending: list[tuple[str, Any, int]] = [("", network, 0)]
    while pending:
        path, value, depth = pending.pop()
        state = _state(value)
        if state is None:
            continue
        # A pickle may contain itself, so the walk is bounded in depth and in number.
        if depth > 6 or len(found) + len(pending) > MAX_MODULES:
            raise CheckpointError("its modules repeat without end; the file is damaged or hostile")
        found[path] = state
        for name, child in state["_modules"].items():
            if isinstance(name, str) and len(name) < 100:
                pending.append((f"{path}.{name}" if path else name, child, depth + 1))
    return found


def _tensors(modules: dict[str, dict[str, Any]]) -> dict[str, StoredTensor]:
    """Name → tensor of all parameters and buffers."""
    found: dict[str, StoredTensor] = {}
    entries = 0
    for path, state in modules.items():
        for table in (state.get("_parameters"), state.get("_buffers")):
            if not isinstance(table, dict):
                continue
            entries += len(table)
            if entries > MAX_TENSORS:
                raise CheckpointError(f"more than {MAX_TENSORS} tensors; no StyleGAN2 has so many")
            for name, value in table.items():
                tensor = as_tensor(value)
                if tensor is not None:
                    found[f"{path}.{name}" if path else str(name)] = tensor
    return found


def _format(stored: dict[str, StoredTensor]) -> str:
    const = stored.get("synthesis.b4.const")
    if const is not None and const.shape[1:] == (4, 2):
        return "StyleGAN-Human (NVIDIA pickle)"
    return "NVIDIA StyleGAN2 pickle"


def _clamp(value: Any) -> float | None:
    number = None if value is None else as_number(value)
    if value is not None and number is None:
        raise CheckpointError("a layer's conv_clamp is not a number; the file is damaged")
    return None if number is None else _positive(number, "conv_clamp")


def _positive(value: float, what: str) -> float:
    if not 0 < value < 1e9:
        raise CheckpointError(f"its {what} is {value}; a positive number was expected")
    return value


def _some(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:60]) for name in itertools.islice(names, 3)) or "none at all"
