"""Release files: round trips, fingerprints, and a clear refusal of every defect."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learned import save_learned, tiny_nets
from safetensors.torch import save_file

from autodrag import checkpoint
from autodrag.checkpoint import (
    find_checkpoint,
    fingerprint,
    has_predictor,
    load_generator,
    load_landmarks,
    load_latent,
    load_predictor,
    load_regularizer,
    load_tensors,
    save_generator,
    save_latent,
    save_tensors,
)
from autodrag.errors import AutodragError, CheckpointError
from autodrag.nets.stylegan2 import Generator


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small valid file of the kind "thing"."""
    path = tmp_path / "thing.safetensors"
    save_tensors(path, {"a": torch.arange(6.0).view(2, 3)}, kind="thing", config={"n": 1}, extra={"by": "test"})
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON header of a safetensors file and keep its data."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_tensors_config_and_extra_come_back(file: Path) -> None:
    tensors, config, extra = load_tensors(file, kind="thing")
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
    assert (config, extra) == ({"n": 1}, {"by": "test"})
    assert [item.name for item in file.parent.iterdir()] == ["thing.safetensors"]


def test_fp16_storage_is_read_as_fp32(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, kind="x", config={}, dtype=torch.float16)
    tensors, _, _ = load_tensors(tmp_path / "x.safetensors", kind="x")
    assert tensors["a"].dtype == torch.float32


def test_parts_of_a_tensor_and_file_modes(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"row": whole[1], "column": whole[:, 1]}, kind="x", config={})
    tensors, _, _ = load_tensors(path, kind="x")
    assert torch.equal(tensors["row"], whole[1])
    assert torch.equal(tensors["column"], whole[:, 1])
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_integers_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match=r"tensor 'a' is torch\.int64; only fp16, bf16 and fp32"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2, dtype=torch.int64)}, kind="x", config={})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tensors(tmp_path / "none.safetensors", kind="thing")


def test_another_kind(file: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a 'thing', and a 'generator' was expected"):
        load_tensors(file, kind="generator")


def test_newer_format(file: Path) -> None:
    rewrite(file, lambda header: header["__metadata__"].update(autodrag_format="2"))
    with pytest.raises(CheckpointError, match="has format '2', and this version reads format 1; upgrade autodrag"):
        load_tensors(file, kind="thing")


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not autodrag's; convert its source"):
        load_tensors(tmp_path / "x.safetensors", kind="thing")


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncation_at_any_place(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(file, kind="thing")


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", 40000) + b"[" * 40000,
        struct.pack("<Q", 19) + b'{"__metadata__":{}} ',
        struct.pack("<Q", 7) + b'{"a":1}',
    ],
    ids=["length", "list", "binary", "nested", "surplus data", "no extent"],
)
def test_hostile_headers(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(tmp_path / "x.safetensors", kind="thing")


def test_a_huge_file_is_refused_before_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 10)
    with pytest.raises(CheckpointError, match="more than the limit of 10"):
        load_tensors(file, kind="thing")


def test_overlapping_extents(file: Path) -> None:
    rewrite(file, lambda header: header.update(b={"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}))
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(file, kind="thing")


def test_shape_that_does_not_fit_its_extent(file: Path) -> None:
    rewrite(file, lambda header: header["a"].update(shape=[2**40, 2**40]))
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(file, kind="thing")


def test_other_dtypes(file: Path) -> None:
    rewrite(file, lambda header: header["a"].update(dtype="I32"))
    with pytest.raises(CheckpointError, match="tensor 'a' is I32, expected F16, BF16 or F32"):
        load_tensors(file, kind="thing")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.tensor([1.0, float("nan")])}, kind="x", config={})
    with pytest.raises(CheckpointError, match="tensor 'a' holds values that are not finite"):
        load_tensors(tmp_path / "x.safetensors", kind="x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_generator_comes_back_with_its_fingerprint(
    tmp_path: Path, tiny_generator: Generator, dtype: torch.dtype
) -> None:
    save_generator(tmp_path, tiny_generator, dtype=dtype)
    loaded, identity = load_generator(tmp_path)
    assert identity == fingerprint(tiny_generator.state_dict())
    assert len(identity) == 16
    assert loaded.config == tiny_generator.config
    latent = tiny_generator.map(torch.ones(1, 32))
    torch.testing.assert_close(loaded(latent), tiny_generator(latent), atol=2e-2, rtol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_fingerprints_differ(make_generator: Callable[..., Generator]) -> None:
    assert fingerprint(make_generator(seed=0).state_dict()) != fingerprint(make_generator(seed=1).state_dict())


def resave(folder: Path, source: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Copy a generator file with changed tensors and config."""
    tensors, config, extra = load_tensors(source / "generator.safetensors", kind="generator")
    change(tensors, config)
    save_tensors(folder / "generator.safetensors", tensors, kind="generator", config=config, extra=extra)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop("mapping.w_avg"), r"lacks the tensor 'mapping\.w_avg' \(1 missing\)"),
        (lambda t, c: t.update(more=torch.ones(1)), r"unexpected tensor 'more' \(1 surplus\)"),
        (
            lambda t, c: t.update({"mapping.w_avg": torch.ones(7)}),
            r"'mapping\.w_avg' has shape \(7,\), expected \(32,\)",
        ),
        (lambda t, c: c.update(resolution="32"), "has resolution = '32', expected"),
        (lambda t, c: c.update(resolution=True), "has resolution = True, expected"),
        (lambda t, c: c.update(resolution=33), "cannot be used: resolution 33"),
        (lambda t, c: c.update(depth=3), "unknown field 'depth'; known are"),
        (lambda t, c: c.update(mapping_layers=10**9), "names 1000000000 mapping layers"),
        (lambda t, c: c.update(channel_base=10**18, channel_max=10**18), "describes no network|has shape"),
        (lambda t, c: c.update(architecture="magic"), "has architecture = 'magic'"),
    ],
)
def test_a_generator_that_does_not_fit_its_config(
    tmp_path: Path, tiny_checkpoint: Path, change: Any, message: str
) -> None:
    resave(tmp_path, tiny_checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        load_generator(tmp_path)


def test_an_unknown_checkpoint_names_what_is_there_and_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoints" / "mine")
    with pytest.raises(CheckpointError, match=r"'nope' does not exist; there is .*checkpoints/mine.*autodrag convert"):
        find_checkpoint("nope")


def test_a_folder_without_a_generator_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"has no generator\.safetensors \(it holds notes\.txt\)"):
        load_generator(tmp_path)


def test_checkpoints_are_found_beside_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "REPOSITORY", tmp_path / "repository")
    (tmp_path / "repository" / "checkpoints" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("checkpoints/c") == tmp_path / "repository" / "checkpoints" / "c"


def test_no_landmark_net_is_none(tiny_checkpoint: Path) -> None:
    assert load_landmarks(tiny_checkpoint) is None


def test_predictor_of_another_generator(tmp_path: Path) -> None:
    assert not has_predictor(tmp_path, "0" * 16)
    file = tmp_path / "predictor.safetensors"
    save_tensors(file, {"a": torch.ones(1)}, kind="predictor", config={}, extra={"generator": "0" * 16})
    assert has_predictor(tmp_path, "0" * 16)
    with pytest.raises(CheckpointError, match="was trained on generator '0000000000000000', and this one is 'ffff"):
        has_predictor(tmp_path, "f" * 16)


def test_learned_networks_come_back_frozen(tmp_path: Path, tiny_generator: Generator) -> None:
    nets, identity = tiny_nets(tiny_generator), fingerprint(tiny_generator.state_dict())
    save_learned(tmp_path, tiny_generator, nets)
    predictor, regularizer = load_predictor(tmp_path, identity), load_regularizer(tmp_path, identity)
    assert nets.regularizer is not None
    for loaded, net in ((predictor, nets.predictor), (regularizer, nets.regularizer)):
        assert loaded.config == net.config and not loaded.training
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    latent = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(regularizer(latent), nets.regularizer(latent))


def test_learned_networks_of_another_generator(tmp_path: Path, tiny_generator: Generator) -> None:
    save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator))
    for load in (load_predictor, load_regularizer):
        with pytest.raises(CheckpointError, match=r"was trained on generator .*, and this one is 'ffffffffffffffff'"):
            load(tmp_path, "f" * 16)


def test_a_missing_predictor_names_the_command_that_makes_it(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no predictor\.safetensors .*`autodrag train predictor`"):
        load_predictor(tiny_checkpoint, "0" * 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop("kind"), r"lacks the tensor 'kind' \(1 missing\)"),
        (lambda t, c: t.update(more=torch.ones(1)), r"unexpected tensor 'more' \(1 surplus\)"),
        (lambda t, c: c.update(width=32), r"has shape \(.*\), expected \(.*\) by its config"),
        (lambda t, c: c.update(width="16"), "has width = '16', expected"),
        (lambda t, c: c.update(heads=3), "cannot be used: width 16 must be a multiple of heads 3"),
        (lambda t, c: c.update(token_rows=0), "cannot be used: token_rows 0"),
        (lambda t, c: c.update(speed=3), "unknown field 'speed'; known are"),
        (lambda t, c: c.update(decoder_layers=10**9), "names 1000000000 decoder layers but does not hold them"),
        (lambda t, c: c.update(w_dim=10**12), "describes no network|has shape"),
        (lambda t, c: c.update(patch=10**9 + 1), "describes no network|has shape"),
    ],
)
def test_a_predictor_that_does_not_fit_its_config(
    tmp_path: Path, tiny_generator: Generator, change: Any, message: str
) -> None:
    file = save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator)) / "predictor.safetensors"
    tensors, config, extra = load_tensors(file, kind="predictor")
    change(tensors, config)
    save_tensors(file, tensors, kind="predictor", config=config, extra=extra)
    with pytest.raises(CheckpointError, match=message):
        load_predictor(tmp_path, extra["generator"])


def test_latents(tmp_path: Path) -> None:
    latent = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
    save_latent(tmp_path / "l.safetensors", latent, {"generator": "a" * 16})
    assert torch.equal(load_latent(tmp_path / "l.safetensors", layers=8, w_dim=32, generator="a" * 16), latent)
    with pytest.raises(CheckpointError, match=r"has shape \(1, 8, 32\), this generator needs \(1, 10, 32\)"):
        load_latent(tmp_path / "l.safetensors", layers=10, w_dim=32, generator="a" * 16)
    with pytest.raises(CheckpointError, match="belongs to generator 'aaaaaaaaaaaaaaaa'"):
        load_latent(tmp_path / "l.safetensors", layers=8, w_dim=32, generator="b" * 16)
