"""Benchmarks as they lie on disk: which images, which labels, what the classes are called."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from tenfold.datamodules.classification import ClassificationDataModule
from tenfold.datamodules.classification.names import class_names, imagenet_names, templates
from tenfold.datamodules.classification.readers import BENCHMARKS, open_benchmark, vehicle_distance
from tenfold.datamodules.multi_text.captions import CaptionDataModule
from tiny_pairs import records, write_parquet

PAPER = list(BENCHMARKS)[:20]


def draw(path, shade=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 0, 0)).save(path)
    return path


def opened(name, root, train=False):
    data = open_benchmark(name, root, train)
    items = [data[index] for index in range(len(data))]
    assert all(image.mode == "RGB" for image, _ in items)
    return data, [label for _, label in items]


def test_the_papers_20_and_their_metrics():
    assert PAPER[0] == "food101"
    assert PAPER[-1] == "imagenet"
    by_class = {name for name in PAPER if BENCHMARKS[name].metric == "mean_per_class"}
    assert by_class == {"aircraft", "pets", "caltech101", "flowers"}
    assert {name for name in PAPER if BENCHMARKS[name].metric == "roc_auc"} == {"hateful_memes"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_templates_come_from_a_package_or_are_plain(name):
    found = templates(BENCHMARKS[name].templates)
    assert all("{c}" in template for template in found)
    counts = {"imagenet": 80, "objectnet": 80, "cifar100": 18, "caltech101": 34, "birdsnap": 1}
    assert len(found) == counts.get(name, len(found))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_missing_data_are_one_line(name, tmp_path):
    with pytest.raises(ValueError, match=r"^data: ") as error:
        open_benchmark(name, tmp_path / "nowhere", train=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "nowhere").exists()


def test_food101_of_torchvision(tmp_path):
    names = ["apple_pie", "waffles"]
    for split, number in (("train", 2), ("test", 1)):
        listed = {name: [f"{name}/{split}{k}" for k in range(number)] for name in names}
        meta = tmp_path / "food-101" / "meta" / f"{split}.json"
        meta.parent.mkdir(parents=True, exist_ok=True)
        meta.write_text(json.dumps(listed))
        for paths in listed.values():
            for path in paths:
                draw(tmp_path / "food-101" / "images" / f"{path}.jpg")
    data, labels = opened("food101", tmp_path)
    assert (data.classes, labels) == (["apple pie", "waffles"], [0, 1])
    assert opened("food101", tmp_path, train=True)[1] == [0, 0, 1, 1]


def test_dtd_trains_on_two_of_its_parts(tmp_path):
    root = tmp_path / "dtd" / "dtd"
    for split in ("train", "val", "test"):
        listed = [f"{name}/{name}_{split}.jpg" for name in ("banded", "dotted")]
        for path in listed:
            draw(root / "images" / path)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{split}1.txt").write_text("\n".join(listed) + "\n")
    assert opened("dtd", tmp_path)[1] == [0, 1]
    assert opened("dtd", tmp_path, train=True)[1] == [0, 1, 0, 1]


def test_sst2_and_country211(tmp_path):
    for split in ("train", "valid", "test"):
        for name in ("negative", "positive"):
            draw(tmp_path / "rendered-sst2" / split / name / "1.png")
        for name in ("AD", "AE"):
            draw(tmp_path / "country211" / split / name / "1.jpg")
    data, labels = opened("sst2", tmp_path)
    assert (data.classes, labels) == (["negative", "positive"], [0, 1])
    assert opened("sst2", tmp_path, train=True)[1] == [0, 1, 0, 1]
    assert opened("country211", tmp_path)[0].classes[0] == "Andorra"


def test_random_parts_share_nothing_and_stay(tmp_path):
    for name in ("airport", "bridge", "tennis_court"):
        for k in range(30):
            draw(tmp_path / name / f"{name}_{k:03}.jpg")
    train, _ = opened("resisc45", tmp_path, train=True)
    test, labels = opened("resisc45", tmp_path)
    assert train.classes == ["airport", "bridge", "tennis court"]
    one, other = ({path for path, _ in data.files} for data in (train, test))
    assert not one & other
    assert len(one | other) == 90
    assert len(one) == round(90 * 3150 / 28350)
    assert opened("resisc45", tmp_path)[1] == labels
    for path, label in test.files:
        assert train.classes[label].replace(" ", "_") == path.parent.name


def test_imagenet_and_its_variants_have_names_by_wordnet_ids(tmp_path):
    ids = list(imagenet_names())
    assert imagenet_names()["n01440764"] == class_names("imagenet1k")[0] == "tench"
    assert imagenet_names()["n02099601"] == "Golden Retriever"
    for name in (ids[0], ids[207], ids[999]):
        draw(tmp_path / "val" / name / "a.JPEG")
    data, labels = opened("imagenet", tmp_path)
    assert (data.classes, labels) == (["tench", "Golden Retriever", "toilet paper"], [0, 1, 2])
    assert opened("imagenet_a", tmp_path / "val")[0].classes == data.classes
    with pytest.raises(ValueError, match="imagenet_a has no training images"):
        open_benchmark("imagenet_a", tmp_path, train=True)
    draw(tmp_path / "val" / "n0" / "a.png")
    with pytest.raises(ValueError, match="n0 is no WordNet id"):
        open_benchmark("imagenet_r", tmp_path / "val", train=False)
    for name in ("0", "10", "2"):
        draw(tmp_path / "v2" / name / "a.jpeg")
    data, labels = opened("imagenet_v2", tmp_path / "v2")
    assert (len(data.classes), sorted(labels)) == (1000, [0, 2, 10])


def test_objectnet_counts_only_what_imagenet_has(tmp_path):
    mappings = tmp_path / "mappings"
    mappings.mkdir()
    folders = {"air_freshener": "Air freshener", "alarm_clock": "Alarm clock", "bag": "Backpack"}
    shared = {"Backpack": "backpack, back pack", "Alarm clock": "analog clock; digital clock"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(folders))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    for name in folders:
        draw(tmp_path / "images" / name / "1.png")
    data, labels = opened("objectnet", tmp_path)
    assert (data.classes, labels) == (["alarm clock", "backpack"], [0, 1])


def test_hateful_memes(tmp_path):
    draw(tmp_path / "img" / "1.png")
    lines = [{"img": "img/1.png", "label": 1, "text": "x"}, {"img": "img/1.png", "label": 0}]
    (tmp_path / "dev_seen.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert opened("hateful_memes", tmp_path)[1] == [1, 0]
    (tmp_path / "train.jsonl").write_text('{"img": "a.png"}')
    with pytest.raises(ValueError, match=r"train.jsonl:1: expected img and label"):
        open_benchmark("hateful_memes", tmp_path, train=True)


def kitti_line(kind, depth):
    return f"{kind} 0.00 0 -0.20 1 2 3 4 1.89 0.48 1.20 1.84 1.47 {depth} 0.01"


@pytest.mark.parametrize(
    ("objects", "label"),
    [
        ([("Car", 7.9), ("Van", 30)], 0),
        ([("Truck", 8.1)], 1),
        ([("Pedestrian", 2), ("Car", 20.1)], 2),
        ([("Cyclist", 3), ("DontCare", -1000)], 3),
        ([], 3),
    ],
)
def test_kitti_is_about_the_closest_vehicle(objects, label):
    assert vehicle_distance("\n".join(kitti_line(*thing) for thing in objects)) == label


def test_kitti_on_disk(tmp_path):
    training = tmp_path / "training"
    for k in range(20):
        draw(training / "image_2" / f"{k:06}.png")
        (training / "label_2").mkdir(exist_ok=True)
        (training / "label_2" / f"{k:06}.txt").write_text(kitti_line("Car", 10 * (k % 3) + 5))
    train, test = (opened("kitti", tmp_path, train=part)[1] for part in (True, False))
    assert len(train) == 18
    assert len(test) == 2
    assert set(train) == {0, 1, 2}


# The DataModule


def pairs(tmp_path, **changes):
    data = ClassificationDataModule(
        "pairs", str(tmp_path), image_size=16, cache_dir=str(tmp_path / "c"), **changes
    )
    data.prepare_data()
    data.setup()
    return data


def test_folders_and_broken_images(tmp_path, caplog):
    for name in ("black_cat", "dog"):
        draw(tmp_path / "test" / name / "1.png")
    (tmp_path / "test" / "dog" / "2.png").write_bytes(b"nothing")
    data = ClassificationDataModule("folders", str(tmp_path), image_size=8)
    data.setup()
    with caplog.at_level(logging.WARNING):
        (batch,) = data.test_dataloader()
    assert data.class_names == ["black cat", "dog"]
    assert data.templates == ["a photo of a {c}."]
    assert batch["label"].tolist() == [0, 1, -100]
    assert batch["num_broken"] == 1
    assert batch["images"].shape == (3, 3, 8, 8)
    assert "2.png cannot be read" in caplog.text


def test_classes_of_pairs_come_from_a_column(tmp_path):
    rows = records(24)
    rows[0]["class"] = None
    write_parquet(tmp_path / "pairs" / "a.parquet", rows)
    held_out = records(9)
    held_out[8]["class"] = "a class never trained"
    write_parquet(tmp_path / "held_out" / "a.parquet", held_out)
    data = pairs(tmp_path)
    assert data.class_names == sorted({row["class"] for row in rows[1:]})
    labels = [int(x) for batch in data.test_dataloader() for x in batch["label"]]
    assert [data.class_names[x] for x in labels] == [row["class"] for row in held_out[:8]]
    assert sum(len(batch["label"]) for batch in data.train_dataloader()) == 23
    assert pairs(tmp_path, min_count=3).class_names == [n for n in data.class_names if n != "red"]


def test_classes_may_be_a_part_of_a_column(tmp_path):
    rows = records(8)
    for number, row in enumerate(rows):
        kind = ("filter", "tool")[number % 2] if number < 6 else "other"
        row["source"] = f"help/images/gimp-{kind}-{number}.png"
    for folder in ("pairs", "held_out"):
        write_parquet(tmp_path / folder / "a.parquet", rows)
    data = pairs(tmp_path, label_key="source", label_pattern=r"gimp-(filter|tool)-")
    assert data.class_names == ["filter", "tool"]
    (batch,) = data.test_dataloader()
    assert batch["label"].tolist() == [0, 1, 0, 1, 0, 1]
    assert np.unique(batch["index"]).size == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"label_pattern": "(x)"}, "0 class"), ({"label_key": "kind"}, "no column 'kind'")],
)
def test_pairs_without_classes_are_refused(tmp_path, changes, message):
    write_parquet(tmp_path / "pairs" / "a.parquet", records(4))
    write_parquet(tmp_path / "held_out" / "a.parquet", records(4))
    with pytest.raises(ValueError, match=message):
        pairs(tmp_path, **changes)


def test_a_data_set_that_is_none_is_named():
    with pytest.raises(ValueError, match="'food102' is none of food101, cifar10"):
        ClassificationDataModule("food102", "x")


def test_captions_of_karpathys_splits(tmp_path):
    draw(tmp_path / "val" / "1.jpg")
    listed = [
        {"image": "val/1.jpg", "caption": ["a", "b"]},
        {"image": "val/2.jpg", "caption": ["lost"]},
        {"image": "val/1.jpg", "caption": "one"},
    ]
    (tmp_path / "test.json").write_text(json.dumps(listed))
    data = CaptionDataModule(str(tmp_path / "test.json"), str(tmp_path), image_size=8)
    data.setup()
    (batch,) = data.test_dataloader()
    assert batch["captions"] == [["a", "b"], [], ["one"]]
    assert batch["num_broken"] == 1
    (tmp_path / "test.json").write_text('[{"image": 3}]')
    with pytest.raises(ValueError, match="is no JSON list of image and caption"):
        CaptionDataModule(str(tmp_path / "test.json"), str(tmp_path)).setup()
