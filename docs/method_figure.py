"""Draws docs/method.png: the closed loop of the predictor and a refiner step, with the maps of a real drag.

python docs/method_figure.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from autodrag import DragEditor
from autodrag.infer.open_image import OpenImage
from autodrag.points import rescale
from autodrag.tracking import look

SEED, HANDLE, TARGET = 28, (40.0, 40.0), (30.0, 40.0)


def feature_picture(features: torch.Tensor) -> np.ndarray:
    """The first three principal components of a map (C, h, w) as RGB."""
    cells = features.flatten(1).t()
    cells = cells - cells.mean(dim=0)
    _, _, directions = torch.pca_lowrank(cells, q=3, center=False)
    values = (cells @ directions).reshape(*features.shape[1:], 3)
    low, high = values.amin(dim=(0, 1)), values.amax(dim=(0, 1))
    return ((values - low) / (high - low)).numpy()


def main() -> None:
    """Runs one drag and draws the figure."""
    torch.manual_seed(0)
    editor = DragEditor.load("checkpoints/critters", device="cpu")
    before = editor.open(seed=SEED)
    opened = OpenImage.of(editor.generator, editor.latent, editor.learned)
    result = editor.drag([HANDLE], [TARGET], method="predict")
    blocks = slice(2, 5)
    reference = opened.look(blocks).at(torch.tensor([[HANDLE]]), editor.image_size)
    edited = look(OpenImage.of(editor.generator, editor.latent).features.outputs[blocks])
    cost = 1 - torch.einsum("bchw,bnc->bnhw", edited.units[1], reference.features[1])[0, 0]

    figure = plt.figure(figsize=(12, 4.6), dpi=110)
    titles = ("image, handle, target", "features F", "map tokens", "image of the edited latent", "tracker's cost")
    axes: list[Axes] = [figure.add_axes((0.02 + 0.197 * k, 0.42, 0.155, 0.42)) for k in range(5)]
    for k, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        if k < 4:
            axis.annotate(
                "", (1.25, 0.5), (1.03, 0.5), xycoords="axes fraction", arrowprops={"arrowstyle": "->", "lw": 2}
            )
    axes[0].imshow(before)
    axes[0].annotate("", TARGET, HANDLE, arrowprops={"arrowstyle": "->", "color": "white", "lw": 1.5})
    axes[0].plot(*HANDLE, "o", color="#e62828")
    axes[0].plot(*TARGET, "o", color="#285af0")
    axes[1].imshow(feature_picture(opened.features.outputs[3][0].float()))
    tokens = opened.memory.map_tokens
    assert tokens is not None
    side = round(tokens.shape[1] ** 0.5)
    axes[2].imshow(feature_picture(tokens[0].t().reshape(-1, side, side)))
    axes[3].imshow(result.image)
    axes[4].imshow(cost.numpy(), cmap="viridis_r")
    size = (cost.shape[0], cost.shape[1])
    axes[4].plot(*rescale(torch.tensor(result.points[0]), editor.image_size, size).tolist(), "o", color="white")
    figure.text(0.5, 0.92, "The closed loop of the predictor", ha="center", fontsize=12, weight="bold")
    axes[4].annotate(
        "again, from where the points are now",
        (0.095, 0.36), (0.9, 0.36), xycoords="figure fraction", ha="right", va="center",
        arrowprops={"arrowstyle": "->", "lw": 2, "connectionstyle": "arc3,rad=0"},
    )  # fmt: skip
    figure.text(
        0.5, 0.08,
        "A step of the refiner:  residuals r = tracked points - targets   |   J = dr/dw in standard coordinates\n"
        r"$\Delta = -\,J^T (J J^T + \mu I)^{-1} r$   (the shortest edit that moves all points as wanted)   |   "
        r"accept if the loss falls, otherwise increase $\mu$",
        ha="center", fontsize=11, bbox={"boxstyle": "round,pad=0.6", "facecolor": "#f2f2f2", "edgecolor": "#bbbbbb"},
    )  # fmt: skip
    figure.savefig(Path(__file__).with_name("method.png"))


if __name__ == "__main__":
    main()
