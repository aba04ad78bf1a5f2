"""Work that ranks share, put together again."""

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def share_of(total: int) -> range:
    """Returns the places of the items, of `total`, that are this rank's: every so-many-th one."""
    if dist.is_available() and dist.is_initialized():
        return range(dist.get_rank(), total, dist.get_world_size())
    return range(total)


def gather_shares(own: list[T]) -> list[T]:
    """Returns what all ranks have made of their shares, in the order of the items.

    Every rank has to call it, as often as the others.

    Args:
        own: A result for each place of `share_of`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return own
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    total = sum(len(part) for part in parts)
    return [parts[place % len(parts)][place // len(parts)] for place in range(total)]
