"""What an import costs: modules that are loaded only where they are used."""

import subprocess
import sys

import pytest


def loaded(statement):
    script = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return {name.partition(".")[0] for name in done.stdout.split()}


HEAVY = {"numpy", "pyroute2", "typer", "rich", "asyncio", "numba", "matplotlib", "scapy", "typing_extensions"}


@pytest.mark.parametrize(
    "statement",
    [
        "import fast_socket",
        "from fast_socket import *",
        "import fast_socket as fs; fs.OsUdpSocket.bind('127.0.0.1:0').close()",
    ],
)
def test_light(statement):
    assert loaded(statement) & HEAVY == set()


def test_numpy_comes_with_the_first_column():
    statement = "import fast_socket as fs; s = fs.OsUdpSocket.bind('127.0.0.1:0'); s.recv_batch(4).lengths; s.close()"
    assert "numpy" in loaded(statement)


def test_objects_need_no_numpy():
    """A round trip by objects only."""
    statement = """
import fast_socket as fs
with fs.OsUdpSocket.bind('127.0.0.1:0') as s:
    rx, tx = s.recv_batch(4), s.tx_batch(4)
    tx.append(b'x', s.local_address); s.send(tx); s.recv(rx)
    assert [bytes(packet) for packet in rx] == [b'x']
    tx.take_from(rx); s.send(tx); tx.allocate(2); tx.fill(b'abc');
"""
    assert loaded(statement) & HEAVY == set()


def test_all_is_there():
    import fast_socket

    assert [name for name in fast_socket.__all__ if not hasattr(fast_socket, name)] == []
