"""Matching pictures: SIFT finds a known shift; a learned matcher without its weights is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autodrag.data.pictures import match_pictures, match_sift
from autodrag.errors import AutodragError


def textured(size: int = 128, seed: int = 0) -> Tensor:
    """Blobs of several sizes, (1, 3, H, W) in [-1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    parts = [F.interpolate(torch.randn(1, 3, s, s, generator=rng), (size, size), mode="bicubic") for s in (8, 16, 32)]
    return torch.stack(parts).sum(dim=0).tanh()


def test_sift_finds_a_shift() -> None:
    picture = textured()
    before, after = match_sift(picture, picture.roll((-5, 8), dims=(2, 3)))
    moved = torch.from_numpy(after - before)
    right = (moved - torch.tensor([8.0, -5.0])).norm(dim=1) < 0.5
    assert len(moved) >= 20
    assert float(right.float().mean()) > 0.9


def test_key_points_have_the_coordinates_of_pixels() -> None:
    """One bright spot: its centre, in our coordinates, with the first pixel's centre at (0, 0)."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    spot = torch.exp(-((x - 40).square() + (y - 23).square()) / 18)
    marks = 0.3 * torch.exp(-((x - 20).square() + (y - 44).square()) / 8)  # a second best, for the ratio test
    picture = (2 * (spot + marks) - 1).expand(1, 3, 64, 64)
    before, after = match_sift(picture, picture)
    nearest = (torch.from_numpy(before) - torch.tensor([40.0, 23.0])).norm(dim=1).min()
    assert float(nearest) < 0.1
    assert (before == after).all()


def test_pictures_without_features_have_no_matches() -> None:
    flat = torch.zeros(1, 3, 64, 64)
    before, after = match_sift(flat, flat)
    assert before.shape == after.shape == (0, 2)
    for pair in ((flat, textured(64)), (textured(64), flat)):
        assert match_sift(*pair)[0].shape == (0, 2)
    assert match_sift(textured(64), textured(64, seed=1))[0].shape[0] < 10  # nothing in common


def test_a_batch_holds_at_most_as_many_pairs_as_points() -> None:
    picture, flat = textured(), torch.zeros(1, 3, 128, 128)
    points = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(0)) * 100
    before = torch.cat([picture, flat])
    after = torch.cat([picture.roll(4, dims=3), flat])
    first, second, matched = match_pictures(before, after, points, matcher="sift")
    assert matched.tolist() == [[True] * 6, [False] * 6]
    torch.testing.assert_close(first[1], points[1])
    torch.testing.assert_close(second[1], points[1])
    moved = second[0] - first[0]
    assert ((moved - torch.tensor([4.0, 0.0])).norm(dim=1) < 0.5).sum() >= 5
    assert len(torch.unique(first[0], dim=0)) == 6  # spread over all matches, none twice


def test_a_learned_matcher_without_its_weights(tmp_path: Path) -> None:
    picture, points = textured(64), torch.zeros(1, 1, 2)
    missing = tmp_path / "loftr.ckpt"
    with pytest.raises(AutodragError, match=r"matcher weights '.*loftr\.ckpt' cannot be used .*kornia's LoFTR file"):
        match_pictures(picture, picture, points, matcher="loftr", weights=missing)
    torch.save({"state_dict": {"a": torch.ones(1)}}, missing)
    with pytest.raises(AutodragError, match=r"cannot be used .*expected kornia's LoFTR file"):
        match_pictures(picture, picture, points, matcher="loftr", weights=missing)
    missing.write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # a pickle with code in it
    with pytest.raises(AutodragError, match=r"cannot be used .*expected kornia's LoFTR file"):
        match_pictures(picture, picture, points, matcher="loftr", weights=missing)
