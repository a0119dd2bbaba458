"""Checkpoints: round trips, fingerprints, and error messages for invalid files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learned import save_learned, tiny_nets

from autodrag.checkpoint import (
    find_checkpoint,
    fingerprint,
    has_predictor,
    load_code,
    load_generator,
    load_landmarks,
    load_learned,
    load_predictor,
    load_regularizer,
    save_code,
    save_generator,
)
from autodrag.errors import CheckpointError
from autodrag.nets.layers import Layer, Layers, Region
from autodrag.nets.stylegan2 import Generator
from autodrag.release import load_tensors, save_tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_generator_round_trip_keeps_the_fingerprint(
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
            r"'mapping\.w_avg' has shape \(7,\), but its config requires \(32,\)",
        ),
        (lambda t, c: c.update(resolution="32"), "has resolution = '32', expected"),
        (lambda t, c: c.update(resolution=True), "has resolution = True, expected"),
        (lambda t, c: c.update(resolution=33), "is invalid: resolution 33"),
        (lambda t, c: c.update(depth=3), "unknown field 'depth'; known fields are"),
        (lambda t, c: c.update(mapping_layers=10**9), r"has mapping_layers = 1000000000, but the file holds only \d+"),
        (lambda t, c: c.update(channel_base=10**18, channel_max=10**18), "describes no network|has shape"),
        (lambda t, c: c.update(architecture="magic"), "has architecture = 'magic'"),
    ],
)
def test_generator_that_does_not_match_its_config(
    tmp_path: Path, tiny_checkpoint: Path, change: Any, message: str
) -> None:
    resave(tmp_path, tiny_checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        load_generator(tmp_path)


def test_unknown_checkpoint_error_lists_available_checkpoints_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoints" / "mine")
    with pytest.raises(CheckpointError, match=r"'nope' does not exist; available: .*checkpoints/mine.*convert FILE"):
        find_checkpoint("nope")


def test_error_for_a_folder_without_a_generator_lists_its_contents(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"has no generator\.safetensors \(it holds notes\.txt\)"):
        load_generator(tmp_path)


def test_the_default_checkpoint_is_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert (find_checkpoint("checkpoints/critters") / "generator.safetensors").is_file()


def test_no_landmark_net_is_none(tiny_checkpoint: Path) -> None:
    assert load_landmarks(tiny_checkpoint) is None


def test_predictor_of_another_generator(tmp_path: Path) -> None:
    assert not has_predictor(tmp_path, "0" * 16)
    file = tmp_path / "predictor.safetensors"
    save_tensors(file, {"a": torch.ones(1)}, kind="predictor", config={}, extra={"generator": "0" * 16})
    assert has_predictor(tmp_path, "0" * 16)
    with pytest.raises(CheckpointError, match="trained on generator '0000000000000000', but this generator is 'ffff"):
        has_predictor(tmp_path, "f" * 16)


def test_learned_networks_round_trip_and_are_frozen(tmp_path: Path, tiny_generator: Generator) -> None:
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
        with pytest.raises(CheckpointError, match=r"trained on generator .*, but this generator is 'ffffffffffffffff'"):
            load(tmp_path, "f" * 16)


def test_a_predictor_is_loaded_with_its_regularizer(tmp_path: Path, tiny_generator: Generator) -> None:
    """The predictor's metadata decides. Older files lack the entry: then the files in the folder decide."""
    file, identity = tmp_path / "predictor.safetensors", fingerprint(tiny_generator.state_dict())
    joint = tmp_path / "regularizer.safetensors"

    def set_metadata(**entries: bool) -> None:
        tensors, config, _ = load_tensors(file, kind="predictor")
        save_tensors(file, tensors, kind="predictor", config=config, extra={"generator": identity, **entries})

    save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator))
    for path in (tmp_path, file):
        assert load_learned(path, identity)[1] is not None
    set_metadata()
    assert load_learned(tmp_path, identity)[1] is not None
    set_metadata(regularizer=False)
    assert load_learned(tmp_path, identity)[1] is None
    joint.unlink()
    assert load_learned(tmp_path, identity)[1] is None and has_predictor(tmp_path, identity)
    set_metadata()
    assert load_learned(tmp_path, identity)[1] is None and has_predictor(tmp_path, identity)
    set_metadata(regularizer=True)
    for load in (load_learned, has_predictor):
        with pytest.raises(
            CheckpointError, match=r"predictor\.safetensors' was trained together with a regularizer, but "
        ):
            load(tmp_path, identity)


def test_error_for_a_missing_predictor_names_the_training_command(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no predictor\.safetensors .*`autodrag train predictor`"):
        load_predictor(tiny_checkpoint, "0" * 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop("kind"), r"lacks the tensor 'kind' \(1 missing\)"),
        (lambda t, c: t.update(more=torch.ones(1)), r"unexpected tensor 'more' \(1 surplus\)"),
        (lambda t, c: c.update(width=32), r"has shape \(.*\), but its config requires \(.*\)"),
        (lambda t, c: c.update(width="16"), "has width = '16', expected"),
        (lambda t, c: c.update(heads=3), "is invalid: width 16 must be a multiple of heads 3"),
        (lambda t, c: c.update(token_rows=0), "is invalid: token_rows 0"),
        (lambda t, c: c.update(speed=3), "unknown field 'speed'; known fields are"),
        (lambda t, c: c.update(decoder_layers=10**9), r"has decoder_layers = 1000000000, but the file holds only \d+"),
        (lambda t, c: c.update(w_dim=10**12), "describes no network|has shape"),
        (lambda t, c: c.update(variant="best"), "has variant = 'best', expected"),
    ],
)
def test_predictor_that_does_not_match_its_config(
    tmp_path: Path, tiny_generator: Generator, change: Any, message: str
) -> None:
    file = save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator)) / "predictor.safetensors"
    tensors, config, extra = load_tensors(file, kind="predictor")
    change(tensors, config)
    save_tensors(file, tensors, kind="predictor", config=config, extra=extra)
    with pytest.raises(CheckpointError, match=message):
        load_predictor(tmp_path, extra["generator"])


def test_codes(tmp_path: Path, tiny_generator: Generator, make_generator: Callable[..., Generator]) -> None:
    rng, mask = torch.Generator().manual_seed(0), torch.zeros(32, 32, dtype=torch.bool)
    mask[:, :9] = True
    latent, upper = torch.randn(2, 1, 8, 32, generator=rng)
    code = Layers((Layer(latent), Layer(upper, Region(mask))))
    save_code(tmp_path / "l.safetensors", code, {"generator": "a" * 16})
    found = load_code(tmp_path / "l.safetensors", tiny_generator.config, generator="a" * 16)
    assert {name: tensor.tolist() for name, tensor in found.tensors().items()} == {
        name: tensor.tolist() for name, tensor in code.tensors().items()
    }
    larger = make_generator(resolution=64).config
    with pytest.raises(CheckpointError, match=r"l\.safetensors' cannot be used: its latent has shape \(1, 8, 32\)"):
        load_code(tmp_path / "l.safetensors", larger, generator="a" * 16)
    with pytest.raises(CheckpointError, match="belongs to generator 'aaaaaaaaaaaaaaaa'"):
        load_code(tmp_path / "l.safetensors", tiny_generator.config, generator="b" * 16)


def test_a_code_of_one_layer_is_a_file_with_one_latent(tmp_path: Path, tiny_generator: Generator) -> None:
    """The format of latents before images had layers."""
    latent = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
    save_tensors(tmp_path / "l.safetensors", {"latent": latent}, kind="latent", config={"layers": 8, "w_dim": 32})
    (layer,) = load_code(tmp_path / "l.safetensors", tiny_generator.config, generator="a" * 16).stack
    assert layer.region is None and torch.equal(layer.latent, latent)
    save_code(tmp_path / "again.safetensors", Layers.of(latent), {})
    assert load_tensors(tmp_path / "again.safetensors", kind="latent")[0].keys() == {"latent"}
