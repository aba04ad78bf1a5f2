"""Yes-or-no questions to all ranks, answered one step late so that no host waits for its device."""

import torch
import torch.distributed as dist
from torch import Tensor


class LateFlags:
    """Tells all ranks whether a flag is up on any of them.

    A rank that asks the others and waits for the answer stops launching work: the device idles
    once per step. Here each call sends this step's flags and reads those of the call before, which
    have arrived by then. All ranks get the same answer at the same call.
    """

    def __init__(self) -> None:
        self._sent: Tensor | None = None
        self._has_arrived: torch.cuda.Event | None = None

    def exchange(self, flags: Tensor) -> list[bool]:
        """Sends flags and receives those of the call before; every rank has to call it.

        Args:
            flags: (n,) uint8 on the device of the process group, nonzero where a flag is up.

        Returns:
            One per flag: whether it was up on any rank at the call before; at the first call False.
        """
        before = self._receive(len(flags))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        if flags.is_cuda:
            self._sent = torch.empty(len(flags), dtype=flags.dtype, pin_memory=True)
            self._sent.copy_(flags, non_blocking=True)
            self._has_arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._has_arrived.record()
        else:
            self._sent = flags
        return before

    def _receive(self, count: int) -> list[bool]:
        if self._sent is None:
            return [False] * count
        if self._has_arrived is not None:
            self._has_arrived.synchronize()
        return [bool(flag) for flag in self._sent.tolist()]
