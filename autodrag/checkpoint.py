"""Strict loading and saving of checkpoints.

A checkpoint is a folder `checkpoints/NAME/` with `generator.safetensors` and, once trained,
`landmarks.safetensors`, `regularizer.safetensors` and `predictor.safetensors`. These files are untrusted input:
tensor names, shapes and types are checked before any tensor is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from autodrag.errors import AutodragError, CheckpointError
from autodrag.nets.layers import Layers
from autodrag.release import load_tensors, read_info, save_tensors

if TYPE_CHECKING:
    from autodrag.nets.editor import LearnedEditor
    from autodrag.nets.landmarks import LandmarkNet
    from autodrag.nets.predictor import Predictor
    from autodrag.nets.regularizer import Regularizer
    from autodrag.nets.stylegan2 import Generator, GeneratorConfig

GENERATOR_FILE = "generator.safetensors"
LANDMARKS_FILE = "landmarks.safetensors"
REGULARIZER_FILE = "regularizer.safetensors"
PREDICTOR_FILE = "predictor.safetensors"
PACKAGE = Path(__file__).resolve().parent
SHIPPED = (PACKAGE.parent, PACKAGE)
"""Folders that may contain `checkpoints/`: the root of a clone, and the installed package."""

ConfigT = TypeVar("ConfigT")
NetT = TypeVar("NetT", bound=nn.Module)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that identify a generator: SHA-256 of sorted tensor names, shapes and fp16 values.

    Values are rounded to fp16, so the fp16 and fp32 files of a checkpoint have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def find_checkpoint(path: str | Path) -> Path:
    """Find a checkpoint, first in the working directory, then in the clone or the installed package."""
    path = Path(path)
    if path.exists():
        return path
    if not path.is_absolute():
        for root in SHIPPED:
            if (root / path).exists():
                return root / path
    known = sorted(
        {str(file.parent) for root in (Path(), *SHIPPED) for file in root.glob(f"checkpoints/*/{GENERATOR_FILE}")}
    )
    raise CheckpointError(
        f"checkpoint {str(path)!r} does not exist; available: {', '.join(known) or 'none'}; "
        f"create one with `autodrag convert FILE --out {path}` or `autodrag train generator`"
    )


def load_generator(path: str | Path) -> tuple[Generator, str]:
    """Load (generator, fingerprint) from a checkpoint folder or a `.safetensors` file.

    Raises:
        CheckpointError: the folder or its generator is missing, the file is corrupt, or its tensors do not match.
    """
    from autodrag.nets.stylegan2 import Generator, GeneratorConfig

    generator = load_net(_file_in(path, GENERATOR_FILE), "generator", GeneratorConfig, Generator)
    return generator, fingerprint(generator.state_dict())


def save_generator(
    path: str | Path,
    generator: Generator,
    *,
    dtype: torch.dtype = torch.float16,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a generator to a checkpoint folder (as `generator.safetensors`) or to a `.safetensors` file."""
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / GENERATOR_FILE
    save_tensors(
        file,
        generator.state_dict(),
        kind="generator",
        config=dataclasses.asdict(generator.config),
        extra=extra,
        dtype=dtype,
    )


def load_landmarks(path: str | Path) -> LandmarkNet | None:
    """Load the landmark net of a checkpoint folder; None if the folder has none."""
    from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet

    file = find_checkpoint(path) / LANDMARKS_FILE
    if not file.is_file():
        return None
    return load_net(file, "landmarks", LandmarkConfig, LandmarkNet)


def load_regularizer(path: str | Path, generator: str) -> Regularizer:
    """Load a regularizer from a checkpoint folder or its file; `generator` is the required fingerprint."""
    from autodrag.nets.regularizer import Regularizer, RegularizerConfig

    return load_net(_file_in(path, REGULARIZER_FILE), "regularizer", RegularizerConfig, Regularizer, generator)


def load_predictor(path: str | Path, generator: str) -> Predictor:
    """Load a predictor from a checkpoint folder or its file; `generator` is the required fingerprint."""
    from autodrag.nets.predictor import Predictor, PredictorConfig

    return load_net(_file_in(path, PREDICTOR_FILE), "predictor", PredictorConfig, Predictor, generator)


def load_editor(path: str | Path, generator: str) -> LearnedEditor | None:
    """Load the learned editor of a checkpoint folder; None if the folder has no predictor.

    Args:
        path: a checkpoint folder, or a predictor file. The regularizer, if any, is in the predictor's folder.
        generator: the required fingerprint of both networks.

    Raises:
        CheckpointError: a file is corrupt or belongs to another generator, or the predictor's regularizer is missing.
    """
    from autodrag.nets.editor import LearnedEditor

    if not has_predictor(path, generator):
        return None
    return LearnedEditor(*load_learned(path, generator)).eval()


def load_learned(path: str | Path, generator: str) -> tuple[Predictor, Regularizer | None]:
    """Load the predictor and the regularizer separately. Raises CheckpointError if there is no predictor."""
    file = _file_in(path, PREDICTOR_FILE)
    predictor, joint = load_predictor(file, generator), _joint_regularizer(file)
    return predictor, None if joint is None else load_regularizer(joint, generator)


def _joint_regularizer(predictor: Path) -> Path | None:
    """The regularizer file of a predictor; None if the predictor edits without a regularizer.

    A predictor's metadata says whether it needs a regularizer. Older files lack this entry; they use a regularizer if
    the folder has one.
    """
    file = predictor.with_name(REGULARIZER_FILE)
    noted = read_info(predictor, kind="predictor")[1].get("regularizer")
    if noted is True and not file.is_file():
        raise CheckpointError(
            f"{str(predictor)!r} was trained together with a regularizer, but its folder has no {REGULARIZER_FILE}; "
            "copy that file into the folder"
        )
    return file if noted is not False and file.is_file() else None


def load_net(
    file: Path, kind: str, config: type[ConfigT], net: Callable[[ConfigT], NetT], generator: str | None = None
) -> NetT:
    """Load a network from a release file, in evaluation mode and frozen.

    Args:
        config: config dataclass of the network.
        net: builds the network from its config.
        generator: required fingerprint of the generator that the network was trained on; None to skip this check.

    Raises:
        CheckpointError: the file is corrupt, its tensors do not match its config, or the generator differs.
    """
    tensors, values, extra = load_tensors(file, kind=kind)
    if generator is not None:
        _check_generator(file, extra, generator)
    for name, value in values.items():  # an untrusted config must not request huge networks
        if name.endswith("_layers") and isinstance(value, int) and value > len(tensors):
            raise CheckpointError(
                f"the config in {str(file)!r} has {name} = {value}, but the file holds only {len(tensors)} tensors"
            )
    built = build_config(config, values, file)
    with _building(file), torch.device("meta"):
        outline = net(built)
    check_tensors(tensors, outline, file)
    loaded = net(built)
    loaded.load_state_dict(tensors)
    return loaded.eval().requires_grad_(False)


def _check_generator(file: Path, extra: Mapping[str, Any], generator: str) -> None:
    """Raise CheckpointError if a network was not trained on the generator with this fingerprint."""
    if extra.get("generator") != generator:
        raise CheckpointError(
            f"{str(file)!r} was trained on generator {extra.get('generator')!r}, "
            f"but this generator is {generator!r}; remove the file or train it again"
        )


def has_predictor(path: str | Path, generator: str) -> bool:
    """Whether a checkpoint folder has a predictor, or `path` is a predictor file. Reads only the file headers.

    Args:
        generator: required fingerprint of the generator.

    Raises:
        CheckpointError: a file is corrupt or belongs to another generator, or the predictor's regularizer is missing.
    """
    path = find_checkpoint(path)
    file = path if path.is_file() else path / PREDICTOR_FILE
    for kind, part in (("regularizer", file.with_name(REGULARIZER_FILE)), ("predictor", file)):
        if part.is_file():
            _check_generator(part, read_info(part, kind=kind)[1], generator)
    if not file.is_file():
        return False
    _joint_regularizer(file)
    return True


def save_code(path: str | Path, layers: Layers, extra: Mapping[str, Any]) -> None:
    """Write the code of an image; `extra` should hold "generator", the fingerprint."""
    tensors = layers.tensors()
    count, width = tensors["latent"].shape[1:]
    config = {"layers": count, "w_dim": width}
    save_tensors(path, tensors, kind="latent", config=config, extra=extra)


def load_code(path: str | Path, config: GeneratorConfig, *, generator: str) -> Layers:
    """Read the code of an image.

    Raises:
        CheckpointError: the file does not fit a generator of `config`, or names another fingerprint than `generator`.
    """
    tensors, _, extra = load_tensors(path, kind="latent")
    if extra.get("generator") not in (None, generator):
        raise CheckpointError(
            f"latent {str(path)!r} belongs to generator {extra['generator']!r}, "
            f"but this generator is {generator!r}; load the checkpoint of that generator"
        )
    try:
        return Layers.from_tensors(tensors, config)
    except AutodragError as error:
        raise CheckpointError(f"latent {str(path)!r} cannot be used: {error}") from error


def build_config(cls: type[ConfigT], values: Mapping[str, Any], path: str | Path) -> ConfigT:
    """Build the config dataclass `cls` from untrusted JSON. Unknown fields and wrong types raise CheckpointError."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise CheckpointError(
            f"the config in {str(path)!r} has the unknown field {unknown[0]!r}; "
            f"known fields are {', '.join(sorted(hints))}"
        )
    converted = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[name]):
            raise CheckpointError(f"the config in {str(path)!r} has {name} = {value!r}, expected {hints[name]}")
        converted[name] = value
    try:
        return cls(**converted)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the config in {str(path)!r} is invalid: {error}") from error


def check_tensors(tensors: Mapping[str, Tensor], net: nn.Module, path: str | Path) -> None:
    """Compare tensor names and shapes with those of `net`. The CheckpointError names the first difference."""
    expected = net.state_dict()
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing:
        raise CheckpointError(
            f"{str(path)!r} lacks the tensor {missing[0]!r} ({len(missing)} missing); export it again"
        )
    if surplus:
        raise CheckpointError(
            f"{str(path)!r} holds the unexpected tensor {surplus[0]!r} ({len(surplus)} surplus); "
            "its config does not match"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{str(path)!r}: tensor {name!r} has shape {tuple(tensor.shape)}, "
                f"but its config requires {tuple(expected[name].shape)}"
            )


def _file_in(path: str | Path, name: str) -> Path:
    """The file `name` of a checkpoint folder, or `path` itself if it is a file."""
    path = find_checkpoint(path)
    if path.is_file():
        return path
    if not (path / name).is_file():
        contents = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        command = f"convert FILE --out {path}" if name == GENERATOR_FILE else f"train {name.split('.')[0]}"
        raise CheckpointError(
            f"checkpoint {str(path)!r} has no {name} (it holds {contents}); create it with `autodrag {command}`"
        )
    return path / name


class _building:
    """Context manager that converts errors of torch about an invalid config to CheckpointError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, (RuntimeError, ValueError, TypeError, OverflowError)):
            raise CheckpointError(f"the config in {str(self.path)!r} describes no network: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has a field's type: int, float, bool, str, tuple, Literal, or a union of these."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in typing.get_args(hint))
    if origin is tuple:
        options = typing.get_args(hint)
        if len(options) == 2 and options[1] is Ellipsis:
            return isinstance(value, tuple) and all(_fits(item, options[0]) for item in value)
        return isinstance(value, tuple) and len(value) == len(options) and all(map(_fits, value, options))
    if hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
