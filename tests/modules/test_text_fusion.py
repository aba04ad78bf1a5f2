"""Synthetic texts: the template, and what a chat model is asked."""

import json

from PIL import Image
from tenfold.modules.chat import ReplayBackend
from tenfold.modules.chat.backend import ChatBackend
from tenfold.modules.chat.messages import ChatResponse
from tenfold.modules.text_fusion import (
    CAPTION_REQUEST,
    ChatCaptioner,
    ChatFusion,
    FusionItem,
    TemplateFusion,
)


class Echo(ChatBackend):
    """Answers with the request itself, or with an error where it is about a void."""

    supports_images = True
    identity = {"backend": "echo", "model": "echo-1"}  # noqa: RUF012

    def answer(self, requests, keep=None):
        for place, request in enumerate(requests):
            text = "".join(part for part in request.turns[0].parts if isinstance(part, str))
            error = "refused" if "void" in text else ""
            yield place, ChatResponse("" if error else text, error=error)


def test_the_template_joins_caption_sentence_and_tags_that_say_something_new():
    items = [
        FusionItem("1", "The black cat sleeps.", "A photo of a sofa.", ["cat", "lamp", "lamp"]),
        FusionItem("2", "The dog runs:"),
    ]
    fusion = TemplateFusion()
    assert fusion.fuse(items) == [
        "A photo of a sofa: The black cat sleeps. Shown: lamp.",
        "The dog runs.",
    ]
    assert fusion.label == "template"


def test_a_model_is_told_all_parts_and_answers_that_fail_are_empty():
    fusion = ChatFusion(Echo())
    first, second = fusion.fuse(
        [FusionItem("1", "raw  text", "a caption", ["a", "b"]), FusionItem("2", "void")]
    )
    for said in (
        "Raw caption: raw text",
        "synthetic caption: a caption",
        "highly relevant detection tags: a | b",
        "add nothing that is not in them",
    ):
        assert said in first
    assert second == ""
    assert fusion.label == "echo-1"
    assert fusion.identity["backend"] == Echo.identity


def test_answers_are_found_by_the_images_names(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"id": "b", "text": "Second."}) + "\n")
    backend = ReplayBackend(str(path), key_field="id", on_miss="skip")
    made = ChatFusion(backend).fuse([FusionItem("b", "x"), FusionItem("a", "y")])
    assert made == ["Second.", ""]


def test_captions_are_one_line_each():
    captions = ChatCaptioner(Echo()).caption(["1"], [Image.new("RGB", (4, 4))])
    assert captions == [CAPTION_REQUEST]
