"""The Triton kernel of `kernels/compositing.py` against its reference."""

import pytest
import torch
from tenfold.kernels.compositing import BLEND_MODES, composite_layers, mode_numbers
from torch import Tensor


def random_layers(mode: str | None, size: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Two images of three layers; coverage and colours reach 0 and 1."""
    coverage = (torch.rand(2, 3, *size) * 1.4 - 0.2).clamp(0, 1)
    color = (torch.rand(2, 3, 3) * 1.4 - 0.2).clamp(0, 1)
    opacity = torch.tensor([[1.0, 0.5, 0.7], [0.9, 0.0, 1.0]])
    numbers = torch.randint(len(BLEND_MODES), (2, 3))
    if mode is not None:
        numbers = mode_numbers([mode]).expand(2, 3)
    return [value.to(device) for value in (coverage, color, opacity, numbers)]


@pytest.mark.parametrize(
    ("mode", "size"),
    [*((mode, (3, 5)) for mode in BLEND_MODES), (None, (7, 90))],  # one block of pixels, several
)
def test_images(mode, size, device):
    layers = random_layers(mode, size, device)
    alpha = torch.rand(2, 1, *size, device=device).round(decimals=1)
    backdrop = torch.cat((torch.rand(2, 3, *size, device=device) * alpha, alpha), dim=1)
    for below, prefixes in ((None, True), (backdrop, False)):
        mine = composite_layers(*layers, below, prefixes, backend="triton")
        expected = composite_layers(*layers, below, prefixes, backend="reference")
        torch.testing.assert_close(mine, expected, rtol=0, atol=2e-6)


def test_defaults(device):
    coverage, color, _, _ = random_layers("normal", (3, 5), device)
    mine = composite_layers(coverage, color, backend="triton")
    expected = composite_layers(coverage, color, backend="reference")
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


def test_gradients(device):
    layers = random_layers("multiply", (4, 6), device)
    given = [value.requires_grad_() for value in layers[:3]]

    def gradients(backend: str) -> tuple[Tensor, ...]:
        image = composite_layers(*layers, backend=backend)
        return torch.autograd.grad(image.square().sum(), given)

    torch.testing.assert_close(gradients("triton"), gradients("reference"))


def test_an_empty_batch_launches_nothing(device):
    coverage = torch.zeros(0, 2, 4, 4, device=device)
    color = torch.zeros(0, 2, 3, device=device)
    assert composite_layers(coverage, color, backend="triton").shape == (0, 4, 4, 4)
