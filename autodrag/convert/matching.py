"""From a foreign network's tensors to ours: read the config off their shapes, compare strictly, load lazily.

Names and shapes are those of autodrag.nets.stylegan2, which are NVIDIA's (stylegan2-ada-pytorch). Shapes are
compared on the meta device, so nothing is read from the file before everything fits.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from autodrag.convert.tensors import StoredTensor
from autodrag.errors import CheckpointError
from autodrag.nets.stylegan2 import Generator, GeneratorConfig, seed_z

AVERAGE_SEEDS = 4096  # how many latents rosinality's own scripts average where a checkpoint stores no mean
_NOISE = ("noise_const", "noise_strength")
_FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
_TOLERANCE = 1e-3
BLOCKS = tuple(4 << k for k in range(9))  # heights of the blocks, 4 to 1024 px
MAX_MAPPING_LAYERS = 64  # 8 in every network that is known
Shape = tuple[int, ...]


def unchanged(tensor: Tensor) -> Tensor:
    """The change of a tensor that needs none."""
    return tensor


@dataclass(frozen=True)
class Weight:
    """One tensor of the source: its name there, where it lies, and how it becomes ours."""

    name: str
    stored: StoredTensor
    change: Callable[[Tensor], Tensor] = unchanged

    @property
    def shape(self) -> Shape | None:
        """Its shape once changed, found without reading it; None where it cannot be changed at all."""
        try:
            return tuple(self.change(torch.empty(self.stored.shape, device="meta")).shape)
        except (RuntimeError, IndexError):
            return None

    def read(self) -> Tensor:
        """The tensor as ours, in the source's precision."""
        return self.change(self.stored.read()).contiguous()


@dataclass(frozen=True)
class Foreign:
    """A recognised generator: its tensors under our names, and what shapes do not tell."""

    format: str
    """The source's format, for people to read."""
    weights: Mapping[str, Weight]
    """Our tensor name → the source's tensor; a name that is not ours is surplus."""
    z_dim: int | None = None
    """Length of z where the source says so."""
    conv_clamp: float | None = None
    """Bound on activations."""
    mapping_lr_multiplier: float = 0.01
    """Learning-rate multiplier of the mapping layers."""
    no_noise: bool = False
    """The network was built without noise inputs: ours gets zeros."""
    average_missing: bool = False
    """The file stores no mean latent: it is computed."""
    source_names: Mapping[str, str] = field(default_factory=dict)
    """Our tensor name → what the source would call it, for errors; absent: the same."""


class LazyTensors(Mapping[str, Tensor]):
    """Our tensors, each read when it is asked for and kept by nobody: one at a time is in memory."""

    def __init__(
        self, readers: Mapping[str, Callable[[], Tensor]], shapes: Mapping[str, Shape], dtype: torch.dtype
    ) -> None:
        self.readers = readers
        self.shapes = shapes
        self.dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.readers[name]().to(self.dtype)
        if not all(math.isfinite(bound) for bound in tensor.aminmax()):  # NaN would be both
            raise CheckpointError(
                f"{name!r} holds values that are not finite in {self.dtype}; "
                "convert to float32, or download the file again"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def read_config(foreign: Foreign) -> GeneratorConfig:
    """The architecture that the tensors' shapes speak of.

    Sizes are settled by majority, so that one tensor of a wrong shape is named by the comparison that follows
    instead of bending the config.
    """
    shapes = {name: weight.shape or () for name, weight in foreign.weights.items()}
    found = (re.match(r"synthesis\.b(\d{1,6})\.conv1\.", name) for name in shapes)
    blocks = sorted({int(match[1]) for match in found if match})
    if not blocks:
        raise CheckpointError("it holds no synthesis blocks, so it is not a StyleGAN2 generator")

    def size(pattern: str, axis: int, default: int) -> int:
        found = [s[axis] for name, s in shapes.items() if re.fullmatch(pattern, name) and -len(s) <= axis < len(s)]
        return Counter(found).most_common(1)[0][0] if found else default

    channels = {r: size(rf"synthesis\.b{r}\.(conv1\.(weight|bias|affine\.bias)|conv0\.bias)", 0, 0) for r in blocks}
    channel_max = max(channels.values())
    channel_base = max(count * r for r, count in channels.items())
    fitting = {r: min(channel_base // r, channel_max) for r in blocks}
    if fitting != channels:
        wrong = next(r for r in blocks if fitting[r] != channels[r])
        raise CheckpointError(
            f"the {wrong} px block has {channels[wrong]} channels where min({channel_base} / {wrong}, "
            f"{channel_max}) = {fitting[wrong]} were expected; such networks are not supported"
        )
    w_dim = size(r"synthesis\..*\.affine\.weight", 1, 512)
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
            z_dim=foreign.z_dim or max(size(r"mapping\.fc0\.weight", 1, 512 + embed) - embed, 1),
            w_dim=w_dim,
            c_dim=size(r"mapping\.embed\.weight", 1, 1) if embed else 0,
            mapping_layers=max(layers, default=0) + 1,
            channel_base=channel_base,
            channel_max=channel_max,
            architecture=architecture,  # type: ignore[arg-type]
            conv_clamp=foreign.conv_clamp,
            mapping_lr_multiplier=foreign.mapping_lr_multiplier,
        )
    except ValueError as error:
        raise CheckpointError(f"the network is outside what autodrag supports: {error}") from error


def match(foreign: Foreign, config: GeneratorConfig, *, available: int, dtype: torch.dtype) -> LazyTensors:
    """Compare the source's tensors with our network's and return ours, unread.

    Args:
        foreign: the recognised source.
        config: what `read_config` found.
        dtype: the type that our tensors get.
        available: bytes in the file; tensors that add up to more share their bytes, which no real file does.

    Raises:
        CheckpointError: a tensor is missing, surplus or of another shape.
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Generator(config).state_dict().items()}
    readers: dict[str, Callable[[], Tensor]] = {}
    for name, shape in shapes.items():
        if name in foreign.weights:
            readers[name] = foreign.weights[name].read
        elif foreign.no_noise and name.endswith(_NOISE):
            readers[name] = partial(torch.zeros, shape)
    if foreign.average_missing:
        readers["mapping.w_avg"] = partial(_average, config, foreign.weights)
    present = {name: weight for name, weight in foreign.weights.items() if name in shapes}
    missing = sorted(set(shapes) - set(readers))
    surplus = sorted(set(foreign.weights) - set(shapes))
    wrong = [
        _shape_error(weight, name, shapes[name]) for name, weight in present.items() if weight.shape != shapes[name]
    ]
    if missing:
        raise CheckpointError(
            f"the tensor {foreign.source_names.get(missing[0], missing[0])!r} is missing{_more(missing)}; "
            "the file is incomplete or not a StyleGAN2 generator"
        )
    if wrong:
        raise CheckpointError(wrong[0] + _more(wrong))
    if surplus:
        raise CheckpointError(
            f"the tensor {foreign.weights[surplus[0]].name!r} has no place in a StyleGAN2 generator"
            f"{_more(surplus)}; the network was changed in a way that autodrag does not know"
        )
    if sum(weight.stored.nbytes for weight in present.values()) > available:
        raise CheckpointError("its tensors add up to more than the file; it is damaged or hostile")
    return LazyTensors(readers, shapes, dtype)


def check_filter(stored: StoredTensor | None, name: str, gain: float = 1.0) -> None:
    """Refuse a network whose up- and downsampling filter is not [1, 3, 3, 1], which is all that ours has."""
    if stored is None:
        return
    if stored.shape != (4, 4) or not torch.allclose(stored.read().float(), _FIR * gain, atol=_TOLERANCE):
        raise CheckpointError(
            f"{name!r} is a resampling filter of shape {stored.shape} other than StyleGAN2's [1, 3, 3, 1]; "
            "such networks are not supported"
        )


def _shape_error(weight: Weight, name: str, expected: Shape) -> str:
    place = "" if weight.name == name else f" as {name!r}"
    as_ours = "" if weight.shape in (weight.stored.shape, None) else f", which makes {weight.shape}"
    return f"the tensor {weight.name!r} has shape {weight.stored.shape}{as_ours}; expected {expected}{place}"


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _average(config: GeneratorConfig, weights: Mapping[str, Weight]) -> Tensor:
    """The mean of w over the first seeds: the same on every machine and in every run."""
    with torch.device("meta"):
        mapping = Generator(config).mapping
    own = {"w_avg": torch.zeros(config.w_dim)}
    for name in set(mapping.state_dict()) - set(own):
        own[name] = weights[f"mapping.{name}"].read().float()
    mapping.load_state_dict(own, assign=True)
    z = torch.cat([seed_z(seed, config.z_dim) for seed in range(AVERAGE_SEEDS)])
    with torch.no_grad():
        return mapping(z, None).mean(0)
