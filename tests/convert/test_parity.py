"""Converted networks render the images of their sources.

The reference is tests/convert/reference.py: a plain NumPy implementation in double precision that works on each
format's own tensors, names and layouts and shares no code with autodrag. Weights are random, so that a transposed,
turned or swapped tensor shows. The converter was also compared with the public implementations on files that they
wrote: stylegan2-ada-pytorch, stylegan3, StyleGAN-Human, NVIDIA's own reading of TensorFlow's pickles (legacy.py) and
rosinality's. The largest difference was 2e-5.
"""

from __future__ import annotations

import collections
import datetime
import math
import pathlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodrag.checkpoint import load_generator
from autodrag.convert import ConversionReport, convert
from autodrag.nets.stylegan2 import seed_z
from autodrag.release import load_tensors
from convert.reference import Array, nvidia_image, rosinality_image, tensorflow_image
from convert.sources import (
    TRAP,
    nvidia_tensors,
    rosinality_tensors,
    tensorflow_tensors,
    write_nvidia,
    write_rosinality,
    write_tensorflow,
)

TOLERANCE = 1e-4
PSI = 0.7


def check(source: Path, tmp_path: Path, expected: Any, c_dim: int = 0) -> ConversionReport:
    """Convert `source` and compare the images of two latents with `expected(z, label)`."""
    report = convert(source, tmp_path / "out")
    generator, _ = load_generator(tmp_path / "out")
    for seed in (1, 2):
        z = seed_z(seed, generator.config.z_dim)
        label = torch.eye(c_dim)[None, seed] if c_dim else None
        with torch.no_grad():
            image = generator(generator.map(z, label, psi=PSI))[0].numpy()
        truth: Array = expected(z[0].double().numpy(), None if label is None else label[0].double().numpy())
        assert image.shape == truth.shape
        assert np.abs(truth).max() > 0.5  # the image is not empty
        assert np.abs(image - truth).max() < TOLERANCE
    assert not Path(TRAP).exists()
    return report


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, because executed source code would create a trap file in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("c_dim", [0, 5])
@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize(("resolution", "clamp"), [(8, None), (32, 1.5), (64, 256.0)])
def test_nvidia(tmp_path: Path, architecture: str, c_dim: int, resolution: int, clamp: float | None) -> None:
    tensors = nvidia_tensors(resolution, architecture=architecture, c_dim=c_dim)
    source = write_nvidia(tmp_path / "network.pkl", tensors, clamp=clamp)

    def expected(z: Array, label: Array | None) -> Array:
        return nvidia_image(tensors, z, label, psi=PSI, architecture=architecture, clamp=clamp)

    report = check(source, tmp_path, expected, c_dim)
    assert report.format == "NVIDIA StyleGAN2 pickle"
    assert (report.config.architecture, report.config.c_dim) == (architecture, c_dim)
    assert report.config.conv_clamp == clamp
    assert report.config.image_size == (resolution, resolution)
    assert report.tensors == len(tensors)
    assert report.parameters == sum(tensor.size for tensor in tensors.values())
    assert report.bytes == report.path.stat().st_size
    assert f"{resolution}x{resolution}" in str(report)


@pytest.mark.parametrize("resolution", [16, 32])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_stylegan_human(tmp_path: Path, resolution: int, c_dim: int) -> None:
    tensors = nvidia_tensors(resolution, base_width=2, c_dim=c_dim)
    source = write_nvidia(tmp_path / "network.pkl", tensors)
    report = check(source, tmp_path, lambda z, label: nvidia_image(tensors, z, label, psi=PSI), c_dim)
    assert report.format == "StyleGAN-Human (NVIDIA pickle)"
    assert report.config.image_size == (resolution, resolution // 2)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_nvidia_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    tensors = nvidia_tensors()
    source = write_nvidia(tmp_path / "network.pkl", tensors, protocol=protocol)
    check(source, tmp_path, lambda z, label: nvidia_image(tensors, z, label, psi=PSI))


def test_nvidia_module_saved_with_torch_save(tmp_path: Path) -> None:
    tensors = nvidia_tensors()
    source = write_nvidia(tmp_path / "network.pt", tensors, bare=True)
    check(source, tmp_path, lambda z, label: nvidia_image(tensors, z, label, psi=PSI))


def test_nvidia_mapping_multiplier_is_read(tmp_path: Path) -> None:
    tensors = nvidia_tensors(multiplier=0.02)
    source = write_nvidia(tmp_path / "network.pkl", tensors, multiplier=0.02)
    report = check(source, tmp_path, lambda z, label: nvidia_image(tensors, z, label, psi=PSI, multiplier=0.02))
    assert report.config.mapping_lr_multiplier == 0.02


def test_nvidia_without_noise_inputs(tmp_path: Path) -> None:
    tensors = nvidia_tensors()
    silent = {name: t * (0 if "noise" in name else 1) for name, t in tensors.items()}
    names = [name for name in tensors if name.endswith("noise_const")]
    off = {name.removesuffix(".noise_const"): {"use_noise": False} for name in names}
    kept = {name: t for name, t in tensors.items() if "noise" not in name}
    source = write_nvidia(tmp_path / "network.pkl", kept, attributes=off)
    check(source, tmp_path, lambda z, label: nvidia_image(silent, z, label, psi=PSI))


@pytest.mark.parametrize("c_dim", [0, 5])
@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize(("resolution", "clamp"), [(8, None), (32, 1.5), (64, None)])
def test_tensorflow(tmp_path: Path, architecture: str, c_dim: int, resolution: int, clamp: float | None) -> None:
    tensors = tensorflow_tensors(resolution, architecture=architecture, c_dim=c_dim)
    source = write_tensorflow(
        tmp_path / "network.pkl",
        tensors,
        resolution=resolution,
        label_size=c_dim,
        conv_clamp=clamp,
        resample_kernel=[1, 3, 3, 1],
    )

    def expected(z: Array, label: Array | None) -> Array:
        return tensorflow_image(tensors, z, label, psi=PSI, architecture=architecture, clamp=clamp)

    report = check(source, tmp_path, expected, c_dim)
    assert report.format == "TensorFlow StyleGAN2 pickle"
    assert (report.config.architecture, report.config.c_dim) == (architecture, c_dim)


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_tensorflow_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    tensors = tensorflow_tensors()
    source = write_tensorflow(tmp_path / "network.pkl", tensors, protocol=protocol)
    check(source, tmp_path, lambda z, label: tensorflow_image(tensors, z, label, psi=PSI))


def test_arrays_pickled_by_python_2(tmp_path: Path) -> None:
    """Python 2 has no bytes type: protocol 2 stores names and array contents with the same opcodes."""
    tensors = tensorflow_tensors()
    source = write_tensorflow(tmp_path / "network.pkl", tensors, protocol=3)
    content = source.read_bytes()
    for tensor in tensors.values():
        data = tensor.tobytes()
        code, old, size = (
            (pickle.SHORT_BINBYTES, pickle.SHORT_BINSTRING, struct.pack("<B", len(data)))
            if len(data) < 256
            else (pickle.BINBYTES, pickle.BINSTRING, struct.pack("<I", len(data)))
        )
        content = content.replace(code + size + data, old + size + data)
    assert content != source.read_bytes()
    source.write_bytes(content)
    check(source, tmp_path, lambda z, label: tensorflow_image(tensors, z, label, psi=PSI))


class Custom(dict[str, int]):
    """An unknown class with arguments, state, items and a tuple key."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Custom, (), {"x": {(1, 2): self.keys}}, iter([1]), iter({"a": 1}.items())

    def append(self, item: int) -> None: ...


STRANGE = {
    "path": pathlib.PurePosixPath("data/set"),
    "range": range(3),
    "date": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
    "function": math.sqrt,
    "sets": [{1}, frozenset({2}), 2**2000, complex(1, 2), slice(1)],
    ("a", 1): Custom(),
    "array": np.array(["x", None], dtype=object),
    "module": torch.nn.Sequential(torch.nn.Linear(1, 1)),
    "counts": collections.Counter("abc"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["D", "attribute", "nested"])
def test_unknown_objects_outside_the_generator_are_ignored(tmp_path: Path, place: str, protocol: int) -> None:
    tensors = nvidia_tensors()
    attributes = {"attribute": {"": {"extra": STRANGE}}, "nested": {"synthesis.b8.conv0": {"extra": STRANGE}}}
    source = write_nvidia(
        tmp_path / "n.pkl", tensors, protocol=4, attributes=attributes.get(place), extra={"D": STRANGE, "args": STRANGE}
    )
    check(source, tmp_path, lambda z, label: nvidia_image(tensors, z, label, psi=PSI))
    old = write_tensorflow(tmp_path / "t.pkl", tensorflow_tensors(), protocol=protocol, structure=STRANGE)
    convert(old, tmp_path / "tensorflow")


@pytest.mark.parametrize("legacy", [False, True])
def test_unknown_objects_in_a_torch_archive_are_ignored(tmp_path: Path, legacy: bool) -> None:
    tensors = rosinality_tensors()
    average = np.zeros(8, np.float32)
    extra = {"args": STRANGE, "d": {"x": torch.zeros(3, dtype=torch.complex64)}}
    source = write_rosinality(tmp_path / "n.pt", tensors, average, legacy=legacy, extra=extra)
    check(source, tmp_path, lambda z, label: rosinality_image(tensors, average, z, psi=PSI))


@pytest.mark.parametrize("names", ["nvidia", "rosinality"])
@pytest.mark.parametrize(
    ("prefix", "keys"),
    [
        ("", ()),
        ("", ("g_ema",)),
        ("", ("G_ema",)),
        ("module.", ("state_dict",)),
        ("G_ema.", ()),
        ("generator.", ("state_dict",)),
        ("g_ema.module.", ("model", "weights")),
    ],
)
def test_plain_state_dicts(tmp_path: Path, names: str, prefix: str, keys: tuple[str, ...]) -> None:
    tensors = nvidia_tensors(z_dim=8) if names == "nvidia" else rosinality_tensors()
    table: dict[str, Any] = {prefix + name: torch.tensor(tensor) for name, tensor in tensors.items()}
    if prefix:  # other networks of a training checkpoint
        table |= {"discriminator.b16.conv0.weight": torch.zeros(2), "step": 3}
    for key in reversed(keys):
        table = {key: table, "epoch": 3}
    torch.save(table, tmp_path / "n.pt")
    if names == "nvidia":
        report = check(tmp_path / "n.pt", tmp_path, lambda z, label: nvidia_image(tensors, z, label, psi=PSI))
        assert report.format == "NVIDIA state dict"
    else:
        convert(tmp_path / "n.pt", tmp_path / "out")
        average = load_tensors(tmp_path / "out" / "generator.safetensors", kind="generator")[0]["mapping.w_avg"].numpy()
        check(tmp_path / "n.pt", tmp_path / "again", lambda z, label: rosinality_image(tensors, average, z, psi=PSI))


def test_averaged_generator_is_chosen(tmp_path: Path) -> None:
    tensors = nvidia_tensors(z_dim=8)
    average = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    training = {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}
    prefixed = {f"ema.{name}": t for name, t in average.items()} | {f"net.{name}": t for name, t in training.items()}
    tables = [{"state_dict": prefixed}, {"g": training, "g_ema": average}, {"g": average, "g_ema": average}]
    for index, table in enumerate(tables):
        torch.save(table, tmp_path / "n.pt")
        check(tmp_path / "n.pt", tmp_path / str(index), lambda z, label: nvidia_image(tensors, z, label, psi=PSI))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("resolution", [8, 16, 64])
def test_rosinality(tmp_path: Path, resolution: int, legacy: bool) -> None:
    tensors = rosinality_tensors(resolution)
    average = np.random.default_rng(1).standard_normal(8).astype(np.float32)
    source = write_rosinality(tmp_path / "network.pt", tensors, average, legacy=legacy)
    report = check(source, tmp_path, lambda z, label: rosinality_image(tensors, average, z, psi=PSI))
    assert report.format == "rosinality"


def test_missing_mean_latent_of_rosinality_is_computed(tmp_path: Path) -> None:
    tensors = rosinality_tensors()
    convert(write_rosinality(tmp_path / "network.pt", tensors, None, training=True), tmp_path / "out")
    generator, _ = load_generator(tmp_path / "out")
    z = torch.cat([seed_z(seed, 8) for seed in range(10_000, 14_000)])
    other = generator.map(z)[:, 0]
    average = generator.mapping.w_avg
    # Two means over about 4,000 latents each differ by a few percent of the standard deviation.
    assert float((average - other.mean(0)).abs().max()) < 0.1 * float(other.std(0).max())
    assert float(average.abs().max()) > 0


def test_half_precision_output(tmp_path: Path) -> None:
    tensors = nvidia_tensors()
    report = convert(write_nvidia(tmp_path / "n.pkl", tensors), tmp_path / "half", dtype=torch.float16)
    full = convert(tmp_path / "n.pkl", tmp_path / "full")
    assert report.bytes < 0.6 * full.bytes
    stored, _, extra = load_tensors(report.path, kind="generator")
    assert extra == {"source": "n.pkl", "source_format": "NVIDIA StyleGAN2 pickle"}
    assert torch.equal(stored["mapping.fc0.weight"], torch.tensor(tensors["mapping.fc0.weight"]).half().float())
