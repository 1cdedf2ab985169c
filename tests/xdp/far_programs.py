"""Programs on one host of a lab, which the other host sends to."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fast_socket.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0

PRELUDE = """
import socket, sys, threading, time
import fast_socket as fs
from fast_socket import workers
from tests.xdp import factory_targets as targets
device, peer = sys.argv[1], sys.argv[2]

def attached():
    return fs.XdpDevice(device).interface.program is not None

def refused(call, kind, words):
    try:
        call()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"nothing raised: {words}")
"""


class Link:
    """Two hosts; programs run on the far one."""

    def __init__(self, lab: Lab, queues: int = 4) -> None:
        self.near, self.far = lab.host("near"), lab.host("far")
        self.link = lab.link(self.near, self.far, queues=queues)

    def start(self, code: str) -> Any:
        """Python on the far host: `device` is its own, `peer` the near one's address."""
        return self.far.popen(
            [sys.executable, "-c", PRELUDE + code, self.link.b.name, str(self.link.a.ipv4)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip

    def finish(self, process: Any) -> str:
        output: str = process.communicate(timeout=SECONDS)[0]
        assert process.returncode == 0, output
        return output

    @staticmethod
    def gone(pid: int) -> None:
        """Wait until the kernel has taken a killed process apart, its sockets with it."""
        until = time.monotonic() + SECONDS
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
