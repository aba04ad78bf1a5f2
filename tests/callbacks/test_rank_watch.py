"""What is said of ranks that do not move; halts of real processes are in tests/faults."""

import pytest
from tenfold.callbacks.rank_watch import RankWatch, describe_halt


def state(count: int, place: str, rank: int) -> tuple[int, str, str, str]:
    return count, place, f"rank {rank} (n{rank}, process 1)", f"    file.py:{rank} read: wait()\n"


def test_the_ranks_behind_are_named_with_their_place() -> None:
    states = [state(9, "the backward pass", 0), state(8, "a file", 1), state(9, "elsewhere", 2)]
    assert describe_halt(states, 60) == (
        "warning: nothing has moved for 60 s: rank 1 (n1, process 1) is in a file while rank 0 "
        "(n0, process 1) waits in the backward pass; it is at\n    file.py:1 read: wait()"
    )


def test_of_many_ranks_behind_some_are_named() -> None:
    states = [state(9, "the backward pass", 0), *(state(8, "a file", r) for r in range(1, 10))]
    said = describe_halt(states, 60)
    assert "rank 4 (n4, process 1) and 5 more are in a file while rank 0" in said
    assert "rank 5" not in said


def test_when_all_are_at_one_place_the_first_shows_its_stack() -> None:
    said = describe_halt([state(9, "a validation batch", rank) for rank in range(3)], 60)
    assert "all 3 ranks are in a validation batch; the first is at\n    file.py:0" in said


def test_an_interval_longer_than_the_patience_is_refused() -> None:
    with pytest.raises(ValueError, match=r"interval_s must be in \(0, patience_s\], got 10.0 of 5"):
        RankWatch(patience_s=5)
