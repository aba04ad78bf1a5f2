"""Scenes as files in the formats of the benchmarks: POPE, MuCR, Winoground.

So that what reads a benchmark can be tried, tested and compared without one.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ...modules.files import atomic_path, atomic_write
from .cause_effect import NUM_SIBLINGS, CauseEffectScenes, CausePair
from .objects import ObjectScenes
from .questions import with_article
from .scene import FloatArray, SceneObject, Split, to_pil
from .tiny_pope import QUESTION_SETS, numbered_scenes, scene_rows


def write_pope(
    scenes: ObjectScenes,
    folder: str | Path,
    num_images: int = 500,
    size: Literal["tiny", "medium", "large"] | None = "tiny",
    name: str = "tinypope",
    split: Split = "test",
) -> list[Path]:
    """Writes TinyPOPE: `images/*.png` and `<name>_pope_<questions>.json`.

    There is one file for each of `tiny_pope.QUESTION_SETS`: POPE's random, popular and adversarial,
    and the controls. The files are JSON lines, as POPE's are, with one key more, `bbox`, where a
    question is about objects that are there: left, top, right, bottom in pixels, or a list of such.

    Args:
        scenes: Which scenes.
        folder: Where to; made if missing.
        num_images: Images, from scene 0 of the split on.
        size: Of all objects; None: the scenes' own.
        name: Begins the names of files.
        split: Of the scenes.

    Returns:
        The question files.

    Raises:
        ValueError: A scene has fewer than three objects.
    """
    made = numbered_scenes(scenes, num_images, size, name, split)
    for image, scene in made.items():
        _write_png(Path(folder) / "images" / image, scene.render())
    return [
        _write_lines(
            Path(folder) / f"{name}_pope_{questions}.json", scene_rows(scenes, made, questions)
        )
        for questions in QUESTION_SETS
    ]


def write_mucr(
    scenes: CauseEffectScenes,
    folder: str | Path,
    num_groups: int = 100,
    version: Literal["2024", "2025"] = "2024",
    layout: Literal["jsonl", "parquet"] = "jsonl",
    split: Split = "test",
) -> Path:
    """Writes pairs of cause and effect as MuCR stores them, four to a group.

    Args:
        scenes: Which.
        folder: Where to; made if missing.
        num_groups: Groups, from 0 of the split on.
        version: "2024" has the pairs of a group in `link_id` and three explanations; "2025" other
            names of the captions, no `link_id`, one explanation.
        layout: "jsonl": `annotations.jsonl` and `images/*.png`, with `descriptions.jsonl` beside
            them: captions that tell the looks, which the benchmark does not publish. "parquet":
            `train.parquet` with the images in it, as on the hub.
        split: Of the scenes.

    Returns:
        The file of annotations.
    """
    folder = Path(folder)
    rows, descriptions = [], []
    images: dict[str, FloatArray] = {}
    for group_number in range(num_groups):
        group = scenes.group(split, group_number)
        ids = [f"{group_number * NUM_SIBLINGS + j:04d}" for j in range(NUM_SIBLINGS)]
        for own, pair in zip(ids, group, strict=True):
            files = [f"{own}_{moment}.png" for moment in (0, 1)]
            for file, scene in zip(files, (pair.cause, pair.effect), strict=True):
                images[file] = scene.render()
            rows.append(_mucr_row(own, [i for i in ids if i != own], pair, files, version))
            keys = ("description_0", "description_1")
            descriptions.append({"id": own, **dict(zip(keys, pair.descriptions, strict=True))})
    if layout == "parquet":
        return _write_parquet(folder / "train.parquet", rows, images)
    for file, image in images.items():
        _write_png(folder / "images" / file, image)
    _write_lines(folder / "descriptions.jsonl", descriptions)
    return _write_lines(folder / "annotations.jsonl", rows)


def _mucr_row(
    own: str, others: list[str], pair: CausePair, files: list[str], version: str
) -> dict[str, Any]:
    cause, effect = pair.captions
    captions = {"caption_0": cause, "caption_1": effect, "link_id": f"[{','.join(others)}]"}
    reasons: Any = pair.references
    if version == "2025":
        captions, reasons = {"cause": cause, "effect": effect}, reasons[0]
    return {
        "id": own,
        **captions,
        "cue": pair.statement.cue,
        "false_cue": list(pair.statement.false_cues),
        "style": pair.cause.style,
        "label": pair.category,
        "causal_reason": reasons,
        "image_0": files[0],
        "image_1": files[1],
    }


def write_winoground(
    scenes: ObjectScenes, folder: str | Path, num_examples: int = 400, split: Split = "test"
) -> Path:
    """Writes pairs of images and captions that differ in one exchange, as Winoground stores them.

    Two objects change places: "a red square above a blue circle" against "a blue circle above a red
    square". `examples.jsonl` and `images/ex_<id>_img_{0,1}.png`.

    Args:
        scenes: Which; two objects of each are used.
        folder: Where to; made if missing.
        num_examples: Pairs, from scene 0 of the split on.
        split: Of the scenes.

    Returns:
        The file of examples.

    Raises:
        ValueError: A scene may have one object only.
    """
    if scenes.num_objects[0] < 2:
        raise ValueError("Winoground compares two objects: set num_objects to [2, 2] or more")
    folder = Path(folder)
    rows = []
    for number in range(num_examples):
        scene = scenes.scene(split, number)
        first, second = scene.objects[:2]
        distances = [abs(first.centre[axis] - second.centre[axis]) for axis in (0, 1)]
        axis = int(distances[1] > distances[0])
        if first.centre[axis] > second.centre[axis]:
            first, second = second, first
        captions = [_relation(axis, *pair) for pair in ((first, second), (second, first))]
        swapped = (replace(first, box=second.box), replace(second, box=first.box))
        names = [f"ex_{number}_img_{k}" for k in (0, 1)]
        for name, objects in zip(names, ((first, second), swapped), strict=True):
            image = replace(scene, objects=objects).render()
            _write_png(folder / "images" / f"{name}.png", image)
        rows.append(
            {
                "id": number,
                "image_0": names[0],
                "image_1": names[1],
                "caption_0": captions[0],
                "caption_1": captions[1],
                "tag": "Relation",
                "secondary_tag": "",
                "num_main_preds": 1,
                "collapsed_tag": "Relation",
            }
        )
    return _write_lines(folder / "examples.jsonl", rows)


def _relation(axis: int, first: SceneObject, second: SceneObject) -> str:
    phrase = ("left of", "above")[axis]
    names = [f"{with_article(item.colour)} {item.kind}" for item in (first, second)]
    return f"{names[0]} {phrase} {names[1]}"


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def _write_png(path: Path, image: FloatArray) -> None:
    with atomic_write(path) as file:
        file.write(_png(image))


def _png(image: FloatArray) -> bytes:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="png")
    return buffer.getvalue()


def _write_parquet(
    path: Path, rows: list[dict[str, Any]], images: Mapping[str, FloatArray]
) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    for row in rows:
        for key in ("image_0", "image_1"):
            row[key] = {"bytes": _png(images[row[key]]), "path": row[key]}
    with atomic_path(path) as temporary:
        parquet.write_table(pa.Table.from_pylist(rows), temporary)
    return path
