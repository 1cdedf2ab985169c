"""On a device: frames arrive where they should, the kernel keeps the rest, and nothing stays behind."""

import ctypes
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fast_socket.core.errors import CapabilityError, ConfigError, DeviceError
from fast_socket.lab import Host, Lab, Link, why_unavailable
from fast_socket.xdp.ebpf import XdpCounters, XdpFilter, XdpMode, XdpProgram, libbpf
from tests.xdp.helpers import SECONDS, Receiver

UNAVAILABLE = why_unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]

PORT, OTHER = 9000, 9001
FILTER = XdpFilter(ports=frozenset({PORT}))
DEVICE = "lab0"
NOBODY = 65534


@pytest.fixture
def link() -> Iterator[Link]:
    """New for each test, so that neighbours must be resolved while the program is attached."""
    with Lab() as lab:
        yield lab.link(lab.host("a"), lab.host("b"), queues=2)


@pytest.fixture
def program() -> Iterator[XdpProgram]:
    with XdpProgram.load(FILTER) as program:
        yield program


def bound(address: object, port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in str(address) else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(SECONDS)
    sock.bind((str(address), port))
    return sock


def send(link: Link, data: bytes, port: int = PORT, version: str = "ipv4") -> None:
    with link.a.host.run(bound, getattr(link.a, version)) as sock:
        sock.sendto(data, (str(getattr(link.b, version)), port))


def kernel_gets(link: Link, version: str = "ipv4", port: int = OTHER) -> bool:
    with link.b.host.run(bound, getattr(link.b, version), port) as server:
        send(link, b"for the kernel", port, version)
        return bool(select.select([server], [], [], SECONDS)[0])


def ping(link: Link) -> bool:
    """An ICMP echo to b, from inside a: the kernels' own resolution and answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(SECONDS)
        sock.sendto(bytes.fromhex("080077fa00010004") + b"\x80\x00", (str(link.b.ipv4), 0))
        return sock.recv(100)[20] == 0  # echo reply


@pytest.fixture
def sockets(link: Link) -> Iterator[list[Receiver]]:
    """One for each queue of b's device, not in any program yet."""
    with ExitStack() as stack:
        yield [stack.enter_context(link.b.host.run(Receiver, link.b.index, queue)) for queue in (0, 1)]


def attached(host: Host) -> bool:
    """Asked of the kernel, and not of our own objects."""
    shown = host.popen(["ip", "link", "show", "dev", DEVICE], stdout=subprocess.PIPE, text=True)
    return "prog/xdp" in shown.communicate(timeout=SECONDS)[0]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


# Modes and traffic


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("mode", "got"),
    [
        (XdpMode.AUTO, XdpMode.NATIVE),
        (XdpMode.NATIVE, XdpMode.NATIVE),
        (XdpMode.GENERIC, XdpMode.GENERIC),
    ],
)
def test_wanted_frames_reach_the_socket_and_the_kernel_keeps_the_rest(
    link: Link, program: XdpProgram, mode: XdpMode, got: XdpMode, version: str, sockets: list[Receiver]
) -> None:
    assert (program.mode, program.device) == (None, None)
    link.b.host.run(program.attach, DEVICE, mode)
    assert (program.mode, program.device) == (got, DEVICE)
    for queue, sock in enumerate(sockets):
        program.insert(queue, sock.fileno())
    assert kernel_gets(link, version), "with ARP or neighbour discovery before it"
    for number in range(10):
        send(link, data := b"number %d" % number, PORT, version)
        assert select.select(sockets, [], [], SECONDS)[0]
        (frame,) = [frame for sock in sockets if (frame := sock.receive(seconds=0))]
        assert frame.endswith(data)
    counters = program.counters()
    assert counters.redirected == 10 and counters.other_port == 1 and counters.malformed == counters.no_socket == 0
    program.detach()
    program.detach()
    assert (program.mode, program.device) == (None, None) and not attached(link.b.host)
    assert kernel_gets(link, version, PORT)
    assert program.counters() == counters


@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
def test_arp_ping_and_discovery_pass_while_all_ip_goes_to_sockets(
    link: Link, mode: XdpMode, sockets: list[Receiver]
) -> None:
    """The sender of a ping resolves the neighbour first; the answer comes from the kernel of the attached host."""
    filter = XdpFilter(all_ip=True, addresses=("10.77.0.99", str(link.b.ipv6)))
    with XdpProgram.load(filter) as program:
        link.b.host.run(program.attach, DEVICE, mode)
        for queue, sock in enumerate(sockets):
            program.insert(queue, sock.fileno())
        assert link.a.host.run(ping, link)
        send(link, b"by IPv6", OTHER, "ipv6")
        wait_until(lambda: program.counters().redirected > 0)
        counters = program.counters()
        assert counters.not_ip >= 1 and counters.other_address >= 1
        assert any((sock.receive(seconds=0) or b"").endswith(b"by IPv6") for sock in sockets)


@pytest.mark.parametrize(("miss", "passes"), [("pass", True), ("drop", False)])
def test_wanted_frames_without_a_socket(link: Link, miss: Any, passes: bool) -> None:
    with XdpProgram.load(FILTER, queues=1, miss=miss) as program:
        link.b.host.run(program.attach, DEVICE)
        with link.b.host.run(bound, link.b.ipv4, PORT) as server:
            send(link, b"x")
            wait_until(lambda: program.counters().no_socket == 1)
            assert bool(select.select([server], [], [], SECONDS if passes else 0.1)[0]) == passes


def test_timestamps_stand_in_front_of_the_frame(link: Link, sockets: list[Receiver]) -> None:
    def load() -> XdpProgram:
        return XdpProgram.load(FILTER, timestamps=True, device=DEVICE)

    with link.b.host.run(load) as program:
        for mode in (XdpMode.GENERIC, XdpMode.OFFLOAD):
            with pytest.raises(ConfigError, match="native mode only"):
                link.b.host.run(program.attach, DEVICE, mode)
        with pytest.raises(ConfigError, match="another device"):
            link.b.host.run(program.attach, "lo")
        link.b.host.run(program.attach, DEVICE)
        assert program.mode is XdpMode.NATIVE
        for sock in sockets:
            sock.memory[:] = b"\xff" * len(sock.memory)
        assert kernel_gets(link, "ipv4", PORT), "no socket: it must arrive unharmed"
        for queue, sock in enumerate(sockets):
            program.insert(queue, sock.fileno())
        send(link, b"stamped")
        assert select.select(sockets, [], [], SECONDS)[0]
        (frame,) = [frame for sock in sockets if (frame := sock.receive(8, seconds=0))]
        assert frame[:8] == bytes(8), "veth takes no timestamps"
        assert frame[8:14].hex(":") == link.b.mac and frame.endswith(b"stamped")


def test_timestamps_of_a_device_without_them(link: Link) -> None:
    with pytest.raises(CapabilityError, match=r"'lo'.*go without timestamps"):
        link.b.host.run(XdpProgram.load, FILTER, timestamps=True, device="lo")


# Refusals


def test_auto_falls_back_and_forced_modes_do_not(
    link: Link, program: XdpProgram, caplog: pytest.LogCaptureFixture
) -> None:
    """The loopback device has no XDP of its own."""
    with caplog.at_level(logging.INFO, "fast_socket.xdp.ebpf"):
        link.b.host.run(program.attach, "lo")
    assert "lo does not take XDP in native mode (" in caplog.text and "in generic mode" in caplog.text
    assert (program.mode, program.device) == (XdpMode.GENERIC, "lo")
    with pytest.raises(ConfigError, match="attached to lo already"):
        link.b.host.run(program.attach, DEVICE)
    program.detach()
    with pytest.raises(CapabilityError, match=r"lo refuses XDP in native mode.*MTU of 65536.*generic"):
        link.b.host.run(program.attach, "lo", XdpMode.NATIVE)
    for device in ("lo", DEVICE):
        with pytest.raises(CapabilityError, match=f"{device} does not take.*hardware"):
            link.b.host.run(program.attach, device, XdpMode.OFFLOAD)
    assert program.device is None


@pytest.mark.parametrize("first", [XdpMode.NATIVE, XdpMode.GENERIC])
@pytest.mark.parametrize("second", [XdpMode.AUTO, XdpMode.NATIVE, XdpMode.GENERIC])
def test_another_program_is_attached(link: Link, program: XdpProgram, first: XdpMode, second: XdpMode) -> None:
    link.b.host.run(program.attach, DEVICE, first)
    with XdpProgram.load(FILTER) as late:
        with pytest.raises(DeviceError, match=r"another XDP program is attached to lab0: .*xdp off.*XdpProgram.reuse"):
            link.b.host.run(late.attach, DEVICE, second)
        program.detach()
        link.b.host.run(late.attach, DEVICE, second)


def test_bad_devices_and_modes(link: Link, program: XdpProgram) -> None:
    with pytest.raises(ConfigError, match=r"device='nonesuch'.*lo, lab0"):
        link.b.host.run(program.attach, "nonesuch")
    with pytest.raises(ConfigError, match="mode='native'"):
        link.b.host.run(program.attach, DEVICE, "native")
    with pytest.raises(ConfigError, match="device='nonesuch'"):
        XdpProgram.load(FILTER, timestamps=True, device="nonesuch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": 0}, "queues=0: from 1 to 4096"),
        ({"queues": 4097}, "queues=4097"),
        ({"queues": "1"}, "queues='1'"),
        ({"miss": "maybe"}, "'pass' or 'drop'"),
        ({"vlan": 1}, "vlan=1"),
        ({"timestamps": True}, "go together"),
        ({"device": "lo"}, "go together"),
        ({"filter": None}, "an XdpFilter"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        XdpProgram.load(**{"filter": FILTER, **options})


def test_bad_sockets_and_queues(program: XdpProgram) -> None:
    for queue in (-1, 64, "0", True):
        for call in (lambda queue=queue: program.insert(queue, 0), lambda queue=queue: program.remove(queue)):
            with pytest.raises(ConfigError, match="from 0 to 63"):
                call()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, open("/dev/null") as file:
        for fd in (-1, 10**6, program.fd, udp.fileno(), file.fileno()):
            with pytest.raises(ConfigError, match=f"fd={fd}: the fd of an AF_XDP socket"):
                program.insert(0, fd)


# Privilege and library

CHILD = """
    import ctypes, os, socket, struct, sys
    from fast_socket.xdp.ebpf import XdpFilter, XdpProgram
    from fast_socket.xdp.ebpf.libbpf import library
    library()
    def drop(keep=()):
        # Keeps capabilities of the permitted set over the change of user, and makes them effective again.
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
        os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        bits = sum(1 << capability for capability in keep)
        low, high = bits & 0xffffffff, bits >> 32
        header = struct.pack("=II", 0x20080522, 0)
        assert libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)) == 0
    def report(what, call, *arguments):
        try:
            call(*arguments)
        except Exception as error:
            print(what, type(error).__name__, error, flush=True)
        else:
            print(what, "ok", flush=True)
"""


def child(host: Host | None, code: str, *fds: int) -> "subprocess.Popen[str]":
    start = host.popen if host else subprocess.Popen
    argv = [sys.executable, "-c", textwrap.dedent(CHILD) + textwrap.dedent(code), *map(str, fds)]
    process: subprocess.Popen[str] = start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=fds)
    return process


def finish(process: "subprocess.Popen[str]") -> list[str]:
    out = process.communicate(timeout=SECONDS * 2)[0]
    assert process.returncode == 0, out
    return out.splitlines()


def test_without_privilege() -> None:
    (line,) = finish(child(None, "drop(); report('load', XdpProgram.load, XdpFilter())"))
    assert "CapabilityError" in line and "CAP_BPF and CAP_NET_ADMIN" in line


def test_the_named_capabilities_are_enough(link: Link) -> None:
    code = """
        drop(keep=(39, 12))  # CAP_BPF, CAP_NET_ADMIN
        p = XdpProgram.load(XdpFilter(ports=range(10)))
        p.attach("lab0")
        print(p.mode.value, p.counters().redirected)
        p.close()
        p = XdpProgram.load(XdpFilter(ports=range(10), addresses=("10.0.0.1",)), timestamps=True, device="lab0")
        p.attach("lab0")
        print(p.mode.value)
    """
    assert finish(child(link.b.host, code)) == ["native 0", "native"]
    code = "drop(keep=(39,)); report('load', XdpProgram.load, XdpFilter())"
    assert "CAP_NET_ADMIN" in finish(child(link.b.host, code))[0]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise OSError("libbpf.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(CapabilityError, match="apt-get install libbpf1"):
        libbpf.Library()


def test_what_libbpf_says_is_in_the_error_and_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tmp_path / "broken.bpf.o"
    source = Path(libbpf.__file__).with_name("redirect.bpf.o").read_bytes()
    broken.write_bytes(source[: len(source) // 2])
    caplog.set_level(logging.DEBUG, "fast_socket.xdp.ebpf")
    with pytest.raises(OSError, match=r"libbpf: elf: .*broken"), libbpf.library().open(broken):
        pass
    assert "libbpf: " in caplog.text and all(record.levelno == logging.DEBUG for record in caplog.records)


# Ends


def test_a_killed_process_leaves_nothing_attached(link: Link, program: XdpProgram) -> None:
    code = (
        "p = XdpProgram.load(XdpFilter(all_ip=True), miss='drop'); p.attach('lab0'); print('on', flush=True); input()"
    )
    process = child(link.b.host, code)
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    assert attached(link.b.host)
    with pytest.raises(DeviceError, match="another XDP program"):
        link.b.host.run(program.attach, DEVICE)
    process.kill()
    assert process.wait(SECONDS) == -signal.SIGKILL
    process.communicate()
    wait_until(lambda: not attached(link.b.host))
    assert kernel_gets(link)
    link.b.host.run(program.attach, DEVICE)


def test_close_may_be_repeated_and_frees_all(link: Link) -> None:
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    program = XdpProgram.load(FILTER)
    link.b.host.run(program.attach, DEVICE)
    assert all(not os.get_inheritable(fd) for fd in program.fds.values())
    program.close()
    program.close()
    program.detach()
    assert not attached(link.b.host)
    for use in (program.counters, lambda: program.fd, lambda: program.insert(0, 0), lambda: program.set_filter(FILTER)):
        with pytest.raises(ConfigError, match="closed"):
            use()
    with link.b.host.run(XdpProgram.load, FILTER) as other:
        link.b.host.run(other.attach, DEVICE)
    assert not attached(link.b.host)
    forgotten = XdpProgram.load(FILTER)
    link.b.host.run(forgotten.attach, DEVICE)
    del forgotten
    gc.collect()
    assert not attached(link.b.host)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_device_goes_first(program: XdpProgram) -> None:
    with Lab() as lab:
        link = lab.link(lab.host("a"), lab.host("b"))
        link.b.host.run(program.attach, DEVICE)
        link.remove()
        program.detach()
        assert program.device is None
        assert program.counters() is not None


# Handing over


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "bpf", "bpf", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_pinned_program_outlives_its_process(link: Link, bpffs: Path) -> None:
    with XdpProgram.load(FILTER, queues=3) as first:
        link.b.host.run(first.attach, DEVICE, XdpMode.GENERIC)
        first.pin(bpffs / "mine")
        with pytest.raises(ConfigError, match="mine holds a pinned program"):
            first.pin(bpffs / "mine")
    assert attached(link.b.host)
    with XdpProgram.reuse(bpffs / "mine") as second:
        assert (second.device, second.mode, second.queues) == (DEVICE, XdpMode.GENERIC, 3)
        send(link, b"x")
        wait_until(lambda: second.counters().no_socket == 1)
        second.set_filter(XdpFilter(ports=frozenset({OTHER})))
        send(link, b"x", OTHER)
        wait_until(lambda: second.counters().no_socket == 2)
    assert attached(link.b.host)
    for path in (bpffs / "mine").iterdir():
        path.unlink()
    wait_until(lambda: not attached(link.b.host))


def test_reuse_by_pin_attaches_and_detaches(link: Link, bpffs: Path, program: XdpProgram) -> None:
    program.pin(bpffs / "mine")
    with XdpProgram.reuse(str(bpffs / "mine")) as second:
        assert second.device is None
        link.b.host.run(second.attach, DEVICE)
        with pytest.raises(DeviceError, match="another XDP program"):
            link.b.host.run(program.attach, DEVICE)
    assert not attached(link.b.host), "the pins are older than the link"


def test_pinning_where_it_cannot_be(tmp_path: Path, program: XdpProgram) -> None:
    with pytest.raises(ConfigError, match="mount -t bpf"):
        program.pin(tmp_path / "mine")
    with pytest.raises(ConfigError, match="mount -t bpf"):
        program.pin(tmp_path / "no" / "such")
    with pytest.raises(ConfigError, match="no XDP program to reuse"):
        XdpProgram.reuse(tmp_path)


def test_reuse_by_fds(link: Link, program: XdpProgram) -> None:
    link.b.host.run(program.attach, DEVICE)
    with XdpProgram.reuse(program.fds) as second:
        program.close()
        assert attached(link.b.host) and second.device == DEVICE
        second.detach()
        assert not attached(link.b.host)


def test_detach_is_for_all_holders(link: Link, program: XdpProgram) -> None:
    link.b.host.run(program.attach, DEVICE)
    with XdpProgram.reuse(program.fds) as second:
        second.detach()
        assert not attached(link.b.host)
        program.detach()
        link.b.host.run(program.attach, DEVICE)


def test_fds_that_are_not_a_program(program: XdpProgram) -> None:
    fds = program.fds
    for wrong, message in [
        ({}, "program, xsks, .* missing"),
        ({**fds, "more": 0}, "'more'.* unknown"),
        ({**fds, "xsks": fds["ports"]}, "xsks=.*not one of this XDP program"),
        ({**fds, "xsks": 0}, "not a BPF map"),
        ({**fds, "xsks": 10**6}, "no XDP program to reuse"),
    ]:
        with pytest.raises(ConfigError, match=message):
            XdpProgram.reuse(wrong)
    assert program.counters() == XdpCounters()


def test_fds_sent_to_another_process(link: Link, program: XdpProgram) -> None:
    """The other process goes on with the program when this one has closed it."""
    link.b.host.run(program.attach, DEVICE)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    code = """
        p = XdpProgram.receive_fds(socket.socket(fileno=int(sys.argv[1])))
        print(p.device, p.mode.value, flush=True); input()
        print(p.counters().no_socket)
    """
    with near, far:
        process = child(None, code, far.fileno())
        program.send_fds(near)
    assert process.stdout is not None and process.stdout.readline() == "lab0 native\n"
    program.close()
    assert attached(link.b.host)
    send(link, b"x")
    assert finish_with(process, "\n") == ["1"]
    wait_until(lambda: not attached(link.b.host))


def finish_with(process: "subprocess.Popen[str]", text: str) -> list[str]:
    out = process.communicate(text, timeout=SECONDS)[0]
    assert process.returncode == 0, out
    return out.splitlines()


def test_not_a_hand_over(program: XdpProgram) -> None:
    before = len(os.listdir("/proc/self/fd"))
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        for data, fds in [(b"hello", []), (b"fast_socket.xdp1\x07", [0]), (b"hello", [0, 1])]:
            socket.send_fds(near, [data], fds)
            with pytest.raises(DeviceError, match="not the hand-over"):
                XdpProgram.receive_fds(far)
        near.close()
        with pytest.raises(DeviceError, match="not the hand-over"):
            XdpProgram.receive_fds(far)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_without_privilege_uses_what_it_received(
    link: Link, program: XdpProgram, sockets: list[Receiver]
) -> None:
    """Since Linux 5.19 kernel.unprivileged_bpf_disabled forbids to make maps and programs, not to use received ones."""
    link.b.host.run(program.attach, DEVICE)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    code = """
        drop()
        sock = socket.socket(fileno=int(sys.argv[1]))
        p = XdpProgram.receive_fds(sock)
        for queue, fd in enumerate(sys.argv[2:]):
            report("insert", p.insert, queue, int(fd))
        report("counters", p.counters)
        report("filter", p.set_filter, XdpFilter(ports=frozenset({9001})))
        report("remove", p.remove, 60)
        report("detach", p.detach)
    """
    with near, far:
        process = child(None, code, far.fileno(), *(sock.fileno() for sock in sockets))
        program.send_fds(near)
        lines = finish(process)
    assert lines[:2] == ["insert ok"] * 2, lines
    print(lines)
    assert lines == ["insert ok"] * 2 + [f"{what} ok" for what in ("counters", "filter", "remove", "detach")]


def test_an_owner_inserts_the_socket_that_it_received(link: Link, program: XdpProgram, sockets: list[Receiver]) -> None:
    """The other way round: who has no program sends its socket to who has."""
    link.b.host.run(program.attach, DEVICE)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        socket.send_fds(near, [b"x"], [sock.fileno() for sock in sockets])
        _, fds, _, _ = socket.recv_fds(far, 1, 2)
    for queue, fd in enumerate(fds):
        program.insert(queue, fd)
        os.close(fd)
    send(link, b"for the other process")
    assert select.select(sockets, [], [], SECONDS)[0]
    assert any((sock.receive(seconds=0) or b"").endswith(b"for the other process") for sock in sockets)
