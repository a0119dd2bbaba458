"""A tiny learned editor with random weights, and checkpoint folders that contain it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from autodrag.checkpoint import PREDICTOR_FILE, REGULARIZER_FILE, fingerprint, save_generator
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.predictor import Predictor, PredictorConfig
from autodrag.nets.regularizer import Regularizer, RegularizerConfig
from autodrag.nets.stylegan2 import Generator
from autodrag.release import save_tensors


def tiny_nets(generator: Generator, *, push: float = 0.05, regularizer: bool = True) -> LearnedEditor:
    """An editor for the tiny generator that moves its codes by about `push` standard deviations per step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = PredictorConfig(
            layers=generator.config.latent_layers,
            w_dim=32,
            image_height=32,
            image_width=32,
            feature_block=2,
            track_block=3,
            feature_channels=generator.config.channels(16),
            feature_height=16,
            steps=2,
            width=16,
            heads=2,
            encoder_layers=1,
            decoder_layers=1,
            mlp_ratio=2.0,
            token_rows=4,
        )
        sizes = RegularizerConfig(
            layers=config.layers, w_dim=32, width=16, heads=2, encoder_layers=1, decoder_layers=1, mlp_ratio=2.0
        )
        nets = Predictor(config), Regularizer(sizes) if regularizer else None
        for net in nets:
            if net is not None:
                net.frame.take(LatentBasis.of(generator, samples=256))
                torch.nn.init.normal_(net.head.weight, std=push / 4)
    return LearnedEditor(*nets).eval().requires_grad_(False)


def save_learned(folder: Path, generator: Generator, editor: LearnedEditor) -> Path:
    """Write a checkpoint folder with a generator and its learned editor."""
    save_generator(folder, generator)
    parts = {"predictor": (PREDICTOR_FILE, editor.predictor), "regularizer": (REGULARIZER_FILE, editor.regularizer)}
    identity, joint = fingerprint(generator.state_dict()), {"regularizer": editor.regularizer is not None}
    for kind, (name, net) in parts.items():
        if net is not None:
            save_tensors(
                folder / name,
                net.state_dict(),
                kind=kind,
                config=dataclasses.asdict(net.config),
                extra={"generator": identity} | (joint if kind == "predictor" else {}),
            )
    return folder
