"""The tools as a user runs them: processes of their own, judged by what they print and how they end."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = sys.executable
BENCHMARKS = [PYTHON, "-m", "benchmarks"]
BLAST = [PYTHON, str(ROOT / "examples" / "blast.py")]
CUSTOM_ROUTER = [PYTHON, str(ROOT / "examples" / "custom_router.py")]
PONG_SERVER = [PYTHON, str(ROOT / "examples" / "pong_server.py")]
SECONDS = 30.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a tool; whatever still runs after the test is ended."""
    started: list[subprocess.Popen[str]] = []

    def run(*argv: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def target() -> str:
    """A free port on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def run(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)


def last_json(output: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report


def report_of(*argv: str) -> dict[str, Any]:
    done = run(*argv, "--json")
    assert done.returncode == 0, done.stderr
    return last_json(done.stdout)


def wait_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def end(process: "subprocess.Popen[str]", number: int | None = signal.SIGINT) -> dict[str, Any]:
    """Interrupt a tool, or wait for its own end, and take its report."""
    if number is not None:
        process.send_signal(number)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return last_json(output)
