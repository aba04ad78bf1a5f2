"""What fake quantisation costs: ours against eager torch, the compiled reference, torchao, a copy.

    python tests/benchmarks/fake_quant.py                  one shape on CPU, six on CUDA
    python tests/benchmarks/fake_quant.py --group_sizes [32,128] --ste through_scale

Every way rounds the same tensor in turns, forwards and backwards; a copy (`clone`: read once, write
once) is the floor of the forward pass. Prints a markdown table of times and of ratios to ours.
Targets on a Hopper GPU: at least 80 % of the copy's bandwidth from 4M elements on, never slower
than the compiled reference. On CPU: at least 3 times faster than eager and within 1.3 times the
copy at 4096 x 4096. Nothing is asserted about time, and nothing is kept.
"""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from report import ratio
from tenfold.kernels.fake_quant import fake_quantize
from torch import Tensor

# Weights of Llama 8B and of the paper's table 3, and 8192 tokens of activations.
SHAPES = [(4096, 4096), (14336, 4096), (768, 2048), (3072, 8192), (8192, 1536), (8192, 4096)]
Way = Callable[[Tensor], Tensor]


def torchao_rounding(group_size: int) -> Way | None:
    """torchao's fake quantiser of weights (scale amax / 7.5), None where it is not installed."""
    try:
        from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer
    except ImportError:
        return None
    config = IntxFakeQuantizeConfig(torch.int4, group_size=group_size, is_symmetric=True)
    rounding: Way = IntxFakeQuantizer(config)
    return rounding


def ways(group_size: int, ste: Any, device: str) -> dict[str, Way]:
    """Returns what is compared, by name."""
    eager = partial(fake_quantize, group_size=group_size, ste=ste, backend="reference")
    found: dict[str, Way] = {
        "ours": partial(fake_quantize, group_size=group_size, ste=ste),
        "eager": eager,
        # Compiled from outside, with its backward pass: what a user without us would write.
        "torch.compile": torch.compile(eager),
        "copy": torch.clone,
    }
    if (ao := torchao_rounding(group_size)) is not None:
        found["torchao"] = ao
    return found


def forward(way: Way, x: Tensor) -> None:
    """Runs the forward pass alone."""
    with torch.no_grad():
        way(x)


def both(way: Way, x: Tensor, grad: Tensor) -> None:
    """Runs forward and backward pass."""
    torch.autograd.grad(way(x), x, grad)


def medians(runs: dict[str, Callable[[], None]], device: str, rounds: int) -> dict[str, float]:
    """Returns milliseconds of each run: on CUDA one after the other, on CPU in turns."""
    if device == "cuda":
        from triton.testing import do_bench

        return {name: float(do_bench(run, return_mode="median")) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= 2:  # the first two compile and touch memory
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def report_targets(
    title: str, shape: tuple[int, int], group_size: int, took: dict[str, float], device: str
) -> None:
    """Reports the ratios that have a target, with it where it is stated for this case."""
    ours = took["ours"]
    passes = title.replace("both", "forward and backward")
    case = f"{passes} on {device}, {shape[0]} x {shape[1]}, G {group_size}"
    if device == "cpu":
        stated = shape == (4096, 4096)
        ratio(f"time of {case}, eager / ours", took["eager"] / ours, at_least=3 if stated else None)
        ratio(f"time of {case}, ours / copy", ours / took["copy"], at_most=1.3 if stated else None)
    else:
        hopper = torch.cuda.get_device_capability()[0] == 9
        stated = hopper and title == "forward" and math.prod(shape) >= 4e6
        ratio(f"time of {case}, copy / ours", took["copy"] / ours, at_least=0.8 if stated else None)
        compiled = took["torch.compile"] / ours
        ratio(f"time of {case}, torch.compile / ours", compiled, at_least=1 if hopper else None)


def main(
    rounds: int = 15,
    shapes: list[tuple[int, int]] | None = None,
    group_sizes: list[int] | None = None,
    ste: Literal["identity", "clipped", "through_scale"] = "identity",
    dtype: Literal["float32", "bfloat16"] | None = None,
    num_threads: int = 2,
) -> None:
    """Prints the table.

    Args:
        rounds: Repetitions on CPU; their median counts.
        shapes: Rows and columns; default: 4096 x 4096 on CPU, six shapes on CUDA.
        group_sizes: Elements per scale; 0 stands for a whole row.
        ste: Straight-through estimator, which decides what the backward pass does.
        dtype: Of the tensor; default: float32 on CPU, bfloat16 on CUDA.
        num_threads: Threads of torch on CPU.
    """
    torch.set_num_threads(num_threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype or ("bfloat16" if device == "cuda" else "float32"))
    names = list(ways(32, ste, device))
    print(f"{device}, torch {torch.__version__}, {kind}, ste {ste}, {num_threads} threads\n")
    print("| pass | shape | G |" + "".join(f" {n}, ms |" for n in names) + " copy / ours |"
          + "".join(f" {n} / ours |" for n in names if n not in ("ours", "copy")))  # fmt: skip
    print("|" + "---|" * (3 + 2 * len(names) - 1))
    measured = []
    for rows, columns in shapes or (SHAPES if device == "cuda" else SHAPES[:1]):
        for group_size in group_sizes or [32, 128, 0]:
            torch.compiler.reset()
            x = torch.randn(rows, columns, device=device).to(kind).requires_grad_()
            grad = torch.randn_like(x)
            found = ways(group_size or columns, ste, device)
            for title, run in (("forward", forward), ("both", partial(both, grad=grad))):
                runs = {name: partial(run, way, x) for name, way in found.items()}
                took = medians(runs, device, rounds)
                ours = took["ours"]
                ratios = [took[n] / ours for n in names if n not in ("ours", "copy")]
                cells = [f"{took[n]:.3f}" for n in names] + [f"{took['copy'] / ours:.2f}"]
                cells += [f"{slower:.2f}" for slower in ratios]
                shape = f"{rows} x {columns}"
                print(f"| {title} | {shape} | {group_size or columns} | {' | '.join(cells)} |")
                measured.append((title, (rows, columns), group_size or columns, took))
    print()
    for each in measured:
        report_targets(*each, device)


if __name__ == "__main__":
    auto_cli(main)
