"""Files in the formats of the benchmarks, against what their definitions say."""

import json
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from tenfold.datamodules.scenes import CauseEffectScenes, ObjectScenes
from tenfold.datamodules.scenes.files import write_mucr, write_pope, write_winoground
from tenfold.datamodules.scenes.scene import COLOURS
from tenfold.datamodules.scenes.tiny_pope import NEGATIVES, QUESTION_SETS, pope_questions
from tenfold.recipes.cli import main


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


names = st.sampled_from([f"kind{i}" for i in range(9)])
some_annotations = st.lists(st.lists(names, max_size=5), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(some_annotations, st.sampled_from(NEGATIVES))
def test_pope_asks_in_turn_for_what_is_there_and_what_is_not(kinds, negatives):
    everything = [f"kind{i}" for i in range(9)]
    images = [("all.png", everything[:6]), ("rest.png", everything[6:])]
    images += [(f"{i}.png", row) for i, row in enumerate(kinds)]
    rows = pope_questions(images, negatives, seed=1)
    assert [row["question_id"] for row in rows] == [*range(1, len(rows) + 1)]
    assert [row["label"] for row in rows] == ["yes", "no"] * (len(rows) // 2)
    popularity = Counter(kind for _, row in images for kind in set(row))
    asked = {name: [] for name, _ in images}
    for row in rows:
        kind = row["text"].removeprefix("Is there a ").removesuffix(" in the image?")
        here = dict(images)[row["image"]]
        assert (kind in here) == (row["label"] == "yes")
        if row["label"] == "no":
            left = set(everything) - set(here) - set(asked[row["image"]])
            assert kind in left
            if negatives == "popular":
                assert popularity[kind] == max(popularity[other] for other in left)
            if negatives == "adversarial":
                positive = asked[row["image"]][-1]
                pairs = {
                    other: sum(positive in r and other in r for _, r in images) for other in left
                }
                assert pairs[kind] == max(pairs.values())
        asked[row["image"]].append(kind)
    assert {len(kinds) for kinds in asked.values()} <= {0, 6}
    assert all(len(asked[name]) == 6 for name, row in images if len(set(row)) >= 3)


def test_pope_needs_absent_kinds():
    with pytest.raises(ValueError, match=r"a\.png: only 0 kinds of the data set are not in it"):
        pope_questions([("a.png", ["x", "y", "z"])], "random")


def check_controls(scenes, path):
    """Every answer follows from the objects that are in `bbox`, whose order is the question's."""
    rows = read_lines(path)
    kind = path.stem.rpartition("_")[2]
    assert [row["question_id"] for row in rows] == [*range(1, len(rows) + 1)]
    for name, asked in groupby(rows, key=lambda row: row["image"]):
        scene = scenes.scene("test", int(name[-10:-4]), "tiny")
        by_box = {item.box: item for item in scene.objects}
        asked = list(asked)
        assert len({row["text"] for row in asked}) == len(asked)
        if kind == "what":
            assert len(asked) == len(scene.objects)
        else:
            assert 2 * sum(row["label"] == "yes" for row in asked) == len(asked) <= 6
        if kind in ("is", "left"):
            assert len(asked) == 6
        for row in asked:
            boxes = row["bbox"] if isinstance(row["bbox"][0], list) else [row["bbox"]]
            one, *others = (by_box[tuple(box)] for box in boxes)
            truths = {"what": one.kind, "is": one.kind == row["text"].split()[-1][:-1]}
            text = {"what": f"What is the {one.colour} digit?"}.get(kind, row["text"])
            if others:
                truths = {"left": one.centre[0] < others[0].centre[0]}
                truths["larger"] = one.area > 1.2 * others[0].area
                phrase = {"left": "left of", "larger": "larger than"}[kind]
                text = f"Is the {one.colour} digit {phrase} the {others[0].colour} digit?"
            assert row["text"] == text
            truth = truths[kind]
            assert row["label"] == (truth if kind == "what" else "yes" if truth else "no")


def test_pope_files_have_the_format_of_the_benchmark(tmp_path):
    scenes = ObjectScenes()
    paths = write_pope(scenes, tmp_path, num_images=6)
    assert [path.name for path in paths] == [f"tinypope_pope_{n}.json" for n in QUESTION_SETS]
    for path in paths[:3]:
        rows = read_lines(path)
        assert len(rows) == 36
        # As in the files of RUCAIBox/POPE: these keys, in this order.
        assert {tuple(row)[:4] for row in rows} == {("question_id", "image", "text", "label")}
        for row in rows:
            scene = scenes.scene("test", int(row["image"][-10:-4]), "tiny")
            kinds = {item.kind: item.box for item in scene.objects}
            kind = row["text"].split()[3]
            assert (kind in kinds) == (row["label"] == "yes") == ("bbox" in row)
            if "bbox" in row:
                assert tuple(row["bbox"]) == kinds[kind]
    for path in paths[3:]:
        check_controls(scenes, path)
    image = np.asarray(Image.open(tmp_path / "images" / "tinypope_000003.png")) / 255
    drawn = scenes.scene("test", 3, "tiny").render().transpose(1, 2, 0)
    assert np.abs(image - drawn).max() < 0.003
    again = write_pope(scenes, tmp_path / "again", num_images=6)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


KEYS_2024 = "id caption_0 caption_1 link_id cue false_cue style label causal_reason image_0 image_1"
KEYS_2025 = "id cause effect cue false_cue style label causal_reason image_0 image_1"


@pytest.mark.parametrize(("version", "keys"), [("2024", KEYS_2024), ("2025", KEYS_2025)])
def test_mucr_files_have_the_keys_of_each_version(tmp_path, version, keys):
    path = write_mucr(CauseEffectScenes(canvas=32), tmp_path, 2, version)
    rows = read_lines(path)
    assert len(rows) == 8
    for row in rows:
        assert list(row) == keys.split()
        assert row["style"] in ("photograph", "comic")
        assert row["cue"] not in row["false_cue"]
        assert len(row["false_cue"]) == 3
        for key in ("image_0", "image_1"):
            assert Image.open(tmp_path / "images" / row[key]).size == (32, 32)
    if version == "2024":
        links = {row["id"]: row["link_id"].strip("[]").split(",") for row in rows}
        assert all(own in links[other] for own, others in links.items() for other in others)
        assert all(len(row["causal_reason"]) == 3 for row in rows)
    descriptions = read_lines(tmp_path / "descriptions.jsonl")
    assert len({row["description_0"] for row in descriptions}) == 8


def test_mucr_parquet_holds_the_images(tmp_path):
    path = write_mucr(CauseEffectScenes(canvas=32), tmp_path, 1, layout="parquet")
    (_, row, *_) = parquet.read_table(path).to_pylist()
    assert list(row) == KEYS_2024.split()
    (tmp_path / "cause.png").write_bytes(row["image_0"]["bytes"])
    assert Image.open(tmp_path / "cause.png").size == (32, 32)
    assert row["image_0"]["path"] == "0001_0.png"


def test_winoground_captions_are_true_of_their_own_image_only(tmp_path):
    scenes = ObjectScenes.caid()
    rows = read_lines(write_winoground(scenes, tmp_path, 8))
    for row in rows:
        images = [
            np.asarray(Image.open(tmp_path / "images" / f"{row[f'image_{k}']}.png")) / 255
            for k in (0, 1)
        ]
        for caption in (0, 1):
            words = row[f"caption_{caption}"].split()
            colours = [word for word in words if word in COLOURS]
            axis = 0 if "above" in words else 1
            for k in (0, 1):
                centres = []
                for colour in colours:
                    is_colour = np.abs(images[k] - COLOURS[colour]).max(axis=2) < 0.01
                    centres.append(np.argwhere(is_colour).mean(axis=0)[axis])
                assert (centres[0] < centres[1]) == (k == caption)


def test_formats_need_enough_objects(tmp_path):
    with pytest.raises(ValueError, match="POPE asks about 3 objects"):
        write_pope(ObjectScenes(num_objects=(2, 3)), tmp_path)
    with pytest.raises(ValueError, match="Winoground compares two objects"):
        write_winoground(ObjectScenes(num_objects=(1, 3)), tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pope", "tinypope_pope_popular.json"),
        ("mucr", "annotations.jsonl"),
        ("winoground", "examples.jsonl"),
    ],
)
def test_the_command_writes_files_and_overwrites_none(name, file, tmp_path, capsys):
    command = ["scenes", "--format", name, "--out", str(tmp_path / "out"), "--number", "2"]
    assert main(command) == 0
    assert (tmp_path / "out" / file).exists()
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert main(["scenes"]) == 2
