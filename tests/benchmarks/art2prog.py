"""What Art2Prog's data cost, and its programs beside a tracer's paths.

    python tests/benchmarks/art2prog.py                             cost of data, on CPU
    python tests/benchmarks/art2prog.py --run RUN                   a trained run beside VTracer

The first prints milliseconds per program and their ratio to a training step's: drawing programs,
pictures, states. The second writes programs for held-out pictures and traces the same pictures
with VTracer, which knows pixels alone; each result is drawn at several sizes and compared with the
true picture of that size: mean square error, and the number of things that a person could edit -
layers with their edges here, paths with their nodes there. `blank` is white paper, `enlarged` the
picture itself, enlarged by cubic interpolation. Nothing is asserted about time; nothing is kept.
"""

import io
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import torch
import torch.nn.functional as F
import yaml
from jsonargparse import auto_cli
from PIL import Image
from report import ratio
from tenfold.datamodules.programs import ProgramDataModule, ProgramSampler
from tenfold.modules.art2prog import Art2Prog, Language
from tenfold.modules.art2prog.drawing import Renderer
from tenfold.modules.art2prog.layers import execute, picture_of
from torch import Tensor

SIZES = (64, 128, 256, 512, 1024)
BATCH = 64


def milliseconds(run: Callable[[], Any], rounds: int = 5) -> float:
    """Returns the median time of a call, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def print_costs(layer_probs: tuple[float, ...]) -> None:
    """Prints what data cost, per program, beside a training step of the quickstart's network."""
    language = Language(max_layers=len(layer_probs), max_lines=9 * len(layer_probs))
    sampler = ProgramSampler(language, layer_probs=list(layer_probs))
    programs = [sampler.numbered("train", index) for index in range(BATCH)]
    results = [result for program in programs for result in execute(program)]
    pictures = [picture_of(program) for program in programs]
    small: dict[str, Any] = {"model": "resnet18", "layers": [1, 1, 1, 1], "stem_width": 16}
    module = Art2Prog(
        language,
        image_size=64,
        state_size=32,
        encoder={**small, "channels": [24, 48, 96, 96], "out_index": 3},
        state_encoder={**small, "channels": [16, 24, 32, 48]},
        decoder={"n_layer": 2, "n_embd": 128, "n_head": 4},
    )
    module.configure_model()
    data = ProgramDataModule(
        sampler, num_train=BATCH, batch_size=BATCH, image_size=64, state_size=32, seed=0
    )
    batch = next(iter(data.train_dataloader()))
    counter = iter(range(10**9))
    image_renderer, state_renderer = Renderer(language, 64), Renderer(language, 32)
    step = milliseconds(lambda: module.loss(batch).backward())
    rows = {
        "forward and backward": step,
        "programs": milliseconds(
            lambda: [sampler.numbered("val", next(counter)) for _ in range(BATCH)]
        ),
        "pictures, 64 px": milliseconds(lambda: image_renderer.pictures(pictures)),
        "states, 32 px": milliseconds(lambda: state_renderer.states(results)),
    }
    print(f"layers {list(layer_probs)}, {torch.get_num_threads()} threads\n")
    print("| per program | ms | share of a step |\n|---|--:|--:|")
    for name, taken in rows.items():
        print(f"| {name} | {taken / BATCH:.2f} | {taken / step:.2f} |")
    print()
    data_time = sum(rows.values()) - step
    ratio(
        f"programs, pictures and states / step, up to {len(layer_probs)} layers", data_time / step
    )


def traced(image: Tensor) -> str:
    """Returns an image (3, H, W) in [0, 1] as VTracer's SVG, with its settings for flat art."""
    import vtracer

    buffer = io.BytesIO()
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    text: str = vtracer.convert_raw_image_to_svg(
        buffer.getvalue(), img_format="png", colormode="color", hierarchical="stacked"
    )
    return text


def drawn_svg(text: str, size: int) -> Tensor:
    """Draws an SVG on white, (3, size, size) in [0, 1]."""
    if "viewBox" not in text:
        width, height = (re.search(rf'{name}="(\d+)"', text)[1] for name in ("width", "height"))
        text = text.replace("<svg ", f'<svg viewBox="0 0 {width} {height}" ', 1)
    data = resvg_py.svg_to_bytes(
        svg_string=text, width=size, height=size, background="white", skip_system_fonts=True
    )
    pixels = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


def print_comparison(run: Path, number: int) -> None:
    """Prints errors by size, and numbers of things to edit."""
    checkpoint, config = run / "checkpoints" / "last.ckpt", run / "config.yaml"
    module = Art2Prog.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    settings = yaml.safe_load(config.read_text())["data"]["init_args"]["sampler"]["init_args"]
    settings["language"] = Language.of(settings["language"])
    sampler = ProgramSampler(**settings)
    programs = [sampler.numbered("test", index) for index in range(number)]
    pictures = [picture_of(program) for program in programs]
    image = Renderer(module.language, module.image_size).pictures(pictures)
    image = (image * 255).round() / 255
    start = time.perf_counter()
    written = module.generate(image)
    seconds = {"Art2Prog": time.perf_counter() - start}
    start = time.perf_counter()
    paths = [traced(each) for each in image]
    seconds["VTracer"] = time.perf_counter() - start
    errors: dict[str, list[float]] = {}
    for size in SIZES:
        renderer = Renderer(module.language, size)
        sums = dict.fromkeys(("Art2Prog", "VTracer", "enlarged", "blank"), 0.0)
        for row, picture in enumerate(pictures):
            true = renderer.pictures([picture])[0]
            enlarged = F.interpolate(image[row, None], (size, size), mode="bicubic")[0].clamp(0, 1)
            found = {
                "Art2Prog": renderer.pictures([picture_of(written[row])])[0],
                "VTracer": drawn_svg(paths[row], size),
                "enlarged": enlarged,
                "blank": torch.ones_like(true),
            }
            for name, each in found.items():
                sums[name] += float((each - true).square().mean()) / number
        for name, error in sums.items():
            errors.setdefault(name, []).append(error)
    edges = [sum(len(layer.outline.edges) for layer in picture_of(p)) for p in written]
    nodes = [sum(map(len, re.findall(r"[MLCQ]", text))) for text in paths]
    things = {
        "Art2Prog": (statistics.mean(len(picture_of(p)) for p in written), statistics.mean(edges)),
        "VTracer": (statistics.mean(t.count("<path") for t in paths), statistics.mean(nodes)),
    }
    print(f"{number} held-out pictures of {module.image_size} px; mean square error by size\n")
    print("| | " + " | ".join(f"{size} px" for size in SIZES) + " | shapes | edges | s / picture |")
    print("|---|" + "--:|" * (len(SIZES) + 3))
    for name, row in errors.items():
        shapes = (f"{value:.1f}" for value in things.get(name, ()))
        cells = [f"{error:.4f}" for error in row] + ([*shapes] or ["", ""])
        taken = f"{seconds[name] / number:.3f}" if name in seconds else ""
        print(f"| {name} | " + " | ".join([*cells, taken]) + " |")


def main(run: Path | None = None, number: int = 100) -> None:
    """Prints the tables.

    Args:
        run: Directory of a run that has trained `Art2Prog`.
        number: Pictures that are compared.
    """
    if run is None:
        for layer_probs in ((1.0,), (0.4, 0.6), (0.25, 0.35, 0.25, 0.15)):
            print_costs(layer_probs)
    else:
        print_comparison(run, number)


if __name__ == "__main__":
    auto_cli(main)
