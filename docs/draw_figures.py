"""Draws the figures of docs/mathematics.md: `python docs/draw_figures.py` writes docs/figures/*.png."""

from pathlib import Path

import matplotlib
import numpy as np
import torch

import dctps_ext
from dctps_ext import reference

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent / "figures"
BLUE, ORANGE, GREEN, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
)  # Okabe and Ito's, for every kind of sight


def save(figure, name):
    figure.savefig(FOLDER / f"{name}.png", dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_layer(m=24, n=32, density=0.06):
    offset = reference.dct_matrix(m, n).numpy()
    support = dctps_ext.Support.random(m, n, round(density * m * n), seed=1)
    sparse = np.zeros((m, n))
    sparse[support.mask().numpy()] = 0.5 * np.random.default_rng(0).standard_normal(support.nnz)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3))
    titles = ("alpha D: nothing stored", f"S: {support.nnz} values stored", "W = alpha D + S")
    for axis, matrix, title in zip(axes, (offset, sparse, offset + sparse), titles, strict=True):
        image = axis.imshow(matrix, cmap="PuOr", vmin=-0.5, vmax=0.5)
        axis.set(title=title, xlabel=f"input i < n = {n}")
    axes[0].set_ylabel(f"output k < m = {m}")
    figure.colorbar(image, ax=axes, label="weight", shrink=0.85)
    save(figure, "layer")


def draw_makhoul(q=12):
    figure, axis = plt.subplots(figsize=(8, 2.4))
    for i in range(q):
        j = i // 2 if i % 2 == 0 else q - 1 - i // 2
        axis.plot([i, j], [1, 0], color=BLUE if i % 2 == 0 else ORANGE)
        axis.text(i, 1.08, f"x[{i}]", ha="center", va="bottom")
        axis.text(i, -0.08, f"v[{i}]", ha="center", va="top")
    axis.plot([], [], color=BLUE, label="even places, ascending")
    axis.plot([], [], color=ORANGE, label="odd places, descending")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2, frameon=False)
    axis.set(ylim=(-0.3, 1.3))
    axis.axis("off")
    save(figure, "makhoul")


def draw_taps():
    figure, axis = plt.subplots(figsize=(8.5, 3.2))
    for row in range(5):
        for column in range(5):
            inside = row < 3 and column < 3
            axis.add_patch(
                plt.Rectangle((column, 4 - row), 0.92, 0.92, color=BLUE if inside else "#cccccc", alpha=0.8)
            )
            if inside:
                axis.text(
                    column + 0.46, 4.46 - row, f"s={3 * row + column}", ha="center", va="center", color="w"
                )
    axis.text(2.5, -0.4, "pixels p, each transformed once: A[p], B[p]", ha="center", va="top")
    for step in range(3):
        axis.add_patch(plt.Rectangle((7.3, 4 - step), 0.92, 0.92, color=ORANGE, alpha=0.9))
        axis.annotate("", (7.2, 4.46 - step), (3.05, 4.46 - step), arrowprops={"arrowstyle": "->"})
    axis.text(5.1, 5.1, "3 taps along each row", ha="center", va="bottom")
    axis.add_patch(plt.Rectangle((10.6, 3), 0.92, 0.92, color=GREEN, alpha=0.9))
    for step in range(3):
        axis.annotate("", (10.5, 3.46), (8.3, 4.46 - step), arrowprops={"arrowstyle": "->"})
    axis.text(9.4, 5.1, "3 along the column", ha="center", va="bottom")
    axis.text(11.06, 2.6, "y[p, k]", ha="center", va="top")
    axis.set(xlim=(-0.2, 12), ylim=(-1, 5.8), aspect="equal")
    axis.axis("off")
    save(figure, "taps")


def draw_rank():
    figure, axis = plt.subplots(figsize=(7, 3.5))
    for channels, colour in zip((64, 128, 256, 512), (BLUE, ORANGE, GREEN, RED), strict=True):
        q = 9 * channels
        angles = np.pi * np.arange(channels)[:, None] / (2 * q) * (2 * np.arange(channels) + 1)
        sizes = np.linalg.svd(np.concatenate([np.cos(angles), np.sin(angles)]), compute_uv=False)
        rank = int((sizes > 1e-6 * sizes[0]).sum())
        axis.semilogy(
            np.arange(1, channels + 1),
            sizes / sizes[0],
            color=colour,
            label=f"C = m = {channels}: rank {rank}",
        )
    axis.axhline(1e-6, color="black", linewidth=0.8, linestyle="--", label="1e-6, what float32 needs")
    axis.set(
        xlabel="number of the singular value",
        ylabel="relative to the largest",
        ylim=(1e-17, 2),
        xlim=(0, 200),
    )
    axis.set_title("x[p] -> (A[p], B[p]) of a 3x3 convolution, 2m x C")
    axis.legend()
    save(figure, "rank")


if __name__ == "__main__":
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    draw_layer()
    draw_makhoul()
    draw_taps()
    draw_rank()
