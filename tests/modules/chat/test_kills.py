import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "faults" / "chat_kills.py"


@pytest.mark.parametrize(
    ("kills", "num_requests"), [(4, 300), pytest.param(20, 2000, marks=pytest.mark.slow)]
)
def test_a_killed_run_asks_nothing_again_and_ends_the_same(kills, num_requests):
    command = [sys.executable, SCRIPT, "--kills", str(kills), "--requests", str(num_requests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"of {num_requests} answered: none of these sent again" in done.stdout
    print(done.stdout)
