"""Asking again, keeping answers, filling templates."""

import pytest
from scripted import Scripted
from tenfold.modules.chat import CachedBackend, ChatRequest
from tenfold.modules.visual_reasoning import (
    ask_all,
    ask_letters,
    fill,
    keep_answers,
    read_choice,
    template_hash,
)


def reader(text):
    return read_choice(text, ["x", "y"])


def test_only_what_cannot_be_read_is_asked_again():
    backend = Scripted(lambda request: "Answer: A" if request.id == "1" or request.attempt else "?")
    requests = [ChatRequest(f"question {k}", id=str(k)) for k in range(3)]
    replies = ask_all(backend, requests, reader, max_attempts=3)
    assert [reply.parsed.choices for reply in replies] == [(0,)] * 3
    assert [reply.attempts for reply in replies] == [2, 1, 2]
    assert len(backend.asked) == 5
    once = ask_all(backend, requests, reader)
    assert [reply.parsed.status for reply in once] == ["failed", "ok", "failed"]


def test_an_error_is_no_answer_and_is_not_asked_again():
    backend = Scripted(lambda request: None)
    (reply,) = ask_all(backend, [ChatRequest("?")], reader, max_attempts=3)
    assert (reply.parsed.status, reply.attempts) == ("error", 1)
    assert reply.error
    assert ask_all(backend, [], reader) == []


def test_letters_by_their_probability():
    backend = Scripted(lambda request: (-2.0, -0.5, -1.0), scores=True)
    request = ChatRequest("?", choices=["A", "B", "C"])
    one, two = ask_letters(backend, [request, ChatRequest("!", choices="ABC")], [1, 2])
    assert (one.text, one.parsed.choices) == ("Answer: B", (1,))
    assert (two.text, two.parsed.choices) == ("Answer: B, C", (1, 2))


def test_answers_are_kept_once_and_where_a_recipe_says(tmp_path):
    backend = Scripted(lambda request: "yes")
    kept = keep_answers(backend, tmp_path / "answers")
    for _ in range(2):
        ask_all(kept, [ChatRequest("again?")])
    assert len(backend.asked) == 1
    own = CachedBackend(backend, tmp_path / "own")
    assert keep_answers(own, tmp_path / "answers") is own


def test_templates():
    assert fill("{a} and {b}", a="{b}", b="2") == "{b} and 2"
    assert fill('{"json": 1} {a}', a="x") == '{"json": 1} x'
    with pytest.raises(ValueError, match=r"no field \{c\}, only \{a\}"):
        fill("{c}", a="1")
    assert template_hash({"a": "1"}) != template_hash({"a": "2"})
