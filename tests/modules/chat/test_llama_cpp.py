"""Against llama.cpp's server, which sends log-probabilities."""

import re
import subprocess
import sys

import pytest
from tenfold.modules.chat import ChatRequest, OpenAIChatBackend, TransformersChatBackend
from tiny_chat import save_text_model

from .conftest import HELPERS

pytestmark = pytest.mark.slow

QUESTIONS = ["Answer:", "this square ?", "A B C D", "?"]
VOCABULARY = 280  # asks for nearly all tokens: a random model prefers no letters


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_text_model(tmp_path_factory.mktemp("model"), "qwen2")


@pytest.fixture(scope="module")
def served(model):
    command = [sys.executable, HELPERS / "llama_cpp_server.py", model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = (re.search(r"serving at (http\S+)", line) for line in process.stdout)
        yield next(match[1] for match in found if match) + "/v1"
    finally:
        process.kill()
        process.wait()


def test_scores_of_letters_are_those_of_the_model_here(served, model):
    settings = {"choices": ["A", "B", "C", "D"]}
    requests = [ChatRequest(text, **settings) for text in QUESTIONS]
    there = OpenAIChatBackend(served, "tiny", top_logprobs=VOCABULARY).generate(requests)
    here = TransformersChatBackend(model).generate(requests)
    answered = [pair for pair in zip(there, here, strict=True) if not pair[0].error]
    assert len(answered) >= 2
    for server, local in answered:
        assert server.scores == pytest.approx(local.scores, abs=0.02)  # its attention is in 16 bits
        assert server.text == local.text
        assert server.prompt_tokens == local.prompt_tokens


def test_choices_that_are_not_listed_are_an_error_of_their_request(served):
    backend = OpenAIChatBackend(served, "tiny", top_logprobs=2)
    (scored,) = backend.generate([ChatRequest("Answer:", choices=["A", "B"])])
    assert "none of the choices" in scored.error
    (written,) = backend.generate([ChatRequest("Answer:", max_new_tokens=3)])
    assert not written.error
    assert written.finish_reason == "length"
