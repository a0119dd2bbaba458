"""Match tensors of other projects to our network: infer the config from shapes, compare strictly, load lazily.

Names and shapes are those of autodrag.nets.stylegan2, which equal NVIDIA's (stylegan2-ada-pytorch). Shapes are compared
on the meta device, so no weights are read from the file before all shapes match.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autodrag.convert.tensors import StoredTensor
from autodrag.errors import CheckpointError
from autodrag.nets.stylegan2 import Generator, GeneratorConfig, seed_z

AVERAGE_SEEDS = 4096  # number of latents that rosinality's scripts average if a checkpoint has no mean latent
BLOCKS = tuple(4 << k for k in range(9))  # heights of the blocks, 4 to 1024 px
MAX_MAPPING_LAYERS = 64  # every published network has 8
_NOISE = ("noise_const", "noise_strength")
_FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
_FIR_TOLERANCE = 1e-3
Shape = tuple[int, ...]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Weight:
    """One tensor of the source: its name, its location in the file, and the conversion to our layout."""

    name: str
    stored: StoredTensor
    change: Change | None = None

    @property
    def shape(self) -> Shape | None:
        """Shape in our layout, without reading the tensor. None if the conversion fails for this shape."""
        try:
            return tuple(self._changed(torch.empty(self.stored.shape, device="meta")).shape)
        except (RuntimeError, IndexError):
            return None

    def read(self) -> Tensor:
        """Read the tensor in our layout and the source's precision."""
        return self._changed(self.stored.read()).contiguous()

    def _changed(self, tensor: Tensor) -> Tensor:
        return tensor if self.change is None else self.change(tensor)


@dataclass(frozen=True)
class SourceGenerator:
    """A recognised generator: its tensors under our names, and settings that cannot be inferred from shapes."""

    format: str
    """Name of the source's format, for reports."""
    weights: Mapping[str, Weight]
    """The source's tensors by our tensor name. Names that our network does not have are errors."""
    z_dim: int | None = None
    """Length of z, if the source states it."""
    conv_clamp: float | None = None
    """Bound on activations."""
    mapping_lr_multiplier: float = 0.01
    """Learning-rate multiplier of the mapping layers."""
    without_noise: bool = False
    """The network has no noise inputs; our noise tensors are set to zero."""
    without_average: bool = False
    """The file has no mean latent; it is computed."""
    source_names: Mapping[str, str] = field(default_factory=dict)
    """The source's tensor names by our tensor name, for errors. Missing entries have the same name."""


class LazyTensors(Mapping[str, Tensor]):
    """Our tensors, read on access and not cached, so that only one tensor is in memory."""

    def __init__(
        self, readers: Mapping[str, Callable[[], Tensor]], shapes: Mapping[str, Shape], dtype: torch.dtype
    ) -> None:
        self.readers = readers
        self.shapes = shapes
        self.dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.readers[name]().to(self.dtype)
        if not all(math.isfinite(bound) for bound in tensor.aminmax()):  # a NaN makes both bounds NaN
            raise CheckpointError(
                f"{name!r} contains values that are not finite in {self.dtype}; "
                "convert to float32, or download the file again"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def read_config(source: SourceGenerator) -> GeneratorConfig:
    """Infer the architecture from the shapes of the tensors.

    Sizes are decided by majority. A single tensor with a wrong shape therefore does not change the config, and `match`
    reports it.
    """
    shapes = {name: weight.shape or () for name, weight in source.weights.items()}
    matches = (re.match(r"synthesis\.b(\d{1,6})\.conv1\.", name) for name in shapes)
    blocks = sorted({int(match[1]) for match in matches if match})
    if not blocks:
        raise CheckpointError("it has no synthesis blocks; give a StyleGAN2 generator")

    def size(pattern: str, axis: int, default: int) -> int:
        sizes = [s[axis] for name, s in shapes.items() if re.fullmatch(pattern, name) and -len(s) <= axis < len(s)]
        return Counter(sizes).most_common(1)[0][0] if sizes else default

    channels = {r: size(rf"synthesis\.b{r}\.(conv1\.(weight|bias|affine\.bias)|conv0\.bias)", 0, 0) for r in blocks}
    channel_max = max(channels.values())
    channel_base = max(count * r for r, count in channels.items())
    for r, count in channels.items():
        if count != (expected := min(channel_base // r, channel_max)):
            raise CheckpointError(
                f"the {r} px block has {count} channels, but min({channel_base} / {r}, {channel_max}) = {expected} "
                "were expected; give a generator with StyleGAN2's numbers of channels"
            )
    embed = size(r"mapping\.embed\.(weight|bias)", 0, 0)
    layers = [i for i in range(MAX_MAPPING_LAYERS) if f"mapping.fc{i}.weight" in shapes]
    rgb = {r for r in blocks if any(name.startswith(f"synthesis.b{r}.torgb.") for name in shapes)}
    if any(re.match(r"synthesis\.b\d+\.skip\.", name) for name in shapes):
        architecture = "resnet"
    else:
        architecture = "skip" if rgb - {max(blocks)} else "orig"
    try:
        return GeneratorConfig(
            resolution=max(blocks),
            base_width=size(r"synthesis\.b4\.(const|conv1\.noise_const)", -1, 4),
            z_dim=source.z_dim or max(size(r"mapping\.fc0\.weight", 1, 512 + embed) - embed, 1),
            w_dim=size(r"synthesis\..*\.affine\.weight", 1, 512),
            c_dim=size(r"mapping\.embed\.weight", 1, 1) if embed else 0,
            mapping_layers=max(layers, default=0) + 1,
            channel_base=channel_base,
            channel_max=channel_max,
            architecture=architecture,  # type: ignore[arg-type]
            conv_clamp=source.conv_clamp,
            mapping_lr_multiplier=source.mapping_lr_multiplier,
        )
    except ValueError as error:
        raise CheckpointError(
            f"autodrag does not support this network: {error} Give another StyleGAN2 generator."
        ) from error


def match(source: SourceGenerator, config: GeneratorConfig, *, available: int, dtype: torch.dtype) -> LazyTensors:
    """Compare the source's tensors with our network, and return our tensors, which are read on access.

    Args:
        source: the recognised generator.
        config: result of `read_config`.
        available: size of the file in bytes. Tensors that need more memory share bytes, which is invalid.
        dtype: type of our tensors.

    Raises:
        CheckpointError: a tensor is missing, unknown, or has another shape.
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Generator(config).state_dict().items()}
    readers: dict[str, Callable[[], Tensor]] = {}
    for name, shape in shapes.items():
        if name in source.weights:
            readers[name] = source.weights[name].read
        elif source.without_noise and name.endswith(_NOISE):
            readers[name] = partial(torch.zeros, shape)
    if source.without_average:
        readers["mapping.w_avg"] = partial(_average, config, source.weights)
    present = {name: weight for name, weight in source.weights.items() if name in shapes}
    missing = sorted(set(shapes) - set(readers))
    unknown = sorted(set(source.weights) - set(shapes))
    wrong = [
        _shape_error(weight, name, shapes[name]) for name, weight in present.items() if weight.shape != shapes[name]
    ]
    if missing:
        raise CheckpointError(
            f"the tensor {source.source_names.get(missing[0], missing[0])!r} is missing{_more(missing)}; "
            "give a complete StyleGAN2 generator"
        )
    if wrong:
        raise CheckpointError(f"{wrong[0]}{_more(wrong)}; give a generator without changes to its architecture")
    if unknown:
        raise CheckpointError(
            f"the tensor {source.weights[unknown[0]].name[:100]!r} is not part of a StyleGAN2 generator"
            f"{_more(unknown)}; give a generator without changes to its architecture"
        )
    if sum(weight.stored.nbytes for weight in present.values()) > available:
        raise CheckpointError("its tensors are larger than the file, so it is damaged; download it again")
    return LazyTensors(readers, shapes, dtype)


def check_filter(stored: StoredTensor, name: str, gain: float = 1.0) -> None:
    """Raise CheckpointError for a resampling filter other than [1, 3, 3, 1], which our network uses."""
    if stored.shape != (4, 4) or not torch.allclose(stored.read().float(), _FIR * gain, atol=_FIR_TOLERANCE):
        raise CheckpointError(
            f"{name!r} is a resampling filter of shape {stored.shape}, but StyleGAN2's [1, 3, 3, 1] was expected; "
            "give a generator with that filter"
        )


def check_settings(
    settings: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], known: Container[str], name: str = ""
) -> None:
    """Raise CheckpointError for settings with an effect on images that our network does not support.

    Args:
        settings: constructor arguments of the network.
        fixed: supported values by setting.
        known: settings that are inferred from tensors or do not change images.
        name: prefix of the settings in errors.
    """
    for key, value in settings.items():
        if value and key not in known and key not in fixed:
            raise CheckpointError(
                f"the network was built with the setting {f'{name}{key}'[:60]!r}, whose effect on the image is "
                "unknown; give a generator with NVIDIA's settings only"
            )
        if isinstance(value, (list, tuple)) and len(value) < 10 and all(isinstance(x, (int, float)) for x in value):
            plain: Any = list(value)
        else:
            plain = value if isinstance(value, (str, int, float, type(None))) else "(unreadable)"
        if plain not in fixed.get(key, (plain,)):
            raise CheckpointError(
                f"the network was built with {name}{key} = {plain!r:.60}, but only {fixed[key][0]!r} is supported; "
                "give a generator with that setting"
            )


def positive(value: float | None, name: str) -> float:
    """Return `value` if it is a positive finite number; otherwise raise CheckpointError."""
    if value is None or not 0 < value < 1e9:
        raise CheckpointError(f"its {name} is {value}, but a positive number was expected; download the file again")
    return value


def _shape_error(weight: Weight, name: str, expected: Shape) -> str:
    place = "" if weight.name == name else f" as {name!r}"
    changed = "" if weight.shape in (weight.stored.shape, None) else f", which becomes {weight.shape}"
    return f"the tensor {weight.name!r} has shape {weight.stored.shape}{changed}; expected {expected}{place}"


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _average(config: GeneratorConfig, weights: Mapping[str, Weight]) -> Tensor:
    """Mean of w over the first seeds, equal on all machines."""
    with torch.device("meta"):
        mapping = Generator(config).mapping
    tensors = {"w_avg": torch.zeros(config.w_dim)}
    for name in set(mapping.state_dict()) - set(tensors):
        tensors[name] = weights[f"mapping.{name}"].read().float()
    mapping.load_state_dict(tensors, assign=True)
    z = torch.cat([seed_z(seed, config.z_dim) for seed in range(AVERAGE_SEEDS)])
    with torch.no_grad():
        return mapping(z, None).mean(0)
