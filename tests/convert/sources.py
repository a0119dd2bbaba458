"""Checkpoint files in the formats of other projects, with random weights and none of their code.

Pickles name the classes and functions that loading would call. While a file is written, stand-ins of the same names
are in `sys.modules`, so the files have the same names and structure as real ones. The source code inside is a trap:
it would create the file `TRAP` if it ran.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from convert.reference import Array

TRAP = "autodrag-trap"  # created in the working directory if a file's source code is executed
TRAP_CODE = f"open({TRAP!r}, 'w').close()\n"


def channels(size: int, base: int, most: int) -> int:
    return min(base // size, most)


def nvidia_tensors(
    resolution: int = 16,
    *,
    architecture: str = "skip",
    c_dim: int = 0,
    base_width: int = 4,
    base: int = 128,
    most: int = 12,
    z_dim: int = 10,
    w_dim: int = 8,
    layers: int = 2,
    multiplier: float = 0.01,
    seed: int = 0,
) -> dict[str, Array]:
    """Tensors with NVIDIA's names and layout. No tensor has its initial value."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}

    def put(name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        tensors[name] = (random.standard_normal(shape) * scale + mean).astype(np.float32)

    if c_dim:
        put("mapping.embed.weight", w_dim, c_dim)
        put("mapping.embed.bias", w_dim, scale=0.3)
    width = z_dim + (w_dim if c_dim else 0)
    for i in range(layers):
        put(f"mapping.fc{i}.weight", w_dim, width, scale=1 / multiplier)
        put(f"mapping.fc{i}.bias", w_dim, scale=0.3 / multiplier)
        width = w_dim
    put("mapping.w_avg", w_dim, scale=0.3)

    def modulated(name: str, inputs: int, outputs: int, kernel: int) -> None:
        put(f"{name}.weight", outputs, inputs, kernel, kernel)
        put(f"{name}.bias", outputs, scale=0.3)
        put(f"{name}.affine.weight", inputs, w_dim)
        put(f"{name}.affine.bias", inputs, scale=0.3, mean=1.0)

    size = 4
    while size <= resolution:
        block, outputs = f"synthesis.b{size}", channels(size, base, most)
        inputs = channels(size // 2, base, most)
        if size == 4:
            put(f"{block}.const", outputs, 4, base_width)
        else:
            modulated(f"{block}.conv0", inputs, outputs, 3)
            if architecture == "resnet":
                put(f"{block}.skip.weight", outputs, inputs, 1, 1)
        modulated(f"{block}.conv1", outputs, outputs, 3)
        for layer in ("conv0", "conv1") if size > 4 else ("conv1",):
            put(f"{block}.{layer}.noise_const", size, size * base_width // 4)
            put(f"{block}.{layer}.noise_strength", scale=0.3)
        if architecture == "skip" or size == resolution:
            modulated(f"{block}.torgb", outputs, 3, 1)
        size *= 2
    return tensors


def tensorflow_tensors(
    resolution: int = 16,
    *,
    architecture: str = "skip",
    c_dim: int = 0,
    base: int = 128,
    most: int = 12,
    z_dim: int = 10,
    w_dim: int = 8,
    layers: int = 2,
    seed: int = 0,
) -> dict[str, Array]:
    """TensorFlow's variables, with the prefix `mapping/` or `synthesis/`."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}

    def put(name: str, *shape: int, scale: float = 1.0) -> None:
        tensors[name] = (random.standard_normal(shape) * scale).astype(np.float32)

    if c_dim:
        put("mapping/LabelEmbed/weight", c_dim, w_dim)
        put("mapping/LabelEmbed/bias", w_dim, scale=0.3)
    width = z_dim + (w_dim if c_dim else 0)
    for i in range(layers):
        put(f"mapping/Dense{i}/weight", width, w_dim, scale=100)
        put(f"mapping/Dense{i}/bias", w_dim, scale=30)
        width = w_dim
    put("dlatent_avg", w_dim, scale=0.3)

    def modulated(name: str, inputs: int, outputs: int, kernel: int) -> None:
        put(f"{name}/weight", kernel, kernel, inputs, outputs)
        put(f"{name}/bias", outputs, scale=0.3)
        put(f"{name}/mod_weight", w_dim, inputs)
        put(f"{name}/mod_bias", inputs, scale=0.3)
        if kernel == 3:
            put(f"{name}/noise_strength", scale=0.3)

    put("synthesis/4x4/Const/const", 1, channels(4, base, most), 4, 4)
    put("synthesis/noise0", 1, 1, 4, 4)
    modulated("synthesis/4x4/Conv", channels(4, base, most), channels(4, base, most), 3)
    if architecture == "skip":
        modulated("synthesis/4x4/ToRGB", channels(4, base, most), 3, 1)
    size, index = 8, 1
    while size <= resolution:
        block = f"synthesis/{size}x{size}"
        inputs, outputs = channels(size // 2, base, most), channels(size, base, most)
        put(f"synthesis/noise{index}", 1, 1, size, size)
        put(f"synthesis/noise{index + 1}", 1, 1, size, size)
        modulated(f"{block}/Conv0_up", inputs, outputs, 3)
        modulated(f"{block}/Conv1", outputs, outputs, 3)
        if architecture == "resnet":
            put(f"{block}/Skip/weight", 1, 1, inputs, outputs)
        if architecture == "skip" or (architecture == "resnet" and size == resolution):
            modulated(f"{block}/ToRGB", outputs, 3, 1)
        size, index = size * 2, index + 2
    if architecture == "orig":  # progressive growing has an RGB layer per size, and finally uses only lod0
        size, lod = resolution, 0
        while size >= 4:
            modulated(f"synthesis/ToRGB_lod{lod}", channels(size, base, most), 3, 1)
            size, lod = size // 2, lod + 1
        tensors["lod"] = tensors["synthesis/lod"] = np.zeros((), np.float32)
    return tensors


def rosinality_tensors(
    resolution: int = 16, *, base: int = 128, most: int = 12, w_dim: int = 8, layers: int = 2, seed: int = 0
) -> dict[str, Array]:
    """rosinality's state dict, with its constant blur kernels."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}

    def put(name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        tensors[name] = (random.standard_normal(shape) * scale + mean).astype(np.float32)

    def modulated(name: str, inputs: int, outputs: int, kernel: int) -> None:
        put(f"{name}.conv.weight", 1, outputs, inputs, kernel, kernel)
        put(f"{name}.conv.modulation.weight", inputs, w_dim)
        put(f"{name}.conv.modulation.bias", inputs, scale=0.3, mean=1.0)
        if kernel == 3:
            put(f"{name}.noise.weight", 1, scale=0.3)
            put(f"{name}.activate.bias", outputs, scale=0.3)
        else:
            put(f"{name}.bias", 1, 3, 1, 1, scale=0.3)

    blur = (np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16).astype(np.float32)
    for i in range(layers):
        put(f"style.{i + 1}.weight", w_dim, w_dim, scale=100)
        put(f"style.{i + 1}.bias", w_dim, scale=30)
    put("input.input", 1, channels(4, base, most), 4, 4)
    modulated("conv1", channels(4, base, most), channels(4, base, most), 3)
    modulated("to_rgb1", channels(4, base, most), 3, 1)
    put("noises.noise_0", 1, 1, 4, 4)
    k, size = 0, 8
    while size <= resolution:
        inputs, outputs = channels(size // 2, base, most), channels(size, base, most)
        modulated(f"convs.{2 * k}", inputs, outputs, 3)
        modulated(f"convs.{2 * k + 1}", outputs, outputs, 3)
        modulated(f"to_rgbs.{k}", outputs, 3, 1)
        tensors[f"convs.{2 * k}.conv.blur.kernel"] = blur
        tensors[f"to_rgbs.{k}.upsample.kernel"] = blur
        put(f"noises.noise_{2 * k + 1}", 1, 1, size, size)
        put(f"noises.noise_{2 * k + 2}", 1, 1, size, size)
        k, size = k + 1, size * 2
    return tensors


def write_nvidia(
    path: Path,
    tensors: dict[str, Array],
    *,
    clamp: float | None = None,
    multiplier: float = 0.01,
    protocol: int = 4,
    attributes: dict[str, dict[str, Any]] | None = None,
    bare: bool = False,
    extra: Mapping[Any, Any] | None = None,
) -> Path:
    """NVIDIA's pickle: {"G", "D", "G_ema", ...} of persistent modules; `bare`: the generator by torch.save.

    `attributes` overrides attributes by module path ("" is the generator), `extra` adds entries to the table.
    """
    with standins() as names:
        network = nvidia_module(names, tensors, clamp=clamp, multiplier=multiplier, attributes=attributes or {})
        if bare:
            torch.save(network, path)
            return path
        options = names.EasyDict(class_name="training.dataset.ImageFolderDataset", resolution=16)
        data = {
            "training_set_kwargs": options,
            "G": network,
            "D": network,
            "G_ema": network,
            "augment_pipe": None,
        } | dict(extra or {})
        with path.open("wb") as stream:
            pickle.dump(data, stream, protocol=protocol)
    return path


def nvidia_module(
    names: types.SimpleNamespace,
    tensors: dict[str, Array],
    path: str = "",
    *,
    clamp: float | None = None,
    multiplier: float = 0.01,
    attributes: dict[str, dict[str, Any]] | None = None,
) -> Any:
    """A fake module with `tensors`, whose names are relative to the module."""
    own = {name: tensor for name, tensor in tensors.items() if "." not in name}
    children = list(dict.fromkeys(name.partition(".")[0] for name in tensors if "." in name))
    kind = path.rpartition(".")[2].rstrip("0123456789")
    buffers = OrderedDict((name, torch.tensor(t)) for name, t in own.items() if name in ("w_avg", "noise_const"))
    if kind in ("conv", "b", "skip"):
        buffers["resample_filter"] = torch.tensor(np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64).float()
    state: dict[str, Any] = {
        "training": False,
        "_parameters": OrderedDict(
            (name, torch.nn.Parameter(torch.tensor(t), requires_grad=False))
            for name, t in own.items()
            if name not in buffers
        ),
        "_buffers": buffers,
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": OrderedDict(
            (
                child,
                nvidia_module(
                    names,
                    {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{child}.")},
                    f"{path}.{child}" if path else child,
                    clamp=clamp,
                    multiplier=multiplier,
                    attributes=attributes,
                ),
            )
            for child in children
        ),
        "_init_args": (),
        "z_dim": 10,
        "_init_kwargs": names.EasyDict(img_channels=3),
    }
    if kind in ("conv", "torgb"):
        state["conv_clamp"] = clamp
    if kind == "conv":
        state |= {"use_noise": True, "activation": "lrelu", "act_gain": np.sqrt(2)}
    if kind in ("fc", "embed", "affine"):
        state |= {"activation": "lrelu" if kind == "fc" else "linear"}
        state |= {"bias_gain": multiplier if kind == "fc" else 1, "weight_gain": np.float64(0.1)}
    return names.Persistent(kind or "Generator", state | (attributes or {}).get(path, {}))


def tensorflow_network(names: types.SimpleNamespace, tensors: dict[str, Array], **settings: Any) -> Any:
    """A fake of TensorFlow's Gs network, with its components."""

    def network(name: str, prefix: str, parts: dict[str, Any]) -> Any:
        variables = [
            (full.removeprefix(prefix), tensor if tensor.shape else tensor[()])
            for full, tensor in tensors.items()
            if full.startswith(prefix) and (prefix or "/" not in full)
        ]
        state = {
            "version": 4,
            "name": name,
            "static_kwargs": {"num_channels": 3, "style_mixing_prob": 0.9} | settings,
            "components": parts,
            "build_module_src": TRAP_CODE,
            "build_func_name": "G_main",
            "variables": variables,
        }
        return names.Network(state)

    parts = {part: network(f"G_{part}", f"{part}/", {}) for part in ("mapping", "synthesis")}
    return network("Gs", "", parts)


def write_tensorflow(path: Path, tensors: dict[str, Array], *, protocol: int = 4, **settings: Any) -> Path:
    """The legacy tuple (G, D, Gs)."""
    with standins() as names:
        network = tensorflow_network(names, tensors, **settings)
        with path.open("wb") as stream:
            pickle.dump((network, network, network), stream, protocol=protocol)
    return path


def write_rosinality(
    path: Path,
    tensors: dict[str, Array],
    average: Array | None,
    *,
    legacy: bool = False,
    training: bool = False,
    extra: Mapping[Any, Any] | None = None,
) -> Path:
    """rosinality's dict, saved by torch.save. `legacy`: the format before torch 1.6. `training`: with an optimiser."""
    state = OrderedDict((name, torch.tensor(tensor)) for name, tensor in tensors.items())
    table: dict[str, Any] = {"g_ema": state} | dict(extra or {})
    if average is not None:
        table["latent_avg"] = torch.tensor(average)
    if training:
        step = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}
        table |= {"g": state, "d": {"x": torch.zeros(2, dtype=torch.int64)}, "ada_aug_p": 0.5}
        table |= {"g_optim": {"state": {0: step}, "param_groups": [{"lr": 0.1, "params": [0]}]}}
        table |= {"args": argparse.Namespace(size=16, path="data")}
    torch.save(table, path, _use_new_zipfile_serialization=not legacy)
    return path


@contextlib.contextmanager
def standins() -> Iterator[types.SimpleNamespace]:
    """Classes with the names that pickles of other projects refer to."""

    class EasyDict(dict[str, Any]):
        pass

    class Network:
        def __init__(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state)

        def __setstate__(self, state: dict[str, Any]) -> None:
            raise AssertionError("a network's own __setstate__ was called")

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
        raise AssertionError("the source code in a pickle was about to be executed")

    class Persistent:
        def __init__(self, class_name: str, state: dict[str, Any]) -> None:
            self.meta = {"type": "class", "version": 6, "module_src": TRAP_CODE, "class_name": class_name}
            self.meta["state"] = state

        def __reduce__(self) -> tuple[Any, ...]:
            return (_reconstruct_persistent_obj, (self.meta,), None)

    modules = {}
    things: dict[str, Any] = {
        "dnnlib.util": EasyDict,
        "dnnlib.tflib.network": Network,
        "torch_utils.persistence": _reconstruct_persistent_obj,
    }
    for path, thing in things.items():
        thing.__module__, thing.__qualname__ = path, thing.__name__
        modules[path] = types.ModuleType(path)
        setattr(modules[path], thing.__name__, thing)
        while "." in path:
            path = path.rpartition(".")[0]
            modules.setdefault(path, types.ModuleType(path))
    with mock.patch.dict(sys.modules, modules):
        yield types.SimpleNamespace(EasyDict=EasyDict, Network=Network, Persistent=Persistent)
