import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[2] / "faults"


@pytest.mark.parametrize(
    ("kills", "num_requests"), [(4, 300), pytest.param(20, 2000, marks=pytest.mark.slow)]
)
def test_a_killed_run_asks_nothing_again_and_ends_the_same(
    kills, num_requests, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", [str(FAULTS), *sys.path])
    from chat_kills import main

    said = main(kills, num_requests, seed=0, folder=tmp_path)
    print(said)
    assert f"of {num_requests} answered: none of these sent again" in said
