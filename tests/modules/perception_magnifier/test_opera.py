"""OPERA against beam search, against its formulas, and when it goes back."""

import math

import pytest
import torch
from decode_vlm import QUESTIONS, ask
from tenfold.modules.perception_magnifier import OPERA, BeamSearch
from tenfold.modules.perception_magnifier.opera import _Search


@pytest.mark.parametrize("eos", [-1, 5])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_without_penalty_and_with_all_candidates_it_is_beam_search(conv, images, eos, num_beams):
    settings = {"max_new_tokens": 5, "eos_token_id": eos, "pad_token_id": 0}
    size = conv.network.config.get_text_config().vocab_size
    strategy = OPERA(num_beams, num_attn_candidates=size, penalty_weights=0, threshold=99)
    found = ask(conv, strategy, images, **settings).sequences
    assert found.tolist() == ask(conv, BeamSearch(num_beams), images, **settings).sequences.tolist()


def test_answers_in_batches_are_those_one_by_one(conv, images):
    together = ask(conv, OPERA(3), images)
    for row in range(3):
        alone = ask(conv, OPERA(3), images[row : row + 1], QUESTIONS[row : row + 1])
        assert alone.sequences[0, -4:].tolist() == together.sequences[row, -4:].tolist()
        assert alone.costs.row(0) == together.costs.row(row)
    assert together.costs.prefills.tolist() == [1, 1, 1]
    assert together.costs.cached_steps.tolist() == [4 * 15] * 3  # the last token's, too


@pytest.mark.parametrize("length", [3, 10, 11, 14])
def test_the_penalty_is_its_formula(length):
    """Products down the columns, one number after the other, in float64."""
    generator = torch.Generator().manual_seed(length)
    attention = torch.rand(2, length, length, generator=generator).tril()
    row = torch.rand(2, 20 + length, generator=generator)
    is_image = torch.arange(20 + length) < 7
    window = 12
    found, places = OPERA(window_size=window).penalty(row, attention, is_image)
    for one in range(2):
        if length <= 10:
            assert found[one] == pytest.approx(-float(row[one, :7].double().sum()))
            continue
        first = max(0, length - window)
        columns = {
            j: 1e-7 * math.prod(50 * float(attention[one, i, j]) for i in range(j, length))
            for j in range(first, length)
        }
        assert found[one] == pytest.approx(max(columns.values()), rel=1e-5)
        assert int(places[one]) == max(columns, key=columns.get)


def test_rows_of_attention_are_those_of_eager(conv, images, monkeypatch):
    """What the search has gathered is the answer's part of the whole matrix of the last layer."""
    kept = []
    original = _Search._return_to
    monkeypatch.setattr(
        _Search, "_return_to", lambda self, beams: kept.append(beams) or original(self, beams)
    )
    ask(conv, OPERA(2), images[:1], QUESTIONS[:1], max_new_tokens=6)
    beams = kept[-1]
    inputs, _ = conv.conversations.encode(images[:1], [[QUESTIONS[0]]], None)
    decoder = conv.network.get_decoder()
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    for ids, attention in zip(beams.ids, beams.attention, strict=True):
        output = conv.network(
            input_ids=ids[None], pixel_values=inputs["pixel_values"], output_attentions=True
        )
        whole = output.attentions[-1][0].amax(dim=0)
        whole = whole / whole.sum(dim=1, keepdim=True)
        length = len(attention)
        torch.testing.assert_close(attention, whole[-length:, -length:], atol=1e-5, rtol=1e-4)
    decoder.set_attn_implementation(before)


def test_beams_that_lean_on_one_place_go_back_and_choose_others(conv, images, monkeypatch):
    """Every late token leans on place 12: after two of them all beams return behind it."""
    place = 12

    def leaning(self, row, attention, is_image):
        count = len(row)
        late = attention.shape[1] > place + 1
        return torch.zeros(count), torch.full((count,), place if late else 0)

    monkeypatch.setattr(OPERA, "penalty", leaning)
    searches = []
    original = _Search.__init__

    def remember(self, *args):
        original(self, *args)
        searches.append(self)

    monkeypatch.setattr(_Search, "__init__", remember)
    strategy = OPERA(2, threshold=3, num_attn_candidates=3)
    decoded = ask(conv, strategy, images[:1], QUESTIONS[:1], max_new_tokens=24)
    search = searches[0]
    assert search.num_returns == {place: 3}  # as often as there are candidates
    assert set(search.forbidden) == {place + 1}
    answer = decoded.sequences[0, -24:].tolist()
    assert answer[place + 1] not in search.forbidden[place + 1]
    assert decoded.costs.prefills.tolist() == [1 + 3 * 2]


@pytest.mark.parametrize("name", ["num_beams", "num_attn_candidates", "window_size", "threshold"])
def test_bad_settings_are_named(name):
    with pytest.raises(ValueError, match=name):
        OPERA(**{name: 0})
