"""Draws the figures of the pages: `python docs/draw_figures.py` writes docs/figures/*.png."""

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


def square(axis, x, y, colour, **keywords):
    axis.add_patch(plt.Rectangle((x, y), 0.9, 0.9, color=colour, **keywords))


def draw_conv_line(height=3, width=4):
    """Two images as one line of cells, 3x3 taps, padding 1; TapSpace's pitch is width + 1, height + 1."""
    pitch, padding = width + 1, "#cccccc"
    cells = 2 * (height + 1) * pitch
    holds_pixel = [i % pitch > 0 and i // pitch % (height + 1) > 0 for i in range(cells)]
    first, count = 6, 12  # of the tile: outputs are numbered by the first cell that they see
    taps = [a * pitch + b for a in range(3) for b in range(3)]
    reach = taps[-1]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(12, 4.4), height_ratios=(3, 2))
    for i in range(cells):
        x, y = i % pitch + (pitch + 3) * (i // (pitch * (height + 1))), -(i // pitch % (height + 1))
        square(top, x, y, BLUE if holds_pixel[i] else padding)
        top.text(x + 0.45, y + 0.45, i, ha="center", va="center", color="w" if holds_pixel[i] else "k")
        square(bottom, i, 0, BLUE if holds_pixel[i] else padding)
        if i - first in taps:
            for axis, at in ((top, (x, y)), (bottom, (i, 0))):
                axis.add_patch(plt.Rectangle(at, 0.9, 0.9, fill=False, edgecolor=ORANGE, linewidth=3))
    for x, text in ((0, "image 0"), (pitch + 3, "image 1")):
        top.text(x, 1.2, f"{text}: {height} x {width} pixels in {height + 1} x {pitch} cells")
    top.text(
        2 * pitch + 4,
        -1,
        "blue: pixels\ngrey: padding, shared by a row and the next,\nby an image and the next\n"
        f"orange: what output {first} sees, the cells\n"
        f"{first} + ({', '.join(map(str, taps))})\n"
        f"the same shifts for every output,\nso every tap is a plain vector operation",
        va="center",
    )
    for y, cell, length, colour, text in (
        (-0.7, first, count, GREEN, f"the tile: {count} cells of y"),
        (-1.7, first, count + reach, RED, f"of x: {reach} cells more, the reach (2 rows and 2 columns)"),
    ):
        bottom.plot([cell, cell + length - 0.1], [y, y], color=colour, linewidth=5, solid_capstyle="butt")
        bottom.text(cell, y - 0.2, text, ha="left", va="top")
    bottom.text(0, 1.2, "the line: one cell behind the other")
    top.set(xlim=(-0.2, 26), ylim=(-height - 0.2, 2), aspect="equal", anchor="W")
    bottom.set(xlim=(-0.2, cells + 0.2), ylim=(-3, 2), aspect="equal", anchor="W")
    top.axis("off")
    bottom.axis("off")
    save(figure, "conv_line")


def draw_conv_tile():
    """The buffers of ForwardTile for 64 filters of 3x3 on 64 channels, rows of cells to scale."""
    figure, axis = plt.subplots(figsize=(12, 4.6))
    stages = (  # name, rows, width in cells, colour, what it holds, the step to the next
        ("x", 64, 1.14, BLUE, "64 channels", "1 reduce\n2 x 9 sums\nof 32 folded\nchannels"),
        ("inner", 18, 1.14, ORANGE, "9 + 9", "2 expand\n8 filters,\nre and im"),
        ("z", 16, 1.14, GREEN, "8 x 2", "3 across\nkw taps\nof a row"),
        ("h", 2, 1.13, RED, "2", "4 down\nkh taps, alpha,\nbias; 5 sparse:\ny += S x"),
        ("y", 16, 1.0, BLUE, "16 filters", ""),
    )
    left = 0.0
    for name, rows, width, colour, holds, step in stages:
        bar = 1.5 * width
        axis.add_patch(plt.Rectangle((left, -rows / 2), bar, rows, color=colour, alpha=0.85))
        axis.text(left + bar / 2, 34, name, ha="center", va="bottom", fontweight="bold", fontsize=12)
        axis.text(left + bar / 2, -35, f"{holds}\nx {width:.2f} cells", ha="center", va="top")
        if step:
            axis.annotate("", (left + bar + 1.45, 0), (left + bar + 0.08, 0), arrowprops={"arrowstyle": "->"})
            axis.text(left + bar + 0.76, 2, step, ha="center", va="bottom", fontsize=9)
        left += bar + 1.55
    inner, y = (axis.patches[i].get_x() + axis.patches[i].get_width() / 2 for i in (1, 4))
    axis.plot([y, y, inner], [-46, -52, -52], color="#555555", linestyle="--")
    axis.annotate("", (inner, -46), (inner, -52.5), arrowprops={"arrowstyle": "->", "color": "#555555"})
    text = "2 to 4 for 8 filters at a time, 5 and the store for 16"
    axis.text((inner + y) / 2, -53, text, ha="center", va="top", color="#555555")
    axis.set(xlim=(-0.1, left - 1.3), ylim=(-60, 42))
    axis.axis("off")
    save(figure, "conv_tile")


if __name__ == "__main__":
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    draw_layer()
    draw_makhoul()
    draw_taps()
    draw_rank()
    draw_conv_line()
    draw_conv_tile()
