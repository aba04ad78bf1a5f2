"""What 4-bit weights gain: time of `int4_linear` against `F.linear` on the same weight in bfloat16.

    python tests/benchmarks/int4_linear.py --num_rows [1,8,32] --group_sizes [128]

On a CUDA device prints a markdown table, one line for each shape: the ratio of times, the floor
that the bytes to be read set for it (see `kernels/int4.py`; it holds for few rows), and the ratio
of the other way to multiply, `dequantize_int4` and then `F.linear`. Each time is the median of
`triton.testing.do_bench`, which empties the L2 cache before each run; in the smallest shapes it is
mostly that of Python and the launch. Without a device it compares the CPU reference on one small
shape. Nothing is asserted about time, and nothing is kept.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from report import ratio
from tenfold.kernels.int4 import dequantize_int4, int4_linear, pack_int4
from torch import Tensor

# (N, K): the smallest and the largest of the scaling-law paper (table 3), and Llama 3 8B.
SHAPES = [(768, 768), (2048, 768), (3072, 3072), (8192, 3072), (4096, 4096), (14336, 4096)]
HEADER = "| M | N | K | G | F.linear, µs | int4_linear, µs | ratio | floor | dequantised |"


def random_weight(
    out_features: int, in_features: int, group_size: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns packed codes and scales with which the result has about the size of the input."""
    codes = torch.randint(-8, 8, (out_features, in_features), dtype=torch.int8, device=device)
    scale = torch.rand(out_features, in_features // group_size, device=device) + 0.5
    return pack_int4(codes), (scale / (5 * in_features**0.5)).to(dtype)


def check(y: Tensor, expected: Tensor) -> None:
    """Refuses to time a wrong result."""
    error = ((y - expected).float().norm() / expected.float().norm()).item()
    if not error < 0.01:
        raise RuntimeError(f"int4_linear differs from F.linear by {error:.2%} (norms)")


def time_on_gpu(function: Callable[[], Tensor]) -> float:
    """Returns microseconds."""
    from triton.testing import do_bench

    return 1e3 * float(do_bench(function, return_mode="median"))


def time_on_cpu(function: Callable[[], Tensor], rounds: int = 20) -> float:
    """Returns microseconds, the median of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def compare(
    num_rows: int, out_features: int, in_features: int, group_size: int, device: str
) -> float:
    """Prints a line of the table; returns its ratio."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    timed = time_on_gpu if device == "cuda" else time_on_cpu
    packed, scale = random_weight(out_features, in_features, group_size, device, dtype)
    weight = dequantize_int4(packed, scale, dtype)
    x = torch.randn(num_rows, in_features, device=device, dtype=dtype)
    check(int4_linear(x, packed, scale), F.linear(x, weight))
    plain = timed(lambda: F.linear(x, weight))
    ours = timed(lambda: int4_linear(x, packed, scale))
    dequantised = timed(lambda: F.linear(x, dequantize_int4(packed, scale, dtype)))
    size = weight.element_size()
    floor = size / (0.5 + size / group_size)
    print(
        f"| {num_rows} | {out_features} | {in_features} | {group_size} | {plain:.1f} | {ours:.1f}"
        f" | {plain / ours:.2f} | {floor:.2f} | {plain / dequantised:.2f} |",
        flush=True,
    )
    return plain / ours


def main(num_rows: list[int] | None = None, group_sizes: list[int] | None = None) -> None:
    """Prints the table.

    Args:
        num_rows: Rows of x; by default 1, 8 and 32 (decoding) and 8192 (prefill).
        group_sizes: Elements that share a scale, 0 for all of a row; by default 32, 128 and 0.
    """
    torch.manual_seed(0)
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}, bfloat16 activations and scales\n")
    else:
        print(
            "No CUDA device: the ratios that matter need a GPU. The float32 reference on the CPU,"
        )
        print("which dequantises the weight in each call and saves memory, not time:\n")
    print(HEADER)
    print("|" + " ---: |" * (HEADER.count("|") - 1))
    if not torch.cuda.is_available():
        faster = compare(8, 768, 768, 128, "cpu")
        print()
        ratio("time on cpu, F.linear / int4_linear, 8 rows, 768 x 768, G 128", faster)
        return
    ratios: dict[int, list[float]] = {}
    for out_features, in_features in SHAPES:
        for group_size in (32, 128, 0) if group_sizes is None else group_sizes:
            for rows in (1, 8, 32, 8192) if num_rows is None else num_rows:
                group = group_size or in_features
                faster = compare(rows, out_features, in_features, group, "cuda")
                ratios.setdefault(rows, []).append(faster)
    print()
    for rows, found in ratios.items():
        name = f"time on cuda, F.linear / int4_linear, {rows} rows"
        ratio(f"{name}, median of {len(found)} shapes and groups", statistics.median(found))
        ratio(f"{name}, least of them", min(found))


if __name__ == "__main__":
    auto_cli(main)
