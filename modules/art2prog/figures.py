"""Contact sheets: pictures, what programs draw instead, and the programs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4  # examples side by side


class Example(NamedTuple):
    """A picture and the program that was written for it.

    Attributes:
        expected: Text of the true program.
        program: Text of the written one.
        target: (3, H, W) in [0, 1].
        image: What the written program draws.
    """

    expected: str
    program: str
    target: Tensor
    image: Tensor


def programs_figure(examples: Sequence[Example]) -> "Figure":
    """Draws for each example the picture, the program's, their difference, and the program."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    longest = max(example.program.count("\n") for example in examples)
    height = 1.3 + 0.105 * longest
    figure = Figure(figsize=(3.6 * columns, height * rows + 0.3), layout="constrained")
    grid = figure.add_gridspec(
        2 * rows, 3 * columns, height_ratios=[1.2, 0.105 * longest + 0.1] * rows
    )
    for place, example in enumerate(examples):
        row, column = divmod(place, columns)
        difference = (example.target - example.image).abs()
        shown = (example.target, example.image, 1 - difference)
        for part, (image, title) in enumerate(
            zip(shown, ("picture", "program", "difference"), strict=True)
        ):
            axes = figure.add_subplot(grid[2 * row, 3 * column + part])
            axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(title, fontsize=7)
        axes = figure.add_subplot(grid[2 * row + 1, 3 * column : 3 * column + 3])
        axes.axis("off")
        same = example.program == example.expected
        color = "darkgreen" if same else "black"
        text = example.program.rstrip() + ("   exact" if same else "")
        axes.text(0, 1, text, va="top", family="monospace", fontsize=6.5, color=color)
    return figure
