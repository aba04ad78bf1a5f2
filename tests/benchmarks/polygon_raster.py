"""What drawing layers costs: coverage and compositing against a loop over Skia.

    python tests/benchmarks/polygon_raster.py             on CPU, and on CUDA where there is one

A batch of 256 images of four layers, polygons of 24 edges in 64 x 64 pixels, half of the layers
multiplied: what trains Art2Prog. Skia draws them path by path on one surface per image, with its
anti-aliasing, on one thread; `loop` makes the paths from the same arrays, as a data set does, and
`drawing` has them ready. All run in turns in this process. Prints a markdown table of median times
and of their ratios to the loop: above 1 we are slower. The column `differ` is the mean difference
to Skia of all pixels, in 255ths. Nothing is asserted about time, and nothing is kept.
"""

import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import skia
import torch
from jsonargparse import auto_cli
from report import ratio
from tenfold.kernels.compositing import composite_layers, on_background
from tenfold.kernels.polygon_raster import coverage, polygon_edges, soft_coverage
from torch import Tensor

MODES = (skia.BlendMode.kSrcOver, skia.BlendMode.kMultiply)


def random_layers(batch: int, layers: int, corners: int, size: int) -> tuple[Tensor, ...]:
    """Returns corners of star-shaped polygons, colours, and modes: 0 normal, 1 multiply."""
    angle = torch.arange(corners) * (math.tau / corners)
    radius = (torch.rand(batch, layers, corners, 1) * 0.2 + 0.15) * size
    center = (torch.rand(batch, layers, 1, 2) * 0.4 + 0.3) * size
    points = center + radius * torch.stack((angle.cos(), angle.sin()), dim=1)
    return points, torch.rand(batch, layers, 3), torch.randint(2, (batch, layers))


def skia_paths(points: np.ndarray) -> list[list[skia.Path]]:
    """Returns the path of each layer of each image."""
    paths = []
    for image in points.tolist():
        paths.append([skia.Path() for _ in image])
        for path, corners in zip(paths[-1], image, strict=True):
            path.addPoly([skia.Point(*corner) for corner in corners], True)
    return paths


def skia_images(
    paths: list[list[skia.Path]], colors: np.ndarray, modes: np.ndarray, size: int
) -> np.ndarray:
    """Returns (B, H, W, 4) uint8, premultiplied."""
    images = np.empty((len(paths), size, size, 4), dtype=np.uint8)
    for image, row, shades, numbers in zip(
        images, paths, colors.tolist(), modes.tolist(), strict=True
    ):
        surface = skia.Surface(image)
        canvas = surface.getCanvas()
        canvas.clear(skia.ColorTRANSPARENT)
        for path, color, number in zip(row, shades, numbers, strict=True):
            paint = skia.Paint(
                Color4f=skia.Color4f(*color, 1), AntiAlias=True, BlendMode=MODES[number]
            )
            canvas.drawPath(path, paint)
        surface.flushAndSubmit()
    return images


def median_times(runs: list[Callable[[], object]], rounds: int) -> list[float]:
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


def main(
    batch: int = 256, layers: int = 4, corners: int = 24, size: int = 64, rounds: int = 9
) -> None:
    """Prints the table.

    Args:
        batch: Images.
        layers: Per image.
        corners: Of each polygon.
        size: Rows and columns of the images.
        rounds: Repetitions, of which the median is printed.
    """
    torch.manual_seed(0)
    points, colors, modes = random_layers(batch, layers, corners, size)
    paths = skia_paths(points.numpy())

    def loop() -> np.ndarray:
        return skia_images(skia_paths(points.numpy()), colors.numpy(), modes.numpy(), size)

    def drawing() -> np.ndarray:
        return skia_images(paths, colors.numpy(), modes.numpy(), size)

    threads = torch.get_num_threads()
    print(
        f"torch {torch.__version__}, {threads} threads, {batch} images of {layers} layers of"
        f" {corners} edges, {size} x {size}\n"
    )
    print("| what | device | ms | ratio to loop | differ |\n|---|---|--:|--:|--:|")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    ratios = {}
    for device in devices:
        on_device = [value.to(device) for value in (points, colors, modes)]
        ratios |= compare(device, on_device, size, rounds, loop, drawing)
    print()
    for name, slower in ratios.items():
        ratio(name, slower, at_most=1 / 20 if " on cuda" in name else 6)


def compare(
    device: str,
    layers: list[Tensor],
    size: int,
    rounds: int,
    loop: Callable[[], np.ndarray],
    drawing: Callable[[], np.ndarray],
) -> dict[str, float]:
    """Prints the lines of one device; returns its ratios to the loop."""
    points, colors, modes = layers

    def draw(samples: int) -> Tensor:
        covered = coverage(polygon_edges(points), (size, size), samples=samples)
        return on_background(composite_layers(covered, colors, mode_BL=modes))

    covered = coverage(polygon_edges(points), (size, size))

    def soft_step() -> None:
        corners = points.detach().requires_grad_()
        soft = soft_coverage(polygon_edges(corners), (size, size))
        composite_layers(soft, colors, mode_BL=modes).square().mean().backward()

    ours: dict[str, Callable[[], object]] = {
        "ours, 8 x 8 samples": lambda: draw(8),
        "ours, 4 x 4 samples": lambda: draw(4),
        "of it, coverage": lambda: coverage(polygon_edges(points), (size, size)),
        "of it, compositing": lambda: composite_layers(covered, colors, mode_BL=modes),
    }
    if device == "cuda":
        ours["soft, forwards and backwards"] = soft_step
    pixels = torch.from_numpy(loop()).permute(0, 3, 1, 2) / 255
    order = [2, 1, 0, 3] if skia.kN32_ColorType == skia.kBGRA_8888_ColorType else [0, 1, 2, 3]
    expected = on_background(pixels[:, order])
    differ = {f"ours, {n} x {n} samples": draw(n).cpu() - expected for n in (4, 8)}
    base, ready, *times = median_times([loop, drawing, *ours.values()], rounds)
    print(f"| Skia, loop | cpu | {base:.1f} | 1 | |\n| Skia, drawing | cpu | {ready:.1f} | |")
    for name, taken in zip(ours, times, strict=True):
        off = f"{255 * differ[name].abs().mean():.2f}" if name in differ else ""
        print(f"| {name} | {device} | {taken:.1f} | {taken / base:.2f} | {off} |", flush=True)
    taken_by = dict(zip(ours, times, strict=True))
    return {f"time on {device}, {name} / Skia, loop": taken_by[name] / base for name in differ}


if __name__ == "__main__":
    auto_cli(main)
