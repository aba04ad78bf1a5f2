"""What neighbour search and sampling cost: ours against what one would write in their place.

    python tests/benchmarks/point_ops.py                  a few clouds on CPU, a batch on CUDA

kNN against `torch.cdist` and `topk`, which multiplies matrices and so is not exact; where that
matters the column `differ` counts the neighbours that are others. Farthest-point sampling against a
loop that computes all distances to all chosen points again at each step; ball query against
`torch.cdist` and a sort of the indices. All run in turns in this process. Prints a markdown table
of median times and their ratio. Nothing is asserted about time, and nothing is kept.
"""

import statistics
import time
from collections.abc import Callable

import torch
from jsonargparse import auto_cli
from report import ratio
from tenfold.kernels.point_ops import ball_query, farthest_point_sample, knn
from torch import Tensor

# Points, queries, channels, neighbours: DGCNN's first and later layers, PCT's two groupings, and
# the kNN of a large scan.
SEARCHES = [(1024, 1024, 3, 20), (1024, 1024, 64, 20), (1024, 512, 3, 32), (4096, 4096, 3, 20)]
SAMPLES = [(1024, 512), (2048, 512), (512, 128)]  # points, samples: of PCT and PointNet++
BALLS = [(1024, 512, 0.2, 64), (512, 128, 0.4, 64)]  # points, centers, radius, neighbours
HEADER = "| operation | other, ms | ours, ms | ratio | differ |\n|---|--:|--:|--:|--:|"


def other_knn(points: Tensor, queries: Tensor, k: int) -> Tensor:
    """Returns neighbours by the usual two calls."""
    return torch.cdist(queries, points).topk(k, largest=False).indices


def other_sample(points: Tensor, num_samples: int) -> Tensor:
    """Returns samples by the definition, all distances anew at each step."""
    chosen = torch.zeros(len(points), 1, dtype=torch.int64, device=points.device)
    for _ in range(num_samples - 1):
        centers = points.take_along_dim(chosen[..., None], dim=1)
        distance = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")
        farthest = distance.amin(dim=2).argmax(dim=1, keepdim=True)
        chosen = torch.cat((chosen, farthest), dim=1)
    return chosen


def other_ball(points: Tensor, centers: Tensor, radius: float, k: int) -> Tensor:
    """Returns the first points inside each ball; a center that is a point has at least one."""
    num_points = points.shape[1]
    index = torch.arange(num_points, device=points.device)
    inside = index.where(torch.cdist(centers, points) < radius, num_points)
    first = inside.sort(dim=-1).values[..., :k]
    return first.where(first < num_points, first[..., :1])


def median_times(runs: list[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Returns milliseconds of each run, the medians of rounds in which they take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, taken in zip(runs, times, strict=True):
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if number:  # the first one warms up
                taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def synchronize() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(clouds: int | None = None, rounds: int = 7) -> None:
    """Prints the table.

    Args:
        clouds: Clouds in a batch; by default 4 on CPU and 32 on CUDA.
        rounds: Repetitions, of which the median is printed.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = clouds or (32 if device == "cuda" else 4)
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"{device}, {name}, torch {torch.__version__}, {batch} clouds, float32\n\n{HEADER}")
    ratios: dict[str, float] = {}

    def compare(label: str, other: Callable[[], Tensor], ours: Callable[[], Tensor]) -> None:
        differ = (other() != ours()).float().mean().item()
        slow, fast = median_times([other, ours], rounds)
        ratios[label] = slow / fast
        print(
            f"| {label} | {slow:.1f} | {fast:.1f} | {slow / fast:.2f} | {differ:.3%} |", flush=True
        )

    for num_points, num_queries, channels, k in SEARCHES:
        points = torch.rand(batch, num_points, channels, device=device) * 2 - 1
        queries = points[:, :num_queries]
        compare(
            f"knn, {num_points} points, {num_queries} queries, {channels} channels, k = {k}",
            lambda: other_knn(points, queries, k),  # noqa: B023
            lambda: knn(points, k, queries),  # noqa: B023
        )
    for num_points, num_samples in SAMPLES:
        points = torch.rand(batch, num_points, 3, device=device) * 2 - 1
        compare(
            f"farthest points, {num_samples} of {num_points}",
            lambda: other_sample(points, num_samples),  # noqa: B023
            lambda: farthest_point_sample(points, num_samples),  # noqa: B023
        )
    for num_points, num_centers, radius, k in BALLS:
        points = torch.rand(batch, num_points, 3, device=device) * 2 - 1
        centers = points[:, :num_centers]
        compare(
            f"ball query, {num_points} points, {num_centers} centers, radius {radius}, k = {k}",
            lambda: other_ball(points, centers, radius, k),  # noqa: B023
            lambda: ball_query(points, centers, radius, k),  # noqa: B023
        )
    print()
    for label, faster in ratios.items():
        ratio(f"time, other / ours, {label}", faster)


if __name__ == "__main__":
    auto_cli(main)
