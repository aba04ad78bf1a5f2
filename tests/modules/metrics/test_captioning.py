"""Caption metrics against the programs that define them."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider as CocoCider
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from tenfold.modules.metrics.captioning import (
    Bleu,
    CaptionMetrics,
    Cider,
    CiderD,
    Meteor,
    RougeL,
    distinct_ngrams,
    highlight_recall,
    repeated_bigrams,
    self_cider,
)

REFERENCES = [
    "The slide shows a cross-section of a hair follicle.",
    "A map of the Roman Empire in 117 AD.",
    "The planet Mars, seen by a telescope.",
    "Hair root and shaft.",
]
CAPTIONS = [
    "A cross-section of a hair follicle.",
    "Map of the Roman Empire in 117 AD.",
    "The planet Mars seen by telescope.",
    "Hair shaft.",
]


def random_texts(seed, number):
    rng = random.Random(seed)
    words = ["a", "the", "cell", "Cell", "wall.", "of", "map", "mars", "red", "x"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 14))) for _ in range(number)]


def test_the_numbers_of_the_specification():
    cider = CiderD([[text] for text in REFERENCES])
    found = [cider.score(c, [r]) for c, r in zip(CAPTIONS, REFERENCES, strict=True)]
    assert found == pytest.approx([5.21596, 7.67203, 2.85029, 1.67223], abs=1e-5)
    pairs = (CAPTIONS, [[text] for text in REFERENCES])
    assert Cider().compute(*pairs)["cider_d"] == pytest.approx(4.35263, abs=1e-5)
    assert Bleu().compute(*pairs)["bleu_4"] == pytest.approx(0.519346, abs=1e-5)
    assert RougeL().compute(*pairs)["rouge_l"] == pytest.approx(0.838612, abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_cider_is_that_of_the_coco_evaluation(seed):
    """One to three references each, repeated words and n-grams, short captions."""
    rng = random.Random(seed)
    captions = random_texts(seed, 40)
    references = [random_texts(1000 * seed + k, rng.randint(1, 3)) for k in range(40)]
    names = range(40)
    mean, each = CocoCider().compute_score(
        dict(zip(names, references, strict=True)), {n: [captions[n]] for n in names}
    )
    cider = CiderD(references)
    found = [cider.score(c, r) for c, r in zip(captions, references, strict=True)]
    assert found == pytest.approx(each.tolist(), abs=1e-6)
    assert Cider().compute(captions, references)["cider_d"] == pytest.approx(mean, abs=1e-6)


def test_a_caption_that_is_its_reference_scores_ten():
    texts = [[f"a {w} map of {w} and four more words here"] for w in ("red", "blue", "old")]
    cider = CiderD(texts)
    assert [cider.score(row[0], row) for row in texts] == pytest.approx([10, 10, 10])
    assert cider.score("", ["a map"]) == 0
    with pytest.raises(ValueError, match="needs references"):
        CiderD([])


def test_words_may_be_compared_without_case_and_marks():
    texts = [["A hair."], ["the map"], ["x y z"]]
    assert CiderD(texts).score("a Hair", texts[0]) < CiderD(texts, "words").score(
        "a Hair", texts[0]
    )
    with pytest.raises(ValueError, match="tokenize"):
        Cider("ptb")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(CAPTIONS + REFERENCES), min_size=2, max_size=6))
def test_bleu_and_rouge_are_those_of_their_packages(captions):
    references = [[REFERENCES[k % 4]] for k in range(len(captions))]
    found = Bleu().compute(captions, references) | RougeL().compute(captions, references)
    streams = [[row[0] for row in references]]
    for n in range(1, 5):
        bleu = BLEU(tokenize="13a", smooth_method="none", max_ngram_order=n)
        expected = bleu.corpus_score(captions, streams).score / 100
        assert found[f"bleu_{n}"] == pytest.approx(expected, abs=1e-5)
    scorer = RougeScorer(["rougeL"])
    pairs = zip(captions, references, strict=True)
    each = [scorer.score(r[0], c)["rougeL"].fmeasure for c, r in pairs]
    assert found["rouge_l"] == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_meteor_is_nltks(tmp_path):
    """Exact matches alone, so that WordNet is asked for nothing."""
    from nltk.translate.meteor_score import single_meteor_score

    score = Meteor()
    score._reader = None
    captions, references = ["a map of rome"], [["a map of rome"], ["map of a rome"]]
    found = score.compute(captions * 2, references)["meteor"]
    expected = [
        single_meteor_score(r[0].split(), captions[0].split(), wordnet=None) for r in references
    ]
    assert found == pytest.approx(sum(expected) / 2)
    assert expected[1] < expected[0]
    with pytest.raises(ValueError, match="WordNet is missing"):
        Meteor(str(tmp_path)).compute(captions, references[:1])


def test_recall_counts_phrases():
    caption = "The Category of cell walls"
    assert highlight_recall(caption, ["cat", " CELL wall ", "mars"]) == pytest.approx(2 / 3)
    assert highlight_recall(caption, ["cat", "cell"], "word") == 0.5


def test_distinct_ngrams():
    captions = ["a b a", "a b"]
    assert distinct_ngrams(captions, 1) == pytest.approx(2 / 5)
    assert distinct_ngrams(captions, 2) == pytest.approx(2 / 5)
    assert distinct_ngrams(captions, 1, "chars") == pytest.approx(2 / 8)
    assert distinct_ngrams(["a", ""], 2) == 0
    assert distinct_ngrams(["a", "a b"], 2) == pytest.approx(1 / 2)
    assert repeated_bigrams("of the of the of") == pytest.approx(0.5)
    assert repeated_bigrams("one") == 0


def test_diversity_is_0_for_equal_captions_and_1_for_unlike_ones():
    words = [f"w{k} x{k} y{k} z{k} v{k}" for k in range(4)]
    cider = CiderD([[text] for text in words])
    assert self_cider([words[0]] * 4, cider) == pytest.approx(0, abs=1e-6)
    assert self_cider(words, cider) == pytest.approx(1, abs=1e-6)
    assert 0 < self_cider([words[0], words[0], words[1]], cider) < 1
    assert self_cider(["", ""], cider) == 0


def row(number, image, caption, **fields):
    given = {"id": f"{image}/{number}", "image": image, "caption": caption, "reference": ""}
    return given | {"phrases": [], "alternatives": [], "depicted": []} | fields


def test_captions_are_counted_once_in_any_order():
    rows = [
        row(
            0,
            "a",
            "the red map",
            phrases=["red"],
            alternatives=["red", "blue"],
            reference="red map",
        ),
        row(1, "a", "the red map", phrases=["blue"], alternatives=["red", "blue"]),
        row(0, "b", "a cell of cells", depicted=["cell"], reference="a cell"),
    ]
    one, other = CaptionMetrics([Bleu(), Cider()]), CaptionMetrics([Bleu(), Cider()])
    one.update(rows)
    for single in [*rows[::-1], rows[1]]:
        other.update([single])
    found = one.compute()
    assert found == other.compute()
    assert found["recall"] == 0.5
    assert found["any"] == 1
    assert found["depicted"] == 1
    assert found["num_references"] == 2
    assert found["div_1"] == pytest.approx(3 / 6)
    assert found["self_cider"] == pytest.approx(0, abs=1e-6)
    assert found["num_words"] == pytest.approx(10 / 3)
    assert CaptionMetrics([]).compute() == {}


def test_a_rank_without_captions_brings_none(monkeypatch):
    """What `sync` gathers of it is empty, of the others' types."""
    metric = CaptionMetrics([])
    gathered = []
    metric.sync(
        dist_sync_fn=lambda x, group=None: gathered.append(x) or [x],
        distributed_available=lambda: True,
    )
    assert {x.dtype for x in gathered} == {torch.uint8, torch.int64}
    assert all(len(x) == 0 for x in gathered)
    assert metric.rows() == []
