"""PointNet (Qi et al., CVPR 2017), as in the ModelNet40-C benchmark.

Shape suffixes: B clouds, N points, C channels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..aggregation import AggregationChoice, make_aggregation
from .layers import SharedMLP, check_counts, for_real_points


class PointNet(nn.Module):
    """Layers on each point alone, then one aggregation of all points.

    Two small networks (T-Nets) turn the coordinates, and the features of an early layer, by a
    matrix that they find from the whole cloud. They aggregate points as well, so a robust
    `aggregation` behind T-Nets that take a maximum stays fragile: leave `tnet_aggregation` at
    "same", or switch them off.

    The penalty is the mean over clouds of ||A A^T - I||, Frobenius, for the features' matrix A; the
    benchmark adds 0.001 times it to the loss.

    Args:
        aggregation: What pools the points.
        widths: Channels after each layer. The benchmark has three, 64-128-1024; the paper five,
            64-64-64-128-1024 with `tnet_layer` 2. The last layer has no activation.
        last_activation: Whether the last layer has a ReLU before the pooling all the same.
        tnet: Whether there are T-Nets.
        tnet_aggregation: What pools the points in the T-Nets: "same" as `aggregation`, or "max".
        tnet_layer: The features are turned after so many layers.
        tnet_widths: Channels after each layer of a T-Net, before its pooling.
        tnet_hidden: Channels after each of its layers behind the pooling.

    Raises:
        ValueError: A width is below 1, or `tnet_layer` names no layer but the last.

    Shapes:
        pos: (B, N, 3) coordinates; mask: (B, N) bool, True for real points; returns
        (B, out_channels) and a scalar. In training T-Nets need two clouds, for their BatchNorm.
    """

    def __init__(
        self,
        aggregation: AggregationChoice = "max",
        widths: Sequence[int] = (64, 128, 1024),
        last_activation: bool = False,
        tnet: bool = True,
        tnet_aggregation: Literal["same", "max"] = "same",
        tnet_layer: int = 1,
        tnet_widths: Sequence[int] = (64, 128, 1024),
        tnet_hidden: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        check_counts(widths=widths, tnet_widths=tnet_widths, tnet_hidden=tnet_hidden)
        if not 1 <= tnet_layer < len(widths):
            raise ValueError(
                f"tnet_layer: {tnet_layer}, expected a layer before the last of widths "
                f"{tuple(widths)}"
            )
        self.input_transform: TNet | None = None
        self.feature_transform: TNet | None = None
        if tnet:
            pooled = aggregation if tnet_aggregation == "same" else "max"
            self.input_transform = TNet(3, tnet_widths, tnet_hidden, pooled)
            self.feature_transform = TNet(widths[tnet_layer - 1], tnet_widths, tnet_hidden, pooled)
        self.early = SharedMLP((3, *widths[:tnet_layer]), bias=True)
        self.late = SharedMLP(widths[tnet_layer - 1 :], bias=True, last_activation=last_activation)
        self.pool = make_aggregation(aggregation, widths[-1])
        self.out_channels = self.pool.out_channels

    def forward(self, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns a vector for each cloud, (B, out_channels), and the penalty."""
        x_BNC = pos_BN3
        penalty = pos_BN3.new_zeros(())
        if self.input_transform is not None:
            x_BNC = x_BNC @ self.input_transform(x_BNC, pos_BN3, mask_BN)
        x_BNC = for_real_points(self.early, mask_BN, x_BNC)
        if self.feature_transform is not None:
            matrix_BCC = self.feature_transform(x_BNC, pos_BN3, mask_BN)
            x_BNC = x_BNC @ matrix_BCC
            penalty = distance_from_orthogonal(matrix_BCC)
        x_BNC = for_real_points(self.late, mask_BN, x_BNC)
        return self.pool(x_BNC, pos_BN3, mask_BN), penalty


class TNet(nn.Module):
    """Finds a square matrix from a whole cloud; the identity is added to it.

    Args:
        in_channels: Channels C, and size of the matrix.
        widths: Channels after each layer before the pooling.
        hidden: Channels after each layer behind it.
        aggregation: What pools the points.

    Shapes:
        x: (B, N, C); pos: (B, N, 3), by which the aggregation may sort; mask: (B, N) bool; returns
        (B, C, C).
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        hidden: Sequence[int],
        aggregation: AggregationChoice,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.points = SharedMLP((in_channels, *widths), bias=True)
        self.pool = make_aggregation(aggregation, widths[-1])
        self.cloud = nn.Sequential(
            SharedMLP((self.pool.out_channels, *hidden), bias=True),
            nn.Linear(hidden[-1], in_channels**2),
        )

    def forward(self, x_BNC: Tensor, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Returns a matrix for each cloud, (B, C, C)."""
        x_BNC = for_real_points(self.points, mask_BN, x_BNC)
        flat: Tensor = self.cloud(self.pool(x_BNC, pos_BN3, mask_BN))
        matrix_BCC = flat.view(-1, self.in_channels, self.in_channels)
        return matrix_BCC + _identity(matrix_BCC)


def distance_from_orthogonal(matrix_BCC: Tensor) -> Tensor:
    """Returns the mean over b of ||A_b A_b^T - I||, Frobenius (PointNet, eq. 2, not squared)."""
    excess_BCC = matrix_BCC @ matrix_BCC.mT - _identity(matrix_BCC)
    distance_B: Tensor = torch.linalg.matrix_norm(excess_BCC)
    return distance_B.mean()


def _identity(like_BCC: Tensor) -> Tensor:
    return torch.eye(like_BCC.shape[-1], dtype=like_BCC.dtype, device=like_BCC.device)
