"""Signals that ask a run to save and stop: Ctrl-C, and those of a cluster. Imports no torch.

Signals belong to the process, and so does `STOP_SIGNALS`, the one object here. The command line
catches them from its start, as a cluster may take a node back before training has begun.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

# SLURM sends SIGUSR1 some time before the end (`#SBATCH --signal`) and SIGTERM at the end.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
}


class StopSignals:
    """Notes signals, so that training stops where it can be gone on with.

    A second Ctrl-C raises KeyboardInterrupt; further signals of a cluster, which sends several,
    change nothing.

    Attributes:
        caught: The first signal, None before one has come.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._process = 0
        self._tell: Callable[[str], object] = print

    def catch(self, tell: Callable[[str], object]) -> bool:
        """Begins to note signals; again, it takes them from whoever has taken them since.

        Only the main thread of a process can; elsewhere this does nothing.

        Args:
            tell: Shows users a line of text.

        Returns:
            Whether this call began it, so that its caller has to `release` them.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        begins = not self._before
        if begins:
            self.caught, self._process, self._tell = None, os.getpid(), tell
        for number in _DEFAULTS:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)
        return begins

    def release(self) -> None:
        """Gives the signals back to whom they were taken from."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data worker: its parent ends it
        if not self._before:
            # Lightning has put this handler back after `release`, where training failed.
            signal.signal(number, _DEFAULTS[number])
            signal.raise_signal(number)
            return
        if self.caught is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.caught = signal.Signals(number)
        name = "Ctrl-C" if number == signal.SIGINT else self.caught.name
        again = " (again to stop at once)" if number == signal.SIGINT else ""
        with suppress(RuntimeError):  # the signal came while the same stream was being written to
            self._tell(f"{name}: finishing this step, then saving{again} ...")


STOP_SIGNALS = StopSignals()
