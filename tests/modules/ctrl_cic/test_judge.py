"""The judge of captions on recorded answers, and CLIP's numbers on a tiny CLIP."""

import json
import math

import pytest
import torch
from PIL import Image
from tenfold.modules.chat import ReplayBackend
from tenfold.modules.ctrl_cic import NoControl, PromptControl
from tenfold.modules.ctrl_cic.evaluation import CaptionTest
from tenfold.modules.ctrl_cic.judge import (
    ASPECTS,
    JudgedCaptions,
    judge_request,
    read_scores,
    reference_is_first,
)
from tenfold.modules.encoders import TransformersEncoder
from tenfold.modules.metrics.captioning import clip_scores, sentence_clip_scores, sentences_with
from tiny_captions import batch_of, build
from tiny_encoders import pictures, save_clip

ANSWER = """[ASSISTANT1-Reasoning]: It names the wall: score 5.
[ASSISTANT2-Reasoning]: Vague.
[Comparison-Reasoning]: The first is better.
[ASSISTANT1-Score]:
- Relevance with Context: 5
- Relevance with Highlight: 4
- Consistency with Image: 3
- Overall Quality: 4
[ASSISTANT2-Score]:
- Relevance with Context: 2
- Relevance with Highlight: 1
- Consistency with Image: 3
- {overall}: {last}
"""


def answer(overall="Overall Quality", last=2):
    return ANSWER.replace("{overall}", overall).replace("{last}", str(last))


def name_with(first):
    return next(str(k) for k in range(99) if reference_is_first(str(k)) == first)


def test_scores_are_read_by_who_is_who():
    first = read_scores(answer(), name_with(True))
    assert first == {"context": (5, 2), "highlight": (4, 1), "image": (3, 3), "overall": (4, 2)}
    second = read_scores(answer("Overall"), name_with(False))
    assert second == {name: pair[::-1] for name, pair in first.items()}
    marked = answer().replace("- Relevance", "* **Relevance").replace(": 5", ":** 5")
    assert read_scores(marked, name_with(True))["context"][0] == 5


@pytest.mark.parametrize(
    "text",
    ["", "I cannot judge.", answer(last=6), answer().replace("[ASSISTANT2-Score]", "[2]"),
     answer().replace("- Consistency with Image: 3", "", 1)],
)  # fmt: skip
def test_judgements_that_cannot_be_read_are_none(text):
    assert read_scores(text, "0") is None


def test_a_request_shows_both_captions_and_the_image():
    picture = Image.new("RGB", (448, 896))
    for first in (True, False):
        request = judge_request(
            name_with(first), picture, "about {first}", ["a", "b"], "reference {context}", "model"
        )
        text, image = request.turns[0].parts
        assert image.size == (224, 448)
        assert text.index("reference {context}") < text.index("model\n") or not first
        assert "about {first}" in text
        assert "[Highlight]\na\nb\n" in text
        assert request.temperature == 0
    sides = [reference_is_first(str(k)) for k in range(1000)]
    assert 400 < sum(sides) < 600


def test_a_score_is_a_geometric_mean_of_ratios():
    metric = JudgedCaptions()
    assert metric.compute() == {}
    one = dict.fromkeys(ASPECTS, (4, 2))
    metric.update([one, dict.fromkeys(ASPECTS, (1, 0)), None])
    found = metric.compute()
    assert found["judge_highlight"] == pytest.approx(math.sqrt(2 / 4 * 1 / 2))
    assert found["judge_unparsed"] == pytest.approx(1 / 3)
    assert found["num_judged"] == 2


def test_a_test_asks_for_each_highlight(tmp_path):
    """Answers come from a file, by the ids of the requests; one of them says nothing."""
    rows = [{"id": "0/0", "text": answer()}, {"id": "0/1", "text": "?"}]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    backend = ReplayBackend(tmp_path / "answers.jsonl", key_field="id")
    module = build(controller=PromptControl(), judge=backend)
    batch = batch_of(pictures=[Image.new("L", (8, 8)), None, None])
    module.test_step(batch, 0)
    found = module.captions_tested.compute()
    assert (found["num_judged"], found["judge_unparsed"]) == (1, 0.5)
    expected = 2 / 5 if reference_is_first("0/0") else 5 / 2
    assert found["judge_context"] == pytest.approx(expected)
    assert module.captions_tested.compute().get("num_judged") is None


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = save_clip(tmp_path_factory.mktemp("clip") / "clip")
    return TransformersEncoder(folder, batch_size=1, normalize=False, device="cpu")


def test_clip_scores_are_scaled_cosines(clip):
    """Against transformers' own model, image by image."""
    from transformers import CLIPModel

    images = [picture.convert("RGB") for picture in pictures(2)]
    captions = ["a red square", "a cat"]
    found = clip_scores(clip, images, captions)
    network = CLIPModel.from_pretrained(clip.model).eval()
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        inputs = clip._image_processor(image, return_tensors="pt")
        tokens = clip._tokenizer(caption, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            output = network(pixel_values=inputs["pixel_values"], **tokens)
        cosine = float(output.logits_per_image / network.logit_scale.exp())
        assert found[k].item() == pytest.approx(250 * cosine, rel=1e-3)


def test_highlighted_sentences_are_compared(clip):
    assert sentences_with("One cell. Two walls! Three.", ["wall"], ["t"]) == ["Two walls!"]
    assert sentences_with("One.", ["Mars"], ["The Mars", "x"]) == ["The Mars"]
    assert sentences_with("One.", ["Venus"], ["The Mars"]) == ["One."]
    found = sentence_clip_scores(clip, [["a cat"], ["a cat", "red"]], ["a cat", "a cat"])
    assert found[0].item() == pytest.approx(1, abs=1e-5)
    mean = clip.encode_texts(["a cat", "red"]).mean(0)
    own = clip.encode_texts(["a cat"])[0]
    assert found[1].item() == pytest.approx(
        torch.cosine_similarity(mean, own, dim=0).item(), abs=1e-5
    )


def test_a_test_compares_with_clip(clip):
    test = CaptionTest(NoControl(), clip=clip)
    module = build()
    batch = batch_of(pictures=[Image.new("L", (40, 40)), None, None])
    test.step(module, batch)
    found = test.compute()
    caption = module.generate(batch)[0]
    expected = clip_scores(clip, [batch["pictures"][0]], [caption]).item()
    assert found["clip_score"] == pytest.approx(expected, rel=1e-4)
    assert -1 <= found["clip_score_sentence"] <= 1
