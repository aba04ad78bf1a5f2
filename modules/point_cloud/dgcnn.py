"""DGCNN (Wang et al., ACM TOG 2019), as in the ModelNet40-C benchmark.

Shape suffixes: B clouds, N points, K neighbours, C channels, R rows: points of all clouds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...kernels.point_ops import gather_points, knn
from ..aggregation import AggregationChoice, make_aggregation
from .layers import SharedMLP, check_counts, for_real_points, leaky_relu, sort_points


class DGCNN(nn.Module):
    """Convolutions over the edges to the nearest points, which each layer finds among its features.

    In evaluation mode neighbours at equal distances are chosen by coordinates, so that the result
    does not depend on the order of the points; in training it does where there are such ties.

    Args:
        aggregation: What pools the points; the benchmark concatenates maximum and mean.
        local_aggregation: What pools the edges of a point. Its positions are those of the
            neighbours, relative to the point.
        num_neighbors: k, with the point itself. A cloud with fewer points repeats the nearest.
        widths: Channels after each edge convolution.
        embedding: Channels before the pooling, made of the results of all convolutions.

    Raises:
        ValueError: A size is below 1.

    Shapes:
        pos: (B, N, 3) coordinates; mask: (B, N) bool, True for real points; returns
        (B, out_channels) and a scalar 0.
    """

    def __init__(
        self,
        aggregation: AggregationChoice = "max_mean",
        local_aggregation: AggregationChoice = "max",
        num_neighbors: int = 20,
        widths: Sequence[int] = (64, 64, 128, 256),
        embedding: int = 1024,
    ) -> None:
        super().__init__()
        check_counts(num_neighbors=num_neighbors, widths=widths, embedding=embedding)
        convolutions: list[EdgeConv] = []
        in_channels, total = 3, 0
        for width in widths:
            convolutions.append(EdgeConv(in_channels, width, num_neighbors, local_aggregation))
            in_channels = convolutions[-1].out_channels
            total += in_channels
        self.convolutions = nn.ModuleList(convolutions)
        self.embed = SharedMLP((total, embedding), activation=leaky_relu)
        self.pool = make_aggregation(aggregation, embedding)
        self.out_channels = self.pool.out_channels

    def forward(self, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns a vector for each cloud, (B, out_channels), and 0."""
        if self.training:
            x_BNC = self._features(pos_BN3, mask_BN)
        else:
            sorted_BN3, sorted_mask_BN, order_BN = sort_points(pos_BN3, mask_BN)
            x_BNC = self._features(sorted_BN3, sorted_mask_BN)
            # Back as they came: an aggregation that goes by the order gets the one of training.
            x_BNC = gather_points(x_BNC, order_BN.argsort(dim=1))
        return self.pool(x_BNC, pos_BN3, mask_BN), pos_BN3.new_zeros(())

    def _features(self, pos_BN3: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Returns the features of each point, (B, N, embedding)."""
        x_BNC, results = pos_BN3, []
        for convolution in self.convolutions:
            x_BNC = convolution(x_BNC, pos_BN3, mask_BN)
            results.append(x_BNC)
        return for_real_points(self.embed, mask_BN, torch.cat(results, dim=-1))


class EdgeConv(nn.Module):
    """A layer on the edges (x_j - x_i, x_i) to the k nearest x_j, whose results each point pools.

    Args:
        in_channels: Channels of the points.
        width: Channels of the edges after the layer.
        num_neighbors: k, with the point itself.
        aggregation: What pools the edges of a point.

    Shapes:
        x: (B, N, in_channels); pos: (B, N, 3); mask: (B, N) bool; returns (B, N, out_channels).
    """

    def __init__(
        self, in_channels: int, width: int, num_neighbors: int, aggregation: AggregationChoice
    ) -> None:
        super().__init__()
        self.num_neighbors = num_neighbors
        self.edges = SharedMLP((2 * in_channels, width), activation=leaky_relu)
        self.pool = make_aggregation(aggregation, width)
        self.out_channels = self.pool.out_channels

    def forward(self, x_BNC: Tensor, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Convolves the points with their neighbours in x."""
        index_BNK = knn(x_BNC, self.num_neighbors, mask_BN=mask_BN)
        offset_BNK3 = gather_points(pos_BN3, index_BNK) - pos_BN3[:, :, None]
        center_BN1C = x_BNC[:, :, None]
        # Not split into one product per point and a difference of the results, though that costs a
        # k-th: low-bit inputs would lose the differences between near points.
        difference_BNKC = gather_points(x_BNC, index_BNK) - center_BN1C
        edge_BNKC = torch.cat((difference_BNKC, center_BN1C.expand_as(difference_BNKC)), dim=-1)
        return for_real_points(self._pooled, mask_BN, edge_BNKC, offset_BNK3)

    def _pooled(self, edge_RKC: Tensor, offset_RK3: Tensor) -> Tensor:
        pooled_RC: Tensor = self.pool(self.edges(edge_RKC), offset_RK3)
        return pooled_RC
