"""A tiny model and pictures to ask it about."""

import pytest
import torch
from tiny_vlm import build


@pytest.fixture(scope="module")
def conv():
    module = build("conv")
    module.network.train(False)
    return module


@pytest.fixture
def images():
    """Of different sizes, one per question."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 40), (40, 40), (64, 48)]
    return [[torch.rand(3, *size, generator=generator)] for size in sizes]
