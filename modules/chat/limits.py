"""Keeping to a server's rate, and learning from its answers when to try again."""

import asyncio
import email.utils
import os
import random
import time
from collections.abc import Mapping

import torch.distributed

FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0
# A bucket holds what flows in within this time: no longer pause is made up for by a burst.
BURST_SECONDS = 1.0


class RateLimit:
    """A token bucket that all coroutines of one event loop share.

    Args:
        per_minute: How much may be taken per minute; None is no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._per_second = None if per_minute is None else per_minute / 60
        self._free_at = 0.0

    async def take(self, amount: float) -> None:
        """Waits until `amount` may be taken; who came first goes first."""
        if self._per_second is None:
            return
        now = time.monotonic()
        start = max(self._free_at, now - BURST_SECONDS)
        self._free_at = start + amount / self._per_second
        if start > now:
            await asyncio.sleep(start - now)

    def give_back(self, amount: float) -> None:
        """Returns what was taken and not used; a negative amount was used beyond that."""
        if self._per_second is not None:
            self._free_at -= amount / self._per_second


def backoff(attempt: int) -> float:
    """Seconds to wait after failure number `attempt` = 0, 1, ...: doubling, and random.

    The random half keeps clients that failed together from coming back together.
    """
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempt, 30))
    return longest * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from its headers; None if it does not say.

    `Retry-After` is a number of seconds or a date (RFC 9110, 10.2.3); some servers give
    milliseconds in `retry-after-ms`.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if seconds >= 0:  # and no NaN
            return seconds
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(0.0, date.timestamp() - time.time())
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and how many there are, as Lightning, torchrun or SLURM say."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1
