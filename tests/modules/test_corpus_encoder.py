"""The encoder that is learned from a corpus: what it finds, and that a row is a row."""

import pickle
import random

import pytest
import torch
from tenfold.modules.encoders import CorpusEncoder, build_encoder
from tiny_corpus import COLOURS, SHAPES, draw, sentence


def corpus(number: int, seed: int):
    """Images of coloured shapes and sentences about them."""
    random_ = random.Random(seed)
    kinds = [(random_.choice(COLOURS), random_.choice(SHAPES)) for _ in range(number)]
    images = [draw(colour, shape, random_.randrange(200)) for colour, shape in kinds]
    return kinds, images, [f"A {colour} {shape} lies here." for colour, shape in kinds]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> CorpusEncoder:
    learner = CorpusEncoder(
        str(tmp_path_factory.mktemp("encoder")), dimensions=12, min_count=1, num_features=512
    )
    _, images, texts = corpus(300, 0)
    random_ = random.Random(1)
    more = [sentence(random_, random_.choice(COLOURS), random_.choice(SHAPES)) for _ in range(200)]
    found = learner.learn(texts + more, zip(images, texts, strict=True))
    assert found["images"] == 300
    assert 0.5 < found["explained"] <= 1
    return learner


def test_new_images_find_the_text_about_them_among_all_kinds(encoder):
    kinds, images, _ = corpus(60, 5)
    captions = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    scores = encoder.encode_images(images) @ encoder.encode_texts(captions).T
    best = [captions[k].split() for k in scores.argmax(1).tolist()]
    right = sum(tuple(found) == kind for found, kind in zip(best, kinds, strict=True)) / 60
    assert right > 10 / len(captions)  # ten times chance
    near = sum(bool(set(found) & set(kind)) for found, kind in zip(best, kinds, strict=True)) / 60
    assert near > 0.7


def test_a_row_depends_on_its_item_alone_and_not_on_the_object(encoder):
    _, images, texts = corpus(20, 7)
    again = build_encoder(
        {
            "class_path": "tenfold.modules.encoders.CorpusEncoder",
            "init_args": {key: value for key, value in vars(encoder).items() if key[0] != "_"},
        }
    )
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy.identity == again.identity == encoder.identity
    for other in (again, copy):
        assert torch.equal(other.encode_images(images[3:5]), encoder.encode_images(images)[3:5])
        assert torch.equal(other.encode_texts(texts[3:5]), encoder.encode_texts(texts)[3:5])
    norms = encoder.encode_images(images).norm(dim=1)
    assert torch.allclose(norms, torch.ones(20), atol=1e-5)


def test_texts_without_a_known_word_are_zeros_and_nothing_gives_no_rows(encoder):
    assert encoder.encode_texts(["qwertz", ""]).abs().sum() == 0
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 12)


def test_what_is_learned_is_the_same_each_time_and_other_settings_are_another(encoder, tmp_path):
    _, images, texts = corpus(30, 0)
    identities = []
    for name, ridge in (("a", 0.1), ("b", 0.1), ("c", 0.2)):
        learner = CorpusEncoder(
            str(tmp_path / name), dimensions=4, min_count=1, num_features=16, ridge=ridge
        )
        learner.learn(texts, zip(images, texts, strict=True))
        identities.append(learner.identity["learned"])
    assert identities[0] == identities[1] != identities[2]


def test_what_cannot_be_learned_or_was_not_is_one_error(tmp_path):
    empty = CorpusEncoder(str(tmp_path))
    with pytest.raises(ValueError, match="nothing has been learned yet"):
        empty.encode_texts(["a"])
    with pytest.raises(ValueError, match="too few for 256 dimensions"):
        empty.learn(["the same cat sits"] * 5, [])
    with pytest.raises(ValueError, match="too few texts"):
        empty.learn(["a"], [])
    with pytest.raises(ValueError, match="no folder yet"):
        CorpusEncoder().encode_texts(["a"])
    with pytest.raises(ValueError, match="ridge more than 0"):
        CorpusEncoder(ridge=0)
