import subprocess
import sys
from pathlib import Path


def test_five_random_kills_change_nothing():
    """The script runs in full, 100 kills, before a release."""
    script = Path(__file__).with_name("random_kills.py")
    done = subprocess.run(
        [sys.executable, script, "--kills", "5"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "5 of 5 identical" in done.stdout
