"""How much single points decide what a network makes of a cloud.

Shapes: B clouds, N points, C channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .aggregation import Pooling

Encoder = Callable[[Tensor], Tensor]


def outlier_influence(encode: Encoder, pos_BN3: Tensor, outliers_BM3: Tensor) -> Tensor:
    """Returns how far added points move the features: ||g(X + O) - g(X)|| / ||g(X)||, (B,).

    Args:
        encode: Maps clouds (B, N, 3) to features (B, C), for any N.
        pos_BN3: Clouds X.
        outliers_BM3: Points O added to each.
    """
    before_BC = encode(pos_BN3)
    after_BC = encode(torch.cat([pos_BN3, outliers_BM3], dim=1))
    ratio_B: Tensor = (after_BC - before_BC).norm(dim=1) / before_BC.norm(dim=1)
    return ratio_B


def permutation_residual(
    encode: Encoder, pos_BN3: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Returns the largest change of a feature when the points of each cloud are shuffled, (B,).

    Args:
        encode: Maps clouds (B, N, 3) to features (B, C).
        pos_BN3: Clouds.
        generator: CPU generator of the shuffles; None: torch's own.
    """
    shuffle_BN = (
        torch.rand(pos_BN3.shape[:2], generator=generator).argsort(dim=1).to(pos_BN3.device)
    )
    shuffled_BN3 = pos_BN3.gather(1, shuffle_BN[..., None].expand_as(pos_BN3))
    return (encode(shuffled_BN3) - encode(pos_BN3)).abs().amax(dim=1)


def influence_shares(pool: Pooling, x_BNC: Tensor, pos_BN3: Tensor) -> Tensor:
    """Returns which share of a pooling's sensitivity each point has, (B, N), summing to 1.

    The sensitivity to a point is the sum over channels of |d (sum of the result) / d x|. For a
    maximum this is the share of channels that the point owns.

    Args:
        pool: The pooling, in evaluation mode.
        x_BNC: Features of the points.
        pos_BN3: Their coordinates.
    """
    with torch.enable_grad():
        x_BNC = x_BNC.detach().requires_grad_()
        (gradient_BNC,) = torch.autograd.grad(pool(x_BNC, pos_BN3).sum(), x_BNC)
    sensitivity_BN = gradient_BNC.abs().sum(dim=-1)
    return sensitivity_BN / sensitivity_BN.sum(dim=1, keepdim=True)
