"""Pictures of what a matcher does."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def matches_figure(images_K2CHW: Tensor, similarities_KK: Tensor) -> "Figure":
    """Draws a group: causes down the side, effects along the top, between them how close they are.

    Args:
        images_K2CHW: Of cause and effect, in [0, 1].
        similarities_KK: Of each cause to each effect; the right ones are on the diagonal.
    """
    from matplotlib.figure import Figure

    size = len(images_K2CHW)
    figure = Figure(figsize=(1.3 * (size + 1), 1.3 * (size + 1)), layout="constrained")
    axes = figure.subplots(size + 1, size + 1)
    for row in range(size + 1):
        for column in range(size + 1):
            cell = axes[row][column]
            cell.set(xticks=[], yticks=[])
            if row == 0 and column == 0:
                cell.axis("off")
                cell.text(0.5, 0.5, "effects →\n↓ causes", ha="center", va="center")
            elif row == 0 or column == 0:
                picture = images_K2CHW[max(row, column) - 1, 0 if column == 0 else 1]
                cell.imshow(picture.permute(1, 2, 0).clamp(0, 1).float().numpy())
            else:
                values = similarities_KK[row - 1]
                value = float(values[column - 1])
                cell.set_facecolor(
                    (
                        *((0.2, 0.6, 0.2) if row == column else (0.8, 0.3, 0.2)),
                        0.15 + 0.6 * max(0.0, min(1.0, value)),
                    )
                )
                weight = "bold" if int(values.argmax()) == column - 1 else "normal"
                cell.text(0.5, 0.5, f"{value:.2f}", ha="center", va="center", weight=weight)
    return figure
