"""What a user reads when a file cannot be converted: the value, what was expected, the next step."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodrag.convert import convert
from autodrag.errors import CheckpointError
from convert.sources import (
    nvidia_tensors,
    rosinality_tensors,
    tensorflow_tensors,
    write_nvidia,
    write_rosinality,
    write_tensorflow,
)

AVERAGE = np.zeros(8, np.float32)


def sentence(source: Path) -> str:
    """The error of converting `source`, which must leave nothing behind."""
    with pytest.raises(CheckpointError) as caught:
        convert(source, source.parent / "out")
    assert not (source.parent / "out").exists() or not list((source.parent / "out").iterdir())
    assert repr(str(source)) in str(caught.value)
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in sentence(tmp_path / "nothing.pkl")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "is not a file" in sentence(tmp_path)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors())
    (tmp_path / "taken").touch()
    with pytest.raises(CheckpointError, match="is a file; give a folder"):
        convert(source, tmp_path / "taken")


def test_a_generator_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors())
    written = convert(source, tmp_path / "out").path
    before = written.read_bytes()
    with pytest.raises(CheckpointError, match="exists already; give another folder or --overwrite"):
        convert(source, tmp_path / "out")
    convert(write_nvidia(tmp_path / "m.pkl", nvidia_tensors(seed=1)), tmp_path / "out", overwrite=True)
    assert written.read_bytes() != before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["generator.safetensors"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a checkpoint: the file is empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "not a checkpoint: it starts with b'\\x89PNG"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "not a checkpoint: it starts with b'<!DOCTYP'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a checkpoint: it starts with b'version '"),
        (b"cos\nsystem\n(S'x'\ntR.", "not a checkpoint"),
        (pickle.dumps([1, 2.5, "x"]), "no StyleGAN2 generator in it, but a list"),
        (pickle.dumps({"epoch": 3, "model": {}}), "a table of 'epoch', 'model'"),
        (pickle.dumps({}), "a table of nothing"),
        (b"\x80\x04.", "damaged pickle"),
    ],
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes, expected: str) -> None:
    source = tmp_path / "file.pkl"
    source.write_bytes(content)
    assert expected in sentence(source)


def test_another_table_of_torch(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, tmp_path / "n.pt")
    assert "expected NVIDIA's pickle with 'G_ema'" in sentence(tmp_path / "n.pt")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["nvidia", "tensorflow", "rosinality", "rosinality legacy"])
def test_truncated(tmp_path: Path, kind: str, share: float) -> None:
    source = tmp_path / "network"
    if kind == "nvidia":
        write_nvidia(source, nvidia_tensors())
    elif kind == "tensorflow":
        write_tensorflow(source, tensorflow_tensors())
    else:
        write_rosinality(source, rosinality_tensors(), AVERAGE, legacy="legacy" in kind)
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * share)])
    assert "truncated or damaged" in sentence(source)


def test_stylegan3_is_named(tmp_path: Path) -> None:
    tensors = {
        "mapping.fc0.weight": np.zeros((8, 8), np.float32),
        "synthesis.input.weight": np.zeros((8, 8), np.float32),
        "synthesis.L0_36_512.weight": np.zeros((8, 8, 3, 3), np.float32),
    }
    message = sentence(write_nvidia(tmp_path / "n.pkl", tensors))
    assert "this is a StyleGAN3 network (it has 'synthesis.L0_36_512'), which is not supported" in message


def test_other_networks_are_named_by_their_tensors(tmp_path: Path) -> None:
    message = sentence(write_nvidia(tmp_path / "n.pkl", {"encoder.weight": np.zeros((2, 2), np.float32)}))
    assert "not a StyleGAN2 generator" in message and "'encoder.weight'" in message


def test_first_stylegan_is_named(tmp_path: Path) -> None:
    tensors = tensorflow_tensors() | {"synthesis/4x4/Const/StyleMod/weight": np.zeros((2, 2), np.float32)}
    assert "a first StyleGAN, which is not supported" in sentence(write_tensorflow(tmp_path / "n.pkl", tensors))


def test_labels_of_the_time_before_ada_are_named(tmp_path: Path) -> None:
    tensors = tensorflow_tensors() | {"mapping/LabelConcat/weight": np.zeros((2, 2), np.float32)}
    assert "'mapping/LabelConcat'" in sentence(write_tensorflow(tmp_path / "n.pkl", tensors))


def test_unfinished_growing_is_named(tmp_path: Path) -> None:
    tensors = tensorflow_tensors(architecture="orig") | {"lod": np.array(1.5, np.float32)}
    assert "'lod' is not 0" in sentence(write_tensorflow(tmp_path / "n.pkl", tensors))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"resample_kernel": [1, 2, 1]}, "resample_kernel = [1, 2, 1]; only [1, 3, 3, 1]"),
        ({"nonlinearity": "relu"}, "nonlinearity = 'relu'; only 'lrelu'"),
        ({"synthesis_func": "G_mine"}, "synthesis_func = 'G_mine'"),
        ({"attention": True}, "the setting 'attention'"),
        ({"conv_clamp": -1}, "conv_clamp is not a positive number"),
    ],
)
def test_tensorflow_settings_that_change_the_image(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    assert expected in sentence(write_tensorflow(tmp_path / "n.pkl", tensorflow_tensors(), **settings))


@pytest.mark.parametrize(
    ("path", "attributes", "expected"),
    [
        ("mapping.fc1", {"activation": "relu"}, "'mapping.fc1' has an activation 'relu'; only 'lrelu'"),
        ("mapping.fc0", {"bias_gain": float("nan")}, "mapping learning rate is nan"),
        ("synthesis.b8.conv1", {"conv_clamp": 3.0}, "clamp at 2 different values"),
        ("synthesis.b8.conv1", {"conv_clamp": "x"}, "conv_clamp is not a number"),
        (
            "synthesis.b16",
            {"_buffers": {"resample_filter": torch.ones(2, 2)}},
            "'synthesis.b16.resample_filter' is a resampling filter of shape (2, 2)",
        ),
    ],
)
def test_nvidia_attributes_that_change_the_image(
    tmp_path: Path, path: str, attributes: dict[str, object], expected: str
) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors(), attributes={path: attributes})
    assert expected in sentence(source)


def test_only_a_training_generator(tmp_path: Path) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors())
    source.write_bytes(source.read_bytes().replace(b"G_ema", b"G_emb"))
    assert "holds 'G' but not 'G_ema'" in sentence(source)


MISSING = [
    ("nvidia", "synthesis.b8.conv0.bias"),
    ("nvidia", "synthesis.b4.const"),
    ("nvidia", "mapping.w_avg"),
    ("nvidia", "mapping.embed.weight"),
    ("tensorflow", "synthesis/8x8/Conv0_up/mod_bias"),
    ("tensorflow", "synthesis/noise2"),
    ("tensorflow", "mapping/Dense0/weight"),
    ("tensorflow", "dlatent_avg"),
    ("rosinality", "convs.1.activate.bias"),
    ("rosinality", "noises.noise_3"),
    ("rosinality", "to_rgbs.0.conv.modulation.weight"),
    ("rosinality", "input.input"),
    ("rosinality", "style.1.bias"),
]


def write(kind: str, folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    if kind == "rosinality":
        return write_rosinality(folder / "n.pt", tensors, AVERAGE)
    return {"nvidia": write_nvidia, "tensorflow": write_tensorflow}[kind](folder / "n.pkl", tensors)


def tensors_of(kind: str) -> dict[str, np.ndarray]:
    if kind == "rosinality":
        return rosinality_tensors()
    return {"nvidia": nvidia_tensors, "tensorflow": tensorflow_tensors}[kind](c_dim=3)


@pytest.mark.parametrize(("kind", "name"), MISSING)
def test_a_missing_tensor_is_named_as_the_source_names_it(tmp_path: Path, kind: str, name: str) -> None:
    tensors = tensors_of(kind)
    del tensors[name]
    assert f"the tensor {name!r} is missing" in sentence(write(kind, tmp_path, tensors))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("nvidia", "synthesis.b8.conv0.extra"),
        ("nvidia", "mapping.attention.weight"),
        ("tensorflow", "synthesis/8x8/Conv2/weight"),
        ("rosinality", "convs.0.attention.weight"),
    ],
)
def test_a_surplus_tensor_is_named(tmp_path: Path, kind: str, name: str) -> None:
    tensors = tensors_of(kind) | {name: np.zeros((3, 3), np.float32)}
    assert f"the tensor {name!r} has no place in a StyleGAN2 generator" in sentence(write(kind, tmp_path, tensors))


@pytest.mark.parametrize(
    ("kind", "name", "shape", "expected"),
    [
        ("nvidia", "synthesis.b8.conv0.weight", (12, 7, 3, 3), "has shape (12, 7, 3, 3); expected (12, 12, 3, 3)"),
        ("nvidia", "synthesis.b16.conv1.weight", (7, 8, 3, 3), "has shape (7, 8, 3, 3); expected (8, 8, 3, 3)"),
        ("nvidia", "synthesis.b16.torgb.weight", (1, 8, 1, 1), "has shape (1, 8, 1, 1); expected (3, 8, 1, 1)"),
        ("nvidia", "mapping.fc0.weight", (8, 99), "has shape (8, 99); expected"),
        ("nvidia", "mapping.w_avg", (9,), "has shape (9,); expected (8,)"),
        ("nvidia", "synthesis.b16.conv1.noise_const", (16, 8), "has shape (16, 8); expected (16, 16)"),
        (
            "tensorflow",
            "synthesis/8x8/Conv1/weight",
            (3, 3, 7, 12),
            "has shape (3, 3, 7, 12), which makes (12, 7, 3, 3); expected (12, 12, 3, 3) "
            "as 'synthesis.b8.conv1.weight'",
        ),
        ("tensorflow", "synthesis/8x8/Conv1/weight", (5,), "has shape (5,); expected (12, 12, 3, 3)"),
        (
            "rosinality",
            "convs.0.conv.weight",
            (2, 12, 12, 3, 3),
            "has shape (2, 12, 12, 3, 3); expected (12, 12, 3, 3) as 'synthesis.b8.conv0.weight'",
        ),
        ("rosinality", "style.1.weight", (8, 9), "has shape (8, 9); expected (8, 8)"),
    ],
)
def test_a_wrong_shape_is_named_with_both_shapes(
    tmp_path: Path, kind: str, name: str, shape: tuple[int, ...], expected: str
) -> None:
    tensors = tensors_of(kind) | {name: np.zeros(shape, np.float32)}
    message = sentence(write(kind, tmp_path, tensors))
    assert f"the tensor {name!r} {expected}" in message


def test_channels_of_no_rule(tmp_path: Path) -> None:
    tensors = nvidia_tensors(32, base=128, most=12) | {
        name: t for name, t in nvidia_tensors(32, base=64, most=12).items() if ".b16." in name
    }
    assert "the 16 px block has 4 channels" in sentence(write_nvidia(tmp_path / "n.pkl", tensors))


def test_images_of_unsupported_size(tmp_path: Path) -> None:
    tensors = {name: t for name, t in nvidia_tensors(8).items() if ".b8." not in name}
    assert "resolution 4" in sentence(write_nvidia(tmp_path / "n.pkl", tensors))


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, torch.float32), (np.inf, torch.float32), (1e6, torch.float16)])
def test_values_that_are_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensors = nvidia_tensors()
    tensors["synthesis.b4.const"][0, 0, 0] = value
    source = write_nvidia(tmp_path / "n.pkl", tensors)
    with pytest.raises(CheckpointError, match=r"'synthesis\.b4\.const' holds values that are not finite in torch"):
        convert(source, tmp_path / "out", dtype=dtype)
    assert not list(tmp_path.glob("out/*"))


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    tensors = rosinality_tensors()
    state = {name: torch.tensor(t) for name, t in tensors.items()}
    state["conv1.conv.weight"] = state["conv1.conv.weight"].long()
    torch.save({"g_ema": state, "latent_avg": torch.zeros(8)}, tmp_path / "n.pt")
    assert "weights of type torch.int64" in sentence(tmp_path / "n.pt")
