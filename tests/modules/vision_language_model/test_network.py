"""Every family: loss, features, generation, files."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from tenfold.modules.vision_language_model import (
    Phase,
    VisionLanguageModel,
    image_features,
    with_features,
)
from tenfold.modules.vision_language_model.conv_vision import ConvVisionConfig, ConvVisionModel
from tiny_vlm import CONFIGS, VOCABULARY, build
from transformers import AutoModelForImageTextToText, AutoProcessor


def answer_nats_in_float64(module, batch):
    """From the definition, by one forward pass of each conversation alone, without padding."""
    total, count = 0.0, 0
    for row in range(len(batch["questions"])):
        one = {key: batch[key][row : row + 1] for key in ("images", "questions", "answers")}
        inputs, labels = module.encode(one)
        assert bool(inputs["attention_mask"].all())
        with torch.no_grad():
            logits = module.network(**inputs).logits.double()[0]
        log_probabilities = logits - logits.exp().sum(dim=-1, keepdim=True).log()
        for position in (labels[0] != -100).nonzero()[:, 0].tolist():
            token = inputs["input_ids"][0, position + 1]  # what really comes next
            assert labels[0, position] in (token, 2)
            total -= log_probabilities[position, labels[0, position]].item()
            count += 1
    return total / count


def test_the_loss_is_that_of_the_answers_alone(any_config, batch):
    module = build(any_config).eval()
    batch = {**batch, "answers": [["7", "yes"], ["top left"], ["3"]]}
    loss = module.loss(batch, Phase())
    # 7 </s> yes </s> top left </s> 3 </s>: the ends are tokens too.
    assert (module.encode(batch).labels != -100).sum() == 9
    assert loss.item() == pytest.approx(answer_nats_in_float64(module, batch), rel=1e-5)


def test_dense_and_answer_losses_add_up_by_weight(any_config, batch):
    module = build(any_config).eval()
    if any_config == "llava_next":  # it splits images, so that a feature has no one place
        with pytest.raises(ValueError, match="264 features of 3 images form no square grid"):
            module.loss(batch, Phase(0, 0, 1))
        return
    parts = [module.loss(batch, Phase(0, a, p)) for a, p in ((1, 0), (0, 1), (0.5, 2))]
    torch.testing.assert_close(parts[2], 0.5 * parts[0] + 2 * parts[1])


def test_features_are_what_the_language_model_gets_and_may_replace_pixels(any_config, batch):
    module = build(any_config).eval()
    inputs, _ = module.encode(batch)
    with torch.no_grad():
        output = module(inputs, output_hidden_states=True)
        features = image_features(module.network, inputs)
        from_features = module.network(**with_features(module.network, inputs, features)).logits
        doubled = module.network(**with_features(module.network, inputs, 2 * features)).logits
    places = inputs["input_ids"] == module.network.config.image_token_id
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(features, output.hidden_states[0][places])
    torch.testing.assert_close(from_features[real], output.logits[real], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(doubled[real], output.logits[real], atol=1e-3)
    with pytest.raises(ValueError, match="image features for"):
        with_features(module.network, inputs, features[:-1])


def test_generation_is_the_greedy_loop_and_does_not_depend_on_the_batch(any_config, single):
    module = build(any_config, generation={"max_new_tokens": 4}).eval()
    texts = module.generate(single["images"], single["questions"])
    for row, expected in enumerate(texts):
        inputs, _ = module.conversations.encode(
            single["images"][row : row + 1], single["questions"][row : row + 1]
        )
        start = inputs["input_ids"].shape[1]
        for _ in range(4):  # every step from the pixels, without a cache
            with torch.no_grad():
                logits = module(inputs).logits
            token = logits[:, -1:].argmax(dim=-1)
            if token.item() == module.network.generation_config.eos_token_id:
                break
            inputs["input_ids"] = torch.cat((inputs["input_ids"], token), dim=1)
            for name in ("attention_mask", "mm_token_type_ids"):
                if name in inputs:
                    fill = inputs[name].new_full((1, 1), int(name == "attention_mask"))
                    inputs[name] = torch.cat((inputs[name], fill), dim=1)
        assert module.conversations.decode(inputs["input_ids"][:, start:]) == [expected]


def test_generation_looks_at_the_image(any_config, single):
    module = build(any_config).eval()
    options = ["yes", "no", "7"]
    scores = module.score(single["images"], single["questions"], options)
    others = module.score(1 - single["images"], single["questions"], options)
    assert (scores - others).abs().max() > 1e-5


def test_scores_are_the_log_probabilities_of_whole_answers(batch, single):
    module = build().eval()
    scores = module.score(single["images"], single["questions"], ["7", "top left"])
    assert scores.shape == (3, 2)
    one = {**single, "answers": [["top left"]] * 3}
    mean = module.loss(one, Phase())
    assert -scores[:, 1].mean().item() / 3 == pytest.approx(mean.item(), rel=1e-5)


def test_transformers_loads_what_was_saved(any_config, batch, tmp_path):
    module = build(any_config).eval()
    module.save_pretrained(tmp_path)
    inputs, _ = module.encode(batch)
    expected = module(inputs).logits
    network = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert torch.equal(network(**inputs).logits, expected)
    processor = AutoProcessor.from_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in?"}]}
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = processor(images=[[batch["images"][0, 0]]], text=[text], do_rescale=False)["input_ids"]
    ours, _ = module.conversations.encode(batch["images"][:1], [["What is in?"]])
    assert ids[0] == ours["input_ids"][0].tolist()

    loaded = build(pretrained=str(tmp_path)).eval()
    again, labels = loaded.encode(batch)
    assert all(torch.equal(again[name], inputs[name]) for name in inputs)
    assert torch.equal(loaded(again).logits, expected)
    assert torch.equal(labels, module.encode(batch).labels)


def test_pictures_may_be_pil_and_of_different_sizes(any_config, batch):
    from PIL import Image

    module = build(any_config).eval()
    smooth = F.interpolate(batch["images"][:, 0, :, :5, :5], 40, mode="bilinear")
    pictures = (smooth * 255).round().to(torch.uint8)  # noise would overshoot, and be cut in PIL
    as_pil = [[Image.fromarray(p.permute(1, 2, 0).numpy())] for p in pictures]
    from_pil = module.encode({**batch, "images": as_pil}).inputs["pixel_values"]
    scaled = {**batch, "images": pictures[:, None].float() / 255}
    difference = from_pil - module.encode(scaled).inputs["pixel_values"]
    assert difference.abs().max() < 0.05  # of a standard deviation: 8-bit rounding of resizing
    as_pil[0] = [as_pil[0][0].resize((64, 64))]
    assert len(module.generate(as_pil, [["What is the digit?"]] * 3)) == 3


def test_several_images_belong_to_one_question(any_config, batch):
    module = build(any_config).eval()
    images = torch.rand(2, 3, 3, 32, 32)
    inputs, _ = module.conversations.encode(images, [["What is in the image?"]] * 2)
    one, _ = module.conversations.encode(images[:, :1], [["What is in the image?"]] * 2)
    image_id = module.network.config.image_token_id
    counts = [(ids["input_ids"] == image_id).sum().item() for ids in (inputs, one)]
    assert counts[0] == 3 * counts[1]
    assert len(module.generate(images, [["What is in the image?"]] * 2, max_new_tokens=2)) == 2


def test_weights_depend_on_the_seed_alone(any_config):
    module = build(any_config)
    seed_everything(1, verbose=False)
    torch.rand(5)  # what a data module might draw
    other = copy.deepcopy(build(any_config))
    assert torch.equal(other.network.lm_head.weight, module.network.lm_head.weight)
    assert torch.equal(other.patch_head.classifier.weight, module.patch_head.classifier.weight)


def test_the_tower_keeps_its_own_initialisation_inside_of_a_model():
    """transformers would draw all weights with the same small deviation, and leave positions 0."""
    tower = build().network.model.vision_tower
    assert tower.position_embedding.weight.std().item() == pytest.approx(0.2, rel=0.15)
    first = tower.layers[0].weight  # torch: uniform within 1 / sqrt(fan in)
    assert first.abs().max().item() == pytest.approx((3 * 9) ** -0.5, rel=0.05)


def test_the_meta_device_builds_without_memory(any_config):
    with torch.device("meta"):
        module = build(any_config)
    assert {p.device.type for p in module.parameters()} == {"meta"}


def test_smolvlm_is_idefics3_by_another_name(batch, tmp_path):
    modules = [build(name).eval() for name in ("idefics3", "smolvlm")]
    losses = [module.loss(batch, Phase(patch_weight=1)) for module in modules]
    torch.testing.assert_close(losses[0], losses[1])
    modules[1].save_pretrained(tmp_path)
    loaded = build(pretrained=str(tmp_path)).eval()
    assert type(loaded.network).__name__ == "SmolVLMForConditionalGeneration"
    torch.testing.assert_close(loaded.loss(batch, Phase()), modules[1].loss(batch, Phase()))


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "config.model_type: unknown 'llama'"),
        ({"projector_act": "gelu"}, "config: unknown 'projector_act'; did you mean projector"),
        ({"text_config": {"hidden": 3}}, "config.text_config: unknown 'hidden'; did you mean hid"),
        ({"vision_config": {"model_type": "conv_vision", "patch": 3}}, "vision_config: unknown"),
        ({"vision_feature_layer": "last"}, "config: "),
    ],
)
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        VisionLanguageModel(config=CONFIGS["conv"] | change, vocabulary=VOCABULARY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"exactly one of model\.init_args\.config"),
        ({"config": {"model_type": "llava"}}, r"exactly one of model\.init_args\.vocabulary"),
        ({"config": {}, "vocabulary": "a"}, "model_type is missing"),
        ({"pretrained": "/nowhere"}, "processor: cannot load '/nowhere'"),
        ({"config": {"model_type": "llava"}, "vocabulary": " "}, "it has no words"),
    ],
)
def test_one_source_of_network_and_words_is_required(arguments, message):
    with pytest.raises(ValueError, match=message):
        VisionLanguageModel(**arguments)


def test_a_patch_size_that_is_no_power_of_two_is_refused():
    vision = {"model_type": "conv_vision", "image_size": 36, "patch_size": 6}
    with pytest.raises(ValueError, match="patch_size 6 must be a power of two"):
        VisionLanguageModel(
            config=CONFIGS["conv"] | {"vision_config": vision}, vocabulary=VOCABULARY
        ).configure_model()


@pytest.mark.parametrize(("num_final_layers", "margin"), [(1, 2), (3, 4)])
def test_each_final_layer_sees_a_patch_farther_on_every_side(num_final_layers, margin):
    config = ConvVisionConfig(
        hidden_size=8, image_size=64, patch_size=4, num_final_layers=num_final_layers
    )
    model = ConvVisionModel(config).double().eval()
    pixels = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    features = model(pixels).last_hidden_state[0].view(16, 16, 8)
    (gradient,) = torch.autograd.grad(features[8, 8].square().sum(), pixels)
    patches = gradient[0].abs().sum(dim=0).view(16, 4, 16, 4).sum(dim=(1, 3))
    for axis in (0, 1):
        reached = patches.sum(dim=axis).nonzero()[:, 0]
        assert (reached.min(), reached.max()) == (8 - margin, 8 + margin)


def test_a_vision_tower_without_a_final_layer_is_refused():
    with pytest.raises(ValueError, match="num_final_layers 0, expected 1 or more"):
        ConvVisionModel(ConvVisionConfig(num_final_layers=0))


@pytest.mark.parametrize("is_loaded", [False, True])
def test_an_unknown_word_is_named(batch, is_loaded, tmp_path):
    module = build()
    if is_loaded:
        module.save_pretrained(tmp_path)
        module = build(pretrained=str(tmp_path))
    batch["questions"][1] = ["What is the purple digit?"]
    with pytest.raises(ValueError, match=r"'purple' in .* is not in the tokenizer's vocab"):
        module.loss(batch)
    batch["questions"][1], batch["answers"][1] = ["What is the digit?"], ["nine"]
    with pytest.raises(ValueError, match="'nine' in 'nine"):
        module.loss(batch)


def test_cross_entropy_of_half_precision_is_taken_in_float32(batch):
    module = build().eval()
    full = module.loss(batch, Phase())
    half = module.to(torch.bfloat16).loss(batch, Phase())
    assert half.dtype == torch.float32
    assert (half - full).abs() < 0.05
    assert module.generate(batch["images"], [["What is the digit?"]] * 3, max_new_tokens=1)
