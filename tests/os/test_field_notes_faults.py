"""Field notes on kernels and devices other than ours: faulty_kernel.c, a library in front of libc, plays them.

GSO refused with EIO happens under IPsec, and before Linux 6.11 on devices without checksum offload; the kernel that
runs these tests may have neither. Each test runs a process of its own: the library must be there before libc is.
"""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")

# What every process below begins with: a receiver, a sender, and 300 different datagrams of 64 bytes.
PRELUDE = """
    import logging, socket, sys
    import fast_socket as fs
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far.bind(("127.0.0.1", 0))
    payloads = [b"%03d" % i * 20 for i in range(200)]

    def send(sock, payloads=payloads, to=far.getsockname(), size=0):
        tx = sock.tx_batch(256)
        for payload in payloads:
            tx.append(payload, to)
        tx.segment_sizes[:] = size
        return sock.send(tx)

    def came(expected=payloads):
        got = []
        try:
            while True:
                got.append(far.recv(65535, socket.MSG_DONTWAIT))
        except BlockingIOError:
            assert got == expected, (len(got), len(expected))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "faulty_kernel.so"
    source = Path(__file__).with_name("faulty_kernel.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", source, "-o", path, "-ldl"], check=True)
    return path


@pytest.fixture
def run(library):
    """Runs code behind PRELUDE in a process with faults, and returns what it printed."""

    def run(faults, code, **environment):
        process = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code)],
            env={**os.environ, "LD_PRELOAD": str(library), "FAULTS": faults, **environment},
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout.splitlines()

    return run


# GSO returns EIO where the device has no TX checksum offload, or under IPsec; EINVAL may appear late.


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
@pytest.mark.parametrize("after", [1, 2])
def test_large_send_refused_now_or_later_loses_and_doubles_nothing(run, error, after):
    """The probe is the first large send. The one that is refused is tried again, in pieces, and said once."""
    lines = run(f"gso={error}", """
        with fs.OsUdpSocket.bind("127.0.0.1:0") as sock:
            assert sock.capabilities().gso, "the probe still worked"
            assert send(sock) == 200
            came()
            stats = sock.stats()
            assert (stats.sent, stats.sent_bytes, stats.gso_fallbacks) == (200, 12000, 1), stats
            print(stats.gso_sends)
            caps = sock.capabilities()
            assert (caps.gso, caps.max_gso_segments) == (fs.Support.NO, 1), caps
            assert send(sock) == 200
            came()
            assert sock.stats().gso_fallbacks == 1
    """, FAULTS_AFTER=str(after))  # fmt: skip
    warning, sends = lines
    assert warning.startswith("WARNING")
    assert int(sends) == after - 1


@pytest.mark.parametrize("after", [1, 2])
def test_segmented_packet_refused_between_its_large_sends(run, after):
    """What was sent of it is not sent again."""
    run(f"gso={errno.EIO}", """
        layout = fs.BufferLayout(payload_capacity=65535)
        with fs.OsUdpSocket.bind("127.0.0.1:0", tx_layout=layout, tx_frames=256) as sock:
            whole = b"".join(payloads) + b"end"
            assert send(sock, [b"before", whole, b"after"], size=60) == 3
            came([b"before", *payloads, b"end", b"after"])
            stats = sock.stats()
            assert (stats.sent, stats.gso_fallbacks) == (203, 1), stats
    """, FAULTS_AFTER=str(after))  # fmt: skip


def test_path_without_checksum_offload_is_not_taken_for_a_small_mtu(run):
    """EIO says nothing of the size: smaller segments are not tried again."""
    run(f"gso={errno.EIO}", """
        with fs.OsUdpSocket.bind("127.0.0.1:0") as sock:
            for size in (2000, 1500, 64):
                assert send(sock, [bytes(size)] * 20) == 20
                came([bytes(size)] * 20)
            assert sock.stats().gso_fallbacks == 1
    """, FAULTS_AFTER="1")  # fmt: skip


# Probing: three answers, by a real send over loopback.


@pytest.mark.parametrize("faults", ["gso=ignored", f"gso={errno.EINVAL}"])
def test_kernel_without_gso(run, faults):
    lines = run(faults, """
        with fs.OsUdpSocket.bind("127.0.0.1:0") as sock:
            caps = sock.capabilities()
            assert (caps.gso, caps.max_gso_segments) == (fs.Support.NO, 1), caps
            assert send(sock) == 200
            came()
            assert send(sock, [b"".join(payloads[:20])], size=60) == 1
            came(payloads[:20])
            assert (sock.stats().gso_sends, sock.stats().gso_fallbacks, sock.stats().sent) == (0, 0, 220)
    """)  # fmt: skip
    assert lines == [], "nothing was refused, so nothing is to be said"


def test_kernel_without_gro_says_so(run):
    [line] = run("nogro", """
        try:
            fs.OsUdpSocket.bind("127.0.0.1:0", gro=True)
        except fs.CapabilityError as error:
            print(error)
    """)  # fmt: skip
    assert "gro" in line and "Linux 5.0" in line


# A kernel without the batch calls, and one whose calls are interrupted.


def test_kernel_without_batch_calls(run):
    run("nobatch", """
        with fs.OsUdpSocket.bind("127.0.0.1:0") as sock, fs.OsUdpSocket.bind("127.0.0.1:0") as back:
            assert send(sock, [b"x" * (i + 1) for i in range(100)]) == 100
            came([b"x" * (i + 1) for i in range(100)])
            assert send(sock) == 200
            came()
            assert not sock.capabilities().batch_calls
            assert send(sock, to=back.local_address) == 200
            rx = back.recv_batch(256)
            assert back.recv(rx) == 200 and [bytes(p) for p in rx] == payloads
            assert not back.capabilities().batch_calls
    """)  # fmt: skip


def test_capabilities_of_a_kernel_without_batch_calls_agree(run):
    """GSO that is not used any more is not reported as in force."""
    run("nobatch", """
        with fs.OsUdpSocket.bind("127.0.0.1:0") as sock:
            send(sock, [b"x" * (i + 1) for i in range(100)])
            caps = sock.capabilities()
            assert bool(caps.gso) == (caps.max_gso_segments > 1), caps
    """)  # fmt: skip


def test_interrupted_calls_are_made_again(run):
    run("eintr", """
        with fs.OsUdpSocket.bind("127.0.0.1:0") as sock, fs.OsUdpSocket.bind("127.0.0.1:0") as back:
            for _ in range(3):
                assert send(sock, to=back.local_address) == 200
                rx = back.recv_batch(256)
                assert back.recv(rx) == 200 and [bytes(p) for p in rx] == payloads
                assert back.recv(rx) == 0
            one = back.recv_batch(1)
            for i in range(10):
                assert send(sock, [b"%d" % i], to=back.local_address) == 1
                assert back.recv(one) == 1 and bytes(one[0]) == b"%d" % i
    """)  # fmt: skip


# No UDP_SEGMENT for a single segment; any control message, and a name on a connected socket, skip the cached route.


@pytest.fixture
def messages(run, tmp_path):
    """The messages that some code hands to the kernel: lengths of name and control, number of vectors."""

    def messages(code):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        run("", code, FAULTS_LOG=str(log))
        return [tuple(map(int, line.split())) for line in log.read_text().splitlines()]

    return messages


def test_unused_features_put_nothing_into_a_message(messages):
    """The first messages are those of the probe."""
    connect = """
        with fs.OsUdpSocket.connect(far.getsockname()) as sock:
            tx = sock.tx_batch(8)
            for i in range(4):
                tx.append(b"x" * (i + 1))       # growing: no run among them
            {}
    """
    endpoint = "sock.send_to(sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=far.getsockname(), gso_size=9)), tx)"
    assert messages(connect.format("sock.send(tx)"))[-4:] == [(0, 0, 1)] * 4
    assert messages(connect.format(endpoint))[-4:] == [(0, 0, 1)] * 4
    unconnected = """
        with fs.OsUdpSocket.bind("127.0.0.1:0", metadata=fs.Metadata.ECN | fs.Metadata.TTL | fs.Metadata.LOCAL) as sock:
            send(sock, [b"1", b"22"])
    """
    assert messages(unconnected)[-2:] == [(16, 0, 1)] * 2


def test_run_is_one_message_with_one_control_message(messages):
    [message] = messages("""
        with fs.OsUdpSocket.connect(far.getsockname()) as sock:
            send(sock, payloads[:20], to=None)
    """)[-1:]
    name, control, vectors = message
    assert (name, control) == (0, 24)  # CMSG_SPACE of a u16
    assert vectors <= 20
