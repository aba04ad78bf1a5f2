"""What a reader looks at first: which text an image is most similar to."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def similarity_figure(images: Tensor, texts: Sequence[str], similarity: Tensor) -> "Figure":
    """Draws how similar each image is to each text; those that belong together on the diagonal.

    Args:
        images: (N, 3, S, S) uint8.
        texts: N texts.
        similarity: (N, N) cosines, of each image (first axis) to each text.
    """
    from matplotlib.figure import Figure

    number = len(images)
    figure = Figure(figsize=(3.5 + 0.62 * number, 1.6 + 0.5 * number), layout="constrained")
    grid = figure.add_gridspec(2, number, height_ratios=(1, number))
    for column in range(number):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(images[column].permute(1, 2, 0).numpy())
        axes.set_axis_off()
    axes = figure.add_subplot(grid[1, :])
    shown = axes.imshow(similarity.T.numpy(), aspect="auto", cmap="viridis")
    best = similarity.argmax(dim=1)
    for column in range(number):
        marker, color = ("o", "w") if best[column] == column else ("x", "r")
        axes.plot(column, int(best[column]), marker, color=color)
    labels = [textwrap.shorten(text, 60, placeholder=" ...") for text in texts]
    axes.set_yticks(range(number), labels)
    axes.set_xticks([])
    right = int((best == torch.arange(number)).sum())
    axes.set_title(f"most similar text (o right, x wrong): {right} of {number}", fontsize=10)
    figure.colorbar(shown, ax=axes, label="cosine")
    return figure
