"""MuCR against `transformers serve` with a tiny LLaVA: five pictures in a request."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from tenfold.datamodules.mucr import CausalQuestions, SyntheticMuCRDataModule
from tenfold.modules.chat import OpenAIChatBackend, TransformersChatBackend
from tenfold.modules.mucr import MuCRModule, WordJudge
from tiny_chat import save_image_model

pytestmark = pytest.mark.slow


def run(backend, folder):
    pairs = SyntheticMuCRDataModule(num_test=2, image_size=32, tensors=False, seed=0)
    module = MuCRModule(backend, WordJudge(), explanation_tokens=12)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", **quiet)
    rows = []
    step = module.test_step
    module.test_step = lambda *a: (found := step(*a), rows.extend(found["predictions"]))[0]
    trainer.test(module, CausalQuestions(pairs, batch_size=1), verbose=False)
    return [(row["id"], row["raw"], row["parsed"], row["verdict"], row["value"]) for row in rows]


def test_a_server_answers_as_the_model_does_and_is_asked_once(tmp_path):
    model = save_image_model(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    backend = OpenAIChatBackend(f"http://127.0.0.1:{port}/v1", model, retry_seconds=2)
    try:
        for _ in range(3000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except urllib.error.URLError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        served = run(backend, tmp_path / "run")
    finally:
        process.terminate()
        process.wait()
    assert len(served) == 24
    assert served == run(TransformersChatBackend(model), tmp_path / "here")
    # The server is gone: all that is needed is on disk.
    assert run(backend, tmp_path / "run") == served
