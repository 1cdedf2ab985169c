"""Hosts and links: what a program in a lab sees, and that nothing of it stays."""

import ipaddress
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fast_socket.core.errors import CapabilityError, ConfigError
from fast_socket.lab import Host, Lab, Link, namespaces, netlink, two_hosts, why_unavailable

UNAVAILABLE = why_unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]

SECONDS = 5.0
PORT = 9000
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def link(lab: Lab) -> Link:
    return lab.link(lab.host("a"), lab.host("b"), queues=4)


@pytest.fixture
def fresh(lab: Lab) -> Iterator[Callable[..., Link]]:
    """Makes a link between two new hosts of the module's lab."""
    made: list[Link] = []

    def make(**options: object) -> Link:
        number = next(NUMBERS)
        made.append(lab.link(lab.host(f"x{number}"), lab.host(f"y{number}"), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for link in made:
        link.remove()


def bound(address: object, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(SECONDS)
    sock.bind((str(address), port))
    return sock


def exchange(near: Host, near_ip: object, far: Host, far_ip: object) -> None:
    """A datagram there and one back."""
    with near.run(bound, near_ip) as client, far.run(bound, far_ip) as server:
        client.sendto(b"ping", server.getsockname())
        data, sender = server.recvfrom(100)
        assert (data, sender) == (b"ping", client.getsockname())
        server.sendto(b"pong", sender)
        assert client.recv(100) == b"pong"


def lab_names() -> list[str]:
    mine = f"fslab-{os.getpid()}-"
    return [name for name in os.listdir(namespaces.RUN_DIR) if name.startswith(mine)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    return namespaces.start_time(pid) is not None


# Traffic


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
@pytest.mark.parametrize("back", [False, True])
def test_functions_exchange_datagrams_both_ways(link: Link, version: str, back: bool) -> None:
    near, far = link[::-1] if back else link
    exchange(near.host, getattr(near, version), far.host, getattr(far, version))


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_process_answers_a_function(link: Link, version: str) -> None:
    code = """
        import socket, sys
        s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
        s.bind((sys.argv[1], 9000)); print("bound", flush=True)
        data, sender = s.recvfrom(100)
        s.sendto(data[::-1], sender)
    """
    address = str(getattr(link.b, version))
    server = link.b.host.popen([sys.executable, "-c", textwrap.dedent(code), address], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout as output:
        assert output.readline() == b"bound\n"
        with link.a.host.run(bound, getattr(link.a, version)) as client:
            client.sendto(b"abc", (address, PORT))
            assert client.recv(100) == b"cba"
    assert server.wait(SECONDS) == 0


def test_link_local_address_is_usable_at_once(fresh: Callable[..., Link]) -> None:
    link = fresh(addresses=((), ()))

    def local_address() -> str:
        lines = Path("/proc/thread-self/net/if_inet6").read_text(encoding="ascii").splitlines()
        (digits,) = (line.split()[0] for line in lines if line.endswith(link.b.name))
        return str(ipaddress.IPv6Address(int(digits, 16)))

    server = link.b.host.run(bound, "::")
    with server, link.a.host.run(bound, "::") as client:
        client.sendto(b"x", (link.b.host.run(local_address), server.getsockname()[1], 0, link.a.index))
        assert server.recv(10) == b"x"


@pytest.mark.parametrize("group", ["239.1.2.3", "ff05::123"])
def test_multicast(link: Link, group: str) -> None:
    sender, receiver = link
    six = ":" in group
    with receiver.host.run(bound, "::" if six else "0.0.0.0", PORT) as server:
        if six:
            request = socket.inet_pton(socket.AF_INET6, group) + receiver.index.to_bytes(4, sys.byteorder)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        else:
            request = socket.inet_aton(group) + receiver.ipv4.packed
            server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        with sender.host.run(bound, sender.ipv6 if six else sender.ipv4) as client:
            client.sendto(b"all", (group, PORT))
            assert server.recv(10) == b"all"


def test_static_neighbors_need_no_resolution(fresh: Callable[..., Link]) -> None:
    link = fresh(static_neighbors=True)
    exchange(link.a.host, link.a.ipv4, link.b.host, link.b.ipv4)
    arp = link.a.host.run(Path("/proc/thread-self/net/arp").read_text)
    assert f"{link.b.ipv4} " in arp and link.b.mac in arp and " 0x6 " in arp  # ATF_COM | ATF_PERM


def test_routes_lead_to_a_second_network(lab: Lab) -> None:
    left, router, right = lab.host("left"), lab.host("router"), lab.host("right")
    first = lab.link(left, router, addresses=(("10.1.0.2/24", "fd01::2/64"), ("10.1.0.1/24", "fd01::1/64")))
    second = lab.link(router, right, addresses=(("10.2.0.1/24", "fd02::1/64"), ("10.2.0.2/24", "fd02::2/64")))
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        router.run(Path("/proc/sys/net", setting).write_text, "1")
    left.add_route("default", "10.1.0.1")
    left.add_route("fd02::/16", "fd01::1")
    right.add_route("10.1.0.0/24", "10.2.0.1")
    right.add_route("default6", "fd02::1")
    exchange(left, first.a.ipv4, right, second.b.ipv4)
    exchange(left, first.a.ipv6, right, second.b.ipv6)
    assert [interface.name for interface in router.interfaces] == ["lab0", "lab1"]


@pytest.mark.parametrize("addresses", [("10.9.0.1/24", "10.9.0.2/24"), ("fd09::1/64", "fd09::2/64")])
def test_added_addresses_are_usable_at_once(link: Link, addresses: tuple[str, str]) -> None:
    for end, address in zip(link, addresses, strict=True):
        end.host.add_address(address)
    near, far = (address.partition("/")[0] for address in addresses)
    exchange(link.a.host, near, link.b.host, far)


def test_device_down_and_mtu(fresh: Callable[..., Link]) -> None:
    link = fresh(mtu=9000)
    assert (link.a.mtu, link.b.mtu) == (9000, 9000)
    link.a.set_mtu(2000)
    assert link.a.mtu == 2000
    link.b.set_up(False)
    carrier = Path("/sys/class/net/lab0/carrier").read_text
    wait_until(lambda: link.a.host.run(carrier).strip() == "0")
    link.b.set_up(True)
    wait_until(lambda: link.a.host.run(carrier).strip() == "1")


# Functions and processes inside a host


def test_run_returns_values_and_raises_exceptions(link: Link) -> None:
    host = link.a.host
    assert host.run(divmod, 7, 2) == (3, 1)
    assert host.run(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
    with pytest.raises(ZeroDivisionError):
        host.run(divmod, 1, 0)
    with pytest.raises(SystemExit):
        host.run(sys.exit, 3)
    release = threading.Event()
    with pytest.raises(TimeoutError):
        host.run(release.wait, SECONDS, timeout=0.01)
    release.set()


def test_functions_of_one_host_run_at_once(link: Link) -> None:
    barrier = threading.Barrier(3, timeout=SECONDS)
    futures = [link.a.host.start(barrier.wait) for _ in range(3)]
    assert sorted(future.result(SECONDS) for future in futures) == [0, 1, 2]


def test_function_sees_its_host_and_the_rest_of_the_process_does_not(link: Link) -> None:
    def view() -> tuple[set[str], set[str], str]:
        return set(os.listdir("/sys/class/net")), {name for _, name in socket.if_nameindex()}, os.getcwd()

    before = view(), os.stat("/proc/self/ns/net"), os.stat("/proc/self/ns/mnt")
    assert link.a.host.run(view) == ({"lo", "lab0"}, {"lo", "lab0"}, os.getcwd())
    assert (view(), os.stat("/proc/self/ns/net"), os.stat("/proc/self/ns/mnt")) == before
    threading.Thread(target=link.a.host.run, args=(view,)).start()
    assert link.a.host.run(link.b.host.run, os.listdir, "/sys/class/net")  # a host called from inside another


def test_process_keeps_to_its_host_and_to_popens_rules(link: Link, tmp_path: Path) -> None:
    host = link.a.host
    code = "import os; print(sorted(os.listdir('/sys/class/net')), os.getcwd(), os.environ['X'])"
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": tmp_path, "env": {"X": "y"}}
    process = host.popen([sys.executable, "-c", code], **options)
    assert process.communicate(timeout=SECONDS)[0] == f"['lab0', 'lo'] {tmp_path} y\n"
    with pytest.raises(FileNotFoundError):
        host.popen(["/no/such/program"])


# Devices


def test_names_addresses_and_macs(link: Link) -> None:
    a, b = link
    assert (str(a.ipv4), str(a.ipv6), str(b.ipv4), str(b.ipv6)) == ("10.77.0.1", "fd77::1", "10.77.0.2", "fd77::2")
    assert a.host.interface is a and a.name == "lab0" and a.host.namespace in os.listdir(namespaces.RUN_DIR)
    assert a.mac == a.host.run(Path("/sys/class/net/lab0/address").read_text).strip() != b.mac


@pytest.mark.parametrize("queues", [1, 3])
def test_queues(fresh: Callable[..., Link], queues: int) -> None:
    for end in fresh(queues=queues, addresses=((), ())):
        found = end.host.run(os.listdir, f"/sys/class/net/{end.name}/queues")
        assert sorted(found) == sorted(f"{way}-{n}" for way in ("rx", "tx") for n in range(queues))


def test_offloads_read_back(fresh: Callable[..., Link]) -> None:
    link = fresh(offloads={"gro": True, "tso": False, "tx-udp-segmentation": False}, addresses=((), ()))
    for end in link:
        now = end.offloads
        assert now["rx-gro"] and not now["tx-udp-segmentation"] and now["tx-generic-segmentation"]
        assert not any(on for name, on in now.items() if name.startswith("tx-tcp") and name.endswith("-segmentation"))
    for switch in ({"gro": False}, {"tx-checksum": False}, {"rx-gro-list": True}, {"gso": False}):
        link.a.set_offloads(switch)
    now = link.a.offloads
    assert now["rx-gro-list"]
    assert not (now["rx-gro"] or now["tx-checksum-ip-generic"] or now["tx-generic-segmentation"])
    assert link.b.offloads["rx-gro"]


def test_threaded_napi(fresh: Callable[..., Link]) -> None:
    link = fresh(threaded_napi=True)
    assert link.a.threaded_napi and link.b.threaded_napi
    assert not link.a.offloads["rx-gro"], "GRO was only lent"
    exchange(link.a.host, link.a.ipv4, link.b.host, link.b.ipv4)
    link.a.set_threaded_napi(False)
    assert not link.a.threaded_napi and link.b.threaded_napi


def test_qdisc(fresh: Callable[..., Link]) -> None:
    end = fresh(addresses=((), ())).a
    default = end.qdisc
    for kind in ("pfifo", "pfifo_fast"):
        end.set_qdisc(kind)
        assert end.qdisc == kind
    end.set_qdisc(None)
    assert end.qdisc == default
    with pytest.raises(CapabilityError, match="CONFIG_NET_SCH_NONESUCH"):
        end.set_qdisc("nonesuch")


# Nothing stays


def machine() -> tuple[object, ...]:
    """The machine's own devices with their flags, MTU and addresses, and its routes."""
    devices = []
    for name in sorted(os.listdir("/sys/class/net")):
        values = [Path(f"/sys/class/net/{name}", value).read_text() for value in ("ifindex", "flags", "mtu", "address")]
        devices.append((name, *values))
    tables = [Path("/proc/self/net", name).read_text() for name in ("route", "fib_trie", "if_inet6")]
    return devices, *tables


def test_the_machine_is_as_before() -> None:
    before = machine()
    names = lab_names()
    with two_hosts(queues=2, threaded_napi=True, static_neighbors=True) as (a, b):
        exchange(a, a.interface.ipv4, b, b.interface.ipv4)
        assert machine() == before
        assert len(lab_names()) == len(names) + 2
    assert machine() == before
    assert lab_names() == names


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_goes_after_an_exception(error: type[BaseException]) -> None:
    names, threads = lab_names(), threading.active_count()
    fds = len(os.listdir("/proc/self/fd"))
    processes: list[Any] = []
    children: list[int] = []
    with pytest.raises(error), two_hosts() as (a, b):
        processes.append(a.popen(["sleep", "1000"]))
        processes.append(b.popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE))
        with processes[1].stdout as output:
            children.append(int(output.readline()))
        raise error
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2
    assert children and not any(map(alive, children)), "a process that a host's process started"
    assert lab_names() == names
    wait_until(lambda: threading.active_count() == threads)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(1000)"
    with Lab() as lab:
        stubborn = lab.host("a").popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
        assert stubborn.stdout is not None
        with stubborn.stdout as output:
            output.readline()
    assert stubborn.returncode == -signal.SIGKILL


def test_close_may_be_repeated_and_what_is_closed_says_so() -> None:
    lab = Lab()
    host = lab.host("a")
    lab.close()
    lab.close()
    for use in (lambda: lab.host("b"), lambda: host.run(len, ""), lambda: host.popen(["true"])):
        with pytest.raises(ConfigError, match="closed"):
            use()


def test_a_function_that_still_runs_does_not_hold_up_close(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    with caplog.at_level(logging.WARNING, "fast_socket.lab"), two_hosts() as (a, _):
        future = a.start(release.wait, SECONDS)
    assert "still run" in caplog.text
    assert not future.done()
    release.set()
    assert future.result(SECONDS)


def test_a_link_that_fails_half_way_is_not_there(link: Link, lab: Lab) -> None:
    a, b = lab.host("half-a"), lab.host("half-b")
    with pytest.raises(CapabilityError):
        lab.link(a, b, qdisc="nonesuch")
    for host in (a, b):
        assert host.run(os.listdir, "/sys/class/net") == ["lo"] and not host.interfaces
    lab.link(a, b).remove()
    assert b.run(os.listdir, "/sys/class/net") == ["lo"]


LAB_PROCESS = """
    import os, subprocess, sys, time
    from fast_socket.lab import two_hosts
    with two_hosts() as (a, b):
        child = a.popen(["sleep", "1000"])
        shell = b.popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        print(a.namespace, b.namespace, child.pid, shell.pid, int(shell.stdout.readline()), flush=True)
        time.sleep(1000) if sys.argv[1] == "sleep" else sys.exit()
"""


def lab_process(what: str) -> tuple["subprocess.Popen[str]", list[str], list[int]]:
    """Another process with a lab: it, its namespaces, and the processes in them."""
    argv = [sys.executable, "-c", textwrap.dedent(LAB_PROCESS), what]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        a, b, *pids = output.readline().split()
    return process, [a, b], [int(pid) for pid in pids]


def test_the_next_lab_removes_what_a_killed_one_left() -> None:
    process, names, (child, shell, grandchild) = lab_process("sleep")
    assert set(names) <= set(os.listdir(namespaces.RUN_DIR))
    with Lab():  # not while it lives
        assert set(names) <= set(os.listdir(namespaces.RUN_DIR)) and alive(child)
    process.kill()
    process.wait(SECONDS)
    wait_until(lambda: not alive(child) and not alive(shell))  # before any sweep
    with Lab():
        assert not set(names) & set(os.listdir(namespaces.RUN_DIR))
        assert not alive(grandchild)
    assert Lab.sweep() == []


def test_leaving_by_exit_removes_all() -> None:
    process, names, pids = lab_process("exit")
    assert process.wait(SECONDS) == 0
    assert not set(names) & set(os.listdir(namespaces.RUN_DIR))
    assert not any(map(alive, pids))


def test_a_lab_that_nobody_closed_goes_with_the_interpreter() -> None:
    code = "from fast_socket.lab import Lab; h = Lab().host('a'); h.popen(['sleep', '1000']); print(h.namespace)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=SECONDS)
    assert done.stdout.startswith("fslab-") and done.stdout.strip() not in os.listdir(namespaces.RUN_DIR)


def test_sweep_takes_only_leftovers_with_our_prefix(lab: Lab, link: Link) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    own, start = os.getpid(), namespaces.start_time(os.getpid())
    stale = [f"fslab-{dead.pid}-1-0-a", f"fslab-{own}-{(start or 0) - 1}-0-a"]
    other = [f"fslab-{own}-{start}-999-a", "fslab-notours", f"x-fslab-{dead.pid}-1-0-a"]
    for name in stale + other:
        (namespaces.RUN_DIR / name).touch()
    try:
        assert Lab.sweep() == sorted(stale)
        assert set(other) | {link.a.host.namespace} <= set(os.listdir(namespaces.RUN_DIR))
        with pytest.raises(ValueError, match="not a lab's"):
            namespaces.remove("x-mine")
    finally:
        for name in stale + other:
            (namespaces.RUN_DIR / name).unlink(missing_ok=True)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": 0}, "from 1 to 4096"),
        ({"queues": 5000}, "from 1 to 4096"),
        ({"queues": "2"}, "from 1 to 4096"),
        ({"mtu": 67}, "from 68 to 65535"),
        ({"mtu": 1000, "addresses": (("fd00::1/64",), ())}, "1280"),
        ({"addresses": (("10.0.0.300/24",), ())}, "10.0.0.300"),
        ({"addresses": ("10.0.0.1/24", "10.0.0.2/24")}, "two tuples"),
        ({"addresses": (("10.0.0.1/24",), ("10.0.0.1/24",))}, "twice"),
        ({"names": ("x" * 16, "y")}, "1 to 15"),
        ({"names": ("lo", "y")}, "lo"),
        ({"names": ("lab0", "y")}, "File exists"),
        ({"macs": ("02:00", "02:00:00:00:00:02")}, "02:00"),
        ({"macs": ("01:00:5e:00:00:01", "02:00:00:00:00:02")}, "unicast"),
        ({"offloads": {"warp": True}}, "warp"),
    ],
)
def test_bad_link_options(lab: Lab, link: Link, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lab.link(link.a.host, link.b.host, **options)  # type: ignore[arg-type]
    assert link.a.host.interfaces == [link.a]
    assert sorted(link.a.host.run(os.listdir, "/sys/class/net")) == ["lab0", "lo"]


@pytest.mark.parametrize("name", ["", "x" * 33, "a/b", "../a", "a b", "a"])
def test_bad_host_name(lab: Lab, link: Link, name: str) -> None:
    with pytest.raises(ConfigError):
        lab.host(name)


def test_bad_hosts_of_a_link(lab: Lab, link: Link) -> None:
    with Lab() as other:
        for host in (link.a.host, other.host("a")):
            with pytest.raises(ConfigError, match="different hosts"):
                lab.link(link.a.host, host)


def test_bad_values_of_a_running_link(link: Link) -> None:
    for call in (
        lambda: link.a.add_address("10.0.0.1/33"),
        lambda: link.a.add_address(link.a.addresses[0]),
        lambda: link.a.add_neighbor("10.77.0.9", "xx"),
        lambda: link.a.host.add_route("10.0.0.1/8"),
        lambda: link.a.host.add_route("192.0.2.0/24", "203.0.113.1"),
        lambda: link.a.set_mtu(70000),
        lambda: link.a.host.run(netlink.index_of, "eth0"),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(CapabilityError, match="rx-lro"):
        link.a.set_offloads({"lro": True})
