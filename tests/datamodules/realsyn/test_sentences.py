"""Sentence filters: exact limits, equations against brute force and an independent program."""

import math
from collections import Counter

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tenfold.datamodules.realsyn.sentences import (
    Content,
    SentenceFilter,
    SentenceSplitter,
    Tagger,
    content_of_parse,
    content_of_tags,
    count_words,
    entropies,
    filter_by_meaning,
    filter_sentences,
    learn_splitter,
    make_tagger,
    normalized,
    split_paragraphs,
    words_of,
)
from tenfold.modules.perplexity import CausalPerplexity
from tiny_encoders import tokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

FORM = SentenceFilter(complexity=0, require_action=False)


class Never(Tagger):
    def __call__(self, text):
        raise AssertionError("not asked for")


def reasons(*texts: str, settings: SentenceFilter = FORM, tagger: Tagger | None = None):
    table = pa.table({"id": [str(k) for k in range(len(texts))], "text": list(texts)})
    verdict = filter_sentences(table, settings, tagger or Never())
    columns = (verdict.dropped[name].to_pylist() for name in ("id", "reason"))
    found = dict(zip(*columns, strict=True))
    return [found.get(str(k), "") for k in range(len(texts))]


def test_3_and_81_words_are_kept():
    texts = ["two words.", "three words here", " ".join(["w"] * 81), " ".join(["w"] * 82)]
    assert reasons(*texts) == ["short", "", "", "long"]


def test_addresses_and_emoji_are_found_but_neither_copyright_signs_nor_digits():
    texts = [
        "see http://example.org for more of it",
        "see www.example.org for more of it",
        "the word httpd is no address here",
        "what a day it was \U0001f600",
        "one heart ❤️ is an emoji",
        "copyright © 2020 by the 3 # authors ™",
        "flags \U0001f1e9\U0001f1ea are emoji too",
        "an arrow → and a check ✓ are signs",
    ]
    assert reasons(*texts) == ["url", "url", "", "emoji", "emoji", "", "emoji", ""]


def test_words_are_runs_of_letters_and_digits_in_lower_case():
    assert words_of("The X-ray, isn't 3.5 `snake_case`!") == [
        *("the", "x", "ray", "isn", "t", "3", "5", "snake", "case"),
    ]
    assert normalized("The  CAT sat!") == normalized("the cat, sat") == "thecatsat"


@given(st.lists(st.text("ab c.", max_size=20), min_size=1, max_size=8))
def test_entropy_is_the_sum_of_p_ln_p_over_occurrences(texts):
    counts = count_words(texts)
    total = sum(counts.values())
    for text, value in zip(texts, entropies(texts, counts), strict=True):
        brute = 0.0
        for word in "".join(c if c.isalnum() else " " for c in text).split():
            share = Counter(" ".join(texts).replace(".", " ").split())[word] / total
            brute -= share * math.log(share)
        assert value == pytest.approx(brute, abs=1e-12)


def test_entropy_and_perplexity_limits_are_kept_exactly():
    table = pa.table(
        {"entropy": [0.3, 0.2999, 1.0, 1.0, 1.0], "perplexity": [30, 50, 200, 201, None]}
    )
    verdict = filter_by_meaning(table, SentenceFilter())
    assert verdict.kept["perplexity"].to_pylist() == [30, 200, None]
    assert verdict.dropped["reason"].to_pylist() == ["entropy", "perplexity"]


@pytest.mark.parametrize(
    ("text", "complexity", "action"),
    [
        ("The black cat sleeps on the old sofa.", 2, True),
        ("We see a small red car in the old town.", 2, True),
        ("It is what it is.", 0, False),
        ("They were there.", 0, False),
        ("Image", 0, False),
    ],
)
def test_content_by_tags(text, complexity, action):
    content = make_tagger("pattern")(text)
    assert content.has_action == action
    assert content.complexity >= complexity
    assert (content.complexity > 0) == (complexity > 0)


def test_content_counts_what_hangs_on_an_object():
    tags = [("a", "DT"), ("large", "JJ"), ("red", "JJ"), ("bus", "NN"), ("passes", "VBZ")]
    assert content_of_tags(tags) == Content(3, True)
    assert content_of_tags([("is", "VBZ"), ("nice", "JJ")]) == Content(0, False)
    assert content_of_tags([]) == Content(0, False)


def test_content_of_a_parse_as_spacy_gives_it():
    # "the old cat sees a mouse": cat has amod and is a subject, mouse is an object.
    parts = ["DET", "ADJ", "NOUN", "VERB", "DET", "NOUN"]
    dependencies = ["det", "amod", "nsubj", "ROOT", "det", "dobj"]
    assert content_of_parse(parts, dependencies, [2, 2, 3, 3, 5, 3]) == Content(2, True)
    copula = content_of_parse(["NOUN", "AUX", "ADJ"], ["nsubj", "ROOT", "acomp"], [1, 1, 1])
    assert copula == Content(0, False)


def test_an_unknown_model_is_one_error_with_the_way_out():
    with pytest.raises(ValueError, match=r"no spaCy model 'en_none' is installed .*'pattern'"):
        make_tagger("en_none")


def test_simple_and_inactive_sentences_are_told_apart():
    settings = SentenceFilter()
    texts = ["It is what it is.", "The old house is red.", "The old dog follows the small ball."]
    found = reasons(*texts, settings=settings, tagger=make_tagger("pattern"))
    assert found[0] == "simple"
    assert found[1] in ("simple", "no action")
    assert found[2] == ""


def test_the_splitter_learns_abbreviations_of_the_corpus():
    text = "We met old Mx. Smith in the town by the river and then we all went on to the hills. "
    text += "There we saw the sea and the ships that come from far away in the summer. "
    splitter = SentenceSplitter(learn_splitter([text] * 30))
    assert splitter("Here is Mx. Jones. Then it ended.") == ["Here is Mx. Jones.", "Then it ended."]
    rows = {"id": ["d#00001"], "document": ["d"], "position": [1], "text": ["One is. Two are."]}
    table = split_paragraphs(pa.table(rows), splitter)
    assert table["id"].to_pylist() == ["d#00001.000", "d#00001.001"]
    assert table["text"].to_pylist() == ["One is.", "Two are."]


def test_perplexity_is_exp_of_the_loss_that_transformers_computes(tmp_path):
    size = tokenizer(tmp_path, 64, ["input_ids", "attention_mask"])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = size - 1
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    coder = AutoTokenizer.from_pretrained(tmp_path)
    coder.bos_token = "</s>"
    coder.save_pretrained(tmp_path)
    texts = ["a red square", "the dog barks at a tree", "cat " * 30, "x"]
    scorer = CausalPerplexity(str(tmp_path), max_length=40)
    scores = scorer.score(texts)
    for text, score in zip(texts, scores, strict=True):
        ids = [size - 1, *coder(text, add_special_tokens=False)["input_ids"][:40]]
        batch = torch.tensor([ids])
        expected = math.exp(model(input_ids=batch, labels=batch).loss.item())
        assert score == pytest.approx(expected, rel=1e-5)
    assert scorer.score(texts[2:3] + texts[:1]) == [scores[2], scores[0]]  # to the last bit
    assert scorer.score([""]) == [math.inf]
    assert scorer.score([]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"min_words": 0},
        {"min_words": 9, "max_words": 8},
        {"complexity": -1},
        {"min_perplexity": 300.0},
        {"perplexity_mode": "quantile"},
    ],
)
def test_senseless_settings_are_refused(options):
    with pytest.raises(ValueError, match="sentences: "):
        SentenceFilter(**options)
