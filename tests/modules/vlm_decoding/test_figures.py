import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tenfold.modules.vlm_decoding.figures import Example, examples_figure


@pytest.mark.parametrize(("num_looks", "num_others"), [(1, 1), (2, 3), (6, 11)])
def test_no_text_lies_on_another(num_looks, num_others):
    labels = [f"look {k}" for k in range(num_looks)] + [f"other {k}" for k in range(num_others)]
    look = (torch.rand(8, 8), torch.rand(3, 8, 8))
    example = Example(
        "tiny/what",
        "0",
        "Is there a 1 in the image?",
        "yes",
        "0.png",
        torch.rand(3, 8, 8),
        dict.fromkeys(labels, "no"),
        dict.fromkeys(labels[:num_looks], look),
    )
    figure = examples_figure([example] * 3, labels)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for axes in figure.axes for text in (axes.title, *axes.texts) if text.get_text()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    assert len(boxes) == 3 * (1 + 2 * num_looks + num_looks + num_others)
    for k, box in enumerate(boxes):
        assert [n for n, other in enumerate(boxes) if n != k and box.overlaps(other)] == []
