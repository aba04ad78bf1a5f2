"""What runs leave behind, and whether two have left the same."""

from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def last_checkpoint(run_dir: str | Path) -> dict[str, Any]:
    return torch.load(Path(run_dir) / "checkpoints" / "last.ckpt", weights_only=True)


def logged(run_dir: str | Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value, over all event files; a repeated step keeps the newest value."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "epoch"]
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Compares nested values exactly, all but times and speeds; NaN equals NaN."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            if not str(key).endswith(("wall_time_s", "per_second")):
                assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (x, y) in enumerate(zip(one, other, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    else:
        assert one == other or one != one, f"{path}: {one} != {other}"
