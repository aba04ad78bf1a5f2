"""What rounding does to activations: heavy tails, clipping, noise."""

import torch
from torch import Tensor
from torchmetrics import Metric


class ActivationStatistics(Metric):
    """Kurtosis, and the error of rounding, of all values seen, exact for any split into batches.

    The kurtosis is Pearson's, m4 / m2^2: 3 for a Gaussian, large for heavy tails. Central moments
    are merged pairwise (Pebay 2008, equations 2.1 and 3.1 for p = 3 and 4), in float64, since sums
    of powers cancel where the mean is large.

    `compute` returns a dict: `kurtosis`; `amax`, the largest magnitude; and, when rounded values
    were given, `clip_fraction` (in [0, 1]), `zero_fraction` (values rounded to 0, in [0, 1]) and
    `snr_db`, 10 log10(sum x^2 / sum (x - y)^2), in decibels.
    """

    full_state_update = False
    moments: Tensor
    amax: Tensor
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("moments", torch.zeros(5, dtype=torch.float64), dist_reduce_fx=merge_moments)
        self.add_state("amax", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, x: Tensor, rounded: Tensor | None = None, clipped: Tensor | None = None
    ) -> None:
        """Adds values.

        Args:
            x: Any shape.
            rounded: What they were rounded to, of the same shape.
            clipped: Whether each was clamped to the ends of the grid, bool.
        """
        x = x.detach().double()
        if x.numel() == 0:
            return
        self.moments = merge_moments(torch.stack((self.moments, central_moments(x))))
        self.amax = torch.maximum(self.amax, x.abs().amax())
        if rounded is not None and clipped is not None:
            noise = x - rounded
            parts = (x * x, noise * noise, clipped, rounded == 0, torch.ones_like(x))
            self.sums += torch.stack([part.sum(dtype=torch.float64) for part in parts])

    def compute(self) -> dict[str, Tensor]:
        """Returns the statistics; NaN where nothing varies."""
        count, _, m2, _, m4 = self.moments
        values = {"kurtosis": count * m4 / m2**2, "amax": self.amax}
        signal, noise, clipped, zeros, num_rounded = self.sums
        if num_rounded > 0:
            values["clip_fraction"] = clipped / num_rounded
            values["zero_fraction"] = zeros / num_rounded
            values["snr_db"] = 10 * torch.log10(signal / noise)
        return values


def central_moments(x: Tensor) -> Tensor:
    """Returns (n, mean, M2, M3, M4) of a tensor, Mp the sum of the p-th powers about the mean."""
    mean = x.mean()
    centred = x - mean
    square = centred * centred
    powers = (square.sum(), (square * centred).sum(), (square * square).sum())
    return torch.stack((mean.new_tensor(x.numel()), mean, *powers))


def merge_moments(moments_N5: Tensor) -> Tensor:
    """Merges the moments of N sets, (N, 5), into those of their union, (5,)."""
    merged = moments_N5[0]
    for other in moments_N5[1:]:
        a, mean_a, a2, a3, a4 = merged
        b, mean_b, b2, b3, b4 = other
        n = (a + b).clamp(min=1)
        d = mean_b - mean_a
        merged = torch.stack(
            (
                a + b,
                mean_a + d * b / n,
                a2 + b2 + d**2 * a * b / n,
                a3 + b3 + d**3 * a * b * (a - b) / n**2 + 3 * d * (a * b2 - b * a2) / n,
                a4
                + b4
                + d**4 * a * b * (a**2 - a * b + b**2) / n**3
                + 6 * d**2 * (a**2 * b2 + b**2 * a2) / n**2
                + 4 * d * (a * b3 - b * a3) / n,
            )
        )
    return merged
