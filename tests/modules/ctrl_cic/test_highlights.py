"""Which tokens and words a highlight means, and which words a caption makes relevant."""

import pytest
import torch
from tenfold.modules.ctrl_cic.highlights import highlighted_tokens, in_order, pooled_words
from tenfold.modules.ctrl_cic.network import load_encoder
from tenfold.modules.ctrl_cic.relevance import EncoderRelevance, LexicalRelevance
from tenfold.modules.ctrl_cic.tokens import ContextTokenizer, Section, Tokens, word_tokenizer
from tenfold.modules.words import stem
from tiny_captions import WORDS, build


@pytest.fixture(scope="module")
def tokenizer():
    return ContextTokenizer(word_tokenizer(WORDS))


def section_of(tokenizer, text, visible=None):
    tokens = tokenizer.tokens(text)
    return Section(tokens, 3, len(tokens) if visible is None else visible)


def by_hand(pieces, scores, visible=None, **settings):
    """Pools scores of tokens that are written down."""
    tokens = Tokens("", [0] * len(pieces), pieces, [(0, 0)] * len(pieces))
    section = Section(tokens, 0, len(pieces) if visible is None else visible)
    return pooled_words(section, torch.tensor(scores), **settings)


def test_every_occurrence_of_a_phrase_is_marked(tokenizer):
    section = section_of(tokenizer, "red cell . the red cell has a red wall")
    marked = highlighted_tokens(section, ["red cell"], tokenizer.ids)
    assert marked.nonzero().flatten().tolist() == [0, 1, 4, 5]


def test_phrases_may_overlap_and_repeat(tokenizer):
    section = section_of(tokenizer, "red red red cell")
    marked = highlighted_tokens(section, ["red red", "red cell"], tokenizer.ids)
    assert marked.all()


def test_what_is_cut_off_or_elsewhere_is_not_found(tokenizer):
    section = section_of(tokenizer, "the red cell wall", visible=3)
    assert not highlighted_tokens(section, ["cell wall", "plants", ""], tokenizer.ids).any()
    marked = highlighted_tokens(section, ["red", [4, 17]], tokenizer.ids)
    assert marked.tolist() == [False, True, True, False]


def test_a_span_means_one_place(tokenizer):
    section = section_of(tokenizer, "red cell . red wall")
    marked = highlighted_tokens(section, [[11, 14]], tokenizer.ids)
    assert marked.nonzero().flatten().tolist() == [3]


def test_phrases_come_in_the_order_of_the_text():
    assert in_order(["wall", "plants", [0, 3]], "red cell wall") == ["red", "wall", "plants"]


def test_words_are_pooled_as_released():
    pieces = ["▁cross", "-", "section", "▁hair", "s", "▁,", "▁hair", "▁", "▁x"]
    scores = [0.9, 0.0, 0.8, 0.6, 0.9, 1.0, 0.7, 1.0, 0.1]
    assert by_hand(pieces, scores) == ["cross", "section", "hairs", "hair"]
    assert by_hand(pieces, scores, threshold=0.76) == ["cross", "section"]


def test_of_a_repeated_word_the_last_score_counts_or_the_largest():
    pieces, scores = ["▁a", "▁b", "▁a"], [0.9, 0.7, 0.1]
    assert by_hand(pieces, scores) == ["b"]
    assert by_hand(pieces, scores, pool="max") == ["a", "b"]
    assert by_hand(["▁a", "▁A"], [0.1, 0.9]) == ["A"]


def test_the_best_words_are_kept_in_their_order():
    pieces = [f"▁w{number}" for number in range(50)]
    scores = [0.7 + 0.001 * (number % 7) + 1e-5 * number for number in range(50)]
    kept = by_hand(pieces, scores)
    best = sorted(range(50), key=lambda n: -scores[n])[:40]
    assert kept == [f"w{number}" for number in sorted(best)]
    assert by_hand(pieces, scores, max_words=2) == ["w41", "w48"]


def test_a_word_that_is_cut_is_none():
    pieces, scores = ["▁a", "▁ce", "ll", "s"], [0.9] * 4
    assert by_hand(pieces, scores, visible=2) == ["a"]
    assert by_hand(pieces, scores, visible=3) == ["a"]
    assert by_hand(pieces, scores) == ["a", "cells"]
    assert by_hand(["▁ce", "ll"], [0.9, 0.9], visible=1) == []
    assert by_hand(pieces, [0.1] * 4) == []


def test_words_in_common_are_relevant(tokenizer):
    lexical = LexicalRelevance()
    section, caption = (
        tokenizer.tokens("the red cells . wall"),
        tokenizer.tokens("a Red cell has the ."),
    )
    (relevance,) = lexical.relevance([section], [caption])
    assert relevance.tolist() == [0.5, 1, 1, 0.5, 0.5]
    assert stem("Dividing") == stem("divided") == stem("divides")
    (minmax,) = LexicalRelevance("minmax").relevance([section], [caption])
    assert minmax.tolist() == [0, 1, 1, 0, 0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    build().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("aggregation", ["mean", "max", "first", "last"])
def test_encoder_relevance_is_the_cosine_of_the_definition(saved, aggregation):
    """Against a loop over single texts, without padding."""
    tokenizer = build(pretrained=saved).contexts
    texts = [("the red cell has a wall", "red wall"), ("cells", "a blue cell of plants")]
    sections, captions = (
        [tokenizer.tokens(t) for t in column] for column in zip(*texts, strict=True)
    )
    scorer = EncoderRelevance(saved, aggregation, device="cpu")
    found = scorer.scores(sections, captions)
    encoder = load_encoder(saved).eval()
    with torch.no_grad():
        for section, caption, scores in zip(sections, captions, found, strict=True):
            ids = [torch.tensor([[*t.ids, tokenizer.eos]]) for t in (section, caption)]
            h, g = (encoder(input_ids=i).last_hidden_state[0].double() for i in ids)
            pooled = {"mean": g.mean(0), "max": g.amax(0), "first": g[0], "last": g[-1]}[
                aggregation
            ]
            expected = [float(x @ pooled / x.norm() / pooled.norm()) for x in h[:-1]]
            assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    relevance = scorer.relevance(sections, captions)
    assert relevance[0].tolist() == pytest.approx([s / 2 + 0.5 for s in found[0].tolist()])


def test_what_is_beyond_the_scorer_scores_nothing(saved):
    tokenizer = build(pretrained=saved).contexts
    section = tokenizer.tokens("the red cell has a wall")
    (scores,) = EncoderRelevance(saved, max_section=4, device="cpu").scores([section], [section])
    assert scores[3:].tolist() == [0, 0, 0]
    assert (scores[:3] != 0).all()


def test_a_scorer_with_other_tokens_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="same vocabulary"):
        build(vocabulary="cell " + WORDS, relevance=EncoderRelevance(saved, device="cpu"))
    build(relevance=EncoderRelevance(saved, device="cpu"))
    with pytest.raises(ValueError, match="cannot load"):
        EncoderRelevance(str(tmp_path / "nothing")).scores([], [])
