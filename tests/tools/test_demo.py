"""The demo, short."""

import signal

import pytest

from fast_socket.lab import why_unavailable
from tests.tools.conftest import BENCHMARKS, SECONDS, run

DEMO = [*BENCHMARKS, "demo", "--seconds"]
NAMES = ("os-ping", "examples/blast.py", "examples/pong_server.py")
UNAVAILABLE = why_unavailable()


def test_over_loopback():
    done = run(*DEMO, "0.8", "--loopback")
    assert done.returncode == 0, done
    assert "loopback" in done.stdout
    for name in NAMES:
        assert name in done.stdout


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_over_a_lab():
    done = run(*DEMO, "0.8")
    assert done.returncode == 0, done
    assert "two hosts" in done.stdout
    for name in NAMES:
        assert name in done.stdout


def test_a_signal_ends_it_with_what_there_is(start):
    demo = start(*DEMO, "15", "--loopback")
    assert demo.stdout is not None
    while not demo.stdout.readline().startswith("ping"):
        pass
    demo.send_signal(signal.SIGINT)
    output, errors = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 128 + signal.SIGINT, errors
    assert "examples/pong_server.py" in output
    assert "Traceback" not in errors
