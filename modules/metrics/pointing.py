"""The pointing game (Zhang et al. 2016): does a map peak where the object is?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .questions import QuestionMetric


class PointingGame(QuestionMetric):
    """Share of maps whose largest value lies in a box of what was asked about.

    `compute` returns for each set `<name>/pointing`, and over all questions `pointing`, float64 in
    [0, 1]. Questions without a box do not count.

    Args:
        tolerance: How far outside a box the middle of the peak's cell may be, in cells: 0.5 lets a
            coarse map hit an object that is smaller than its cells; 0 is meant for maps of pixels.

    Raises:
        ValueError: A negative tolerance.
    """

    def __init__(self, tolerance: float = 0.5) -> None:
        super().__init__(num_values=1)
        if tolerance < 0:
            raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
        self.tolerance = tolerance

    def update(
        self,
        sets: Sequence[str],
        question_ids: Sequence[str | int],
        maps: Sequence[Tensor],
        boxes: Sequence[Tensor],
    ) -> None:
        """Adds maps.

        Args:
            sets: What each is reported under.
            question_ids: Unique in a set.
            maps: Of each question, (h, w), of one size or several; a tensor (B, h, w) will do.
            boxes: Of each question, (n, 4): left, top, right, bottom as shares of the map. Where
                the model saw the image padded, they are shares of the padded image.
        """
        rows = zip(sets, question_ids, maps, boxes, strict=True)
        played = [(name, i, peaks_in_box(m, b, self.tolerance)) for name, i, m, b in rows if len(b)]
        names, ids, hits = zip(*played, strict=True) if played else ((), (), ())
        self.add(names, ids, torch.tensor(hits))

    def compute(self) -> dict[str, Tensor]:
        """Returns the shares."""
        found = self.rows()
        shares = {f"{name}/pointing": rows[:, 0].mean() for name, rows in found.items()}
        if found:
            shares["pointing"] = torch.cat([*found.values()])[:, 0].mean()
        return shares


def peaks_in_box(map_HW: Tensor, boxes_N4: Tensor, tolerance: float = 0.5) -> bool:
    """Says whether the largest value of a map lies in a box.

    Args:
        map_HW: Of cells.
        boxes_N4: Left, top, right, bottom as shares of the map.
        tolerance: How far outside the middle of the peak's cell may be, in cells.
    """
    height, width = map_HW.shape
    y, x = divmod(int(map_HW.argmax()), width)
    left, top, right, bottom = boxes_N4.double().cpu().unbind(1)
    # In cells; the middle of the peak's cell is at (x + 0.5, y + 0.5).
    slack = tolerance + 1e-6  # boxes are float32
    dx = torch.maximum(left * width - (x + 0.5), x + 0.5 - right * width)
    dy = torch.maximum(top * height - (y + 0.5), y + 0.5 - bottom * height)
    return bool(((dx <= slack) & (dy <= slack)).any())
