"""The dense loss against a program that looks at each patch by itself."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.vision_language_model.dense import (
    MIN_COVER,
    PatchHead,
    grid_side,
    patch_labels,
)


def cover_of(box, row, column, side):
    """Area of a patch that a box covers, as a share of the patch."""
    left, top, right, bottom = (side * edge for edge in box)
    width = min(right, column + 1) - max(left, column)
    height = min(bottom, row + 1) - max(top, row)
    return max(width, 0) * max(height, 0)


coordinates = st.floats(0, 1, width=32)
boxes_of_an_image = st.lists(
    st.tuples(coordinates, coordinates, coordinates, coordinates), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(boxes_of_an_image, st.integers(1, 5))
def test_each_patch_has_the_label_of_what_covers_most_of_it(boxes, side):
    labels = [[i + 1, 10 + i] for i in range(len(boxes))]
    found = patch_labels(torch.tensor([boxes]), torch.tensor([labels]), side)
    assert found.shape == (1, side, side, 2)
    for row in range(side):
        for column in range(side):
            covers = [cover_of(box, row, column, side) for box in boxes]
            best = max(covers)
            if best < MIN_COVER - 1e-5:
                assert found[0, row, column].tolist() == [0, 0]
            elif best > MIN_COVER + 1e-5:
                rivals = [labels[i] for i, cover in enumerate(covers) if cover > best - 1e-5]
                assert found[0, row, column].tolist() in rivals


def test_empty_boxes_are_no_objects():
    boxes = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 0, 0]]])
    labels = torch.tensor([[[3, 4], [-100, -100]]])
    assert patch_labels(boxes, labels, 3).unique(dim=0).tolist() == [[[[3, 4]] * 3] * 3]


def test_the_loss_ignores_background_but_in_the_first_task():
    torch.manual_seed(0)
    head = PatchHead(8, [4, 10])
    features = torch.randn(2 * 4, 8)  # two images of 2 x 2 patches
    boxes = torch.tensor([[[0, 0, 0.5, 0.5]], [[0.5, 0.5, 1, 1]]])
    labels = torch.tensor([[[1, 7]], [[4, 10]]])
    first, second = head(features)
    colour = torch.tensor([1, 0, 0, 0, 0, 0, 0, 4])
    expected = F.cross_entropy(first, colour) + F.cross_entropy(
        second[[0, 7]], torch.tensor([7, 10])
    )
    torch.testing.assert_close(head.loss(features, boxes, labels), expected)
    nothing = head.loss(features, torch.zeros_like(boxes), labels)
    torch.testing.assert_close(nothing, F.cross_entropy(first, torch.zeros(8, dtype=torch.long)))


def test_what_does_not_fit_is_named():
    head = PatchHead(8, [4, 10])
    boxes, labels = torch.tensor([[[0, 0, 1.0, 1]]]), torch.tensor([[[5, 1]]])
    with pytest.raises(ValueError, match=r"5 in task 0, but .*patch_classes says 4"):
        head.loss(torch.randn(4, 8), boxes, labels)
    with pytest.raises(ValueError, match="3 tasks, but"):
        head.loss(torch.randn(4, 8), boxes, labels.repeat(1, 1, 2)[..., :3])
    with pytest.raises(ValueError, match="6 features of 1 images form no square grid"):
        grid_side(6, 1)
    with pytest.raises(ValueError, match="patch_classes: "):
        PatchHead(8, [])
