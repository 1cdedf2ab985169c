"""Any public call on anything, from several threads at once, with and without the GIL: see storm.py."""

import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).with_name("storm.py")


@pytest.mark.parametrize("seed", range(4))
def test_nothing_crashes_and_every_frame_comes_home(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, str(STORM), str(seed), "4", "6000"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr[-3000:]}"
