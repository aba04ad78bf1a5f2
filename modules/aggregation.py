"""How a set of point features becomes one vector: any aggregation, chosen by name or by class.

Shapes: B clouds, N points, C channels.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch_geometric.nn.aggr import (
    Aggregation,
    MaxAggregation,
    MeanAggregation,
    MultiAggregation,
)
from torch_geometric.nn.resolver import aggregation_resolver

from .set_mixer import SetMixerAggregation

AggregationChoice: TypeAlias = str | Aggregation | Callable[[int], Aggregation]


class Pooling(nn.Module):
    """An aggregation of torch-geometric, or Set-Mixer, on dense batches of clouds.

    Args:
        aggregation: The aggregation. One with an attribute `uses_positions` gets the coordinates.
        in_channels: C, width of the features.

    Attributes:
        out_channels: Width of the result.
    """

    def __init__(self, aggregation: Aggregation, in_channels: int) -> None:
        super().__init__()
        self.aggregation = aggregation
        self.uses_positions = getattr(aggregation, "uses_positions", False)
        self.out_channels = _out_channels(aggregation, in_channels)

    def forward(self, x_BNC: Tensor, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Aggregates each cloud.

        Args:
            x_BNC: Features of the points, (B, N, C).
            pos_BN3: Coordinates, (B, N, 3).
            mask_BN: Which points are real, (B, N) bool; None: all.

        Returns:
            (B, out_channels).
        """
        if self.uses_positions:
            pooled: Tensor = self.aggregation(x_BNC, pos=pos_BN3, mask=mask_BN)
            return pooled
        return _aggregate(self.aggregation, x_BNC, mask_BN)


def make_aggregation(choice: AggregationChoice, in_channels: int) -> Pooling:
    """Builds the pooling that a recipe chose.

    Args:
        choice: A name: "set_mixer", "max_mean" (both, one after the other), or one of
            torch-geometric's ("max", "mean", "softmax", "median" ...); an aggregation, of which
            each place gets a copy; or what makes one from the number of channels, as a recipe's
            `class_path: SetMixerAggregation` does.
        in_channels: C, width of the features at this place.

    Raises:
        ValueError: The name is unknown, or its class needs arguments.
    """
    if isinstance(choice, Aggregation):
        return Pooling(deepcopy(choice), in_channels)
    if not isinstance(choice, str):
        return Pooling(choice(in_channels), in_channels)
    if choice == "set_mixer":
        return Pooling(SetMixerAggregation(in_channels), in_channels)
    try:
        query = ["max", "mean"] if choice == "max_mean" else choice
        aggregation: Aggregation = aggregation_resolver(query)
    except TypeError as error:
        raise ValueError(
            f"aggregation: {choice} needs arguments: give its class_path ({error})"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"aggregation: {choice!r} is none of set_mixer, max_mean and torch-geometric's: max, "
            "mean, sum, softmax, powermean, median, var, std ..."
        ) from error
    return Pooling(aggregation, in_channels)


def _aggregate(aggregation: Aggregation, x_BNC: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Aggregates densely what needs no index (much the faster), the others as one ragged batch."""
    if isinstance(aggregation, MultiAggregation) and aggregation.mode == "cat":
        return torch.cat([_aggregate(a, x_BNC, mask_BN) for a in aggregation.aggrs], dim=-1)
    if type(aggregation) is MaxAggregation:
        x_BNC = x_BNC if mask_BN is None else x_BNC.masked_fill(~mask_BN[..., None], -torch.inf)
        return x_BNC.max(dim=1).values
    if type(aggregation) is MeanAggregation:
        if mask_BN is None:
            return x_BNC.mean(dim=1)
        total_BC = x_BNC.masked_fill(~mask_BN[..., None], 0).sum(dim=1)
        return total_BC / mask_BN.sum(dim=1, keepdim=True)
    num_clouds, num_points, _ = x_BNC.shape
    index = torch.arange(num_clouds, device=x_BNC.device).repeat_interleave(num_points)
    x = x_BNC.flatten(0, 1)
    if mask_BN is not None:
        x, index = x[mask_BN.flatten()], index[mask_BN.flatten()]
    pooled: Tensor = aggregation(x, index, dim_size=num_clouds)
    return pooled


def _out_channels(aggregation: Aggregation, in_channels: int) -> int:
    """Returns the width of the result, by trying where the aggregation does not say it."""
    known = getattr(aggregation, "out_channels", None)
    if isinstance(known, int):
        return known
    was_training = aggregation.training
    with torch.no_grad():
        width = _aggregate(aggregation.eval(), torch.zeros(1, 2, in_channels), None).shape[-1]
    aggregation.train(was_training)
    return width
