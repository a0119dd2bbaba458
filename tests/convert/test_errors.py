"""Error messages for files that cannot be converted: value, expectation and next step."""

from __future__ import annotations

import gzip
import io
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
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


def as_torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(tensor) for name, tensor in tensors.items()}


def sentence(source: Path) -> str:
    """The error message of converting `source`. Nothing may be written."""
    with pytest.raises(CheckpointError) as caught:
        convert(source, source.parent / "out")
    assert not (source.parent / "out").exists() or not list((source.parent / "out").iterdir())
    assert repr(str(source)) in str(caught.value)
    return str(caught.value)


def sentence_for(content: bytes, folder: Path) -> str:
    source = folder / "file.pkl"
    source.write_bytes(content)
    return sentence(source)


def test_sources_that_are_not_files(tmp_path: Path) -> None:
    assert "does not exist; check the path" in sentence(tmp_path / "nothing.pkl")
    assert "is a folder, but a file was expected; give the .pkl or .pt file inside" in sentence(tmp_path)
    with pytest.raises(CheckpointError, match=r"'https://host/a\.pkl' is a URL.*download it and give its path"):
        convert("https://host/a.pkl", tmp_path / "out")


def test_files_of_autodrag_need_no_conversion(tmp_path: Path) -> None:
    written = convert(write_nvidia(tmp_path / "n.pkl", nvidia_tensors()), tmp_path / "made").path
    assert "safetensors file that autodrag wrote; it needs no conversion" in sentence(written)
    assert "is a checkpoint of autodrag and needs no conversion" in sentence(tmp_path / "made")


def test_output_that_is_a_file(tmp_path: Path) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors())
    (tmp_path / "taken").touch()
    with pytest.raises(CheckpointError, match=r"is a file, but .* needs a folder"):
        convert(source, tmp_path / "taken")


def test_generator_is_overwritten_only_with_overwrite(tmp_path: Path) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors())
    written = convert(source, tmp_path / "out").path
    before = written.read_bytes()
    with pytest.raises(CheckpointError, match="already exists; give another folder or --overwrite"):
        convert(source, tmp_path / "out")
    convert(write_nvidia(tmp_path / "m.pkl", nvidia_tensors(seed=1)), tmp_path / "out", overwrite=True)
    assert written.read_bytes() != before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["generator.safetensors"]


def saved(value: object, how: Callable[[Any, io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    how(value, stream)
    return stream.getvalue()


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "this file is empty (0 bytes); download it again"),
        (b"\n<!DOCTYPE html><html>quota exceeded</html>", "this is a web page"),
        (b"<html>", "this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer.*`git lfs pull`"),
        (b"https://example.org/ffhq.pkl\n", "a text file with a URL.*download"),
        (safetensors.torch.save({"x": torch.zeros(2)}), "a safetensors file.*convert the .pkl or .pt file"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model"),
        (gzip.compress(b"x", mtime=0), "a compressed archive.*unpack it"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "an image"),
        (saved([1, 2], lambda value, stream: np.save(stream, value)), "a NumPy array"),
        (saved([1, 2], lambda value, stream: np.savez(stream, x=value)), "a zip archive that torch.save did not write"),
        (zipped("model/data.pkl", "model/constants.pkl"), "a TorchScript program.*convert the file it was compiled"),
        (zipped("readme.txt"), "a zip archive that torch.save did not write"),
        (b"cos\nsystem\n(S'x'\ntR.", "this is not a checkpoint: it starts with b'cos"),
        (b"\x80\x04.", "damaged pickle"),
        (pickle.dumps([1, 2.5, "x"]), "it holds a list, but no StyleGAN2 generator"),
        (pickle.dumps({"epoch": 3, "model": {}}), "it holds a table of 'epoch', 'model', but no"),
        (pickle.dumps({}), "it holds a table of nothing, but no"),
        (pickle.dumps(pathlib.PurePosixPath("a")), "it holds a call of 'pathlib.*PurePosixPath' \\(not executed"),
        (saved({"state_dict": {"conv.weight": torch.zeros(3)}}, torch.save), "a table of 'state_dict', but no"),
    ],
)
def test_other_file_types_are_recognised(tmp_path: Path, content: bytes, expected: str) -> None:
    assert re.search(expected.replace("(0 bytes)", r"\(0 bytes\)"), sentence_for(content, tmp_path))


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


def test_stylegan3_is_recognised(tmp_path: Path) -> None:
    tensors = {
        "mapping.fc0.weight": np.zeros((8, 8), np.float32),
        "synthesis.L0_36_512.weight": np.zeros((8, 8, 3, 3), np.float32),
    }
    message = sentence(write_nvidia(tmp_path / "n.pkl", tensors))
    assert "this is a StyleGAN3 network (it has 'synthesis.L0_36_512.weight'); give a StyleGAN2 one" in message


def test_errors_for_other_networks_list_their_tensors(tmp_path: Path) -> None:
    message = sentence(write_nvidia(tmp_path / "n.pkl", {"encoder.weight": np.zeros((2, 2), np.float32)}))
    assert "not a StyleGAN2 generator: it has 'encoder.weight'" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("synthesis/4x4/Const/StyleMod/weight", "a StyleGAN1 network, which is not supported"),
        ("mapping/LabelConcat/weight", "'mapping/LabelConcat'"),
        ("lod", "'lod' is not 0"),
    ],
)
def test_older_tensorflow_networks_are_recognised(tmp_path: Path, name: str, expected: str) -> None:
    tensors = tensorflow_tensors(architecture="orig") | {name: np.array([1.5], np.float32)}
    assert expected in sentence(write_tensorflow(tmp_path / "n.pkl", tensors))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"resample_kernel": [1, 2, 1]}, "resample_kernel = [1, 2, 1], but only [1, 3, 3, 1]"),
        ({"nonlinearity": "relu"}, "nonlinearity = 'relu', but only 'lrelu'"),
        ({"synthesis_func": "G_mine"}, "synthesis_func = 'G_mine'"),
        ({"attention": True}, "the setting 'attention'"),
        ({"conv_clamp": -1}, "conv_clamp is -1.0, but a positive number was expected"),
    ],
)
def test_tensorflow_settings_that_change_the_image(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    assert expected in sentence(write_tensorflow(tmp_path / "n.pkl", tensorflow_tensors(), **settings))


@pytest.mark.parametrize(
    ("path", "attributes", "expected"),
    [
        ("mapping.fc1", {"activation": "relu"}, "'mapping.fc1' has the activation 'relu', but only 'lrelu'"),
        ("mapping.fc0", {"bias_gain": float("nan")}, "mapping learning rate is nan"),
        ("synthesis.b8.conv1", {"conv_clamp": 3.0}, "2 different conv_clamp values"),
        ("synthesis.b8.conv1", {"conv_clamp": "x"}, "conv_clamp is None, but a positive number was expected"),
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


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"resize": 512}, "resizes its images of 16 px after synthesis (resize = 512), which autodrag does not"),
        ({"_init_kwargs": {"resize": 8}}, "(resize = 8)"),
        (
            {"_init_kwargs": {"synthesis_kwargs": {"attention": 3}}},
            "setting 'synthesis_kwargs.attention', whose effect",
        ),
        ({"_init_kwargs": {"mapping_kwargs": {"activation": "relu"}}}, "mapping_kwargs.activation = 'relu', but only"),
        ({"_init_kwargs": {"resample_filter": [1, 2, 1]}}, "resample_filter = [1, 2, 1], but only [1, 3, 3, 1]"),
        ({"_init_kwargs": {"resize": 16, "padding": True, "square": True, "channel_base": 128, "extra": None}}, ""),
    ],
)
def test_nvidia_arguments_that_change_the_image(tmp_path: Path, attributes: dict[str, object], expected: str) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors(), attributes={"": attributes})
    if expected:
        assert expected in sentence(source)
    else:  # arguments without an effect on this network
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("attributes", [{"padding": True}, {"_init_kwargs": {"padding": True}}, {"resize": 16}])
def test_resize_and_padding_after_synthesis_are_refused(tmp_path: Path, attributes: dict[str, object]) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors(base_width=2), attributes={"": attributes})
    assert "after synthesis" in sentence(source)


def test_file_with_only_the_training_generator(tmp_path: Path) -> None:
    source = write_nvidia(tmp_path / "n.pkl", nvidia_tensors())
    source.write_bytes(source.read_bytes().replace(b"G_ema", b"G_emb"))
    assert "holds 'G' but not 'G_ema'" in sentence(source)
    torch.save({"g": as_torch(rosinality_tensors())}, tmp_path / "n.pt")
    assert "holds 'g' but not 'g_ema'" in sentence(tmp_path / "n.pt")


def test_several_generators_without_a_unique_average(tmp_path: Path) -> None:
    state = as_torch(nvidia_tensors())
    torch.save({"state_dict": {f"{p}.{n}": t for p in ("a", "b") for n, t in state.items()}}, tmp_path / "n.pt")
    assert "several generators ('state_dict.a', 'state_dict.b'), but one with 'ema'" in sentence(tmp_path / "n.pt")


@pytest.mark.parametrize("change", ["missing", "unknown", "filter", "not a tensor"])
def test_state_dicts_whose_tensors_do_not_match(tmp_path: Path, change: str) -> None:
    state: dict[str, Any] = as_torch(nvidia_tensors())
    if change == "missing":
        del state["synthesis.b8.conv0.bias"]
    elif change == "unknown":
        state["synthesis.b8.extra"] = torch.zeros(3)
    elif change == "filter":
        state["synthesis.b8.resample_filter"] = torch.ones(2, 2)
    else:
        state["synthesis.b8.conv0.bias"] = 3
    torch.save({"G_ema": state}, tmp_path / "n.pt")
    message = sentence(tmp_path / "n.pt")
    assert "'synthesis.b8." in message or "'G_ema.synthesis.b8.conv0.bias' is of type int" in message


def write(kind: str, folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    if kind == "rosinality":
        return write_rosinality(folder / "n.pt", tensors, AVERAGE)
    return {"nvidia": write_nvidia, "tensorflow": write_tensorflow}[kind](folder / "n.pkl", tensors)


def tensors_of(kind: str) -> dict[str, np.ndarray]:
    if kind == "rosinality":
        return rosinality_tensors()
    return {"nvidia": nvidia_tensors, "tensorflow": tensorflow_tensors}[kind](c_dim=3)


UNKNOWN = "is not part of a StyleGAN2 generator"


@pytest.mark.parametrize(
    ("kind", "name", "shape", "expected"),
    [
        ("nvidia", "synthesis.b8.conv0.bias", None, "is missing"),
        ("nvidia", "synthesis.b4.const", None, "is missing"),
        ("nvidia", "mapping.w_avg", None, "is missing"),
        ("nvidia", "mapping.embed.weight", None, "is missing"),
        ("tensorflow", "synthesis/8x8/Conv0_up/mod_bias", None, "is missing"),
        ("tensorflow", "synthesis/noise2", None, "is missing"),
        ("tensorflow", "mapping/Dense0/weight", None, "is missing"),
        ("tensorflow", "dlatent_avg", None, "is missing"),
        ("rosinality", "convs.1.activate.bias", None, "is missing"),
        ("rosinality", "to_rgbs.0.conv.modulation.weight", None, "is missing"),
        ("rosinality", "input.input", None, "is missing"),
        ("rosinality", "style.1.bias", None, "is missing"),
        ("nvidia", "synthesis.b8.conv0.extra", (3, 3), UNKNOWN),
        ("nvidia", "mapping.attention.weight", (3, 3), UNKNOWN),
        ("tensorflow", "synthesis/8x8/Conv2/weight", (3, 3), UNKNOWN),
        ("rosinality", "convs.0.attention.weight", (3, 3), UNKNOWN),
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
            "has shape (3, 3, 7, 12), which becomes (12, 7, 3, 3); expected (12, 12, 3, 3) "
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
def test_errors_use_tensor_names_of_the_source(
    tmp_path: Path, kind: str, name: str, shape: tuple[int, ...] | None, expected: str
) -> None:
    """`shape` replaces or adds a tensor; None removes it."""
    tensors = tensors_of(kind)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = np.zeros(shape, np.float32)
    assert f"the tensor {name!r} {expected}" in sentence(write(kind, tmp_path, tensors))


def test_unsupported_numbers_of_channels(tmp_path: Path) -> None:
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
    with pytest.raises(CheckpointError, match=r"'synthesis\.b4\.const' contains values that are not finite in torch"):
        convert(source, tmp_path / "out", dtype=dtype)
    assert not list(tmp_path.glob("out/*"))


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    tensors = rosinality_tensors()
    state = as_torch(tensors)
    state["conv1.conv.weight"] = state["conv1.conv.weight"].long()
    torch.save({"g_ema": state, "latent_avg": torch.zeros(8)}, tmp_path / "n.pt")
    assert "weights of type torch.int64" in sentence(tmp_path / "n.pt")
