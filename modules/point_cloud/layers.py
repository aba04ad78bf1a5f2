"""What the backbones share: layers for all points alike, masks, and sorting.

Points are rows and layers `nn.Linear` on their last dimension, which quantisation-aware training
covers. torch-geometric's `MLP` does the same with a Linear class of its own, which it does not.

Shape suffixes: B clouds, N points, K neighbours, C channels, R rows: points of all clouds.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from ...kernels.point_ops import gather_points
from ..point_order import canonical_order


class SharedMLP(nn.Module):
    """Linear, BatchNorm and activation, as often as there are widths after the first.

    Args:
        widths: Channels that come in, then those after each layer.
        bias: Whether the linear layers have one, though BatchNorm takes it out again.
        activation: Makes the activation.
        last_activation: Whether the last layer has one.

    Shapes:
        x: (..., widths[0]), statistics are over all rows; returns (..., widths[-1]).
    """

    def __init__(
        self,
        widths: Sequence[int],
        bias: bool = False,
        activation: Callable[[], nn.Module] = lambda: nn.ReLU(inplace=True),
        last_activation: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            linear = nn.Linear(width_in, width_out, bias=bias)
            layers += [linear, nn.BatchNorm1d(width_out), activation()]
        self.layers = nn.Sequential(*(layers if last_activation else layers[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layers to (..., C)."""
        out: Tensor = self.layers(x.flatten(0, -2))
        return out.view(*x.shape[:-1], out.shape[-1])


def leaky_relu() -> nn.Module:
    """The activation of DGCNN and of PCT's last layer."""
    return nn.LeakyReLU(0.2, inplace=True)


def for_real_points(
    function: Callable[..., Tensor], mask_BN: Tensor | None, *tensors: Tensor
) -> Tensor:
    """Applies a function of rows to the real points of all clouds, so that BatchNorm sees no other.

    Args:
        function: Maps tensors (R, ...) to one (R, ...).
        mask_BN: (B, N) bool, True for real points; None if all are.
        *tensors: Its arguments, (B, N, ...).

    Returns:
        (B, N, ...), 0 where the mask is False.
    """
    if mask_BN is None:
        rows = function(*(x.flatten(0, 1) for x in tensors))
        return rows.reshape(*tensors[0].shape[:2], *rows.shape[1:])
    rows = function(*(x[mask_BN] for x in tensors))
    out = rows.new_zeros(*mask_BN.shape, *rows.shape[1:])
    out[mask_BN] = rows
    return out


def sort_points(pos_BN3: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Sorts each cloud by x, then y, then z, real points first.

    Returns:
        Coordinates and mask in that order, and the order, (B, N) int64.
    """
    order_BN = canonical_order(pos_BN3, mask_BN)
    sorted_mask_BN = None if mask_BN is None else mask_BN.gather(1, order_BN)
    return gather_points(pos_BN3, order_BN), sorted_mask_BN, order_BN


def check_counts(**counts: int | Sequence[int]) -> None:
    """Refuses sizes below 1.

    Raises:
        ValueError: One is below 1, or a sequence of them is empty.
    """
    for name, value in counts.items():
        numbers = [value] if isinstance(value, int) else list(value)
        if not numbers or min(numbers) < 1:
            raise ValueError(f"{name}: {value}, expected numbers of at least 1")
