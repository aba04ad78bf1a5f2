"""A checkpoint of `VisionLanguageModel` as a chat model."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from tenfold.modules.chat import ChatRequest, Message, TransformersChatBackend
from tiny_vlm import build


@pytest.fixture
def checkpoint(tmp_path):
    module = build()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    return tmp_path / "last.ckpt", module


def requests():
    colours = ["red", "blue", "white", "black"]
    pictures = [Image.new("RGB", (20 + 9 * k, 30), colour) for k, colour in enumerate(colours)]
    texts = ["what is the red digit ?", "describe the image ."] * 2
    return [
        ChatRequest([Message("user", [picture, text])], max_new_tokens=4)
        for picture, text in zip(pictures, texts, strict=True)
    ]


def test_it_answers_as_the_module_does(checkpoint):
    path, module = checkpoint
    backend = TransformersChatBackend(str(path), batch_size=2)
    assert backend.supports_images
    found = [response.text for response in backend.generate(requests())]
    parts = [request.turns[0].parts for request in requests()]
    expected = module.generate(
        [[picture] for picture, _ in parts], [[text] for _, text in parts], max_new_tokens=4
    )
    assert found == expected
    assert len(set(found)) > 1


def test_it_is_known_by_its_content_and_travels_without_weights(checkpoint, tmp_path):
    path, module = checkpoint
    backend = TransformersChatBackend(str(path))
    first = backend.generate(requests())
    assert backend.identity["model"] == "last.ckpt"
    assert len(backend.identity["revision"]) == 64
    again = pickle.loads(pickle.dumps(backend))
    assert vars(again).keys() == {n for n in vars(backend) if not n.startswith("_")}
    assert [r.text for r in copy.copy(backend).generate(requests())] == [r.text for r in first]
    with torch.no_grad():
        next(module.network.parameters()).add_(1)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "other.ckpt", weights_only=True)
    other = TransformersChatBackend(str(tmp_path / "other.ckpt"))
    assert other.identity["revision"] != backend.identity["revision"]
    with pytest.raises(ValueError, match="there is no checkpoint"):
        TransformersChatBackend(str(tmp_path / "none.ckpt")).generate(requests())
