"""Progress of long work outside a Trainer: a bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")


def track(
    items: Iterable[Item], total: int, title: str, every_seconds: float = 30.0
) -> Iterator[Item]:
    """Yields `items` and shows on standard error how many of `total` there have been.

    Args:
        items: What is counted.
        total: How many there will be.
        title: What is done; nothing is shown if empty.
        every_seconds: Least time between two lines where there is no terminal.
    """
    if not title:
        yield from items
    elif sys.stderr.isatty():
        with Progress(console=Console(stderr=True), transient=True) as bar:
            yield from bar.track(items, total, description=title)
    else:
        started = printed = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - printed >= every_seconds:
                printed = now
                left = (now - started) / done * (total - done)
                line = f"{title} {done}/{total}  {left / 60:.0f} min left"
                print(line, file=sys.stderr, flush=True)
