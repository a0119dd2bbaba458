"""The learned editor: the predictor, and the regularizer that may restore its codes, as one network with one `edit`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.acceleration import Replayable
from autodrag.nets.predictor import DragBatch, Predictor
from autodrag.nets.regularizer import Regularizer
from autodrag.nets.transformer import KeysValues


@dataclass(frozen=True)
class ImageMemory:
    """What the networks read from an image once, for all of its edits."""

    map_tokens: Float[Tensor, "B M W"] | None
    """Tokens of the feature map; None: read from the map at every edit."""
    clean: list[KeysValues] | None
    """Keys and values of the layers that no edit changes; None: there is no regularizer."""


class LearnedEditor(Replayable):
    """Predictor and optional regularizer. It holds no state of any image."""

    def __init__(self, predictor: Predictor, regularizer: Regularizer | None = None) -> None:
        super().__init__()
        self.predictor, self.regularizer = predictor, regularizer

    def open(self, latent: Float[Tensor, "B L D"], maps: Float[Tensor, "B C h w"]) -> ImageMemory:
        """The memory of images. maps: F of `latent`."""
        clean = None if self.regularizer is None else self.regularizer.read(latent)
        return ImageMemory(self.predictor.read_map(maps), clean)

    def edit(
        self,
        latent: Float[Tensor, "B L D"],
        maps: Float[Tensor, "B C h w"],
        drags: DragBatch,
        memory: ImageMemory | None = None,
    ) -> Float[Tensor, "B T L D"]:
        """Codes w_1 ... w_n of one predicted motion, restored and aligned.

        Args:
            latent: the current codes w_0.
            maps: F of `latent`.
            memory: the result of `open`. Later in a closed loop the map has changed: pass it without `map_tokens`.
                None reads everything anew.
        """
        return self.predictor.align(self.predict(latent, maps, drags, memory), latent)

    def predict(
        self,
        latent: Float[Tensor, "B L D"],
        maps: Float[Tensor, "B C h w"],
        drags: DragBatch,
        memory: ImageMemory | None = None,
    ) -> Float[Tensor, "B T L D"]:
        """As `edit`, with the changes of each layer on its own (not aligned)."""
        memory = memory or ImageMemory(None, None)
        tokens, valid = self.predictor.tokenise(maps, drags, memory.map_tokens)
        clean = [part for pair in memory.clean or () for part in pair]
        return self.replay("decode", self._decode, tokens, valid, latent, *clean)[0]

    def restore(
        self, codes: Float[Tensor, "B T L D"], clean: list[KeysValues] | None = None
    ) -> Float[Tensor, "B T L D"]:
        """Every code of sequences, restored by the regularizer; the codes themselves without one.

        clean: keys and values of the unedited layers, which a sequence shares; None computes them.
        """
        if self.regularizer is None:
            return codes
        count, steps = codes.shape[:2]
        clean = self.regularizer.read(codes[:, 0]) if clean is None else clean
        repeated = [(k.repeat_interleave(steps, dim=0), v.repeat_interleave(steps, dim=0)) for k, v in clean]
        return self.regularizer(codes.flatten(0, 1), repeated).unflatten(0, (count, steps))

    def _decode(self, tokens: Tensor, valid: Tensor, latent: Tensor, *clean: Tensor) -> tuple[Tensor]:
        """Restored codes (B, T, L, D). clean: keys and values in turn, of each layer; empty computes them."""
        state, code, codes = self.predictor.attend(tokens, valid), latent, []
        for _ in range(self.predictor.config.steps):
            code = self.predictor.next_code(state, code)
            codes.append(code)
        pairs = list(zip(clean[::2], clean[1::2], strict=True)) or None
        return (self.restore(torch.stack(codes, dim=1), pairs),)
