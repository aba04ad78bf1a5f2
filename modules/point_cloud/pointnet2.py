"""PointNet++ (Qi et al., NeurIPS 2017), as in the ModelNet40-C benchmark.

Shape suffixes: B clouds, N points, S centers, K neighbours, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...kernels.point_ops import ball_query, farthest_point_sample, gather_points
from ..aggregation import AggregationChoice, make_aggregation
from .layers import SharedMLP, check_counts, for_real_points, sort_points


@dataclass(frozen=True)
class Scale:
    """How a set abstraction groups points around its centers, and what it makes of a group.

    Attributes:
        radius: Points nearer than this belong to the group, in the units of the coordinates.
        num_neighbors: Points of a group; beyond them the rest is left out, below the first repeats.
        widths: Channels after each layer.
    """

    radius: float
    num_neighbors: int
    widths: Sequence[int]

    def __post_init__(self) -> None:
        check_counts(num_neighbors=self.num_neighbors, widths=self.widths)
        if not self.radius > 0:
            raise ValueError(f"radius: {self.radius}, expected a positive number")


@dataclass(frozen=True)
class Stage:
    """A set abstraction: fewer points, each of which stands for the groups around it.

    Attributes:
        num_centers: Points that are left, spread by farthest-point sampling.
        scales: Groups around each; their results are concatenated.
    """

    num_centers: int
    scales: Sequence[Scale]

    def __post_init__(self) -> None:
        check_counts(num_centers=self.num_centers)
        if not self.scales:
            raise ValueError("scales: empty, expected at least one")


STAGES: dict[str, tuple[Stage, ...]] = {
    "ssg": (
        Stage(512, (Scale(0.2, 64, (64, 64, 128)),)),
        Stage(128, (Scale(0.4, 64, (128, 128, 256)),)),
    ),
    "msg": (
        Stage(
            512,
            (
                Scale(0.1, 16, (32, 32, 64)),
                Scale(0.2, 32, (64, 64, 128)),
                Scale(0.4, 128, (64, 96, 128)),
            ),
        ),
        Stage(
            128,
            (
                Scale(0.2, 32, (64, 64, 128)),
                Scale(0.4, 64, (128, 128, 256)),
                Scale(0.8, 128, (128, 128, 256)),
            ),
        ),
    ),
}


class PointNet2(nn.Module):
    """PointNets on the neighbourhoods of fewer and fewer points, at last on all that are left.

    Which point is the first center, and which ones stand for a crowded neighbourhood, goes by the
    order of the points. In evaluation mode they are sorted, so that the result does not depend on
    it; in training the data should shuffle them.

    Args:
        aggregation: What pools the centers of the last stage.
        local_aggregation: What pools the points of a group. Its positions are relative to the
            center.
        stages: The benchmark's multi-scale ("msg") or single-scale ("ssg") grouping, or own stages.
        widths: Channels after each layer on the last centers, before the pooling.

    Raises:
        ValueError: A name is unknown, a size is below 1, or a radius is not positive.

    Shapes:
        pos: (B, N, 3) coordinates; mask: (B, N) bool, True for real points; returns
        (B, out_channels) and a scalar 0. With fewer points than centers, points are repeated.
    """

    def __init__(
        self,
        aggregation: AggregationChoice = "max",
        local_aggregation: AggregationChoice = "max",
        stages: Literal["msg", "ssg"] | Sequence[Stage] = "msg",
        widths: Sequence[int] = (256, 512, 1024),
    ) -> None:
        super().__init__()
        check_counts(widths=widths)
        if isinstance(stages, str):
            if stages not in STAGES:
                raise ValueError(f"stages: {stages!r}, expected {', '.join(STAGES)} or own stages")
            stages = STAGES[stages]
        abstractions: list[SetAbstraction] = []
        in_channels = 0
        for stage in stages:
            abstractions.append(SetAbstraction(in_channels, stage, local_aggregation))
            in_channels = abstractions[-1].out_channels
        self.abstractions = nn.ModuleList(abstractions)
        self.embed = SharedMLP((3 + in_channels, *widths))
        self.pool = make_aggregation(aggregation, widths[-1])
        self.out_channels = self.pool.out_channels

    def forward(self, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns a vector for each cloud, (B, out_channels), and 0."""
        if not self.training:
            pos_BN3, mask_BN, _ = sort_points(pos_BN3, mask_BN)
        x_BNC = pos_BN3[..., :0]
        for abstraction in self.abstractions:
            pos_BN3, x_BNC = abstraction(pos_BN3, x_BNC, mask_BN)
            mask_BN = None  # centers are real points, all of them
        x_BNC = for_real_points(self.embed, mask_BN, torch.cat((pos_BN3, x_BNC), dim=-1))
        return self.pool(x_BNC, pos_BN3, mask_BN), pos_BN3.new_zeros(())


class SetAbstraction(nn.Module):
    """Replaces points by a few of them, each with features of the points around it.

    Args:
        in_channels: Channels C of the points, besides their coordinates.
        stage: The centers and their groups.
        aggregation: What pools the points of a group.

    Shapes:
        pos: (B, N, 3); x: (B, N, C); mask: (B, N) bool; returns (B, S, 3) and (B, S, out_channels).
    """

    def __init__(self, in_channels: int, stage: Stage, aggregation: AggregationChoice) -> None:
        super().__init__()
        self.stage = stage
        self.groups = nn.ModuleList(
            SharedMLP((3 + in_channels, *scale.widths)) for scale in stage.scales
        )
        pools = [make_aggregation(aggregation, scale.widths[-1]) for scale in stage.scales]
        self.pools = nn.ModuleList(pools)
        self.out_channels = sum(pool.out_channels for pool in pools)

    def forward(
        self, pos_BN3: Tensor, x_BNC: Tensor, mask_BN: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the centers and their features."""
        index_BS = farthest_point_sample(pos_BN3, self.stage.num_centers, mask_BN=mask_BN)
        center_BS3 = gather_points(pos_BN3, index_BS)
        results = []
        for scale, layers, pool in zip(self.stage.scales, self.groups, self.pools, strict=True):
            index_BSK = ball_query(pos_BN3, center_BS3, scale.radius, scale.num_neighbors, mask_BN)
            offset_BSK3 = gather_points(pos_BN3, index_BSK) - center_BS3[:, :, None]
            group_BSKC = torch.cat((offset_BSK3, gather_points(x_BNC, index_BSK)), dim=-1)
            pooled_RC = pool(layers(group_BSKC).flatten(0, 1), offset_BSK3.flatten(0, 1))
            results.append(pooled_RC.reshape(*index_BS.shape, pool.out_channels))
        return center_BS3, torch.cat(results, dim=-1)
