"""What decoding and training of icons cost: hierarchical, one-shot and flat, in turns.

    python tests/benchmarks/deepicon.py [--threads 1] [--batch 32] [--repeats 5]

The networks of `deepicon/claim_hierarchy` with random weights. How long their paths are is chance:
decoding does not stop early, but goes on to the longest sequence that the codec allows. Prints
icons per second and ratios to the flat decoder, above 1 being faster, and the same of a training
step on generated icons. Nothing is asserted about time.
"""

import statistics
import time
from collections.abc import Callable

import torch
from jsonargparse import auto_cli
from report import ratio
from tenfold.datamodules.icons import GeneratedIconDataModule, GeneratedIcons
from tenfold.modules.deepicon import (
    ConvIconEncoder,
    DeepIconModule,
    FlatDecoder,
    HierarchicalDecoder,
    IconCodec,
)

CODEC = IconCodec(max_paths=8, max_commands=16, path_order="topleft")


def modules() -> dict[str, DeepIconModule]:
    """Returns models of as many layers each."""
    hierarchy = {"structure_layers": 2, "path_layers": 3, "num_heads": 4, "dropout": 0.0}
    decoders = {
        "flat": FlatDecoder(5, num_heads=4, dropout=0.0),
        "hierarchical": HierarchicalDecoder(**hierarchy),
        "one-shot": HierarchicalDecoder(**hierarchy, path_decoder="one_shot"),
    }
    found = {}
    for name, decoder in decoders.items():
        torch.manual_seed(0)
        found[name] = DeepIconModule(ConvIconEncoder(48), decoder, CODEC, width=128)
        found[name].configure_model()
    return found


def median_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Returns the median time of each run, taken in turns; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(threads: int = 1, batch: int = 32, repeats: int = 5) -> None:
    """Prints the table.

    Args:
        threads: Of torch.
        batch: Icons at a time.
        repeats: Rounds.
    """
    torch.set_num_threads(threads)
    data = GeneratedIconDataModule(
        GeneratedIcons(), num_train=batch, codec=CODEC, image_size=48, batch_size=batch
    )
    icons = next(iter(data.train_dataloader()))
    models = modules()

    def decode(module: DeepIconModule) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> object:
            return module.network.eval().generate(icons["image"], stop_early=False)

        return run

    def train(module: DeepIconModule) -> Callable[[], object]:
        def run() -> object:
            module.network.train().zero_grad()
            return module.losses(icons)[0].backward()

        return run

    print(f"batches of {batch}, {threads} thread(s), up to 8 paths of 16 commands\n")
    print("| | decoding, icons/s | to flat | training, icons/s | to flat |")
    print("|---|---|---|---|---|")
    decoding = median_seconds({name: decode(m) for name, m in models.items()}, repeats)
    training = median_seconds({name: train(m) for name, m in models.items()}, repeats)
    for name in models:
        parts = [name]
        for seconds in (decoding, training):
            parts += [f"{batch / seconds[name]:.1f}", f"{seconds['flat'] / seconds[name]:.2f}"]
        print(f"| {' | '.join(parts)} |")
    print()
    for name in [name for name in models if name != "flat"]:
        ratio(f"icons/s of decoding, {name} / flat", decoding["flat"] / decoding[name])
        ratio(f"icons/s of training, {name} / flat", training["flat"] / training[name])


if __name__ == "__main__":
    auto_cli(main)
