"""Where a map peaks, against a box, and what does not count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tenfold.modules.metrics.pointing import PointingGame


def play(tolerance, maps, boxes):
    metric = PointingGame(tolerance)
    number = len(boxes)
    metric.update(["tiny/random"] * number, range(number), maps, boxes)
    return metric.compute()


def peak(height, width, y, x):
    return torch.zeros(height, width).index_put(
        (torch.tensor(y), torch.tensor(x)), torch.tensor(1.0)
    )


def box(*edges):
    return torch.tensor([edges], dtype=torch.float32).reshape(-1, 4)


def test_hits_on_grids_that_are_not_square():
    maps = [peak(4, 8, 1, 6), peak(4, 8, 1, 6), peak(6, 6, 5, 0), peak(2, 2, 0, 0)]
    # The middle of cell (1, 6) of 4 x 8 is at (6.5 / 8, 1.5 / 4).
    boxes = [box(0.8, 0.3, 0.9, 0.4), box(0.3, 0.8, 0.4, 0.9), box(0, 0.9, 0.1, 1), box()]
    found = play(0.0, maps, boxes)
    assert float(found["tiny/random/pointing"]) == pytest.approx(2 / 3)  # the last has no box
    assert float(found["pointing"]) == pytest.approx(2 / 3)
    either = torch.cat((box(0, 0, 0.1, 0.1), box(0.8, 0.3, 0.9, 0.4)))
    assert float(play(0.0, maps[:1], [either])["pointing"]) == 1
    assert play(0.5, maps[3:], boxes[3:]) == {}


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_half_a_cell_of_tolerance_is_that_the_cell_touches_the_box(height, width, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    x0, x1 = sorted(data.draw(st.tuples(st.integers(0, 100), st.integers(0, 100))))
    y0, y1 = sorted(data.draw(st.tuples(st.integers(0, 100), st.integers(0, 100))))
    # In hundredths of a cell's share, exactly.
    touches = x * 100 <= x1 * width and (x + 1) * 100 >= x0 * width
    touches &= y * 100 <= y1 * height and (y + 1) * 100 >= y0 * height
    found = play(0.5, peak(height, width, y, x)[None], [box(x0, y0, x1, y1) / 100])
    assert bool(found["pointing"]) == touches


def test_a_tolerance_is_not_negative():
    with pytest.raises(ValueError, match="tolerance must be 0 or more, got -1"):
        PointingGame(-1)
