"""How methods, recipes and scripts use backends."""

import doctest
import json
import logging
import subprocess
import sys

import pytest
import yaml
from chat_server import answer_to
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from tenfold.modules import chat
from tenfold.modules.chat import ChatBackend, ChatRequest, Message, build_backend
from tenfold.modules.chat.progress import track
from torch.utils.data import DataLoader


def test_the_example_in_the_package_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.jsonl").write_text('{"id": "7", "text": "A red square."}\n')
    names = vars(chat) | {"LightningModule": LightningModule, "Image": Image}
    (example,) = doctest.DocTestFinder(recurse=False).find(chat, "chat", globs=names)
    assert len(example.examples) == 5
    assert doctest.DocTestRunner().run(example).failed == 0
    recipe = example.docstring[example.docstring.index("    backend:") :].partition("\n\n")[0]
    backend = build_backend(yaml.safe_load(recipe)["backend"])
    assert isinstance(backend, chat.CachedBackend)
    assert backend.identity["model"] == "Qwen/Qwen2.5-VL-7B-Instruct"


def description(url: str, folder) -> dict:
    server = {"base_url": url, "model": "served", "max_concurrency": 4}
    inner = {"class_path": "OpenAIChatBackend", "init_args": server}
    return {
        "class_path": "CachedBackend",
        "init_args": {"cache_dir": str(folder), "backend": inner},
    }


def test_a_backend_is_built_from_plain_values(server, tmp_path):
    text = json.dumps(description(server.url, tmp_path / "cache"))
    for _ in range(2):
        backend = build_backend(json.loads(text))
        assert backend.backend.max_concurrency == 4
        assert backend.generate([ChatRequest("hello")])[0].text == answer_to("hello")
    assert len(server.received) == 1


@pytest.mark.slow
def test_another_process_builds_the_backend(server, tmp_path):
    text = json.dumps(description(server.url, tmp_path / "cache"))
    program = (
        "import json, sys\n"
        "from tenfold.modules.chat import ChatRequest, build_backend\n"
        "backend = build_backend(json.loads(sys.argv[1]))\n"
        "print(backend.generate([ChatRequest('hello')], progress='asking')[0].text)\n"
    )
    command = [sys.executable, "-c", program, text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer_to("hello")


@pytest.mark.parametrize(
    ("described", "problem"),
    [
        ({"class_path": "NoSuchBackend"}, "NoSuchBackend"),
        ({"class_path": "ReplayBackend", "init_args": {"file": "x"}}, "file"),
        (
            {"class_path": "ReplayBackend", "init_args": {"path": "/no/such"}},
            "there is no /no/such",
        ),
        (description("ftp://x", "y"), "base_url must be http"),
    ],
)
def test_a_wrong_description_is_an_error_of_one_line(described, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        build_backend(described)
    assert len(str(caught.value).splitlines()) == 1


class Judge(LightningModule):
    """As methods do: a backend beside plain arguments, asked in a step."""

    def __init__(self, judge: ChatBackend, question: str = "Is it?"):
        super().__init__()
        self.save_hyperparameters(ignore="judge")
        self.judge = judge

    def test_step(self, batch, batch_idx):
        asked = [ChatRequest(f"{self.hparams.question} {n}") for n in batch.tolist()]
        answers = self.judge.generate(asked)
        right = [a.text == answer_to(q.messages) for q, a in zip(asked, answers, strict=True)]
        self.log("test/right", sum(right) / len(right), batch_size=len(right))


def test_a_trainer_tests_a_module_that_a_recipe_gave_a_backend(server, tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    model = {
        "class_path": f"{__name__}.Judge",
        "init_args": {"judge": description(server.url, tmp_path / "cache")},
    }
    module = parser.instantiate(parser.parse_object({"model": model})).model
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
    for _ in range(2):
        (result,) = trainer.test(module, DataLoader(range(20), batch_size=8), verbose=False)
        assert result == {"test/right": 1.0}
    assert len(server.received) == 20


def test_what_a_backend_cannot_do_is_refused_before_it_is_asked():
    class Silent(ChatBackend):
        @property
        def identity(self):
            return {"model": "silent"}

        def answer(self, requests, keep=None):
            raise AssertionError("asked")

    with pytest.raises(ValueError, match="Silent cannot score choices: parse its answers"):
        Silent().generate([ChatRequest("?", choices=["A", "B"])])
    image = Message("user", [Image.new("RGB", (2, 2))])
    with pytest.raises(ValueError, match="Silent silent takes no images"):
        Silent().generate([ChatRequest([image])])


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(capsys):
    assert list(track(range(3), 3, "asking", every_seconds=0.0)) == [0, 1, 2]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("asking 3/3  0 min left")
    assert list(track(range(3), 3, "")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_server_that_is_not_there_is_named(server, caplog):
    server.process.kill()
    server.process.wait()
    caplog.set_level(logging.WARNING)
    (response,) = server.backend(retry_seconds=1.0).generate([ChatRequest("hello")])
    assert response.error == "Connection error."
    assert f"chat server {server.url[7:-3]}: Connection error.; trying again" in caplog.text
