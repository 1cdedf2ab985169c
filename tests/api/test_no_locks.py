"""The packet path has no lock: no instruction of the compiled modules locks a cache line against other cores."""

import importlib.util
import platform
import re
import shutil
import subprocess
import sys

import pytest

PACKET_PATH = ("core.batch", "core.frames", "core.packet", "os.batch", "os.messages", "os.plan", "os.udp", "xdp.batch",
               "xdp.aggregate", "xdp.header_table", "xdp.ip", "xdp.queue", "xdp.socket", "xdp.udp")  # fmt: skip
LOCKED = re.compile(r"\tlock |\txchg +.*\(")  # an exchange with memory locks without saying so


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 instructions")
@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump, of binutils")
@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="without the GIL Python's own references lock"
)
@pytest.mark.parametrize("name", PACKET_PATH)
def test_no_instruction_locks(name: str) -> None:
    spec = importlib.util.find_spec(f"fast_socket.{name}")
    assert spec is not None
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", str(spec.origin)], capture_output=True, text=True, check=True
    ).stdout
    assert listing.count("\tret") > 10
    assert not [line for line in listing.splitlines() if LOCKED.search(line)]
