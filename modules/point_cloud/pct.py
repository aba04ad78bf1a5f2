"""PCT (Guo et al., Computational Visual Media 2021), as in the ModelNet40-C benchmark.

Shape suffixes: B clouds, N points, S centers, K neighbours, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...kernels.point_ops import farthest_point_sample, gather_points, knn
from ..aggregation import AggregationChoice, make_aggregation
from .layers import SharedMLP, check_counts, for_real_points, leaky_relu, sort_points


class PCT(nn.Module):
    """Attention among a few points, each of which stands for its neighbourhood.

    Which point is the first center, and which of those at equal distances are neighbours, goes by
    the order of the points. In evaluation mode they are sorted, so that the result does not depend
    on it; in training the data should shuffle them.

    Args:
        aggregation: What pools the centers of the last grouping.
        local_aggregation: What pools the neighbours of a center. Its positions are relative to it.
        widths: Channels after each layer on single points.
        num_centers: Points left by each grouping, which also doubles the channels.
        num_neighbors: Nearest points that a grouping gathers, with the center itself.
        num_attention: Attention layers, one on the result of the other.
        embedding: Channels before the pooling, made of the results of all attention layers.

    Raises:
        ValueError: A size is below 1.

    Shapes:
        pos: (B, N, 3) coordinates; mask: (B, N) bool, True for real points; returns
        (B, out_channels) and a scalar 0. With fewer points than centers, points are repeated.
    """

    def __init__(
        self,
        aggregation: AggregationChoice = "max",
        local_aggregation: AggregationChoice = "max",
        widths: Sequence[int] = (64, 64),
        num_centers: Sequence[int] = (512, 256),
        num_neighbors: int = 32,
        num_attention: int = 4,
        embedding: int = 1024,
    ) -> None:
        super().__init__()
        check_counts(
            widths=widths,
            num_centers=num_centers,
            num_neighbors=num_neighbors,
            num_attention=num_attention,
            embedding=embedding,
        )
        self.points = SharedMLP((3, *widths))
        channels = widths[-1]
        groupings: list[Grouping] = []
        for count in num_centers:
            groupings.append(Grouping(channels, count, num_neighbors, local_aggregation))
            channels = groupings[-1].out_channels
        self.groupings = nn.ModuleList(groupings)
        self.centers = SharedMLP((channels, channels, channels))
        self.attention = nn.ModuleList(OffsetAttention(channels) for _ in range(num_attention))
        self.embed = SharedMLP(((num_attention + 1) * channels, embedding), activation=leaky_relu)
        self.pool = make_aggregation(aggregation, embedding)
        self.out_channels = self.pool.out_channels

    def forward(self, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns a vector for each cloud, (B, out_channels), and 0."""
        if not self.training:
            pos_BN3, mask_BN, _ = sort_points(pos_BN3, mask_BN)
        x_BNC = for_real_points(self.points, mask_BN, pos_BN3)
        for grouping in self.groupings:
            pos_BN3, x_BNC = grouping(pos_BN3, x_BNC, mask_BN)
            mask_BN = None  # centers are real points, all of them
        grouped_BSC, results = x_BNC, []
        x_BSC = self.centers(grouped_BSC)
        for layer in self.attention:
            x_BSC = layer(x_BSC)
            results.append(x_BSC)
        x_BSC = self.embed(torch.cat((*results, grouped_BSC), dim=-1))
        return self.pool(x_BSC, pos_BN3), pos_BN3.new_zeros(())


class Grouping(nn.Module):
    """Replaces points by a few of them, each with features of its neighbours.

    Two layers on (x_j - x_i, x_i) for the nearest points j of a center i, whose results it pools.

    Args:
        in_channels: Channels C of the points; the layers have 2 C.
        num_centers: Points that are left, spread by farthest-point sampling.
        num_neighbors: Nearest points, with the center itself.
        aggregation: What pools them.

    Shapes:
        pos: (B, N, 3); x: (B, N, C); mask: (B, N) bool; returns (B, S, 3) and (B, S, out_channels).
    """

    def __init__(
        self,
        in_channels: int,
        num_centers: int,
        num_neighbors: int,
        aggregation: AggregationChoice,
    ) -> None:
        super().__init__()
        self.num_centers = num_centers
        self.num_neighbors = num_neighbors
        self.layers = SharedMLP([2 * in_channels] * 3)
        self.pool = make_aggregation(aggregation, 2 * in_channels)
        self.out_channels = self.pool.out_channels

    def forward(
        self, pos_BN3: Tensor, x_BNC: Tensor, mask_BN: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the centers and their features."""
        index_BS = farthest_point_sample(pos_BN3, self.num_centers, mask_BN=mask_BN)
        center_BS3 = gather_points(pos_BN3, index_BS)
        index_BSK = knn(pos_BN3, self.num_neighbors, center_BS3, mask_BN)
        offset_BSK3 = gather_points(pos_BN3, index_BSK) - center_BS3[:, :, None]
        center_BS1C = gather_points(x_BNC, index_BS)[:, :, None]
        difference_BSKC = gather_points(x_BNC, index_BSK) - center_BS1C
        group_BSKC = torch.cat((difference_BSKC, center_BS1C.expand_as(difference_BSKC)), dim=-1)
        pooled_RC = self.pool(self.layers(group_BSKC).flatten(0, 1), offset_BSK3.flatten(0, 1))
        return center_BS3, pooled_RC.reshape(*index_BS.shape, self.out_channels)


class OffsetAttention(nn.Module):
    """Attention that adds to each point a layer on how it differs from what it attends to.

    Queries and keys are one projection. Attention is normalised twice, as in the benchmark: a
    softmax over what row i gives to each point, then for each point over what all rows give to it.

    Args:
        channels: Channels C; queries have C / 4.

    Shapes:
        x: (B, S, C); returns the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_key = nn.Linear(channels, max(1, channels // 4), bias=False)
        self.value = nn.Linear(channels, channels)
        self.offset = SharedMLP((channels, channels), bias=True)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Returns the points with what their differences add."""
        query_BSC = self.query_key(x_BSC)
        given_BSS = (query_BSC @ query_BSC.mT).softmax(dim=-1)
        attention_BSS = given_BSS / (1e-9 + given_BSS.sum(dim=1, keepdim=True))
        offset_BSC: Tensor = self.offset(x_BSC - attention_BSS.mT @ self.value(x_BSC))
        return x_BSC + offset_BSC
