"""Chat models behind one interface: transformers in this process, any server, files.

A method takes a backend as an argument and asks it for many answers at a time:

>>> class Captioner(LightningModule):
...     def __init__(self, backend: ChatBackend) -> None:
...         super().__init__()
...         self.backend = backend
...
...     def predict_step(self, batch: list[dict], batch_idx: int) -> list[dict]:
...         requests = [
...             ChatRequest([Message("user", [item["image"], "What is this?"])], id=item["id"])
...             for item in batch
...         ]
...         responses = self.backend.generate(requests)
...         return [
...             {"id": item["id"], "caption": response.text, "error": response.error}
...             for item, response in zip(batch, responses)
...         ]

A recipe says which backend it is, and where answers are kept so that none is asked for twice:

    backend:
      class_path: CachedBackend
      init_args:
        cache_dir: runs/answers
        backend:
          class_path: OpenAIChatBackend
          init_args: {base_url: http://localhost:8000/v1, model: Qwen/Qwen2.5-VL-7B-Instruct}

A script and a worker process build it from the same description. Here the answers come from a file:

>>> description = {
...     "class_path": "ReplayBackend",
...     "init_args": {"path": "answers.jsonl", "key_field": "id"},
... }
>>> backend = build_backend(description)
>>> image = Image.new("RGB", (8, 8), "red")
>>> Captioner(backend).predict_step([{"id": "7", "image": image}], 0)
[{'id': '7', 'caption': 'A red square.', 'error': ''}]

One of several given answers is chosen by `ChatRequest(..., choices=["A", "B"])`: the response has
the log-probability of each as `scores`. Keys are read from the environment and stored nowhere.
"""

from .backend import ChatBackend, build_backend
from .cache import CachedBackend
from .messages import ChatRequest, ChatResponse, Message
from .openai_server import OpenAIChatBackend
from .replay import ReplayBackend
from .transformers_model import TransformersChatBackend

__all__ = [
    "CachedBackend",
    "ChatBackend",
    "ChatRequest",
    "ChatResponse",
    "Message",
    "OpenAIChatBackend",
    "ReplayBackend",
    "TransformersChatBackend",
    "build_backend",
]
