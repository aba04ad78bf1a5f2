"""Images per second that reach the trainer, against what decoding and cropping alone would allow.

    python tests/benchmarks/realsyn_training.py [--images 2000] [--side 256] [--repeats 5]

Web-like JPEGs (noise over gradients) with four texts each, as Parquet and as webdataset tar files.
Ways to read them, in turn so that another process on the machine hurts all alike:

- floor: PIL decodes, crops and resizes each file, nothing else;
- parquet, tar: `MultiTextDataModule`, in the main process and with one and two workers;
- webdataset: the library of that name on the same tar files, in the main process, with a shuffle
  buffer: not resumable, and without epochs of a definite length.

Last: a training step of a small CLIP with and without `chunk_size`, time and tensors kept.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from report import ratio
from tenfold.datamodules.images import open_image
from tenfold.datamodules.multi_text import MultiTextDataModule
from tenfold.modules.image_transforms import training_transform
from tenfold.modules.realsyn import ClipPretraining

SIZE = 224
BATCH = 64
KEYS = ["txt", "json.text2", "json.text3", "json.syn_text"]


def photograph(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG of some complexity."""
    ramps = np.linspace(0, 200, side)[:, None, None] * rng.uniform(0, 1, 3)
    pixels = ramps + rng.normal(0, 12, (side, side * 4 // 3, 3)) + rng.uniform(0, 50)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(folder: Path, number: int, side: int) -> list[bytes]:
    """Writes the same pairs in both formats."""
    import webdataset

    rng = np.random.default_rng(0)
    images = [photograph(rng, side) for _ in range(number)]
    rows = [
        {"image": image, "texts": [f"text {k} of image {i}" for k in range(4)]}
        for i, image in enumerate(images)
    ]
    (folder / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs" / "a.parquet", row_group_size=256)
    (folder / "tar").mkdir()
    with webdataset.ShardWriter(str(folder / "tar" / "%05d.tar"), maxcount=1000, verbose=0) as out:
        for i, row in enumerate(rows):
            rest = {"text2": row["texts"][1], "text3": row["texts"][2], "syn_text": row["texts"][3]}
            out.write(
                {"__key__": f"{i:06}", "jpg": row["image"], "txt": row["texts"][0], "json": rest}
            )
    return images


def ways(folder: Path, images: list[bytes]) -> dict[str, Callable[[], int]]:
    """Each reads all images once and returns how many there were."""
    transform = training_transform(SIZE, (0.7, 1.0), 0.5)

    def floor() -> int:
        for image in images:
            transform(open_image(image, 2 * SIZE))
        return len(images)

    def ours(root: str, keys: list[str], workers: int) -> Callable[[], int]:
        data = MultiTextDataModule(
            str(folder), train=root, val=None, test=None, text_keys=keys, image_size=SIZE,
            batch_size=BATCH, num_workers=workers, cache_dir=str(folder / "cache"), seed=0,
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        loader = data.train_dataloader()
        return lambda: sum(len(batch["texts"]) for batch in loader)

    def theirs() -> int:
        import webdataset

        urls = [str(path) for path in sorted((folder / "tar").glob("*.tar"))]
        pipeline = (
            webdataset.WebDataset(urls, shardshuffle=False)
            .shuffle(1000)
            .decode("pilrgb")
            .to_tuple("jpg", "txt", "json")
            .map_tuple(transform, lambda text: text, lambda rest: rest)
            .batched(BATCH)
        )
        return sum(len(batch[0]) for batch in pipeline)

    found = {"floor (PIL alone)": floor, "webdataset, main process": theirs}
    for workers in (0, 1, 2):
        found[f"parquet, {workers} workers"] = ours("pairs", ["texts"], workers)
        found[f"tar, {workers} workers"] = ours("tar", KEYS, workers)
    return found


def steps(repeats: int) -> None:
    """A training step with and without chunks."""
    towers = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    towers |= {"num_attention_heads": 4}
    image = {"model_type": "clip_vision_model", "image_size": 64, "patch_size": 16, **towers}
    text = {"model_type": "clip_text_model", **towers}
    batch = {
        "images": torch.randint(256, (256, 3, 64, 64), dtype=torch.uint8),
        "texts": [f"a text about number {k}" for k in range(256)],
    }
    times: dict[int | None, list[float]] = {}
    kept: dict[int | None, float] = {}
    modules = {}
    for size in (None, 32):
        torch.manual_seed(0)
        modules[size] = ClipPretraining(
            image, text, embed_dim=64, tokenizer="words", text_length=16, chunk_size=size
        )
        modules[size].configure_model()
    for _ in range(repeats):
        for size, module in modules.items():
            total = 0

            def pack(tensor: torch.Tensor) -> torch.Tensor:
                nonlocal total
                total += tensor.numel() * tensor.element_size()
                return tensor

            begin = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = module.loss(batch)
            loss.backward()
            times.setdefault(size, []).append(time.perf_counter() - begin)
            kept[size] = total / 2**20
    longer = statistics.median(b / a for a, b in zip(times[None], times[32], strict=True))
    print(f"chunk_size 32 of 256: {longer:.2f} times as long,", end=" ")
    print(
        f"{kept[32]:.0f} MiB kept between the passes, and those of a chunk in the backward pass "
        f"({kept[None] / 8:.0f}), in place of {kept[None]:.0f}"
    )
    ratio("time of a step, chunks of 32 / whole batch of 256", longer)
    most_kept = kept[32] + kept[None] / 8
    ratio("memory kept in a step, chunks of 32 / whole batch of 256", most_kept / kept[None])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write(folder, options.images, options.side)
        found = ways(folder, images)
        speeds: dict[str, list[float]] = {way: [] for way in found}
        for _ in range(options.repeats):
            for way, read in found.items():
                begin = time.perf_counter()
                number = read()
                speeds[way].append(number / (time.perf_counter() - begin))
        floor = speeds["floor (PIL alone)"]
        medians: dict[str, float] = {}
        for way, values in speeds.items():
            shares = [value / base for value, base in zip(values, floor, strict=True)]
            medians[way] = statistics.median(shares)
            share = f"{medians[way]:.2f} ({min(shares):.2f}-{max(shares):.2f})"
            print(f"{way:26} {statistics.median(values):8.0f} images/s   {share} of the floor")
        for way, share_of_floor in list(medians.items())[1:]:
            ratio(f"images/s, {way} / PIL alone", share_of_floor)
    steps(options.repeats)


if __name__ == "__main__":
    main()
