"""Which examples are chosen, and that two similarities are better than one."""

import numpy as np
import pytest
import torch
from PIL import Image
from tenfold.modules.cvr_llm import (
    CVRICLSelector,
    EncodedTexts,
    Example,
    MultimodalKNNSelector,
    RandomSelector,
    TextKNNSelector,
)
from tenfold.modules.cvr_llm.selection import joint_vectors
from tenfold.modules.encoders import Encoder


class Table(Encoder):
    """Texts are numbers of rows; images are grey, of the value of one."""

    supports_texts = True
    supports_images = True

    def __init__(self, rows):
        self.rows = torch.as_tensor(np.asarray(rows))

    @property
    def identity(self):
        return {"encoder": "table"}

    def encode_texts(self, texts):
        return self.rows[[int(text) for text in texts]]

    def encode_images(self, images):
        return self.rows[[image.getpixel((0, 0))[0] for image in images]]


def example(number, text="", group=None, images=(), kind="k", vector=None):
    return Example(str(number), kind, group or str(number), frozenset(images), text, vector)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def simulate(seed, alpha, num_pool=400, num_queries=300, noise=0.9, k=4):
    """The label is a table of topic and attribute; the text knows one, the images the other."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=(8, 8))
    codes_t, codes_m = unit(rng.normal(size=(8, 16))), unit(rng.normal(size=(8, 16)))
    topics, attributes = rng.integers(8, size=(2, num_pool + num_queries))
    noisy = rng.normal(size=(2, num_pool + num_queries, 16)) * noise / np.sqrt(16)
    texts, seen = unit(codes_t[topics] + noisy[0]), unit(codes_m[attributes] + noisy[1])
    truth = labels[topics, attributes]
    examples = [example(n, str(n), vector=seen[n]) for n in range(num_pool + num_queries)]
    if alpha is None:
        selector = MultimodalKNNSelector()
    elif alpha == 0:
        selector = TextKNNSelector(EncodedTexts(Table(texts)))
    elif alpha < 0:
        selector = RandomSelector(seed)
    else:
        selector = CVRICLSelector(alpha=alpha, text=EncodedTexts(Table(texts)))
    selector.fit(examples[:num_pool])
    right = 0
    for query, places in enumerate(selector.select(examples[num_pool:], k), start=num_pool):
        votes = np.bincount(truth[places], minlength=4)
        best = np.flatnonzero(votes == votes.max())
        right += (truth[query] in best) / len(best)
    return right / num_queries


def test_two_similarities_are_better_than_one_and_best_when_they_weigh_alike():
    """Specification E2: an inverted U over alpha that peaks at 1, in every seed."""
    ones = []
    for seed in range(3):
        scores = {alpha: simulate(seed, alpha) for alpha in (0.1, 0.3, 1.0, 5.0)}
        assert scores[0.1] < scores[0.3] < scores[1.0] > scores[5.0]
        ones.append([simulate(seed, which) for which in (0, None, -1)])
        assert scores[1.0] > max(ones[-1]) + 0.25
    text, images, chance = np.mean(ones, axis=0)
    assert min(text, images) > chance
    assert chance == pytest.approx(0.27, abs=0.06)


def test_nothing_that_tells_of_the_query_is_shown_to_it():
    pool = [
        example(0, "red dog", images=["a"]),
        example(1, "red dog", group="g"),
        example(2, "red dog", images=["b"]),
        example(3, "red dog", kind="other"),
        example(4, "blue cat"),
        example(5, "green cat"),
    ]
    selector = TextKNNSelector()
    selector.fit(pool)
    query = example(0, "red dog", group="g", images=["b", "c"])
    assert selector.select([query], 4) == [[5, 4]]
    free = example(9, "red dog", images=["z"])
    assert selector.select([free], 3) == [[2, 1, 0]]
    assert selector.select([free], 0) == [[]]
    assert selector.select([], 3) == []


def test_the_most_similar_stands_last_and_ties_go_to_the_first():
    selector = TextKNNSelector()
    selector.fit([example(k, text) for k, text in enumerate(["x", "x y", "x y z", "x y", "q"])])
    chosen = selector.select([example("query", "x y z")], 3)
    assert chosen == [[3, 1, 2]]
    assert selector.select([example("query", "x y z")], 9)[0][0] == 4


def test_chance_depends_on_the_query_alone():
    selector = RandomSelector(seed=1)
    selector.fit([example(k) for k in range(50)])
    queries = [example(f"q{k}") for k in range(20)]
    together = selector.select(queries, 4)
    assert [selector.select([query], 4)[0] for query in queries] == together
    assert len({tuple(places) for places in together}) == 20
    assert len({place for places in together for place in places}) > 30


def test_joint_vectors_of_several_images():
    rows = np.eye(8)
    grey = [Image.new("RGB", (2, 2), (value, 0, 0)) for value in range(3)]
    found = joint_vectors(Table(rows), [[grey[0], grey[1]], [grey[2]]], ["5", "2"])
    both = np.zeros(8)
    both[[0, 1]], both[5] = np.sqrt(0.5), 1
    np.testing.assert_allclose(found, [unit(both), rows[2]], atol=1e-12)


def test_without_images_it_says_what_to_do():
    selector = CVRICLSelector()
    selector.fit([example(0, "a"), example(1, "b")])
    with pytest.raises(ValueError, match="take TextKNNSelector"):
        selector.select([example(2, "a")], 1)
