"""Arrays that are made once and kept: whole or absent, whoever makes them."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...modules.files import atomic_write

log = logging.getLogger(__name__)


def cached_array(
    cache_dir: str | None, name: str, make: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """Returns the array kept under a name as a read-only memory map, made first if it is missing.

    A file cut short is made again. Several processes may do so at a time: each makes the array,
    and the file of the last one stays.

    Args:
        cache_dir: Where caches are; None: `$TENFOLD_CACHE`, else `~/.cache/tenfold`.
        name: Name of the array, which tells all that it depends on.
        make: Makes it.
    """
    root = cache_dir or os.environ.get("TENFOLD_CACHE") or "~/.cache/tenfold"
    path = Path(root).expanduser() / "point_clouds" / f"{name}.npy"
    if path.exists():
        try:
            return _open(path)
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s is damaged (%s); it is made again", path, error)
    array = make()
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)
    return _open(path)


def _open(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
