"""Chat templates with roles: what is trained on, and that training and asking agree."""

import pytest
import torch
from tenfold.modules.vision_language_model import Conversations
from tiny_vlm import build

PARTS = (
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {
    # Roles in words, the turn of the assistant ended by the end of the text.
    "words": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}what " + PARTS + " is"
    "{% else %} " + PARTS + "{{ eos_token }}{% endif %}{% endfor %}",
    # A mark before and after each turn, and a line between turns.
    "marks": "{% for m in messages %}<s>{{ m.role[:0] }}the " + PARTS + "</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>the {% endif %}",
    # Nothing that ends an answer.
    "open": "{% for m in messages %}" + PARTS + " {% endfor %}",
}


def conversations(template):
    processor = build().conversations.processor
    processor.chat_template = template
    return Conversations(processor)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_has_the_tokens_of_its_whole_text(name, batch):
    ours = conversations(TEMPLATES[name])
    questions, answers = ["What is in the image?", "What is the digit?"], ["top left", "7"]
    inputs, labels = ours.encode(batch["images"][:1], [questions], [answers])
    messages = []
    for question, answer in zip(questions, answers, strict=True):
        messages += [
            {"role": "user", "content": [{"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    messages[0]["content"].insert(0, {"type": "image"})
    text = ours.processor.apply_chat_template(messages, tokenize=False)
    images = [[batch["images"][0, 0]]]
    whole = ours.processor(images=images, text=[text], do_rescale=False)["input_ids"][0]
    found = inputs["input_ids"][0].tolist()
    if name == "open":  # an end is added, for there is none
        assert [token for token in found if token != 2] == whole
    else:
        assert found == whole
    places = (labels[0] != -100).nonzero()[:, 0]
    trained = ours.tokenizer.convert_ids_to_tokens(labels[0][places].tolist())
    assert trained == ["top", "left", "</s>", "7", "</s>"]
    assert torch.equal(labels[0][places[:-1]], inputs["input_ids"][0][places[:-1] + 1])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_what_was_trained_on(name, batch):
    ours = conversations(TEMPLATES[name])
    questions, answers = [["What is the digit?", "What is in the image?"]], [["7", "top"]]
    whole, labels = ours.encode(batch["images"][:1], questions, answers)
    for turn in (0, 1):
        asked, replied = [questions[0][: turn + 1]], [answers[0][:turn]]
        prompt, _ = ours.encode(batch["images"][:1], asked, replied)
        length = prompt["input_ids"].shape[1]
        assert torch.equal(prompt["input_ids"], whole["input_ids"][:, :length])
        token = labels[0, length - 1].item()  # the first of the answer is predicted here
        assert ours.tokenizer.convert_ids_to_tokens(token) == answers[0][turn]


def test_rows_are_padded_towards_what_they_are_for(batch):
    ours = build().conversations
    questions = [["What is the digit?"], ["What is the red digit in the image?"]]
    open_end, _ = ours.encode(batch["images"][:2], questions)
    assert open_end["attention_mask"][0, 0] == 0
    assert open_end["attention_mask"][:, -1].all()
    closed, _ = ours.encode(batch["images"][:2], questions, [["7"], ["7"]])
    assert closed["attention_mask"][:, 0].all()
    assert closed["attention_mask"][0, -1] == 0


def test_templates_that_hide_answers_are_refused(batch):
    shouting = TEMPLATES["open"].replace("p.text", "p.text | upper")
    with pytest.raises(ValueError, match="does not write questions and answers as they are"):
        conversations(shouting).encode(batch["images"][:1], [["What?"]], [["7"]])
    elsewhere = TEMPLATES["open"] + "{% if add_generation_prompt %}digit:{% endif %}"
    with pytest.raises(ValueError, match="' digit:' where one shall be generated"):
        conversations(elsewhere).encode(batch["images"][:1], [["What?"]], [["7"]])
    with pytest.raises(ValueError, match="no chat template"):
        conversations(None)


def test_numbers_must_fit(batch):
    ours = build().conversations
    with pytest.raises(ValueError, match="3 sets of images, 1 of questions"):
        ours.encode(batch["images"], [["What is the digit?"]], [["7"]])
    with pytest.raises(ValueError, match="an answer for every question"):
        ours.encode(batch["images"][:1], [["What is the digit?"] * 3], [["7"]])
