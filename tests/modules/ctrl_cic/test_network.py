"""The image's slot, the weights of tokens, prompts, real weights by name."""

import pytest
import torch
from lightning.pytorch import Trainer
from tenfold.modules.ctrl_cic import NoControl, PromptControl, Recalibration
from tenfold.modules.ctrl_cic.targets import prompt_ids
from tenfold.modules.ctrl_cic.tokens import IMAGE_SLOT, word_tokenizer
from tenfold.modules.ctrl_cic.writing import caption_text, caption_weights
from tiny_captions import CONFIG, LONG, WORDS, batch_of, build, build_predictor
from transformers import (
    AutoTokenizer,
    LongT5Config,
    LongT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

BOTH = pytest.mark.parametrize("config", [CONFIG, LONG], ids=["t5", "longt5"])


def logits_of(module, batch, weights=None, words=None):
    source, images = module.encode(batch)
    targets = module.targets(batch["captions"], words)
    return module(source, images, targets, weights), source, targets


@BOTH
def test_the_image_takes_its_place(config):
    module = build(config=config | {"d_model": 16}, image_dim=16)
    assert module.network.image_projection is None
    batch = batch_of(images=torch.randn(3, 16))
    source, images = module.encode(batch)
    embedded = module.network.embed(source.ids, images)
    table = module.network.language.shared.weight
    assert torch.equal(embedded[:, IMAGE_SLOT], images)
    expected = torch.cat((table[source.ids[:, :1]], images[:, None], table[source.ids[:, 2:]]), 1)
    assert torch.equal(embedded, expected)
    zeros = module.network.embed(source.ids, torch.zeros(3, 16))
    assert (zeros[:, IMAGE_SLOT] == 0).all()
    blind = build(config=config, image_dim=16, blind=True)
    assert (blind.encode(batch)[1] == 0).all()


def test_a_projection_is_made_where_widths_differ():
    assert build().network.image_projection.weight.shape == (16, 6)
    assert build(image_dim=16, visual_projection=True).network.image_projection is not None
    with pytest.raises(ValueError, match=r"width 6 do not fit a model of width 16"):
        build(visual_projection=False)


@BOTH
def test_logits_are_those_of_transformers(config):
    """On the string of the released code, by the plain model with `inputs_embeds` and labels."""
    module, batch = build(config=config), batch_of()
    logits, source, targets = logits_of(module, batch)
    network = module.network
    embedded = network.embed(source.ids, batch["images"])
    output = network.language(
        inputs_embeds=embedded, attention_mask=source.mask, labels=targets.labels
    )
    torch.testing.assert_close(logits, output.logits)
    torch.testing.assert_close(module.loss(batch), output.loss)


@BOTH
def test_weights_of_one_change_no_bit_and_zero_removes_a_state(config):
    module, batch = build(config=config), batch_of()
    plain, source, targets = logits_of(module, batch)
    ones = torch.ones(source.ids.shape)
    assert torch.equal(logits_of(module, batch, ones)[0], plain)
    ones[0, 9] = 0
    states = module.network.encode(source.ids, source.mask, batch["images"]).clone()
    states[0, 9] = 0
    by_hand = module.network.language(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=source.mask,
        decoder_input_ids=targets.decoder_ids,
    ).logits
    weighted = logits_of(module, batch, ones)[0]
    torch.testing.assert_close(weighted, by_hand)
    assert not torch.allclose(weighted[0], plain[0])
    torch.testing.assert_close(weighted[1:], plain[1:])


def test_training_weights_are_those_of_the_table():
    module, batch = build(controller=Recalibration()), batch_of()
    source, _ = module.encode(batch)
    relevance = [torch.rand(len(s.tokens)) for s in source.sections]
    weights = module.controller.training_weights(source, relevance)
    for row, section in enumerate(source.sections):
        end = section.start + section.num_visible
        assert (weights[row, : section.start] == 1).all()
        assert torch.equal(weights[row, section.start : end], relevance[row])
        assert (weights[row][source.is_other[row]] == 0.5).all()
        last = int(source.mask[row].sum()) - 1
        assert weights[row, last] == 1
        assert (weights[row, last + 1 :] == 0).all()
    jittered = Recalibration(weight_jitter=0.2).training_weights(source, relevance)
    change = (jittered - weights).abs()
    assert 0 < change.max() <= 0.2
    assert (change[0, : source.sections[0].start] == 0).all()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("add", [0.3, 0.7, 0.5]), ("overwrite", [0.3, 0.9, 0.5]), ("fixed", [0.5, 0.9, 0.5])],
)
def test_a_highlight_changes_the_weights_of_its_tokens(mode, expected):
    module = build(controller=Recalibration(0.4, mode), vocabulary=WORDS)
    source, _ = module.encode(batch_of(["red cell wall"]))
    controller = module.controller
    predicted = [torch.tensor([0.3, 0.3, 0.5])]
    values = controller.flat(source) if mode == "fixed" else predicted
    weights = controller.weights(source, values, [["cell"]], module.contexts.ids)
    start = source.sections[0].start
    assert weights[0, start : start + 3].tolist() == pytest.approx(expected)
    raised = controller.weights(source, values, [["cell"]], module.contexts.ids, delta=0.9)
    assert raised[0, start + 1] == pytest.approx(expected[1] + 0.5)
    limited = Recalibration(0.9, mode, clamp_max=1).weights(
        source, values, [["cell"]], module.contexts.ids
    )
    assert limited[0, start + 1] == 1


def plain_greedy(module, row, batch, prompt, weights=None, steps=7):
    """Captions one image by calling the plain model again and again, without a cache."""
    alone = {name: value[row : row + 1] for name, value in batch.items()}
    source, images = module.encode(alone)
    states = module.network.encode(source.ids, source.mask, images, weights)
    ids = list(prompt)
    for _ in range(steps):
        logits = module.network.language(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=source.mask,
            decoder_input_ids=torch.tensor([ids]),
        ).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == module.contexts.eos:
            break
    return ids


@torch.no_grad()
@BOTH
def test_prompted_captions_in_a_batch_are_those_alone(config):
    """Prompts of several lengths, and none, against a loop over tokens."""
    for seed in range(4):
        module, batch = build(seed, config=config, controller=PromptControl()), batch_of()
        highlights = [["cells divide", "red"], None, ["wall"], []]
        rows = [0, 0, 2, 2]
        found = module.generate(batch, highlights, rows)
        ordered = [["red", "cells divide"], None, ["wall"], []]
        for caption, row, phrases in zip(found, rows, ordered, strict=True):
            prompt = [0, *([] if phrases is None else prompt_ids(module.contexts, phrases))]
            ids = plain_greedy(module, row, batch, prompt)
            assert caption == caption_text(module, ids)


@torch.no_grad()
def test_recalibrated_captions_in_a_batch_are_those_alone():
    seen = set()
    for seed in range(4):
        module = build(seed, controller=Recalibration(3.0, "fixed"))
        batch = batch_of()
        rows, highlights = [0, 0, 2], [["red"], ["cells divide"], None]
        found = module.generate(batch, highlights, rows)
        for caption, row, phrases in zip(found, rows, highlights, strict=True):
            alone = {name: value[row : row + 1] for name, value in batch.items()}
            source, _ = module.encode(alone)
            weights = module.controller.weights(
                source, module.controller.flat(source), [phrases or []], module.contexts.ids
            )
            assert caption == caption_text(module, plain_greedy(module, row, batch, [0], weights))
        seen |= {tuple(found[:2])}
    assert any(one != two for one, two in seen)


def test_predicted_weights_reach_the_caption(tmp_path):
    predictor = build_predictor(5)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(predictor)
    trainer.save_checkpoint(tmp_path / "predictor.ckpt")
    module = build(controller=Recalibration(0.5), predictor=str(tmp_path / "predictor.ckpt"))
    batch = batch_of()
    source, images = module.encode(batch)
    weights = caption_weights(module, batch, source, images, [0, 2], [["red"], None], None, None)
    logits = predictor(source, images)
    start = source.sections[0].start
    expected = logits[0, start : start + 10].sigmoid()
    expected[1] += 0.5
    torch.testing.assert_close(weights[0, start : start + 10], expected)
    section = source.sections[2]
    visible = slice(section.start, section.start + section.num_visible)
    torch.testing.assert_close(weights[1, visible], logits[2, visible].sigmoid())
    assert not any("predictor" in name for name in module.state_dict())
    other = build(vocabulary=WORDS + " more", controller=Recalibration(), predictor=str(
        tmp_path / "predictor.ckpt"))  # fmt: skip
    with pytest.raises(ValueError, match="train both with one tokenizer"):
        other.generate(batch)
    with pytest.raises(ValueError, match=r"need model\.init_args\.predictor"):
        build(controller=Recalibration()).generate(batch)


def test_captions_without_a_highlight_never_see_the_reference():
    """Also of `Recalibration`, which trains with the relevance of the true caption."""
    for controller in (NoControl(), PromptControl(), Recalibration(0.1, "fixed")):
        module = build(controller=controller)
        one = module.generate(batch_of())
        other = module.generate(batch_of(captions=["wall", "wall", "wall"], relevance=[None] * 3))
        assert one == other


@pytest.mark.parametrize("model_class", ["t5", "longt5"])
def test_weights_are_loaded_by_name(tmp_path, model_class):
    """A folder as the hub has them: its markers are new tokens, all else stays."""
    tokenizer = build().contexts.tokenizer
    plain = AutoTokenizer.from_pretrained(_save_words(tmp_path / "words"))
    sizes = {
        n: v for n, v in {"t5": CONFIG, "longt5": LONG}[model_class].items() if n != "model_type"
    }
    sizes |= {
        "vocab_size": len(plain) + 3,
        "decoder_start_token_id": 0,
    }  # T5 has spare rows as well
    if model_class == "t5":
        network = T5ForConditionalGeneration(T5Config(**sizes))
    else:
        network = LongT5ForConditionalGeneration(LongT5Config(**sizes))
    network.save_pretrained(tmp_path / "hub")
    plain.save_pretrained(tmp_path / "hub")
    module = build(pretrained=str(tmp_path / "hub"))
    assert len(module.contexts) == len(tokenizer) == len(plain) + 7
    state, own = network.state_dict(), module.network.language.state_dict()
    assert own["shared.weight"].shape[0] == len(tokenizer)
    for name, value in state.items():
        size = (
            len(plain) if "shared" in name or "embed_tokens" in name or "lm_head" in name else None
        )
        assert torch.equal(own[name][:size], value[:size]), name
    assert module.generate(batch_of())
    module.save_pretrained(tmp_path / "again")
    again = build(1, pretrained=str(tmp_path / "again"))
    for name, value in module.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name


def _save_words(folder):
    word_tokenizer(WORDS).save_pretrained(folder)
    return folder


def test_several_captions_for_one_highlight():
    module = build(controller=PromptControl())
    settings = {"num_return_sequences": 3, "num_beams": 3}
    found = module.generate(batch_of(), [["red"], ["wall"]], [0, 2], **settings)
    assert len(found) == 6
    best = module.generate(batch_of(), [["red"], ["wall"]], [0, 2], num_beams=3)
    assert [found[0], found[3]] == best


def test_lora_trains_adapters_embeddings_and_projection_alone():
    module = build(lora={"r": 2})
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n or "shared" in n or "image_projection" in n for n in trained)
    assert any("lora_" in n for n in trained)
    with pytest.raises(ValueError, match="lora: unknown 'rank'"):
        build(lora={"rank": 2})
    with pytest.raises(ValueError, match="merge the adapters"):
        module.save_pretrained("nowhere")
