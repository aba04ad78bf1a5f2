"""Which rank keeps the others waiting, and where it is: a message long before a timeout."""

import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import TCPStore  # type: ignore[attr-defined]

NUM_FRAMES = 6  # of a stack, from the inside


class RankWatch(Callback):
    """Says which of several processes has stopped while the others wait for it.

    When one process hangs, in its data, its file system or its driver, the others wait inside a
    collective operation until the time-out of the backend, 30 minutes later, which names nobody.
    Here each process notes which hook it has reached; a thread of its own tells rank 0 (one small
    message per `interval_s` through a `TCPStore`, no collective operation). When no process has got
    any further for `patience_s`, rank 0 prints who is behind, where, and its innermost calls. It
    stops nothing: that is for the backend's time-out, `trainer.strategy.init_args.timeout`.

    Args:
        patience_s: Seconds without progress of any process after which to speak; once per halt.
        interval_s: Seconds between two messages of a process.
    """

    def __init__(self, patience_s: float = 300.0, interval_s: float = 10.0) -> None:
        if not 0 < interval_s <= patience_s:
            raise ValueError(
                f"interval_s must be in (0, patience_s], got {interval_s} of {patience_s}"
            )
        self.patience_s = patience_s
        self.interval_s = interval_s
        self._reached = (0, "the start", time.monotonic())
        self._ended: threading.Event | None = None
        self._store: TCPStore | None = None  # of rank 0 for as long as others may write to it

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Opens the store and starts the thread."""
        if trainer.world_size == 1:
            return
        host = trainer.strategy.cluster_environment.main_address  # type: ignore[attr-defined]
        self._store = _open_store(trainer, host)
        self._note("the start")
        self._ended = threading.Event()
        arguments = (self._store, trainer.global_rank, trainer.world_size, self._ended)
        threading.Thread(target=self._watch, args=arguments, daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the thread."""
        if self._ended is not None:
            self._ended.set()
            self._ended = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Ends the thread: Lightning calls no `teardown` then."""
        self.teardown(trainer, pl_module, "")

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Notes that a training batch has come."""
        self._note(f"the forward pass after step {trainer.global_step}")

    def on_before_backward(self, trainer: Trainer, *args: Any) -> None:
        """Notes that the loss is there."""
        self._note(f"the backward pass after step {trainer.global_step}")

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        """Notes that the gradients are there."""
        self._note(f"the optimizer after step {trainer.global_step}")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Notes that a step has ended."""
        self._note(f"the callbacks, or the data, after step {trainer.global_step}")

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Notes that a validation batch has come."""
        self._note(f"a validation batch after step {trainer.global_step}")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Notes that it has been evaluated."""
        self._note(f"the end of a validation batch after step {trainer.global_step}")

    def on_test_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Notes that a test batch has come."""
        self._note("a test batch")

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Notes that it has been evaluated."""
        self._note("the end of a test batch")

    def _note(self, place: str) -> None:
        self._reached = (self._reached[0] + 1, place, time.monotonic())

    def _watch(self, store: TCPStore, rank: int, num_ranks: int, ended: threading.Event) -> None:
        has_spoken_at = -1
        name = f"rank {rank} ({socket.gethostname()}, process {os.getpid()})"
        while True:
            count, place, since = self._reached
            halted_s = time.monotonic() - since
            stack = self._stack() if halted_s > self.patience_s / 2 else ""
            try:
                store.set(str(rank), json.dumps([count, place, name, stack]))
                if rank == 0 and halted_s > self.patience_s and count != has_spoken_at:
                    states = store.multi_get([str(other) for other in range(num_ranks)])
                    said = describe_halt([json.loads(state) for state in states], halted_s)
                    print(said, file=sys.stderr, flush=True)
                    has_spoken_at = count
            except (dist.DistError, RuntimeError):
                return  # rank 0, which holds the store, has ended
            if ended.wait(self.interval_s):
                return

    @staticmethod
    def _stack() -> str:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        frames = traceback.extract_stack(frame)[-NUM_FRAMES:]
        return "".join(f"    {f.filename}:{f.lineno} {f.name}: {f.line}\n" for f in frames)


def describe_halt(states: list[tuple[int, str, str, str]], seconds: float) -> str:
    """Says which ranks are behind.

    Args:
        states: Of each rank: hooks it has reached, what the last one was, its name, its stack.
        seconds: How long nothing has moved.
    """
    least = min(state[0] for state in states)
    behind = [state for state in states if state[0] == least]
    if len(behind) == len(states):
        who = f"all {len(states)} ranks are in {behind[0][1]}; the first"
    else:
        ahead = max(states, key=lambda state: state[0])
        names = ", ".join(state[2] for state in behind[:4])
        more = f" and {len(behind) - 4} more" if len(behind) > 4 else ""
        are = "is" if len(behind) == 1 else "are"
        who = f"{names}{more} {are} in {behind[0][1]} while {ahead[2]} waits in {ahead[1]}; it"
    return f"warning: nothing has moved for {seconds:.0f} s: {who} is at\n{behind[0][3]}".rstrip()


def _open_store(trainer: Trainer, host: str) -> TCPStore:
    """A store of this callback's own, which rank 0 holds, so that its traffic disturbs none."""
    store = None
    if trainer.is_global_zero:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    port = trainer.strategy.broadcast(store.port if store else 0)
    return store or TCPStore(host, port, is_master=False)
