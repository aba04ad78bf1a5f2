"""The data sets of RealSyn's tests as they lie on disk; torchvision's readers where it has one.

Where the paper's split is random, ours is a seeded one of the same sizes: it is not the same split.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import datasets as tv

from ...modules.metrics.classification import ScoreName
from ..images import open_image
from .names import class_names, imagenet_names

SPLIT_SEED = 3072  # that of the authors' earlier code; the generator is another
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"}
VEHICLES = {"Car", "Van", "Truck"}
NEAR, FAR = 8.0, 20.0  # metres, of VTAB's "closest vehicle distance"


class LabelledImages(Protocol):
    """Images with labels, and what the labels are called."""

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Reads an image and its label.

        Raises:
            ValueError: It cannot be read.
        """
        ...


class ImageFiles:
    """Image files with labels.

    Args:
        files: Paths and labels from 0.
        classes: What the labels are called.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], classes: Sequence[str]) -> None:
        self.files, self.classes = list(files), list(classes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """See `LabelledImages`."""
        path, label = self.files[index]
        return open_image(path), label


class Torchvision:
    """A data set of torchvision.

    Args:
        data: Gives PIL images and labels.
        classes: What the labels are called.
    """

    def __init__(self, data: Dataset[Any], classes: Sequence[str]) -> None:
        self.data, self.classes = data, [name.replace("_", " ") for name in classes]

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type] # they all have one

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """See `LabelledImages`."""
        try:
            image, label = self.data[index]
            return image.convert("RGB"), int(label)
        except (OSError, SyntaxError, ValueError) as error:
            kind = type(self.data).__name__
            raise ValueError(f"{kind}, image {index} cannot be read: {error}") from error


@dataclass(frozen=True)
class Benchmark:
    """A data set by its name.

    Args:
        open: Reads its training (True) or test images (False) from a folder.
        templates: Key of its templates in `clip-benchmark`; None: a plain one.
        metric: What it is reported by.
        has_train: Whether it has training images.
    """

    open: Callable[[Path, bool], LabelledImages]
    templates: str | None = None
    metric: ScoreName = "accuracy"
    has_train: bool = True


def folder_files(folder: Path) -> list[tuple[Path, int, str]]:
    """Finds image files in a folder with one folder per class: path, label, name of the folder.

    Raises:
        ValueError: There are none.
    """
    inside = folder.iterdir() if folder.is_dir() else []
    names = sorted(path.name for path in inside if path.is_dir())
    found = [
        (path, label, name)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise ValueError(f"data: no images in folders of their classes in {folder}")
    return found


def _folders(root: Path, train: bool) -> LabelledImages:
    """`train/CLASS/*.jpg` and `test/CLASS/*.jpg` (or `val`)."""
    split = "train" if train else "test" if (root / "test").is_dir() else "val"
    found = folder_files(root / split)
    names = sorted({name for _, _, name in found})
    return ImageFiles(
        [(path, names.index(name)) for path, _, name in found],
        [name.replace("_", " ") for name in names],
    )


def _imagenet(root: Path, train: bool) -> LabelledImages:
    return _by_wordnet_id(root / ("train" if train else "val"))


def _by_wordnet_id(root: Path, *_: bool) -> LabelledImages:
    """Folders named by WordNet ids; the classes are those that there are folders of."""
    found = folder_files(root)
    known = imagenet_names()
    ids = sorted({name for _, _, name in found})
    if unknown := [name for name in ids if name not in known]:
        raise ValueError(f"data: {root / unknown[0]} is no WordNet id of ImageNet's 1000 classes")
    return ImageFiles(
        [(path, ids.index(name)) for path, _, name in found], [known[name] for name in ids]
    )


def _imagenet_v2(root: Path, *_: bool) -> LabelledImages:
    """Folders named 0 to 999."""
    found = folder_files(root)
    try:
        files = [(path, int(name)) for path, _, name in found]
    except ValueError as error:
        raise ValueError(f"data: folders of {root} must be named 0 to 999: {error}") from error
    return ImageFiles(files, list(imagenet_names().values()))


def _objectnet(root: Path, *_: bool) -> LabelledImages:
    """`images/FOLDER/*.png` and `mappings/*.json`; the 113 classes that ImageNet has as well."""
    mappings = root / "mappings"
    try:
        folders = json.loads((mappings / "folder_to_objectnet_label.json").read_text("utf-8"))
        shared = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"data: {mappings} of ObjectNet cannot be read: {error}") from error
    label_of = {name: label for label, name in enumerate(sorted(shared))}
    files = [
        (path, label_of[folders[name]])
        for path, _, name in folder_files(root / "images")
        if folders.get(name) in label_of
    ]
    return ImageFiles(files, [name.lower() for name in label_of])


def _hateful_memes(root: Path, train: bool) -> LabelledImages:
    """`train.jsonl`, `dev.jsonl` (or `dev_seen.jsonl`) with `img` and `label`."""
    names = ["train.jsonl"] if train else ["dev.jsonl", "dev_seen.jsonl"]
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise ValueError(f"data: there is no {root / names[0]}")
    files = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            files.append((root / entry["img"], int(entry["label"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"data: {path}:{number}: expected img and label: {error}") from error
    return ImageFiles(files, ["meme", "hatespeech meme"])


def _kitti(root: Path, train: bool) -> LabelledImages:
    """`training/{image_2,label_2}` of KITTI, or torchvision's folder with them."""
    folder = root / "Kitti" / "raw" if (root / "Kitti").is_dir() else root
    labels = sorted((folder / "training" / "label_2").glob("*.txt"))
    if not labels:
        raise ValueError(f"data: no {folder}/training/label_2/*.txt of KITTI")
    files = [
        (folder / "training" / "image_2" / f"{path.stem}.png", vehicle_distance(path.read_text()))
        for path in labels
    ]
    names = class_names("kitti_closest_vehicle_distance")
    return _part(ImageFiles(files, names), (6770, 711), train)


def vehicle_distance(labels: str) -> int:
    """Returns VTAB's class of a KITTI image: how far the closest car, van or truck is.

    Args:
        labels: KITTI's text, one object a line: its type first, its depth in metres the 14th.

    Returns:
        0 up to 8 m, 1 up to 20 m, 2 farther, 3 without any.
    """
    rows = [line.split() for line in labels.splitlines()]
    depths = [float(row[13]) for row in rows if row and row[0] in VEHICLES]
    return int(np.searchsorted([NEAR, FAR], min(depths))) if depths else 3


def _resisc45(root: Path, train: bool) -> LabelledImages:
    found = folder_files(root)
    names = sorted({name for _, _, name in found})
    files = [(path, label) for path, label, _ in found]
    images = ImageFiles(files, [name.replace("_", " ") for name in names])
    return _part(images, (3150, 25200), train)


def _part(data: LabelledImages, sizes: tuple[int, int], train: bool) -> LabelledImages:
    """A seeded random part of a data set without splits; of a smaller one in proportion."""
    num_train = round(len(data) * min(1.0, sizes[0] / sum(sizes)))
    if len(data) >= sum(sizes):
        num_train = sizes[0]
    sequence = np.random.SeedSequence(SPLIT_SEED)
    order = np.argsort(np.random.Philox(sequence).random_raw(len(data)), kind="stable").tolist()
    rows = order[:num_train] if train else order[num_train : num_train + sizes[1]]
    if isinstance(data, ImageFiles):
        return ImageFiles([data.files[row] for row in rows], data.classes)
    assert isinstance(data, Torchvision)
    return Torchvision(Subset(data.data, rows), data.classes)


def _whole(root: Path, kind: Any, splits: Sequence[str], names: str | None) -> LabelledImages:
    parts = [kind(root, split=split) for split in splits]
    classes = class_names(names) if names else parts[0].classes
    return Torchvision(ConcatDataset(parts) if len(parts) > 1 else parts[0], classes)


def _torchvision(
    kind: Any, train: Sequence[str], test: Sequence[str], names: str | None = None
) -> Callable[[Path, bool], LabelledImages]:
    return lambda root, is_train: _whole(root, kind, train if is_train else test, names)


def _cifar(kind: Any) -> Callable[[Path, bool], LabelledImages]:
    def read(root: Path, train: bool) -> LabelledImages:
        data = kind(root, train=train)
        return Torchvision(data, data.classes)

    return read


def _divided(
    kind: Any, sizes: tuple[int, int], classes: Callable[[Any], Sequence[str]]
) -> Callable[[Path, bool], LabelledImages]:
    def read(root: Path, train: bool) -> LabelledImages:
        data = kind(root)
        return _part(Torchvision(data, classes(data)), sizes, train)

    return read


BENCHMARKS: dict[str, Benchmark] = {
    "food101": Benchmark(_torchvision(tv.Food101, ["train"], ["test"]), "food101"),
    "cifar10": Benchmark(_cifar(tv.CIFAR10), "cifar10"),
    "cifar100": Benchmark(_cifar(tv.CIFAR100), "cifar100"),
    "birdsnap": Benchmark(_folders),
    "sun397": Benchmark(
        _divided(
            tv.SUN397, (19850, 19850), lambda data: [n.replace("/", " ") for n in data.classes]
        ),
        "sun397",
    ),
    "cars": Benchmark(_torchvision(tv.StanfordCars, ["train"], ["test"]), "cars"),
    "aircraft": Benchmark(
        _torchvision(tv.FGVCAircraft, ["trainval"], ["test"]), "fgvc_aircraft", "mean_per_class"
    ),
    "dtd": Benchmark(_torchvision(tv.DTD, ["train", "val"], ["test"]), "dtd"),
    "pets": Benchmark(
        _torchvision(tv.OxfordIIITPet, ["trainval"], ["test"], "pets"), "pets", "mean_per_class"
    ),
    "caltech101": Benchmark(
        # The package's list begins with the background, which torchvision leaves out.
        _divided(tv.Caltech101, (3000, 5677), lambda data: class_names("caltech101")[1:]),
        "caltech101",
        "mean_per_class",
    ),
    "flowers": Benchmark(
        _torchvision(tv.Flowers102, ["train", "val"], ["test"], "flowers"),
        "flowers",
        "mean_per_class",
    ),
    "stl10": Benchmark(_torchvision(tv.STL10, ["train"], ["test"]), "stl10"),
    "eurosat": Benchmark(
        _divided(tv.EuroSAT, (10000, 5000), lambda data: class_names("eurosat")), "eurosat"
    ),
    "resisc45": Benchmark(_resisc45, "resisc45"),
    "kitti": Benchmark(_kitti, "kitti_closest_vehicle_distance"),
    "country211": Benchmark(
        _torchvision(tv.Country211, ["train", "valid"], ["test"], "country211"), "country211"
    ),
    "ucf101": Benchmark(_folders),
    "hateful_memes": Benchmark(_hateful_memes, None, "roc_auc"),
    "sst2": Benchmark(_torchvision(tv.RenderedSST2, ["train", "val"], ["test"]), "renderedsst2"),
    "imagenet": Benchmark(_imagenet, "imagenet1k"),
    "imagenet_v2": Benchmark(_imagenet_v2, "imagenet1k", has_train=False),
    "imagenet_a": Benchmark(_by_wordnet_id, "imagenet1k", has_train=False),
    "imagenet_r": Benchmark(_by_wordnet_id, "imagenet1k", has_train=False),
    "imagenet_sketch": Benchmark(_by_wordnet_id, "imagenet1k", has_train=False),
    "objectnet": Benchmark(_objectnet, "imagenet1k", has_train=False),
    "folders": Benchmark(_folders),
}


def open_benchmark(name: str, root: Path, train: bool) -> LabelledImages:
    """Opens a data set.

    Args:
        name: A key of `BENCHMARKS`.
        root: What torchvision calls `root`, or the folder itself for the others.
        train: Whether its training images, or those of the test.

    Raises:
        ValueError: It is not there, or has no training images.
    """
    benchmark = BENCHMARKS[name]
    if train and not benchmark.has_train:
        raise ValueError(f"data: {name} has no training images")
    if not root.is_dir():  # torchvision would make the folder
        raise ValueError(f"data: {name}: there is no folder {root}; nothing is downloaded here")
    try:
        return benchmark.open(root, train)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).removesuffix(
            " You can use download=True to download it"
        )
        raise ValueError(f"data: {name} in {root}: {reason}") from error
