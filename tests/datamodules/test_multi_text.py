"""Pairs from Parquet and tar files: every text in its turn, none that is empty, the same again."""

import io
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tenfold.datamodules.images import open_image
from tenfold.datamodules.multi_text import MultiTextDataModule
from tenfold.datamodules.multi_text.dataset import Texts
from tenfold.datamodules.multi_text.glyphs import describe
from tenfold.datamodules.multi_text.sources import PairRecord, find_shards, open_source
from tiny_pairs import picture, records, write_parquet, write_tar

RELEASED = ["txt", "json.text2", "json.text3", "json.syn_text"]


def module(root, **changes):
    settings_ = {"val": None, "test": "pairs", "image_size": 16, "batch_size": 4, "seed": 0}
    made = MultiTextDataModule(str(root), **{**settings_, "cache_dir": f"{root}/cache", **changes})
    made.prepare_data()
    made.setup()
    return made


def epochs(data, number):
    """All training samples of some epochs, as (index, text, image)."""
    loader = data.train_dataloader()
    seen = []
    for epoch in range(number):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            seen += zip(batch["index"].tolist(), batch["texts"], batch["images"], strict=True)
    return seen


@pytest.fixture(params=["parquet", "tar"])
def pairs(request, tmp_path):
    """Writes records in either format; returns a function of them that gives the DataModule."""

    def write(rows, **changes):
        half = len(rows) // 2
        for number, part in enumerate((rows[:half], rows[half:])):
            if request.param == "parquet":
                write_parquet(tmp_path / "pairs" / f"{number}.parquet", part, row_group_size=3)
            else:
                write_tar(tmp_path / "pairs" / f"{number:05}.tar", part)
        keys = {"text_keys": RELEASED} if request.param == "tar" else {}
        return module(tmp_path, **keys, **changes)

    return write


def test_each_text_is_drawn_as_often_and_anew_in_each_epoch(pairs):
    rows = records(8)
    seen = epochs(pairs(rows), 60)
    assert Counter(index for index, _, _ in seen) == dict.fromkeys(range(8), 60)
    for index, row in enumerate(rows):
        drawn = Counter(text for number, text, _ in seen if number == index)
        assert drawn.keys() == set(row["texts"])
        assert min(drawn.values()) >= 4  # of 60 a quarter each: 15 +- 3.4


def test_what_is_empty_is_never_drawn(pairs):
    rows = records(8)
    for number, row in enumerate(rows):
        row["texts"] = [
            text if k == number % 4 else ["", "  ", "\n"][k % 3]
            for k, text in enumerate(row["texts"])
        ]
    seen = epochs(pairs(rows), 5)
    assert {text for _, text, _ in seen} == {row["texts"][n % 4] for n, row in enumerate(rows)}


@pytest.mark.parametrize(
    ("slots", "weights", "expected"),
    [([0], None, {0}), ([0, 1, 2], None, {0, 1, 2}), ([-1], None, {3}), ([0, 3], [1, 0], {0})],
)
def test_slots_choose_texts(pairs, slots, weights, expected):
    rows = records(8)
    seen = epochs(pairs(rows, text_slots=slots, text_weights=weights), 12)
    for index, text, _ in seen:
        assert rows[index]["texts"].index(text) in expected
    assert len({rows[index]["texts"].index(text) for index, text, _ in seen}) == len(expected)


def test_weights_are_shares():
    record = PairRecord("here", None, {"texts": ["a", "b", "", "d"]})
    assert Texts(["texts"], [0, 2, 3], [1, 5, 3]).of(record) == (["a", "d"], [1, 3])


def test_a_run_that_goes_on_sees_what_it_would_have_seen(pairs):
    rows = records(16)
    whole = list(pairs(rows).train_dataloader())
    first = pairs(rows).train_dataloader()
    beginning = iter(first)
    next(beginning)
    second = pairs(rows).train_dataloader()
    second.load_state_dict(first.state_dict())
    for one, other in zip(whole[1:], second, strict=True):
        assert one["texts"] == other["texts"]
        assert torch.equal(one["images"], other["images"])


def test_workers_change_nothing(pairs):
    rows = records(12)
    for one, other in zip(
        epochs(pairs(rows), 2), epochs(pairs(rows, num_workers=2), 2), strict=True
    ):
        assert one[:2] == other[:2]
        assert torch.equal(one[2], other[2])


def broken(rows):
    """Three records of which nothing can be learned."""
    rows[1]["image"] = b"no image"
    rows[4]["texts"] = ["", "", "", ""]
    rows[6]["image"] = rows[6]["image"][:60]
    return rows


def test_a_broken_record_is_replaced_counted_and_named(pairs, caplog):
    data = pairs(broken(records(8)))
    with caplog.at_level(logging.WARNING):
        batches = list(data.train_dataloader())
    assert sum(batch["num_broken"] for batch in batches) == 3
    indices = [index for batch in batches for index in batch["index"].tolist()]
    assert sorted(indices) == [0, 2, 2, 3, 5, 5, 7, 7]
    (message,) = [record.message for record in caplog.records if "replaced" in record.message]
    assert "0.parquet, row" in message or "sample 000" in message or "1.parquet, row" in message


def test_in_evaluation_a_broken_record_has_no_captions(pairs):
    batches = list(pairs(broken(records(8))).test_dataloader())
    assert [batch["num_broken"] for batch in batches] == [1, 2]
    captions = [own for batch in batches for own in batch["captions"]]
    assert [number for number, own in enumerate(captions) if not own] == [1, 4, 6]
    assert captions[0] == records(1)[0]["texts"]
    assert all(batch["images"].shape == (4, 3, 16, 16) for batch in batches)
    assert not batches[0]["images"][1].any()


@pytest.mark.parametrize("part", ["train", "test"])
def test_strict_names_the_record(pairs, part):
    data = pairs(broken(records(8)), strict=True)
    loader = data.train_dataloader() if part == "train" else data.test_dataloader()
    with pytest.raises(ValueError, match=r"(row \d|sample 000\d): (image cannot be read|no text)"):
        list(loader)


def test_a_column_of_captions_is_for_evaluation_alone(tmp_path):
    rows = records(8)
    rows[2]["alt"] = None
    write_parquet(tmp_path / "pairs" / "a.parquet", rows)
    data = module(tmp_path, caption_key="alt")
    assert not any("number" in text for _, text, _ in epochs(data, 3))
    captions = [own for batch in data.test_dataloader() for own in batch["captions"]]
    assert captions[1] == ["a green square number 1"]
    assert captions[2] == []
    assert sum(batch["num_broken"] for batch in data.test_dataloader()) == 0


def test_other_names_of_columns_and_images_of_datasets(tmp_path):
    rows = [
        {"picture": {"bytes": row["image"], "path": None}, "text1": row["texts"][0], "text2": None}
        for row in records(4)
    ]
    write_parquet(tmp_path / "pairs" / "a.parquet", rows)
    data = module(tmp_path, image_key="picture", text_keys=["text1", "text2"])
    assert {text for _, text, _ in epochs(data, 2)} == {row["text1"] for row in rows}


def test_png_and_webp_and_missing_images_in_tars(tmp_path, caplog):
    rows = records(6)
    write_tar(tmp_path / "pairs" / "a.tar", rows[:2], "png")
    rows[2]["image"] = picture("red", kind="WEBP")
    rows[3]["image"] = None
    write_tar(tmp_path / "pairs" / "b.tar", rows[2:], "webp")
    data = module(tmp_path, text_keys=RELEASED, batch_size=6)
    (batch,) = data.test_dataloader()
    assert batch["num_broken"] == 1
    assert "sample 0003: no image" in caplog.text


def test_a_tar_that_was_cut_off_loses_its_last_sample(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", records(6))
    five = write_tar(tmp_path / "b.tar", records(5)).read_bytes().rstrip(b"\0")
    path.write_bytes(path.read_bytes()[: len(five) + 1200])
    source = open_source([path], "image", ["txt"], tmp_path / "cache")
    assert source.column("txt") == [row["texts"][0] for row in records(5)]
    assert "a.tar is cut off" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "nothing"}, r"no \*.parquet and no \*.tar at .*nothing"),
        ({"train": ["pairs", "x.tar"]}, "of one kind"),
        ({"image_key": "img"}, r"has no column 'img' but \['id', 'image'"),
        ({"train": "urls.parquet"}, "addresses of images"),
        ({"train": "damaged.parquet"}, "damaged.parquet cannot be read"),
        ({"text_slots": [1, 1]}, "text_slots: .*different"),
        ({"text_weights": [1.0]}, "give text_slots as well"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"flip": 1.5}, "flip must be"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, changes, message):
    write_parquet(tmp_path / "pairs" / "a.parquet", records(4))
    write_tar(tmp_path / "x.tar", records(2))
    write_parquet(tmp_path / "urls.parquet", [{"raw_image_url": "http://x", "text1": "a"}])
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=message) as error:
        module(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_names_that_begin_with_a_dot_or_an_underscore_are_no_shards(tmp_path):
    for name in ("b.parquet", "a.parquet", "_stats.parquet", ".a.parquet.tmp", ".c.parquet"):
        write_parquet(tmp_path / "pairs" / name, records(1))
    assert [path.name for path in find_shards(tmp_path, "pairs")] == ["a.parquet", "b.parquet"]
    assert [path.name for path in find_shards(tmp_path, "pairs/b*")] == ["b.parquet"]


def test_a_run_does_not_go_on_with_other_pairs(tmp_path):
    write_parquet(tmp_path / "pairs" / "a.parquet", records(4))
    data = module(tmp_path)
    state = data.state_dict()
    assert state == module(tmp_path).state_dict()
    assert state != module(tmp_path, text_slots=[0]).state_dict()
    write_parquet(tmp_path / "pairs" / "b.parquet", records(4))
    assert state != module(tmp_path).state_dict()
    assert data.run_info()["num_train_pairs"] == 4


# Images


def encoded(image, kind="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


def test_what_is_transparent_is_white():
    drawing = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    drawing.putpixel((1, 1), (200, 0, 0, 255))
    grey = Image.new("LA", (4, 4), (0, 0))
    palette = drawing.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    for image in (drawing, grey, palette):
        opened = open_image(encoded(image))
        assert opened.mode == "RGB"
        assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(drawing)).getpixel((1, 1)) == (200, 0, 0)


def test_images_are_turned_as_exif_says_and_animations_show_their_first_frame():
    image = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(image, "JPEG", exif=exif)).size == (2, 4)
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(gif).getpixel((0, 0)) == (255, 0, 0)


def test_a_jpeg_is_decoded_no_smaller_than_asked():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 512, 3), np.uint8))
    content = encoded(image, "JPEG")
    assert open_image(content, 64).size == (128, 64)
    assert open_image(content, 100).size == (256, 128)
    assert open_image(content).size == (512, 256)


@given(st.binary(max_size=200), st.integers(0, 200))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_an_image_or_one_line(noise, cut):
    for content in (noise, encoded(Image.new("RGB", (9, 9)))[:cut] + noise):
        try:
            outcome = open_image(content).mode
        except ValueError as error:
            outcome = str(error)
        assert outcome == "RGB" or ("cannot be read: " in outcome and "\n" not in outcome)


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("L", (11, 10))))
    with pytest.raises(ValueError, match=r"bomb.png cannot be read: too many pixels: 11 x 10"):
        open_image(path, max_pixels=109)
    assert open_image(path, max_pixels=110).size == (11, 10)
    with pytest.raises(ValueError, match=r"cannot be read: .*(exceeds limit|too many pixels)"):
        open_image(encoded(Image.new("1", (30_000, 30_000))))


def test_grey_values_of_16_bits_are_not_cut_off():
    values = np.linspace(0, 40_000, 256).reshape(16, 16).astype(np.uint16)
    opened = np.asarray(open_image(encoded(Image.fromarray(values))))
    assert np.abs(opened[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1


# Glyphs


def test_texts_of_glyphs_say_what_is_seen():
    texts, class_name = describe("ж", "bold serif type")
    assert class_name == "cyrillic small letter"
    assert texts == [
        "cyrillic small letter zhe",
        "a small letter of the cyrillic script, set in bold serif type",
        "cyrillic small letter zhe in bold serif type",
        "a picture of a small letter of the cyrillic script: cyrillic small letter zhe, in bold "
        "serif type",
    ]
    assert describe("→", "plain serif type")[1] == "arrow"


@pytest.mark.slow
def test_glyphs_are_drawn_once_and_divided_by_code_point(tmp_path):
    data = MultiTextDataModule("glyphs", image_size=32, cache_dir=str(tmp_path))
    data.prepare_data()
    (folder,) = Path(tmp_path, "pairs").glob("glyphs-*")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    data.prepare_data()
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    of_split = {}
    for split in ("pairs", "val", "held_out"):
        source = open_source(find_shards(folder, split), "image", ["document"], tmp_path)
        of_split[split] = set(source.column("document"))
        image = open_image(source[0].image)
        assert image.size == (32, 32)
        assert np.asarray(image).min() < 200
    assert 0.75 < len(of_split["pairs"]) / sum(map(len, of_split.values())) < 0.85
    assert not of_split["pairs"] & (of_split["val"] | of_split["held_out"])
