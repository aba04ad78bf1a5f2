"""Beam search against transformers'."""

import pytest
import torch
from decode_vlm import NO_EOS, QUESTIONS, ask
from tenfold.modules.perception_magnifier import BeamSearch
from tiny_vlm import build


@pytest.mark.parametrize("num_beams", [1, 3, 5])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("eos", [-1, 5, [5, 9, 12]])
def test_it_is_transformers_own(conv, images, num_beams, length_penalty, eos):
    inputs, _ = conv.conversations.encode(images, [[q] for q in QUESTIONS], None)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    expected = conv.network.generate(
        **inputs, num_beams=num_beams, length_penalty=length_penalty, **settings
    )
    strategy = BeamSearch(num_beams, length_penalty)
    found = ask(conv, strategy, images, **settings).sequences
    assert found.tolist() == expected.tolist()


def test_batches_and_costs(conv, images):
    together = ask(conv, BeamSearch(3), images)
    for row in range(3):
        alone = ask(conv, BeamSearch(3), images[row : row + 1], QUESTIONS[row : row + 1])
        assert alone.sequences[0, -4:].tolist() == together.sequences[row, -4:].tolist()
        assert alone.costs.row(0) == together.costs.row(row)
    assert together.costs.prefills.tolist() == [1, 1, 1]
    assert together.costs.cached_steps.tolist() == [9, 9, 9]
    assert together.costs.tokens.tolist() == [4, 4, 4]


def test_positions_in_a_grid_follow_their_beam(images):
    module = build("qwen2_5_vl")
    module.network.train(False)
    inputs, _ = module.conversations.encode(images, [[q] for q in QUESTIONS], None)
    settings = {"max_new_tokens": 4, "do_sample": False, **NO_EOS}
    expected = module.network.generate(**inputs, num_beams=4, **settings)
    found = ask(module, BeamSearch(4), images, **settings).sequences
    assert torch.equal(found, expected)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="num_beams"):
        BeamSearch(0)
