"""Ways of decoding on tiny models of every family: equivalences, batches, caches, costs, errors."""

import pytest
import torch
from decode_vlm import NO_EOS, QUESTIONS, ask
from tenfold.modules.perception_magnifier import (
    API,
    ICD,
    M3ID,
    PAI,
    SID,
    VCD,
    VDD,
    APCOnly,
    Greedy,
    MapSettings,
    PerceptionMagnifier,
    Sample,
    ViCrop,
)
from tenfold.modules.perception_magnifier.branch import Branch
from tiny_vlm import CONFIGS, build
from torch.testing import assert_close

FAMILIES = [*CONFIGS]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    module = build(request.param)
    module.network.train(False)
    return module


def answers(module, decoded, num_tokens=4):
    return decoded.sequences[:, -num_tokens:].tolist()


def test_greedy_is_transformers_own(family, images):
    inputs, _ = family.conversations.encode(images, [[q] for q in QUESTIONS], None)
    own = family.network.generate(**inputs, max_new_tokens=4, do_sample=False, **NO_EOS)
    ours = ask(family, Greedy(), images)
    assert ours.sequences.tolist() == own.tolist()


def test_features_that_generate_has_encoded_are_taken(conv, images):
    """Both routes of transformers: pixels left alone (5.17), or encoded before (5.23)."""
    inputs, _ = conv.conversations.encode(images, [[q] for q in QUESTIONS], None)
    settings = {"max_new_tokens": 4, "do_sample": False, **NO_EOS}
    ours = conv.network.generate(**inputs, custom_generate=Greedy(), **settings)
    assert ours.tolist() == ask(conv, Greedy(), images).sequences.tolist()


@pytest.mark.parametrize("update", ["every_token", "first_token", 2])
def test_a_uniform_map_is_greedy(family, images, update):
    """Through every step of the warp, which is the identity."""
    strategy = PerceptionMagnifier(map_source="uniform", reuse_tol=-1, update=update)
    found = ask(family, strategy, images)
    greedy = ask(family, Greedy(), images)
    assert found.sequences.tolist() == greedy.sequences.tolist()
    assert_close(found.first_logits, greedy.first_logits, atol=1e-5, rtol=1e-5)
    num_warps = {"every_token": 4, "first_token": 1, 2: 2}[update]
    assert found.costs.encoded_images.tolist() == [1 + num_warps] * 3


def test_logits_of_every_step_are_greedys_under_a_uniform_map(conv, images):
    strategy = PerceptionMagnifier(map_source="uniform", reuse_tol=-1)
    seen = {"pm": [], "greedy": []}

    def keep(name):
        def process(ids, scores):
            seen[name].append(scores.clone())
            return scores

        return [process]

    ask(conv, strategy, images, logits_processor=keep("pm"))
    ask(conv, Greedy(), images, logits_processor=keep("greedy"))
    assert len(seen["pm"]) == 4
    for ours, greedys in zip(seen["pm"], seen["greedy"], strict=True):
        assert_close(ours, greedys, atol=1e-5, rtol=1e-5)


def test_a_map_that_changes_nothing_is_not_paid_for(conv, images):
    strategy = PerceptionMagnifier(MapSettings(max_iterations=0), map_source="uniform")
    decoded = ask(conv, strategy, images)
    greedy = ask(conv, Greedy(), images)
    assert decoded.sequences.tolist() == greedy.sequences.tolist()
    for row in range(3):
        assert decoded.costs.row(row) == greedy.costs.row(row)


ALL = {
    "pm": PerceptionMagnifier(),
    "pm_once": PerceptionMagnifier(update="first_token"),
    "pm_full": PerceptionMagnifier(MapSettings(isolation="full"), contrast=0.5, update=2),
    "pm_lazy": PerceptionMagnifier(reuse_tol=3.0),
    "pm_reference": PerceptionMagnifier(
        MapSettings(layer_divisor="repo", upsample="bicubic", mask_padding=False),
        warp="reference",
        marginal="sum",
        floor=0.3,
    ),
    "pm_shuffled": PerceptionMagnifier(map_source="shuffled", isotropic=True),
    "vcd": VCD(),
    "vdd": VDD(),
    "icd": ICD(prefix="what is the blue digit"),
    "sid": SID(layer=1),
    "m3id": M3ID(),
    "pai": PAI(first_layer=1),
    "api": API(),
    "vicrop": ViCrop(general_prompt="describe the image ."),
    "sample": Sample(temperature=1.5, top_p=0.9),
    "apc_only": APCOnly(),
}


@pytest.mark.parametrize("name", ALL)
def test_answers_in_batches_are_those_one_by_one(family, images, name):
    together = ask(family, ALL[name], images, question_ids=["a", "b", "c"])
    for row in range(3):
        one = slice(row, row + 1)
        alone = ask(
            family, ALL[name], images[one], QUESTIONS[one], question_ids=[["a", "b", "c"][row]]
        )
        assert answers(family, alone)[0] == answers(family, together)[row]
        assert alone.costs.row(0) == together.costs.row(row)
        assert_close(alone.first_logits[0], together.first_logits[row], atol=2e-4, rtol=1e-4)


EQUAL_TO_GREEDY = {
    "vcd": VCD(alpha=0, beta=0),
    "vdd": VDD(beta=0, reference="same"),
    "icd": ICD(beta=0, prefix=""),
    "sid": SID(kept=1.0, layer=1, beta=0),
    "pai": PAI(gain=0, gamma=1, beta=0),
    "m3id": M3ID(threshold=0),
}


@pytest.mark.parametrize("name", EQUAL_TO_GREEDY)
def test_a_rival_without_its_effect_is_greedy(family, images, name):
    found = ask(family, EQUAL_TO_GREEDY[name], images)
    greedy = ask(family, Greedy(), images)
    assert answers(family, found) == answers(family, greedy)
    expected = greedy.first_logits.log_softmax(-1)
    assert_close(found.first_logits.log_softmax(-1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vcd", "vdd", "icd", "sid", "pai", "api", "vicrop", "pm"])
def test_a_rival_with_its_effect_is_not_greedy(conv, images, name):
    found = ask(conv, ALL[name], images).first_logits.softmax(-1)
    assert (found - ask(conv, Greedy(), images).first_logits.softmax(-1)).abs().max() > 1e-4


def test_pai_is_its_formula_on_eager_attention(conv, images):
    """Attention of the last query as the authors change it, and their two logits together."""
    gain, gamma = 0.4, 1.3
    found = ask(conv, PAI(gain, gamma, beta=0, first_layer=2), images[:1], QUESTIONS[:1])
    network = conv.network
    inputs, _ = conv.conversations.encode(images[:1], [[QUESTIONS[0]]], None)
    is_image = inputs["input_ids"][0] == network.config.image_token_id
    layer = network.get_decoder().layers[1].self_attn

    def boosted(module, query, key, value, mask, scaling, **kwargs):
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        scores = query @ key.mT * scaling
        length = scores.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
        if module is layer:
            last = scores[:, :, -1, is_image]
            scores[:, :, -1, is_image] = last + gain * last.abs()
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    from transformers import AttentionInterface

    AttentionInterface.register("boosted", boosted)
    before = network.get_decoder().config._attn_implementation
    network.get_decoder().set_attn_implementation("boosted")
    with_image = network(**inputs).logits[0, -1].log_softmax(-1)
    network.get_decoder().set_attn_implementation(before)
    text = inputs["input_ids"][:, ~is_image]
    without = network(input_ids=text).logits[0, -1].log_softmax(-1)
    expected = gamma * (with_image - without) + without
    assert_close(found.first_logits[0], expected, atol=1e-4, rtol=1e-4)


def test_the_network_is_as_it_was(conv, images):
    before = conv.network.get_decoder().config._attn_implementation
    ask(conv, PerceptionMagnifier(), images)
    assert conv.network.get_decoder().config._attn_implementation == before
    with pytest.raises(ValueError, match="start_layer"):
        ask(conv, PerceptionMagnifier(MapSettings(start_layer=9)), images)
    assert conv.network.get_decoder().config._attn_implementation == before


def test_caches_hold_the_prompt_and_the_answer(conv, images, monkeypatch):
    """After refinement the original's cache is as long as prompt and answer so far, no longer."""
    branches = []
    original = Branch.__init__

    def remember(self, *args, **kwargs):
        original(self, *args, **kwargs)
        branches.append(self)

    monkeypatch.setattr(Branch, "__init__", remember)
    decoded = ask(conv, PerceptionMagnifier(), images)
    length = decoded.sequences.shape[1] - 1  # the last token was never run
    assert branches[0].cache.get_seq_length() == length
    fresh = Branch(conv.network, _padded(branches[0]))
    fresh.forward(torch.ones(3, dtype=torch.bool))
    for mine, its in zip(branches[0].cache.layers, fresh.cache.layers, strict=True):
        visible = branches[0].mask.bool()[:, None, :, None].expand_as(mine.keys)
        assert_close(mine.keys[visible], its.keys[visible], atol=1e-5, rtol=1e-4)
        assert_close(mine.values[visible], its.values[visible], atol=1e-5, rtol=1e-4)


def _padded(branch):
    from tenfold.modules.perception_magnifier.prompt import Padded

    return Padded(branch.embeds, branch.mask, branch.positions, branch.is_image)


@pytest.mark.parametrize("max_iterations", [0, 1, 2, 8])
def test_first_token_mode_needs_two_prefills_and_one_for_each_round(conv, images, max_iterations):
    strategy = PerceptionMagnifier(MapSettings(max_iterations=max_iterations), update="first_token")
    costs = ask(conv, strategy, images).costs
    assert torch.equal(costs.prefills, costs.rounds + 2)
    assert costs.rounds.max() <= max(0, max_iterations - 1)
    assert torch.equal(costs.cached_steps, torch.full((3,), 3))
    assert torch.equal(costs.encoded_images, torch.full((3,), 2))


def test_later_refinement_runs_one_token(conv, images):
    costs = ask(conv, PerceptionMagnifier(), images).costs
    first = ask(conv, PerceptionMagnifier(), images, max_new_tokens=1).costs
    assert torch.equal(costs.prefills, first.prefills + 3)  # the warped image, for each token
    assert (costs.cached_steps >= 3).all()


def test_questions_stop_by_themselves(conv, images):
    """A question that is answered costs nothing more, and is padded."""
    free = ask(conv, Greedy(), images)
    stop = answers(conv, free)[0][0]
    for strategy in (Greedy(), PerceptionMagnifier(map_source="uniform", reuse_tol=-1)):
        decoded = ask(conv, strategy, images, eos_token_id=stop, pad_token_id=0)
        ended = [row for row in answers(conv, free) if row[0] == stop]
        rows = decoded.sequences[:, -4:] if len(ended) < 3 else decoded.sequences[:, -1:]
        assert rows[0].tolist() == [stop, 0, 0, 0][: rows.shape[1]]
        assert decoded.costs.tokens[0] == 1


def test_random_numbers_are_a_questions_own(conv, images):
    first = ask(conv, Sample(), images, question_ids=["a", "b", "c"])
    again = ask(conv, Sample(), images, question_ids=["a", "b", "c"])
    other = ask(conv, Sample(), images, question_ids=["a", "b", "c"], seed=1)
    assert first.sequences.tolist() == again.sequences.tolist()
    assert first.sequences.tolist() != other.sequences.tolist()


def test_the_oracle_looks_where_the_box_is(conv, images):
    box = torch.tensor([[0.25, 0.5, 0.5, 0.75]])
    strategy = PerceptionMagnifier(MapSettings(max_iterations=0), map_source="oracle")
    decoded = ask(conv, strategy, images, boxes=[[box]] * 3)
    look = decoded.looks[0][0]
    inside = look.map[round(0.5 * 40) : round(0.75 * 40), round(0.25 * 40) : round(0.5 * 40)]
    assert (inside == 1).all()
    assert look.map.min() == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="boxes"):
        ask(conv, strategy, images)


def test_a_low_resolution_warp_shows_nothing_new(conv):
    """A pattern finer than the encoder's pixels is lost before it is magnified."""
    fine = torch.arange(96).remainder(2).float().expand(3, 96, 96)
    strategy = {
        where: PerceptionMagnifier(
            MapSettings(max_iterations=0), map_source="oracle", resolution=where
        )
        for where in ("image", "encoder")
    }
    boxes = [[torch.tensor([[0.4, 0.4, 0.5, 0.5]])]]
    contrast = {}
    for where, one in strategy.items():
        look = ask(conv, one, [[fine]], QUESTIONS[:1], boxes=boxes).looks[0][0]
        contrast[where] = float(look.image.std())
    assert contrast["image"] > 3 * contrast["encoder"]


def test_several_images_have_maps_of_their_own(conv, images):
    pairs = [[images[0][0], images[2][0]], [images[1][0], images[0][0]]]
    decoded = ask(conv, PerceptionMagnifier(), pairs, QUESTIONS[:2])
    assert [len(looks) for looks in decoded.looks] == [2, 2]
    assert decoded.looks[0][1].image.shape == (3, 64, 48)
    assert decoded.costs.encoded_images.tolist() == [10, 10]
    for strategy in (VCD(), API(), ViCrop(general_prompt="describe the image .")):
        assert ask(conv, strategy, pairs, QUESTIONS[:2]).sequences.shape[0] == 2


ERRORS = [
    (lambda: PerceptionMagnifier(MapSettings(kernel_size=2)), "kernel_size"),
    (lambda: PerceptionMagnifier(MapSettings(max_iterations=-1)), "max_iterations"),
    (lambda: PerceptionMagnifier(update=0), "update"),
    (lambda: PerceptionMagnifier(floor=-1.0), "floor"),
    (lambda: VCD(noise_step=1000), "noise_step"),
    (lambda: VCD(beta=2), "beta"),
    (lambda: SID(kept=0), "kept"),
]


@pytest.mark.parametrize(("make", "named"), ERRORS)
def test_bad_settings_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_missing_and_small_images_are_named(conv, images):
    inputs, _ = conv.conversations.encode(images, [[q] for q in QUESTIONS], None)
    with pytest.raises(ValueError, match="images="):
        conv.network.generate(**inputs, custom_generate=PerceptionMagnifier(), max_new_tokens=1)
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="is an image missing"):
        conv.network.generate(**tokens, custom_generate=Greedy(), max_new_tokens=1)
    thin = [images[0], [torch.rand(3, 30, 5)]]
    with pytest.raises(ValueError, match="5x30 pixels is smaller than a patch"):
        ask(conv, PerceptionMagnifier(), thin, QUESTIONS[:2])


def test_a_model_that_shows_no_attention_is_named(conv, images, monkeypatch):
    from tenfold.modules.perception_magnifier import watching

    decoder = conv.network.get_decoder()
    monkeypatch.setattr(type(decoder), "_can_set_attn_implementation", lambda self: False)
    with pytest.raises(ValueError, match="cannot be watched"):
        ask(conv, PerceptionMagnifier(), images)
    with pytest.raises(ValueError, match=r"layers \[2\] of 2 have no attention weights"):
        watching.check_seen(watching.Watch(2), conv.network)


def test_unknown_words_of_a_strategy_are_named(conv, images):
    with pytest.raises(ValueError, match="does not know a word"):
        ask(conv, ICD(), images)
