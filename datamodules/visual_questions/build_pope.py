"""POPE's question files from any annotations of objects."""

import json
from collections.abc import Sequence
from pathlib import Path

from ...modules.files import atomic_write
from ..scenes.tiny_pope import NEGATIVES, NUM_PER_IMAGE, Negatives, pope_questions
from .questions import field_of, read_entries


def build_pope(
    annotations: str | Path,
    folder: str | Path,
    name: str,
    splits: Sequence[Negatives] = NEGATIVES,
    num_images: int | None = 500,
    seed: int = 0,
) -> list[Path]:
    """Writes `<name>_pope_<split>.json` as `PopeDataModule` reads them.

    >>> build_pope("objects.jsonl", "data/mine", "mine")  # doctest: +SKIP
    [PosixPath('data/mine/mine_pope_random.json'), ...]

    Args:
        annotations: JSON lines (or an array) with `image` and `objects`, the kinds in it.
        folder: Where to; made if missing.
        name: Of the data set.
        splits: How absent objects are chosen; see `pope_questions`.
        num_images: Asks about the first so many images of three objects or more; None: all. How
            often objects occur is counted on all.
        seed: Of "random".

    Returns:
        The files.

    Raises:
        ValueError: A bad entry, no image of three objects, or too few kinds that an image has not.
    """
    images: dict[str, list[str]] = {}
    for where, entry in read_entries(Path(annotations)):
        if isinstance(entry, ValueError):
            raise entry
        image, kinds = field_of(entry, "image", where), entry.get("objects")
        if not isinstance(kinds, list) or not all(isinstance(k, str) and k for k in kinds):
            raise ValueError(f"{where}: expected a list of texts as 'objects', found {kinds!r}")
        if image in images:
            raise ValueError(f"{where}: the image {image!r} is annotated twice")
        images[image] = kinds
    full = [image for image, kinds in images.items() if len(set(kinds)) >= NUM_PER_IMAGE]
    if not full:
        raise ValueError(f"{annotations}: no image has {NUM_PER_IMAGE} different objects")
    asked = full[:num_images]
    paths = []
    for split in splits:
        rows = pope_questions([*images.items()], split, seed, only=asked)
        path = Path(folder) / f"{name}_pope_{split}.json"
        with atomic_write(path, "w") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        paths.append(path)
    return paths
