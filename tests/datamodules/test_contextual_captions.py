"""Batches of contextual captions: made records, features, order."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from tenfold.datamodules.contextual_captions import (
    CaptionExample,
    ContextualCaptionDataModule,
    Examples,
    FactExamples,
    PixelEncoder,
)
from tenfold.datamodules.contextual_captions.features import CHUNK, FeatureTable, padded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))


def ready(**settings):
    data = ContextualCaptionDataModule(**settings)
    data.prepare_data()
    data.setup()
    return data


def test_a_caption_tells_one_of_the_facts_and_the_digit():
    made = FactExamples(num_test=50)
    digits = load_digits()
    for example in made.split("test"):
        facts = [sentence.split(" has ") for sentence in example.section_text[:-2].split(" . ")]
        assert len({x for fact in facts for x in fact}) == 8
        assert {tuple(fact) for fact in facts} == set(example.highlights)
        assert len(example.highlights) == 4
        assert example.references[0] == example.caption
        assert example.image >= 1400
        (digit,) = example.depicted
        words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        assert words[digits.target[example.image]] == digit
        for (name, thing), caption in zip(example.highlights, example.references, strict=True):
            assert caption == f"the {digit} : {name} has {thing}"
        assert digit not in example.section_text


def test_records_depend_on_seed_split_and_index_alone():
    one, other = FactExamples(num_train=20), FactExamples(num_train=9)
    assert [one.split("train")[k] for k in range(9)] == [*other.split("train")]
    assert [*FactExamples(num_train=9, seed=1).split("train")] != [*other.split("train")]
    assert other.split("train")[0].section_text != other.split("test")[0].section_text
    told = [e.section_text.split(" . ").index(f"{h[0]} has {h[1]}")
            for e in FactExamples(num_test=400).split("test")
            for h in [e.highlights[0]]
            if f"{h[0]} has {h[1]}" in e.section_text.split(" . ")]  # fmt: skip
    counts = np.bincount(told, minlength=4)[:3]
    assert counts.min() > 60  # of 100: no place is told more often


def test_without_an_image_the_digit_is_in_the_text():
    made = FactExamples(image=False)
    example = made.split("test")[0]
    digit = example.caption.split()[1]
    assert example.section_text.startswith(f"the {digit} . ")
    assert not np.asarray(made.image(example.image)).any()
    assert example.depicted == ()


def test_settings_out_of_range_are_refused():
    for settings, named in (
        ({"num_train": 0}, "num_train"),
        ({"num_facts": 1}, "num_facts"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ValueError, match=named):
            FactExamples(**settings)
    with pytest.raises(ValueError, match="batch_size"):
        ContextualCaptionDataModule(batch_size=0)
    with pytest.raises(ValueError, match="side"):
        PixelEncoder(0)


def test_features_are_the_digits_pixels():
    data = ready(examples=FactExamples(num_test=8), batch_size=8)
    (batch,) = data.test_dataloader()
    pixels = load_digits().images / 16
    numbers = [example.image for example in data.examples.split("test")]
    expected = torch.tensor(pixels[numbers].reshape(8, 64)).float()
    assert (batch["images"] - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert batch["pictures"][0].size == (8, 8)
    assert "pictures" not in next(iter(data.train_dataloader()))


def test_held_out_digits_can_be_told_from_training_digits():
    """What a good model can reach, by another program."""
    pixels, kinds = load_digits(return_X_y=True)
    neighbours = KNeighborsClassifier(3).fit(pixels[:1400], kinds[:1400])
    assert 0.9 < neighbours.score(pixels[1400:], kinds[1400:]) < 1


class Files(Examples):
    """More images than fit into one file of features; one of them is broken."""

    def __init__(self, number):
        self.number = number

    @property
    def identity(self):
        return {"number": self.number}

    @property
    def num_images(self):
        return self.number

    def image(self, number):
        if number == 5:
            raise ValueError("image 5 cannot be read")
        return Image.new("L", (4, 2), number % 256)

    def split(self, name):
        return [CaptionExample("a", "a", 5), CaptionExample("b", "b", 0)]


def test_features_are_made_once_and_in_parts(caplog):
    examples = Files(CHUNK + 3)
    table = FeatureTable(examples, PixelEncoder(2))
    table.prepare()
    table.open()
    assert "1 images are black, as they cannot be read; first: image 5" in caplog.text
    assert len([*table.folder.iterdir()]) == 2
    assert table.width == 4
    values = [table[n][0].item() for n in (3, 5, CHUNK + 2)]
    assert values == pytest.approx([3 / 255, 0, (CHUNK + 2) % 256 / 255])
    (table.folder / "000001.npy").unlink()
    before = (table.folder / "000000.npy").stat().st_mtime_ns
    again = FeatureTable(examples, PixelEncoder(2))
    again.prepare()
    again.open()
    assert again[CHUNK + 2].tolist() == table[CHUNK + 2].tolist()
    assert (table.folder / "000000.npy").stat().st_mtime_ns == before
    assert FeatureTable(examples, PixelEncoder(3)).folder != table.folder
    assert FeatureTable(Files(9), PixelEncoder(2)).folder != table.folder
    data = ready(examples=Files(9), encoder=PixelEncoder(2))
    assert next(iter(data.predict_dataloader()))["pictures"][0] is None


def test_padding_keeps_the_shape():
    image = padded(Image.new("RGB", (100, 50), "white"))
    pixels = np.asarray(image)
    assert pixels.shape == (224, 224, 3)
    assert (pixels[56:168] == 255).all()
    assert not pixels[:56].any()
    assert not pixels[168:].any()


def test_a_users_highlights_replace_those_of_the_records():
    examples = FactExamples(num_test=3)
    text = examples.split("test")[1].section_text
    first = text.split()[0]
    data = ready(examples=examples, highlights=[[first, "nothing"], ["nothing"]], image="test-1")
    (batch,) = data.predict_dataloader()
    assert batch["ids"] == ["test-1"]
    assert batch["highlights"] == [[[first]]]
    assert batch["references"] == [[""]]
    data.image = "test-7"
    with pytest.raises(ValueError, match="no test image has the id 'test-7'"):
        data.predict_dataloader()


def test_order_is_a_function_of_seed_and_epoch():
    data = ready(examples=FactExamples(num_train=20), batch_size=4, seed=3)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    batches = [batch["ids"] for batch in loader]
    loader = ready(examples=FactExamples(num_train=20), batch_size=4, seed=3).train_dataloader()
    loader.sampler.set_epoch(1)
    iterator = iter(loader)
    first = [next(iterator)["ids"], next(iterator)["ids"]]
    state = loader.state_dict()
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    assert first + [batch["ids"] for batch in resumed] == batches
    assert data.run_info()["num_images"] == {"train": 20, "val": 256, "test": 300}
