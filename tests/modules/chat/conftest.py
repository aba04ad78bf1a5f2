"""A local chat server, and tiny models to serve."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tenfold.modules.chat import OpenAIChatBackend

HELPERS = Path(__file__).parents[2] / "helpers"
KEY = "sk-0123456789-this-is-the-key"


class Server:
    """`helpers/chat_server.py` in a process of its own."""

    def __init__(self, log: Path, *options: str):
        self.log = log
        command = [sys.executable, HELPERS / "chat_server.py", "0", log, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def backend(self, **arguments: Any) -> OpenAIChatBackend:
        return OpenAIChatBackend(self.url, "served", **arguments)

    @property
    def received(self) -> list[dict[str, Any]]:
        """What it was asked, in order: text, body without messages, headers."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def statistics(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.url}/statistics") as response:
            return json.load(response)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with options of theirs."""
    started: list[Server] = []

    def run(*options: str) -> Server:
        started.append(Server(tmp_path / f"received_{len(started)}.jsonl", *options))
        return started[-1]

    yield run
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_text_model

    return save_text_model(tmp_path_factory.mktemp("text_model"))


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_image_model

    return save_image_model(tmp_path_factory.mktemp("image_model"))
