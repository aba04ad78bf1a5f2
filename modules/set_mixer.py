"""Set-Mixer: sort a set of points in space, mix along the order, aggregate.

A re-implementation from the abstract of "Enhancing Robustness to Noise Corruption for Point Cloud
Recognition via Spatial Sorting and Set-Mixing Aggregation Module" (Zhang et al., ACCV 2024), which
names the idea: an MLP over all points, like the token mixing of MLP-Mixer, on a spatially sorted
set, in place of a plain pooling. All sizes and details here are ours.

Shapes: B clouds, N points, C channels, M tokens, W points of the widest token.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.utils import to_dense_batch

from .point_order import PointOrder, check_orders, point_orders

Tokens = Literal["pool", "interp", "exact"]
TokenPooling = Literal["mean", "max"]
Reduction = Literal["mean", "max", "linear", "concat"]


class SetMixerAggregation(Aggregation):  # type: ignore[misc] # torch-geometric has no types
    """Aggregates the points of a cloud through tokens along spatial orders.

    For each order the sorted points become M tokens; an MLP along the tokens, shared by the
    channels, lets them communicate; the tokens are reduced to one vector; a linear layer with
    BatchNorm and ReLU joins the vectors of the orders. The result depends neither on the order in
    which points come nor on padding, and any number of points will do.

    Args:
        in_channels: C, width of the features.
        out_channels: Width of the result; None: C.
        num_tokens: M.
        hidden_tokens: Width of the MLP along the tokens.
        order: One or several spatial orders (see `modules.point_order`); "unsorted" takes points as
            they come, which gives up the invariance.
        tokens: "pool": token m joins the points between the ranks m N / M and (m + 1) N / M; what a
            single point can do shrinks with N / M. "interp": the tokens lie at M evenly spaced
            ranks, between two points each. "exact": the points themselves are the tokens; clouds of
            other than M points give those at M evenly spaced ranks.
        pooling: What joins the points of a pooled token, "mean" or "max".
        reduce: "mean" or "max" over the tokens; "linear", a learned weight for each token;
            "concat", all tokens side by side.
        depth: Blocks of token mixing; 0 leaves it out.
        channel_mixing: Whether each block also has an MLP along the channels, for each token.
        share_orders: Whether all orders share their blocks.
        sort_jitter: In training the cloud is turned by a random angle of up to so many degrees
            while it is sorted, the points staying where they are: the result then depends less on
            how the cloud is turned.
        sort_frames: In evaluation the cloud is sorted in so many frames, turned by fixed angles of
            up to `sort_jitter`, and the tokens of all are reduced alike and averaged. 1: as it is.
        maximum: Whether the maximum over the points joins the vectors of the orders.
        dropout: In training this share of the tokens is left out, 0 to 1.

    Raises:
        ValueError: A name is unknown or a number out of range.
    """

    uses_positions = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        num_tokens: int = 32,
        hidden_tokens: int = 64,
        order: PointOrder | Sequence[PointOrder] = ("x", "y", "z"),
        tokens: Tokens = "pool",
        pooling: TokenPooling = "mean",
        reduce: Reduction = "mean",
        depth: int = 1,
        channel_mixing: bool = False,
        share_orders: bool = False,
        sort_jitter: float = 0.0,
        sort_frames: int = 1,
        maximum: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        counts = {
            "in_channels": in_channels,
            "num_tokens": num_tokens,
            "hidden_tokens": hidden_tokens,
            "sort_frames": sort_frames,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        choices: dict[str, tuple[str, Any]] = {
            "tokens": (tokens, Tokens),
            "pooling": (pooling, TokenPooling),
            "reduce": (reduce, Reduction),
        }
        for name, (choice, names) in choices.items():
            if choice not in get_args(names):
                raise ValueError(f"{name}: {choice!r} is none of {', '.join(get_args(names))}")
        self.orders = check_orders((order,) if isinstance(order, str) else tuple(order))
        self.in_channels = in_channels
        self.out_channels = out_channels or in_channels
        self.num_tokens = num_tokens
        self.tokens = tokens
        self.pooling = pooling
        self.reduction = reduce
        self.sort_jitter = sort_jitter
        self.sort_frames = sort_frames
        self.maximum = maximum
        self.dropout = dropout
        self.mixers = nn.ModuleList(
            nn.Sequential(
                *(
                    TokenMixer(in_channels, num_tokens, hidden_tokens, channel_mixing)
                    for _ in range(depth)
                )
            )
            for _ in range(1 if share_orders else len(self.orders))
        )
        self.token_weights: nn.Parameter | None = None
        if reduce == "linear":
            initial = torch.full((len(self.orders), num_tokens), 1 / num_tokens)
            self.token_weights = nn.Parameter(initial)
        width = in_channels * (num_tokens if reduce == "concat" else 1)
        self.fuse = nn.Sequential(
            nn.Linear(len(self.orders) * width + maximum * in_channels, self.out_channels),
            nn.BatchNorm1d(self.out_channels),
            nn.ReLU(),
        )

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        *,
        pos: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Aggregates a dense batch, or a ragged one as torch-geometric has them.

        Args:
            x: Features: dense (B, N, C), or ragged (number of all points, C).
            index: Ragged: the cloud of each point, (number of all points,), ascending.
            ptr: Ragged, instead of `index`: where each cloud begins, and the end, (B + 1,).
            dim_size: Ragged: B, when clouds at the end may be empty.
            dim: The axis of the points: always the last but one.
            pos: Coordinates, (B, N, 3) or (number of all points, 3).
            mask: Dense: which points are real, (B, N) bool; None: all.

        Returns:
            (B, out_channels).

        Raises:
            ValueError: The coordinates are missing, or a shape does not fit.
        """
        if pos is None:
            raise ValueError("SetMixerAggregation sorts by coordinates: pass pos=")
        if pos.shape != (*x.shape[:-1], 3) or dim not in (-2, x.dim() - 2):
            raise ValueError(
                f"pos: shape {tuple(pos.shape)}, expected {(*x.shape[:-1], 3)} for features of "
                f"shape {tuple(x.shape)}, aggregated over the last axis but one (dim: {dim})"
            )
        if x.dim() == 2:
            if ptr is not None:
                index = torch.arange(len(ptr) - 1, device=x.device).repeat_interleave(ptr.diff())
            self.assert_sorted_index(index)
            x, mask = to_dense_batch(x, index, batch_size=dim_size)
            pos, _ = to_dense_batch(pos, index, batch_size=dim_size)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        return self._aggregate(x, pos, mask)

    def _aggregate(self, x_BNC: Tensor, pos_BN3: Tensor, mask_BN: Tensor | None) -> Tensor:
        pos_BN3 = pos_BN3.float()
        if self.training and self.sort_jitter:
            turns = small_rotations(len(pos_BN3), self.sort_jitter, pos_BN3.device)
            vector_BV = self._mix(x_BNC, pos_BN3 @ turns, mask_BN)
        elif self.sort_frames > 1 and not self.training:
            frames = fixed_rotations(self.sort_frames, self.sort_jitter, pos_BN3.device)
            vectors = [self._mix(x_BNC, pos_BN3 @ frame, mask_BN) for frame in frames]
            vector_BV = torch.stack(vectors).mean(dim=0)
        else:
            vector_BV = self._mix(x_BNC, pos_BN3, mask_BN)
        if self.maximum:
            if mask_BN is not None:
                x_BNC = x_BNC.masked_fill(~mask_BN[..., None], -torch.inf)
            vector_BV = torch.cat([vector_BV, x_BNC.max(dim=1).values], dim=-1)
        fused: Tensor = self.fuse(vector_BV)
        return fused

    def _mix(self, x_BNC: Tensor, pos_BN3: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Returns the reduced tokens of all orders, side by side."""
        vectors = []
        for i, order_BN in enumerate(point_orders(pos_BN3, self.orders, mask_BN)):
            t_BMC = self.mixers[i % len(self.mixers)](self._make_tokens(x_BNC, order_BN, mask_BN))
            if self.training and self.dropout:
                t_BMC = t_BMC * F.dropout(torch.ones_like(t_BMC[..., :1]), self.dropout)
            weights = None if self.token_weights is None else self.token_weights[i]
            vectors.append(self._reduce(t_BMC, weights))
        return torch.cat(vectors, dim=-1)

    def _make_tokens(self, x_BNC: Tensor, order_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Returns the tokens along one order, (B, M, C)."""
        num_points = order_BN.shape[1]
        if mask_BN is None:
            lengths_B = torch.full_like(order_BN[:, 0], num_points)
        else:
            lengths_B = mask_BN.sum(dim=1).clamp(min=1)
        if self.tokens == "pool":
            rank_BMW, is_member_BMW1 = token_windows(
                lengths_B, self.num_tokens, num_points, mask_BN is None
            )
            points_BMWC = _take(x_BNC, order_BN, rank_BMW)
            if self.pooling == "max":
                return points_BMWC.masked_fill(~is_member_BMW1, -torch.inf).amax(dim=2)
            return (points_BMWC * is_member_BMW1).sum(dim=2) / is_member_BMW1.sum(dim=2)
        place_M = torch.arange(self.num_tokens, device=x_BNC.device)
        if self.tokens == "exact":
            return _take(x_BNC, order_BN, place_M * lengths_B[:, None] // self.num_tokens)
        place_BM = place_M * (lengths_B[:, None] - 1) / max(self.num_tokens - 1, 1)
        below_BM = place_BM.long()
        above_BM = torch.minimum(below_BM + 1, lengths_B[:, None] - 1)
        share_BM1 = (place_BM - below_BM)[..., None].to(x_BNC.dtype)
        below_BMC = _take(x_BNC, order_BN, below_BM)
        return torch.lerp(below_BMC, _take(x_BNC, order_BN, above_BM), share_BM1)

    def _reduce(self, t_BMC: Tensor, weights_M: Tensor | None) -> Tensor:
        if weights_M is not None:
            return weights_M @ t_BMC
        if self.reduction == "concat":
            return t_BMC.flatten(1)
        return t_BMC.amax(dim=1) if self.reduction == "max" else t_BMC.mean(dim=1)


class TokenMixer(nn.Module):
    """A block of MLP-Mixer (Tolstikhin et al., 2021), by default only its half along the tokens.

    Args:
        channels: C.
        num_tokens: M.
        hidden: Width of the MLP along the tokens.
        channel_mixing: Whether an MLP along the channels, twice as wide, follows.

    Shapes:
        t: (B, M, C); returns the same.
    """

    def __init__(self, channels: int, num_tokens: int, hidden: int, channel_mixing: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.along_tokens = _mlp(num_tokens, hidden)
        self.along_channels: nn.Module | None = None
        if channel_mixing:
            self.along_channels = nn.Sequential(
                nn.LayerNorm(channels), _mlp(channels, 2 * channels)
            )

    def forward(self, t_BMC: Tensor) -> Tensor:
        """Mixes the tokens."""
        t_BMC = t_BMC + self.along_tokens(self.norm(t_BMC).mT).mT
        return t_BMC if self.along_channels is None else t_BMC + self.along_channels(t_BMC)


def token_windows(
    lengths_B: Tensor, num_tokens: int, max_length: int, equal_lengths: bool = False
) -> tuple[Tensor, Tensor]:
    """Says which ranks each token joins: those of `F.adaptive_avg_pool1d`, for each length.

    Neighbouring windows share a point where M does not divide the length; with fewer points than
    tokens, points repeat.

    Args:
        lengths_B: Points of each cloud, (B,) int64, 1 or more.
        num_tokens: M.
        max_length: N, the greatest length possible.
        equal_lengths: Whether all have this length, so that windows may be narrower.

    Returns:
        Ranks (B, M, W) int64, and which of them belong to the window, (B, M, W, 1) bool.
    """
    is_even = equal_lengths and max_length % num_tokens == 0
    width = -(-max_length // num_tokens) + (not is_even)
    place_M = torch.arange(num_tokens, device=lengths_B.device)
    start_BM = place_M * lengths_B[:, None] // num_tokens
    end_BM = -(-(place_M + 1) * lengths_B[:, None] // num_tokens)
    rank_BMW = start_BM[..., None] + torch.arange(width, device=lengths_B.device)
    is_member_BMW = rank_BMW < end_BM[..., None]
    return rank_BMW.clamp(max=max_length - 1), is_member_BMW[..., None]


def small_rotations(num_rotations: int, degrees: float, device: torch.device) -> Tensor:
    """Returns rotations about random axes by random angles, (number, 3, 3).

    Args:
        num_rotations: How many.
        degrees: The largest angle; angles are uniform from 0.
        device: Where to.
    """
    axis_R3 = F.normalize(torch.randn(num_rotations, 3, device=device), dim=1)
    angle_R = torch.rand(num_rotations, device=device) * math.radians(degrees)
    return _rotations(axis_R3, angle_R)


def fixed_rotations(num_rotations: int, degrees: float, device: torch.device) -> Tensor:
    """Returns rotations like `small_rotations`, evenly spread and always the same.

    The axes lie on a Fibonacci spiral around the sphere; the angles are evenly spaced.

    Args:
        num_rotations: How many.
        degrees: The largest angle.
        device: Where to.
    """
    place_R = (torch.arange(num_rotations, device=device) + 0.5) / num_rotations
    turn_R = math.pi * (3 - math.sqrt(5)) * torch.arange(num_rotations, device=device)
    height_R = 1 - 2 * place_R
    radius_R = (1 - height_R**2).sqrt()
    axis_R3 = torch.stack([radius_R * turn_R.cos(), radius_R * turn_R.sin(), height_R], dim=1)
    # Every third angle or so, so that large ones do not all turn about one end of the spiral.
    angle_R = (place_R * (math.sqrt(5) - 1) / 2 * num_rotations) % 1 * math.radians(degrees)
    return _rotations(axis_R3, angle_R)


def _rotations(axis_R3: Tensor, angle_R: Tensor) -> Tensor:
    """Returns rotations about unit axes by angles in radians, (R, 3, 3), for row vectors."""
    identity_33 = torch.eye(3, device=axis_R3.device)
    generator_R33 = torch.linalg.cross(
        identity_33.expand(len(axis_R3), 3, 3), axis_R3[:, None], dim=-1
    )
    return torch.matrix_exp(angle_R[:, None, None] * generator_R33)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def _take(x_BNC: Tensor, order_BN: Tensor, ranks: Tensor) -> Tensor:
    """Returns the features at ranks (B, ...) of an order, (B, ..., C)."""
    offset_B1 = torch.arange(len(x_BNC), device=x_BNC.device)[:, None] * x_BNC.shape[1]
    rows = order_BN.gather(1, ranks.flatten(1)) + offset_B1
    return x_BNC.flatten(0, 1).index_select(0, rows.flatten()).view(*ranks.shape, -1)
