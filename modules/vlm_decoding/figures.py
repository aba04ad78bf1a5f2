"""Pictures and tables of several ways of decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREEN, RED = "#1a7f37", "#c62828"
# Columns of the table after a strategy's name; those that were not measured are left out.
COST_COLUMNS = (
    *("prefills_per_token", "tokens_per_second", "encoded_images", "rounds", "peak_memory_gib"),
)
SHARES = (
    *("accuracy", "precision", "recall", "f1", "yes_ratio", "unparsed_ratio"),
    *("pointing", "difference", "f1_difference"),
)


@dataclass
class Example:
    """A question, how strategies looked at its image, and what they answered.

    Args:
        set: Of the question.
        id: Of the question.
        question: As it was asked.
        label: What is right.
        image_name: Of the image.
        image: (3, H, W) in [0, 1].
        answers: By strategy.
        looks: By strategy the map (h, w) in [0, 1] and the image (3, H, W) that was looked at.
    """

    set: str
    id: str
    question: str
    label: str
    image_name: str
    image: Tensor
    answers: dict[str, str] = field(default_factory=dict)
    looks: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def examples_figure(examples: Sequence[Example], labels: Sequence[str]) -> "Figure":
    """Draws a row for each question: image, and for each look its map and what was looked at.

    Args:
        examples: At least one.
        labels: Strategies, in their order.
    """
    from matplotlib.figure import Figure

    shown = [label for label in labels if any(label in e.looks for e in examples)]
    num_columns = 1 + 2 * len(shown)
    num_lines = max(1, len(labels) - len(shown))
    heights = [2.7, 0.18 * num_lines]  # inches; answers are below pictures
    size = (2.6 * num_columns + 0.6, sum(heights) * len(examples))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        2 * len(examples), num_columns, squeeze=False, height_ratios=heights * len(examples)
    )
    for axes in grid.flat:
        axes.axis("off")
    for row, below, example in zip(grid[::2], grid[1::2], examples, strict=True):
        picture = _pixels(example.image)
        row[0].imshow(picture)
        row[0].set_title(f"{example.set}\n{example.question}\nright: {example.label}", fontsize=8)
        others = [label for label in labels if label not in shown and label in example.answers]
        answers = [(label, example.answers[label]) for label in others]
        _write_answers(below[0], answers, example.label, num_lines)
        for place, label in enumerate(shown):
            if label in example.looks:
                map_hw, image = example.looks[label]
                _draw_map(row[1 + 2 * place], picture, map_hw, label)
                row[2 + 2 * place].imshow(_pixels(image))
                row[2 + 2 * place].set_title(f"{label}: looked at", fontsize=8)
                answer = [(label, example.answers[label])]
                _write_answers(below[2 + 2 * place], answer, example.label, num_lines)
    return figure


def table_text(labels: Sequence[str], rows: Sequence[Mapping[str, float]]) -> str:
    """Returns a Markdown table: a column for each strategy, quality first, then costs."""
    lines = ["| | " + " | ".join(labels) + " |", "|---" + "|---:" * len(labels) + "|"]
    for name in _columns(rows):
        lines.append(f"| {name} | " + " | ".join(_cell(name, row) for row in rows) + " |")
    return "\n".join(lines) + "\n"


def table_figure(labels: Sequence[str], rows: Sequence[Mapping[str, float]]) -> "Figure":
    """Draws the shares of right answers of each strategy in each set, and the costs beside them."""
    from matplotlib.figure import Figure

    columns = [name for name in _columns(rows) if name.endswith("/accuracy")] or _columns(rows)[:8]
    costs = [name for name in COST_COLUMNS if any(name in row for row in rows)]
    names = [*columns, *costs]
    figure = Figure(
        figsize=(2.4 + 1.15 * len(names), 1.9 + 0.42 * len(labels)), layout="constrained"
    )
    axes = figure.add_subplot()
    # Colours within a column: from its worst to its best.
    for x, name in enumerate(names):
        values = [row.get(name, float("nan")) for row in rows]
        known = [value for value in values if value == value]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        for y, value in enumerate(values):
            if name in columns and value == value:
                share = (value - low) / (high - low) if high > low else 0.5
                axes.fill_between(
                    [x - 0.5, x + 0.5], y - 0.5, y + 0.5, color="#1a7f37", alpha=0.08 + 0.5 * share
                )
            axes.text(x, y, _cell(name, rows[y]), ha="center", va="center", fontsize=9)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    wrapped = [
        name.removesuffix("/accuracy").replace("/", "\n").replace("_", "\n") for name in names
    ]
    axes.set_xticks(range(len(names)), wrapped, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title("accuracy (%) and costs of ways to decode", fontsize=10)
    return figure


def _columns(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of numbers in the order in which they came, costs last."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    quality = [name for name in names if name not in COST_COLUMNS]
    return quality + [name for name in COST_COLUMNS if name in names]


def _cell(name: str, row: Mapping[str, float]) -> str:
    value = row.get(name)
    if value is None or value != value:
        return ""
    if name.rpartition("/")[2] in SHARES:
        return f"{100 * value:.1f}"
    return f"{value:.3g}"


def _pixels(image: Tensor) -> Any:
    return image.float().permute(1, 2, 0).clamp(0, 1).numpy()


def _draw_map(axes: Any, picture: Any, map_hw: Tensor, label: str) -> None:
    height, width = picture.shape[:2]
    enlarged = F.interpolate(map_hw[None, None].float(), (height, width), mode="bilinear")
    axes.imshow(picture)
    axes.imshow(enlarged[0, 0].numpy(), cmap="inferno", alpha=0.6)
    axes.set_title(f"{label}: map, up to {float(map_hw.max()):.2f}", fontsize=8)


def _write_answers(
    axes: Any, answers: Sequence[tuple[str, str]], label: str, num_lines: int
) -> None:
    """Writes what was said, green where it is right, into axes that have room for some lines."""
    for line, (name, text) in enumerate(answers):
        known = bool(label)
        is_right = text.lower().startswith(label.lower())
        color = (GREEN if is_right else RED) if known else "black"
        short = text if len(text) <= 60 else text[:57] + "..."
        axes.text(
            *(0.5, 1 - line / num_lines, f"{name}: {short}"),
            **{"transform": axes.transAxes, "ha": "center", "va": "top"},
            color=color,
            fontsize=8,
        )
