"""Against `transformers serve`, a real server: what it answers is what the model answers here."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from tenfold.modules.chat import (
    CachedBackend,
    ChatRequest,
    Message,
    OpenAIChatBackend,
    ReplayBackend,
    TransformersChatBackend,
)


@pytest.fixture(scope="module")
def served(image_model, tmp_path_factory):
    """Address of a server of the tiny model."""
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", image_model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except urllib.error.URLError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def image(color: str) -> Image.Image:
    return Image.new("RGB", (50, 30), color)


def requests() -> list[ChatRequest]:
    five = [
        part for color in ("red", "blue", "green", "red", "gray") for part in (color, image(color))
    ]
    return [
        ChatRequest("Answer:", max_new_tokens=7),
        ChatRequest([Message("user", [image("red"), "what ?"])], max_new_tokens=9),
        ChatRequest([Message("user", five)], max_new_tokens=12),
        ChatRequest([Message("system", ["A"]), Message("user", ["what ", "?"])], max_new_tokens=5),
    ]


def test_a_real_server_answers_as_the_model_does_here(served, image_model, tmp_path):
    backend = CachedBackend(OpenAIChatBackend(served, image_model), tmp_path)
    there = backend.generate(requests())
    here = TransformersChatBackend(image_model).generate(requests())
    assert [r.error for r in there] == [""] * 4
    assert [r.text for r in there] == [r.text for r in here]
    assert [r.prompt_tokens for r in there] == [r.prompt_tokens for r in here]
    assert [r.finish_reason for r in there] == [r.finish_reason for r in here]
    assert there[0].model.startswith(image_model)
    replayed = ReplayBackend(tmp_path).generate(requests())
    assert [r.text for r in replayed] == [r.text for r in here]


def test_a_real_server_without_log_probabilities_is_found_out(served, image_model):
    backend = OpenAIChatBackend(served, image_model)
    asked = [ChatRequest(f"Answer {number}:", choices=["A", "B"]) for number in range(11)]
    assert "sends no log-probabilities" in backend.generate(asked[:1])[0].error
    with pytest.raises(ValueError, match=r"max_error_rate .*sends no log-probabilities"):
        backend.generate(asked)


def test_a_real_server_with_another_model_is_an_error(served):
    backend = OpenAIChatBackend(served, "another")
    (response,) = backend.generate([ChatRequest("Answer:")])
    assert "status 400" in response.error
    assert "another" in response.error
