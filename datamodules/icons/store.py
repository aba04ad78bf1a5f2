"""Icons read once and kept as tensors, with a report of what was refused and why."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ...modules.deepicon.names import family
from ...modules.deepicon.representation import (
    IconCodec,
    IconError,
    IconStyle,
    IconTensors,
    stack_icons,
    style_numbers,
    style_of,
)
from ...modules.files import atomic_write, write_json
from ...modules.svg import Document, normalized, render
from .sources import IconSource

log = logging.getLogger(__name__)

FORMAT = 1  # of the cache; another one is made again
CHECK_SIZE = 64  # pixels of the drawings that are compared
ROUND_TRIP_IOU = 0.98
OVERLAP_SIZE = 24  # pixels of the drawings that look for near-duplicates
ROWS = 64  # of training icons that are compared at a time
SPLITS = ("train", "val", "test")


@dataclass
class IconSet:
    """Icons as tensors, with what is known of each.

    Attributes:
        tensors: Of N icons.
        styles: (N, 3) float32: width, number in `CAPS`, number in `JOINS`.
        ink: (N, OVERLAP_SIZE ** 2) float32, which part of each pixel is ink.
        names: "lucide/house".
        licences: Of each.
        codec: That made them.
        report: By source: `files`, `accepted`, `round_trip` (the share of those that fit whose
            tensors draw the same), `rejected`: reasons with their numbers and an example.
    """

    tensors: IconTensors
    styles: Tensor
    ink: Tensor
    names: list[str]
    licences: list[str]
    codec: IconCodec
    report: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Document:
        icon = IconTensors(*(part[index] for part in self.tensors))
        return self.codec.decode(icon, style_of(self.styles[index]))

    @property
    def data_hash(self) -> str:
        """SHA-256 of names and tensors."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        for part in (*self.tensors, self.styles):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> "IconSet":
        """Returns the icons of these numbers, in this order."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        return IconSet(
            IconTensors(*(part[chosen] for part in self.tensors)),
            self.styles[chosen],
            self.ink[chosen],
            [self.names[i] for i in indices],
            [self.licences[i] for i in indices],
            self.codec,
            self.report,
        )


def load_icons(sources: Sequence[IconSource], codec: IconCodec, cache_dir: str | None) -> IconSet:
    """Returns the icons of sources from the cache, which is filled first if need be.

    Args:
        sources: In this order; of icons that look the same the first stays.
        codec: Makes the tensors.
        cache_dir: Where caches are; None: `$TENFOLD_CACHE`, else `~/.cache/tenfold`.

    Raises:
        ValueError: A source is not there, or not one icon was accepted.
    """
    wanted = [FORMAT, asdict(codec), [source.fingerprint() for source in sources]]
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:20]
    root = Path(cache_dir or os.environ.get("TENFOLD_CACHE") or "~/.cache/tenfold").expanduser()
    path = root / "icons" / f"{key}.safetensors"
    if not path.with_suffix(".json").exists():
        icons = read_icons(sources, codec)
        _write(icons, path)
        for name, report in icons.report.items():
            log.info("%s: %d of %d icons; refused: %s", name, *_summary(report))
    return _read(path, codec)


def read_icons(sources: Sequence[IconSource], codec: IconCodec) -> IconSet:
    """Reads icons without a cache; see `load_icons`."""
    kept: list[tuple[IconTensors, IconStyle, Tensor]] = []
    names: list[str] = []
    licences: list[str] = []
    seen: dict[bytes, str] = {}
    reports: dict[str, Any] = {}
    for source in sources:
        label = Path(source.path).name
        reasons: Counter[str] = Counter()
        examples: dict[str, str] = {}
        num_files = num_same = num_fitting = 0
        for stem, document in source.documents():
            num_files += 1
            try:
                if isinstance(document, ValueError):
                    raise document
                icon, style = codec.encode(document)
                num_fitting += 1
                image, again = render(
                    [normalized(document), codec.decode(icon, style)], (CHECK_SIZE, CHECK_SIZE)
                )[:, 0]
                if ink_iou(image, again) < ROUND_TRIP_IOU:
                    raise IconError("its tensors draw something else")
                num_same += 1
                digest = hashlib.sha256((image < 0.5).numpy().tobytes()).digest()
                if digest in seen:
                    raise IconError("looks like another icon")
            except ValueError as error:
                # A reason is the same for all alike: without the numbers and names of one file.
                reason = str(error).removeprefix(f"{stem}: ").split(" (")[0][:80]
                reasons[reason] += 1
                examples.setdefault(reason, stem)
                continue
            seen[digest] = stem
            pooled = torch.nn.functional.interpolate(
                1 - image[None, None], size=OVERLAP_SIZE, mode="area"
            )
            kept.append((icon, style, pooled.flatten()))
            names.append(f"{label}/{stem}")
            licences.append(source.terms)
        reports[label] = {
            "files": num_files,
            "accepted": num_files - reasons.total(),
            "round_trip": num_same / num_fitting if num_fitting else None,
            "rejected": {
                reason: {"number": number, "example": examples[reason]}
                for reason, number in reasons.most_common()
            },
        }
    if not kept:
        raise ValueError(f"sources: not one icon of {', '.join(reports)} was accepted: {reports}")
    icons, styles, inks = zip(*kept, strict=True)
    return IconSet(
        stack_icons(icons),
        torch.stack([style_numbers(style) for style in styles]),
        torch.stack(inks),
        names,
        licences,
        codec,
        reports,
    )


def ink_iou(image: Tensor, other: Tensor) -> float:
    """Returns the share of ink that two drawings (H, W) have in common; 1 without ink."""
    inked, other_inked = image < 0.5, other < 0.5
    union = int((inked | other_inked).sum())
    return int((inked & other_inked).sum()) / union if union else 1.0


def split_icons(
    icons: IconSet, ratios: Sequence[float], max_overlap: float, seed: int
) -> dict[str, IconSet]:
    """Divides icons by family, and takes those out of training that look like a held-out one.

    Args:
        icons: Of all splits.
        ratios: Shares of families for training, validation and test; they add up to 1.
        max_overlap: Largest share of ink that a training icon may have in common with one of
            validation or test.
        seed: Of the division.

    Raises:
        ValueError: A split with a share would be empty.
    """
    members: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, name in enumerate(icons.names):
        digest = hashlib.blake2b(f"{seed}/{family(name)}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        train, val, _ = ratios
        members["train" if place < train else "val" if place < train + val else "test"].append(
            index
        )
    for split, ratio in zip(SPLITS, ratios, strict=True):
        if ratio and not members[split]:
            raise ValueError(f"split_ratios: {len(icons)} icons leave none for {split}")
    held_out = icons.ink[members["val"] + members["test"]]
    if len(held_out) and max_overlap < 1:
        members["train"] = [
            index
            for start in range(0, len(members["train"]), ROWS)
            for index in _unlike(
                icons, members["train"][start : start + ROWS], held_out, max_overlap
            )
        ]
    return {split: icons.subset(indices) for split, indices in members.items()}


def _unlike(icons: IconSet, indices: list[int], others_MK: Tensor, max_overlap: float) -> list[int]:
    """Returns those icons that share at most so much ink with each of others."""
    own_NK = icons.ink[indices]
    common_NM = torch.minimum(own_NK[:, None], others_MK).sum(dim=2)
    union_NM = own_NK.sum(dim=1)[:, None] + others_MK.sum(dim=1) - common_NM
    near = (common_NM > max_overlap * union_NM).any(dim=1).tolist()
    return [index for index, is_near in zip(indices, near, strict=True) if not is_near]


def _summary(report: dict[str, Any]) -> tuple[int, int, str]:
    reasons = (f"{entry['number']} {reason}" for reason, entry in report["rejected"].items())
    return report["accepted"], report["files"], "; ".join(reasons) or "none"


def _write(icons: IconSet, path: Path) -> None:
    types, args, visible, paint = icons.tensors
    content = {"types": types.to(torch.uint8), "args": args, "visible": visible}
    content |= {"paint": paint.to(torch.uint8), "styles": icons.styles, "ink": icons.ink}
    with atomic_write(path) as file:
        file.write(save(content))
    rows: Iterable[tuple[str, str]] = zip(icons.names, icons.licences, strict=True)
    manifest = {
        "format": FORMAT,
        "codec": asdict(icons.codec),
        "report": icons.report,
        "icons": [{"name": name, "licence": licence} for name, licence in rows],
    }
    write_json(path.with_suffix(".json"), manifest)  # the last: with it the cache is whole


def _read(path: Path, codec: IconCodec) -> IconSet:
    manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    parts = load_file(path)
    tensors = IconTensors(
        parts["types"].long(), parts["args"], parts["visible"], parts["paint"].long()
    )
    names, licences = ([icon[key] for icon in manifest["icons"]] for key in ("name", "licence"))
    report = manifest["report"]
    return IconSet(tensors, parts["styles"], parts["ink"], names, licences, codec, report)
