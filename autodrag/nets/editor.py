"""The learned editor of Auto DragGAN: the predictor with its optional regularizer (temporary version)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autodrag.nets.predictor import DragBatch, Predictor
from autodrag.nets.regularizer import Regularizer
from autodrag.nets.transformer import KeysValues


@dataclass(frozen=True)
class ImageMemory:
    """What the networks compute once per image."""

    map_tokens: Float[Tensor, "B M W"] | None
    clean: list[KeysValues] | None


class LearnedEditor(nn.Module):
    """Predictor and regularizer."""

    def __init__(self, predictor: Predictor, regularizer: Regularizer | None) -> None:
        super().__init__()
        self.predictor, self.regularizer = predictor, regularizer

    def open(self, latent: Float[Tensor, "B L D"], maps: Float[Tensor, "B C h w"]) -> ImageMemory:
        """Memory of an image."""
        clean = None if self.regularizer is None else self.regularizer.read(latent)
        return ImageMemory(self.predictor.read_map(maps), clean)

    def edit(
        self, latent: Float[Tensor, "B L D"], maps: Tensor, drags: DragBatch, memory: ImageMemory | None = None
    ) -> Float[Tensor, "B T L D"]:
        """Codes of the motion."""
        tokens = None if memory is None or drags.movable is not None else memory.map_tokens
        known, code = self.predictor.attend(*self.predictor.tokenise(maps, drags, tokens)), latent
        codes = []
        for _ in range(self.predictor.config.steps):
            code = self.predictor.next_code(known, code)
            codes.append(code)
        if self.regularizer is not None:
            codes = [self.regularizer(code, None if memory is None else memory.clean) for code in codes]
        return self.predictor.align(torch.stack(codes, dim=1), latent, drags)
