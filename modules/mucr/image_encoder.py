"""A network of a few convolutions that turns small pictures into vectors."""

from collections.abc import Sequence

from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """Convolutions that halve the picture, then the mean and the place of what they found.

    Normalised in groups of channels, so that a picture's vector depends on no other picture of the
    batch, and several processes learn what one does.

    Args:
        widths: Channels after each halving, multiples of 8.
        grid: The last feature map is averaged to so many cells per side. 1 forgets where things
            are, which is what matching subjects by their looks wants.

    Shapes:
        images: (N, 3, H, W) in [0, 1]; returns (N, `num_features`).

    Raises:
        ValueError: A width is no multiple of 8.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 96), grid: int = 2) -> None:
        super().__init__()
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise ValueError(f"widths: {list(widths)}, expected multiples of 8")
        layers: list[nn.Module] = []
        for before, width in zip((3, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(8, width)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.num_features = widths[-1] * grid**2

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Returns the vectors."""
        features_NF: Tensor = self.layers(2 * images_NCHW - 1)
        return features_NF
