"""A batch of conversations, and every family by name."""

import pytest
import torch
from tiny_vlm import CONFIGS


@pytest.fixture(params=[name for name in CONFIGS if name != "smolvlm"])
def any_config(request) -> str:
    return request.param


@pytest.fixture
def batch():
    """Three conversations of one to two questions about an image each."""
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.rand(3, 1, 3, 40, 40, generator=generator),
        "questions": [
            ["What is the red digit?", "Is the blue digit a 5?"],
            ["What is in the image?"],
            ["What is the blue digit?"],
        ],
        "answers": [["7", "yes"], ["top left"], ["3"]],
        "kinds": [["what", "is"], ["where"], ["what"]],
        "group": ["large", "large", "tiny"],
        "index": torch.arange(3),
        "boxes": torch.tensor([[[0, 0, 0.5, 0.5], [0.5, 0, 1, 1.0]]]).repeat(3, 1, 1),
        "box_labels": torch.tensor([[[1, 7], [4, 10]]]).repeat(3, 1, 1),
    }


@pytest.fixture
def single(batch):
    """The same, one question each, as in evaluation."""
    firsts = {key: [row[:1] for row in batch[key]] for key in ("questions", "answers", "kinds")}
    return {**batch, **firsts}
