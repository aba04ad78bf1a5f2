"""Pictures of what a vision-language model answers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_COLUMNS = 4
GREEN, RED, GREY = "#1a7f37", "#c62828", "#9e9e9e"


def answers_figure(examples: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws images with a question each and the model's most likely first words as bars.

    Args:
        examples: Each with `images`, a list of nested lists (3, H, W) in [0, 1], `question`,
            `answer`, and `guesses`, pairs of a word and its probability, the likeliest first.
    """
    from matplotlib.figure import Figure

    num_rows = -(-len(examples) // NUM_COLUMNS)
    figure = Figure(figsize=(3.1 * NUM_COLUMNS, 3.3 * num_rows), layout="constrained")
    grid = figure.add_gridspec(2 * num_rows, NUM_COLUMNS, height_ratios=[3, 1] * num_rows)
    for place, example in enumerate(examples):
        row, column = divmod(place, NUM_COLUMNS)
        _draw_picture(figure.add_subplot(grid[2 * row, column]), example)
        _draw_guesses(figure.add_subplot(grid[2 * row + 1, column]), example)
    return figure


def _draw_picture(axes: Any, example: Mapping[str, Any]) -> None:
    import numpy as np

    images = np.concatenate([np.asarray(image) for image in example["images"]], axis=2)
    axes.imshow(images.transpose(1, 2, 0).clip(0, 1))
    axes.set_title(f"{example['question']}\nanswer: {example['answer']}", fontsize=9)
    axes.axis("off")


def _draw_guesses(axes: Any, example: Mapping[str, Any]) -> None:
    words, shares = zip(*example["guesses"], strict=True)
    first = example["answer"].split()[0].lower()
    best = GREEN if words[0] == first else RED
    axes.barh(range(len(words)), shares, color=[best] + [GREY] * (len(words) - 1))
    axes.set_yticks(range(len(words)), words, fontsize=9)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])
    axes.invert_yaxis()
    for y, share in enumerate(shares):
        axes.text(share + 0.02, y, f"{share:.2f}", va="center", fontsize=8)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def accuracy_figure(values: Mapping[str, float], title: str) -> "Figure":
    """Draws a table of accuracies: a row for each group, a column for each kind of question.

    Args:
        values: What `AnswerAccuracy.compute` returns.
        title: Above it.
    """
    from matplotlib.figure import Figure

    cells = {
        tuple(name.split("/")[1:]): value for name, value in values.items() if name.count("/") == 2
    }
    groups = list(dict.fromkeys(group for group, _ in cells))
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    table = [[100 * cells.get((group, kind), float("nan")) for kind in kinds] for group in groups]
    size = (2.2 + 0.9 * len(kinds), 1.4 + 0.45 * len(groups))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(table, cmap="YlGn", vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            if value == value:
                color = "white" if value > 65 else "black"
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(groups)), groups)
    axes.set_title(title, fontsize=9)
    return figure
