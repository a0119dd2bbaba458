"""The learned editor: predicted codes are restored and aligned; the memory of an image does not change results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autodrag.nets.editor import ImageMemory, LearnedEditor
from autodrag.nets.predictor import DragBatch, Predictor, PredictorConfig
from autodrag.nets.regularizer import Regularizer, RegularizerConfig

SIZES = {"layers": 8, "w_dim": 16, "edit_layers": 3, "width": 24, "heads": 3, "encoder_layers": 1, "decoder_layers": 2}
NET = PredictorConfig(
    image_height=32, image_width=32, feature_block=2, feature_channels=6, feature_height=16, steps=4, token_rows=8,
    **SIZES,  # type: ignore[arg-type]
)  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(regularizer: bool = True, config: PredictorConfig = NET) -> LearnedEditor:
    """An editor with nonzero last layers."""
    torch.manual_seed(0)
    restorer = Regularizer(RegularizerConfig(**SIZES)) if regularizer else None  # type: ignore[arg-type]
    editor = LearnedEditor(Predictor(config), restorer).eval().requires_grad_(False)
    for net in (editor.predictor, editor.regularizer):
        if net is not None:
            torch.nn.init.normal_(net.head.weight, std=0.1)
    return editor


@pytest.fixture
def drags() -> DragBatch:
    points = torch.rand(2, 2, 3, 2, generator=torch.Generator().manual_seed(1)) * 31
    return DragBatch(points[0], points[1], torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("regularizer", [False, True])
def test_edit_is_predicted_restored_and_aligned(drags: DragBatch, regularizer: bool) -> None:
    editor, latent, maps = make(regularizer), random(2, 8, 16), random(2, 6, 16, 16, seed=1)
    state, code, expected = editor.predictor.encode(maps, drags), latent, []
    for _ in range(4):
        code = editor.predictor.next_code(state, code)
        expected.append(code if editor.regularizer is None else editor.regularizer(code))
    apart = torch.stack(expected, dim=1)
    torch.testing.assert_close(editor.predict(latent, maps, drags), apart, atol=1e-5, rtol=1e-5)
    aligned = editor.predictor.align(apart, latent)
    assert not torch.allclose(aligned, apart, atol=1e-3)
    torch.testing.assert_close(editor.edit(latent, maps, drags), aligned, atol=1e-5, rtol=1e-5)


def test_memory_does_not_change_results(drags: DragBatch) -> None:
    """Later in a closed loop the map is read anew; the clean layers are still those of the image."""
    editor, latent, maps = make(), random(2, 8, 16), random(2, 6, 16, 16, seed=1)
    memory = editor.open(latent, maps)
    first = editor.edit(latent, maps, drags)
    torch.testing.assert_close(editor.edit(latent, maps, drags, memory), first, atol=1e-5, rtol=1e-5)
    later = ImageMemory(None, memory.clean)
    torch.testing.assert_close(
        editor.edit(first[:, -1], maps + 1, drags, later),
        editor.edit(first[:, -1], maps + 1, drags),
        atol=1e-5,
        rtol=1e-5,
    )


def test_codes_of_a_sequence_are_restored_separately() -> None:
    editor, codes = make(), random(2, 4, 8, 16)
    codes[:, :, 3:] = codes[:, :1, 3:]  # all codes of a sequence have the same unedited layers
    assert editor.regularizer is not None
    expected = torch.stack([editor.regularizer(codes[:, k]) for k in range(4)], dim=1)
    torch.testing.assert_close(editor.restore(codes), expected, atol=1e-5, rtol=1e-5)
    assert make(regularizer=False).restore(codes) is codes
