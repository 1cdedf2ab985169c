"""The files beside this one, checked by mypy and pyright as strictly as the package itself."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [str(path.relative_to(ROOT)) for path in sorted(Path(__file__).parent.glob("*.py"))]
# pyright would otherwise tell of newer versions.
ENVIRONMENT = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_accepts_and_refuses_what_it_should(checker: str) -> None:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    run = subprocess.run(
        [sys.executable, "-m", checker, *FILES], cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    if run.returncode:
        pytest.fail(f"{run.stdout}{run.stderr}", pytrace=False)


def test_there_is_something_to_check() -> None:
    assert {"tests/typing/generic_workers.py", "tests/typing/os_sockets.py", "tests/typing/refused.py"} <= set(FILES)
