"""Sources: which token comes from where, and what of it is left when they are too long."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tenfold.modules.ctrl_cic.tokens import (
    IMAGE_SLOT,
    MARKERS,
    ContextTokenizer,
    train_tokenizer,
    word_tokenizer,
)
from tiny_captions import TEXTS, WORDS, batch_of


def contexts(**settings):
    return ContextTokenizer(word_tokenizer(WORDS), **settings)


def test_a_source_is_the_released_string_with_a_slot():
    tokenizer = contexts()
    source = tokenizer.encode(batch_of())
    pieces = tokenizer.tokenizer.convert_ids_to_tokens(source.ids[0].tolist())
    text = (
        "[ImageToken] <pad> [PageTitle] ▁plants [SectionTitle] ▁the ▁wall [SectionText] "
        "▁the ▁red ▁cell ▁has ▁a ▁wall ▁. ▁blue ▁cells ▁divide "
        "[ImageCaption] ▁a ▁blue ▁cell </s>"
    )
    assert pieces[: len(text.split())] == text.split()
    assert source.mask[0].tolist() == [1] * len(text.split()) + [0] * (
        len(source.mask[0]) - len(text.split())
    )
    section = source.sections[0]
    assert (section.start, section.num_visible) == (8, 10)
    assert source.is_other[0].nonzero().flatten().tolist() == [18, 19, 20, 21]
    assert pieces[IMAGE_SLOT] == "<pad>"
    # One string gives the same ids, as the released code makes plain sources.
    whole = " ".join(text.replace("▁", "").split()[:1] + text.replace("▁", "").split()[2:-1])
    one = tokenizer.tokenizer(whole)["input_ids"]
    assert one == [i for k, i in enumerate(source.ids[0].tolist()) if k != 1][: len(one)]


def test_an_empty_section_has_no_marker():
    tokenizer = contexts()
    source = tokenizer.encode(batch_of())
    assert tokenizer.marker("[SectionText]") not in source.ids[1].tolist()
    assert source.sections[1].num_visible == 0


def test_the_rest_of_the_page_may_follow():
    tokenizer = contexts(context="page")
    source = tokenizer.encode(batch_of())
    pieces = tokenizer.tokenizer.convert_ids_to_tokens(source.ids[0].tolist())
    assert pieces[2] == "[PageURL]"
    start = pieces.index("[SectionIndex]")
    assert "[ImageCaption]" in pieces[start:]
    assert bool(source.is_other[0, start])


@given(length=st.integers(16, 40))
def test_what_is_too_long_is_cut_on_the_right(length):
    short, long = contexts(max_length=length), contexts()
    cut, whole = short.encode(batch_of()), long.encode(batch_of())
    for row in range(len(TEXTS)):
        ids = cut.ids[row][cut.mask[row] == 1].tolist()
        full = whole.ids[row][whole.mask[row] == 1].tolist()
        assert len(ids) == min(length, len(full))
        assert ids == full if len(full) <= length else ids == [*full[: length - 1], short.eos]
        section = cut.sections[row]
        visible = ids[section.start : section.start + section.num_visible]
        assert visible == section.tokens.ids[: section.num_visible]
        end = section.start + section.num_visible
        complete = section.num_visible == len(section.tokens)
        assert complete or end == length - 1
        assert not cut.is_other[row, :end].any()


def test_weights_of_sections_leave_all_else():
    source = contexts(max_length=16).encode(batch_of())
    values = [torch.arange(len(s.tokens)) + 10.0 for s in source.sections]
    weights = source.to_section_weights(values, torch.zeros(source.ids.shape))
    section = source.sections[0]
    inside = slice(section.start, section.start + section.num_visible)
    assert weights[0, inside].tolist() == values[0][: section.num_visible].tolist()
    assert weights[0].sum() == weights[0, inside].sum()


def test_markers_are_single_tokens_of_any_tokenizer():
    learned = train_tokenizer(["cells divide and grow, the cell wall grows"] * 3, 40)
    tokenizer = ContextTokenizer(learned, ["<MSK>"])
    for marker in (*MARKERS, "<MSK>"):
        assert tokenizer.ids(marker) == [tokenizer.marker(marker)]
    tokens = tokenizer.tokens("cells grow")
    assert tokenizer.text(tokens.ids) == "cells grow"
    assert "".join(tokens.pieces) == "▁cells▁grow"
    assert tokens.spans[0][0] == 0
    assert tokens.spans[-1][1] == 10


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        ContextTokenizer(tokenizer)
