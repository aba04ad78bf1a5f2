"""A tiny language model, tokens to train it on, and a Trainer that keeps quiet."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

DENSE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2}


class Tokens(Dataset[dict[str, Tensor]]):
    """Sequences of a counting rule with noise, so that there is something to learn."""

    def __init__(self, num_samples: int, length: int = 16):
        self.num_samples, self.length = num_samples, length

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        start = torch.randint(32, (1,), generator=generator)
        noise = torch.randint(2, (self.length + 1,), generator=generator)
        ids = (start + torch.arange(self.length + 1) + noise) % 32
        labels = ids[1:].clone()
        labels[: index % 3] = -100
        num_tokens = int((labels != -100).sum())
        return {
            "input_ids": ids[:-1],
            "labels": labels,
            "num_bytes": torch.tensor(1.5 * num_tokens),
            "index": torch.tensor(index),
        }


class Resumable:
    """Batches in a fixed order; its state is the number consumed."""

    def __init__(self, num_batches: int, batch_size: int = 4):
        self.loader = DataLoader(Tokens(num_batches * batch_size), batch_size)
        self.consumed = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        skip = self.consumed
        for index, batch in enumerate(self.loader):
            if index >= skip:
                self.consumed = (index + 1) % len(self.loader)
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.consumed = state["consumed"]


@pytest.fixture
def dense() -> dict[str, Any]:
    return dict(DENSE)


@pytest.fixture(params=["llama", "olmoe", "mixtral"])
def any_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    experts = {
        "llama": {},
        "olmoe": EXPERTS,
        "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    }
    return DENSE | experts[request.param]


@pytest.fixture
def experts() -> dict[str, Any]:
    return DENSE | EXPERTS


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(Tokens(14), batch_size=4)  # an uneven last batch


@pytest.fixture
def batch(loader: DataLoader) -> dict[str, Tensor]:
    return next(iter(loader))


@pytest.fixture
def resumable() -> Callable[[int], Resumable]:
    return Resumable


@pytest.fixture
def fit(tmp_path) -> Callable[..., Trainer]:
    def run(
        module: LightningModule,
        train: Any,
        val: Any = None,
        ckpt_path: Any = None,
        **kwargs: Any,
    ) -> Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        settings = {"accelerator": "cpu", "enable_checkpointing": False} | quiet | kwargs
        trainer = Trainer(default_root_dir=tmp_path, **settings)
        trainer.fit(module, train, val, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run
