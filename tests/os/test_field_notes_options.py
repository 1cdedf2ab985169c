"""Field notes on options: each is read back from the kernel, and the constants are held against the C headers."""

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fast_socket as fs
from fast_socket.os import options
from tests.os.helpers import HOSTS, SOL_UDP, UDP_GRO, bind, option, plain, queue, receive_batch

LIMITS = {"recv": "rmem_max", "send": "wmem_max"}
BASE, IP, IPV6 = socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6


# Python 3.11's socket module lacks most of the constants: ours are the kernel's.


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_constants_are_those_of_the_headers(tmp_path):
    pattern = re.compile(r"(SO|IP|IPV6|MCAST|UDP|SOL|SOF)_[A-Z0-9_]+")
    ours = {name: value for name, value in vars(options).items() if pattern.fullmatch(name)}
    assert len(ours) > 20
    headers = ("sys/socket.h", "netinet/in.h", "linux/net_tstamp.h", "linux/udp.h")
    lines = [f'#ifdef {name}\n    printf("{name} %d\\n", (int) {name});\n#endif' for name in ours]
    # An enumeration's members are no macros.
    lines += [f'    printf("{name} %d\\n", (int) {name});' for name in ours if name.startswith("SOF_")]
    source = "#include <stdio.h>\n" + "".join(f"#include <{name}>\n" for name in headers)
    (tmp_path / "c.c").write_text(source + "int main(void) {\n" + "\n".join(lines) + "\n    return 0;\n}\n")
    subprocess.run(["cc", "-D_GNU_SOURCE", "c.c", "-o", "c"], cwd=tmp_path, check=True)
    output = subprocess.run([tmp_path / "c"], check=True, capture_output=True, text=True).stdout
    theirs = {name: int(value) for name, value in map(str.split, output.splitlines())}
    assert len(theirs) > 20
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize("name", [name for name in vars(options) if name.isupper() and hasattr(socket, name)])
def test_constants_are_those_of_the_socket_module_where_it_has_them(name):
    assert getattr(options, name) == getattr(socket, name)


# SO_RCVBUFFORCE needs CAP_NET_ADMIN; without it the size is cut silently: read it back, warn.


@pytest.mark.parametrize("which", ["recv", "send"])
def test_buffer_sizes_are_as_asked_and_read_back(which, caplog):
    with bind("v4", **{f"{which}_buffer": 100_000}) as sock:
        name = socket.SO_RCVBUF if which == "recv" else socket.SO_SNDBUF
        assert getattr(sock, f"{which}_buffer_size") == option(sock, BASE, name) == 100_000
    assert not caplog.records


@pytest.mark.root
@pytest.mark.parametrize("which", ["recv", "send"])
def test_privileged_buffer_exceeds_the_systems_limit(which, caplog):
    limit = int(Path(f"/proc/sys/net/core/{LIMITS[which]}").read_text(encoding="ascii"))
    size = 2 * limit + (1 << 20)
    with bind("v4", **{f"{which}_buffer": size}) as sock:
        assert getattr(sock, f"{which}_buffer_size") == size
    assert not caplog.records


@pytest.mark.root
@pytest.mark.parametrize("which", ["recv", "send"])
def test_buffer_cut_without_privilege_is_said(which):
    """In a process that gives its privileges up, because the cut is the kernel's and silent."""
    code = f"""
        import logging, os, sys
        import fast_socket as fs
        logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
        with fs.OsUdpSocket.bind("127.0.0.1:0", {which}_buffer=1 << 30) as sock:
            print("got", sock.{which}_buffer_size)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    warning, got = run.stdout.splitlines()
    size = int(got.split()[1])
    assert size < 1 << 30
    assert re.fullmatch(rf"fast_socket\S* WARNING {which}_buffer: asked for {1 << 30} bytes, .* {size}\b.*", warning)
    assert f"net.core.{LIMITS[which]}" in warning
    assert "CAP_NET_ADMIN" in warning


# The other options, as the kernel has them afterwards.

EVERYWHERE = [
    ({"reuse_port": True}, BASE, socket.SO_REUSEPORT, 1),
    ({"reuse_address": True}, BASE, socket.SO_REUSEADDR, 1),
    ({"broadcast": True}, BASE, socket.SO_BROADCAST, 1),
    ({"incoming_cpu": 0}, BASE, socket.SO_INCOMING_CPU, 0),
    ({"busy_poll": 0}, BASE, options.SO_BUSY_POLL, 0),
    ({"ttl": 7}, IP, socket.IP_TTL, 7),
    ({"tos": 0xB9}, IP, socket.IP_TOS, 0xB9),
    ({"multicast_ttl": 9}, IP, socket.IP_MULTICAST_TTL, 9),
    ({"multicast_ttl": 0}, IP, socket.IP_MULTICAST_TTL, 0),
    ({"multicast_loop": False}, IP, socket.IP_MULTICAST_LOOP, 0),
    ({"report_enobufs": True}, IP, options.IP_RECVERR, 1),
    ({"gro": True}, SOL_UDP, UDP_GRO, 1),
    *(({"path_mtu": mode}, IP, options.IP_MTU_DISCOVER, value) for mode, value in options.PATH_MTU_VALUES.items()),
]
IPV6_TOO = [
    ({"ttl": 7}, IPV6, socket.IPV6_UNICAST_HOPS, 7),
    ({"tos": 0xB9}, IPV6, socket.IPV6_TCLASS, 0xB9),
    ({"multicast_ttl": 9}, IPV6, socket.IPV6_MULTICAST_HOPS, 9),
    ({"multicast_loop": False}, IPV6, socket.IPV6_MULTICAST_LOOP, 0),
    ({"report_enobufs": True}, IPV6, options.IPV6_RECVERR, 1),
    ({"v6only": True}, IPV6, socket.IPV6_V6ONLY, 1),
    *(({"path_mtu": mode}, IPV6, options.IPV6_MTU_DISCOVER, v) for mode, v in options.PATH_MTU_VALUES.items()),
]
NEEDS_ADMIN = [
    ({"busy_poll": 50}, BASE, options.SO_BUSY_POLL, 50),
    ({"prefer_busy_poll": True}, BASE, options.SO_PREFER_BUSY_POLL, 1),
    # busy_poll_budget can be set but not read: getsockopt(SO_BUSY_POLL_BUDGET) is ENOPROTOOPT (net/core/sock.c).
]


def names(cases):
    return ["{}={}".format(*next(iter(case[0].items()))) for case in cases]


@pytest.mark.parametrize("family", ["v4", "v6", "dual"])
@pytest.mark.parametrize(("given", "level", "name", "value"), EVERYWHERE, ids=names(EVERYWHERE))
def test_option_is_in_force(family, given, level, name, value):
    """On an IPv6 socket those of IPv4 too: it may carry it."""
    with bind(family, **given) as sock:
        assert option(sock, level, name) == value


@pytest.mark.parametrize("family", ["v6", "dual"])
@pytest.mark.parametrize(("given", "level", "name", "value"), IPV6_TOO, ids=names(IPV6_TOO))
def test_option_is_in_force_for_ipv6(family, given, level, name, value):
    with bind(family, **given) as sock:
        assert option(sock, level, name) == value


@pytest.mark.root
@pytest.mark.parametrize(("given", "level", "name", "value"), NEEDS_ADMIN, ids=names(NEEDS_ADMIN))
def test_option_that_needs_privilege_is_in_force(given, level, name, value):
    with bind("v4", **given) as sock:
        assert option(sock, level, name) == value


@pytest.mark.root
@pytest.mark.parametrize(
    ("named", "given"),
    [
        ("prefer_busy_poll", "prefer_busy_poll=True"),
        ("busy_poll_budget", "busy_poll_budget=512"),
        ("TXTIME", "metadata=fs.Metadata.TXTIME, pacing_clock='tai'"),  # without it for "monotonic" only
    ],
)
def test_missing_privilege_is_named(named, given):
    code = f"""
        import os
        import fast_socket as fs
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
        try:
            fs.OsUdpSocket.bind("127.0.0.1:0", {given})
        except fs.CapabilityError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert named in run.stdout
    assert "CAP_NET_ADMIN" in run.stdout


def test_nothing_is_set_that_was_not_asked_for():
    """Each of these costs something per packet, or changes what the system's administrator chose."""
    with bind("dual") as sock, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as fresh:
        for given, level, name, _ in EVERYWHERE + IPV6_TOO + NEEDS_ADMIN:
            assert option(sock, level, name) == fresh.getsockopt(level, name), given
        for level, name in ((IP, options.IP_RECVTOS), (IP, options.IP_RECVTTL), (IP, options.IP_PKTINFO),
                            (IPV6, socket.IPV6_RECVTCLASS), (IPV6, socket.IPV6_RECVHOPLIMIT),
                            (IPV6, socket.IPV6_RECVPKTINFO), (BASE, options.SO_TIMESTAMPNS),
                            (BASE, options.SO_TIMESTAMPING)):  # fmt: skip
            assert option(sock, level, name) == 0


@pytest.mark.root
def test_bound_to_a_device_it_hears_no_other(lab):
    host = lab.host("two-homed")
    first, second = (lab.link(lab.host(f"peer{i}"), host) for i in range(2))
    with host.run(lambda: fs.OsUdpSocket.bind("0.0.0.0:0", device=second.b.name)) as sock:
        assert option(sock, BASE, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == second.b.name.encode()
        for link in (first, second):
            with link.a.host.run(plain, str(link.a.ipv4)) as peer:
                peer.sendto(link.a.name.encode() + b" here", (str(link.b.ipv4), sock.local_address[1]))
                last = peer.getsockname()
        rx = receive_batch(sock)
        assert rx[0].address == last


def test_unknown_device_is_named():
    with pytest.raises(fs.Error, match="nosuch0"):
        bind("v4", device="nosuch0")
    with pytest.raises(fs.ConfigError, match="nosuch0"):
        bind("v4", multicast_interface="nosuch0")


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_reuse_port_spreads_flows(family):
    """Each flow stays with one socket, every socket has some, nothing is lost."""
    host = HOSTS[family]
    with bind(family, reuse_port=True) as first:
        others = [fs.OsUdpSocket.bind(first.local_address, reuse_port=True) for _ in range(3)]
        with pytest.raises(fs.Error, match="reuse_port"):
            fs.OsUdpSocket.bind(first.local_address)
        flows = 64
        peers = [plain(host) for _ in range(flows)]
        for peer in peers * 2:
            peer.sendto(b"x", first.local_address)
        seen = {}
        for i, sock in enumerate([first, *others]):
            rx = sock.recv_batch(256)
            count = sock.recv(rx)
            assert count > 0
            for port in rx.source_ports.tolist():
                seen.setdefault(port, []).append(i)
        assert len(seen) == flows
        assert all(len(where) == 2 and len(set(where)) == 1 for where in seen.values())
        for sock in (*others, *peers):
            sock.close()


def test_incoming_cpu_prefers_the_socket_of_the_senders_cpu():
    """Over loopback a datagram is received on the CPU that sends it."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    with bind("v4", reuse_port=True, incoming_cpu=cpus[0]) as first, bind("v4") as sender:
        second = fs.OsUdpSocket.bind(first.local_address, reuse_port=True, incoming_cpu=cpus[1])
        with second:
            for cpu, mine, other in ((cpus[0], first, second), (cpus[1], second, first)):
                os.sched_setaffinity(0, {cpu})
                try:
                    for _ in range(20):
                        sender.send(queue(sender, [b"x"], first.local_address))
                finally:
                    os.sched_setaffinity(0, cpus)
                assert mine.recv(mine.recv_batch(64)) == 20
                assert other.recv(other.recv_batch(64)) == 0


def test_library_is_quiet_by_default(caplog):
    with caplog.at_level(logging.DEBUG), bind("v4") as sock, plain() as peer:
        sock.send(queue(sock, [b"x"] * 100, peer.getsockname()))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
