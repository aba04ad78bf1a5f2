"""Contact sheets: pictures, what was made of them, and the paths in colours."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..svg import Document, render
from ..svg.document import Color

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_PIXELS = 72
NUM_COLUMNS = 4
PALETTE: tuple[Color, ...] = (
    *((0.84, 0.15, 0.16), (0.12, 0.47, 0.71), (0.17, 0.63, 0.17), (1.0, 0.5, 0.05)),
    *((0.58, 0.4, 0.74), (0.55, 0.34, 0.29), (0.89, 0.47, 0.76), (0.09, 0.75, 0.81)),
)


def coloured(document: Document) -> Document:
    """Returns a document with each path in a colour of its own, and thin."""
    shapes = []
    for place, shape in enumerate(document.shapes()):
        color = PALETTE[place % len(PALETTE)]
        fill = shape.fill and replace(shape.fill, color=color, opacity=0.5)
        stroke = shape.stroke and replace(shape.stroke, color=color, width=shape.stroke.width * 0.6)
        shapes.append(replace(shape, fill=fill, stroke=stroke))
    return replace(document, children=tuple(shapes))


def contact_sheet(examples: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws for each icon its picture, the prediction, its paths, and those of the truth.

    Args:
        examples: Each with `image`, nested lists (S, S) in [0, 1], the documents `predicted` and
            `true`, and `title`.
    """
    from matplotlib.figure import Figure

    rows = -(-len(examples) // NUM_COLUMNS)
    figure = Figure(figsize=(4.0 * NUM_COLUMNS, 1.3 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, NUM_COLUMNS, squeeze=False)
    for axes, example in zip(grid.flat, examples, strict=False):
        axes.imshow(_strip(example).permute(1, 2, 0).numpy())
        axes.set_title(example["title"], fontsize=8, loc="left")
    for axes in grid.flat:
        axes.axis("off")
    figure.suptitle("picture | prediction | its paths | true paths", fontsize=9)
    return figure


def _strip(example: Mapping[str, Any]) -> Tensor:
    image = torch.tensor(example["image"])[None, None]
    size = (SHEET_PIXELS, SHEET_PIXELS)
    picture = torch.nn.functional.interpolate(image, size, mode="area").expand(-1, 3, -1, -1)
    predicted, true = example["predicted"], example["true"]
    documents = [predicted, coloured(predicted), coloured(true)]
    drawn = torch.cat([picture, render(documents, size, samples=4)])
    return torch.cat(list(drawn), dim=2).clamp(0, 1)


def pareto_figure(values: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Draws by how many paths each way is wrong against how much of paths and ink is right.

    Args:
        values: For each way `count_error`, `matched_f1`, `ink_iou` and `incomplete_shapes`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    names = ("matched_f1", "ink_iou", "incomplete_shapes")
    for axes, name in zip(figure.subplots(1, 3), names, strict=True):
        for place, (label, found) in enumerate(values.items()):
            color = PALETTE[place % len(PALETTE)]
            marker = "osD^v"[place // len(PALETTE) % 5]
            axes.plot(found["count_error"], found[name], marker, color=color, label=label)
        axes.set(xlabel="paths too many or too few (mean)", title=name.replace("_", " "))
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=6)
    return figure
