"""The state of every random number generator, checkpointed and kept apart from validation."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def get_random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's global generators.

    Of the GPUs only the current one's: the others belong to other ranks. As tensors and plain
    types, which `torch.load(weights_only=True)` accepts.
    """
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if has_cuda else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts every global generator back into a state that `get_random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    words = keys.numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu())


class RandomState(Callback):
    """Lets a resumed run draw the random numbers that the uninterrupted run would have drawn.

    Lightning stores no generator state. Here every rank's goes into the checkpoint and comes back
    at the start of training; and validation during training leaves the training stream untouched,
    so that validating more often does not change the training.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None
        self._before_validation: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Generator states of all ranks, in rank order."""
        state = get_random_state()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [state]}
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, state)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers the states until training starts."""
        self._restored = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores this rank's generators."""
        if self._restored is None:
            return
        if len(self._restored) == trainer.world_size:
            set_random_state(self._restored[trainer.global_rank])
        else:
            rank_zero_warn(
                f"the checkpoint holds the random state of {len(self._restored)} processes, this "
                f"run has {trainer.world_size}: dropout goes on from the seed instead"
            )
        self._restored = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the training stream aside."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._before_validation = get_random_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the training stream up again."""
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None
