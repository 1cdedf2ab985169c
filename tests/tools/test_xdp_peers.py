"""The peers that AF_XDP is measured against run, against each other and kernel sockets, and their sums hold."""

import json
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import fast_socket as fs
from benchmarks import figures, xdp_peers
from benchmarks.figures import PORT, Ends
from benchmarks.processes import REFERENCE, C, Tool, ToolError
from fast_socket import lab
from tests.tools.conftest import run

SECONDS = 0.2
RING = 2048
STRAYS = 16
UNAVAILABLE = lab.why_unavailable()
HAVE_LIBXDP = any(Path(directory, "xdp/xsk.h").exists() for directory in ("/usr/include", "/usr/local/include"))
NO_LIBXDP = "no libxdp headers (apt-get install libxdp-dev)"

needs_lab = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
# Marked root only where they can run: a system without libxdp does not fail a run that requires root tests.
needs_c = [needs_lab, pytest.mark.root] if HAVE_LIBXDP else [pytest.mark.skip(reason=NO_LIBXDP)]
each_mode = pytest.mark.parametrize("mode", ["native", "generic"])
each_wait = pytest.mark.parametrize("wait", ["poll", "spin"])


def c_tests(test):
    for mark in needs_c:
        test = mark(test)
    return test


def ends_of(near, far):
    cpus = fs.available_cpus()
    return Ends(near, far, str(far.interface.ipv4), cpus[0], cpus[-1])


@pytest.fixture(scope="module")
def built():
    figures.build_references()
    if reason := xdp_peers.c_unavailable():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def ends(built):
    with lab.two_hosts(queues=2, static_neighbors=True) as (near, far):
        yield ends_of(near, far)


def reached(report):
    """What came to the receiving socket, and what it lost: the kernel's two counts are disjoint."""
    return report["received"] + report["ring_full"] + report["rx_dropped"]


def accounted(received, sent):
    """Every packet is received or counted as lost, as strays may be that a host sends (ICMP, neighbour discovery)."""
    return 0 <= reached(received) - sent <= STRAYS


def program_on(host):
    output = host.run(subprocess.run, ["ip", "link", "show", host.interface.name], capture_output=True, text=True)
    return "prog/xdp" in output.stdout


def of(result):
    """A report and its peer's."""
    assert isinstance(result, dict), result
    return result, result["peer"]


# ---- C ----


@c_tests
@each_mode
@each_wait
def test_what_fits_the_ring_arrives(ends, mode, wait):
    received, sent = of(
        xdp_peers.c_count(
            ends, lambda: xdp_peers.c_blast(ends, SECONDS, mode=mode, count=RING // 2), mode=mode, wait=wait
        )
    )
    assert (sent["tool"], sent["sent"], sent["dropped"], sent["unfinished"]) == ("c-xdp-blast", RING // 2, 0, 0)
    assert (received["tool"], received["received"], reached(received)) == ("c-xdp-count", RING // 2, RING // 2)
    assert (received["mode"], received["wait"], received["zerocopy"]) == (mode, wait, False)
    assert received["seconds"] > 0
    assert received["pps"] > 0


@c_tests
@each_mode
@each_wait
def test_a_flood_is_accounted_for(ends, mode, wait):
    """Many times what the rings hold; whoever loses a packet counts it."""
    received, sent = of(
        xdp_peers.c_count(ends, lambda: xdp_peers.c_blast(ends, SECONDS, mode=mode), mode=mode, wait=wait)
    )
    assert sent["sent"] > 2 * RING
    assert 0 < received["received"] <= sent["sent"]
    assert accounted(received, sent["sent"])
    assert (sent["unfinished"], sent["tx_invalid"], received["fill_empty"]) == (0, 0, 0)
    assert sent["seconds"] >= SECONDS
    assert sent["pps"] == pytest.approx(sent["sent"] / sent["seconds"], rel=1e-3)
    assert 0 < sent["cpu_seconds"] == pytest.approx(sent["user_seconds"] + sent["system_seconds"], abs=1e-5)


@c_tests
def test_a_count_is_exact(ends):
    received, sent = of(xdp_peers.c_count(ends, lambda: xdp_peers.c_blast(ends, 30, count=50_001)))
    assert sent["sent"] + sent["dropped"] == 50_001
    assert accounted(received, sent["sent"])


@c_tests
def test_a_wake_up_takes_32_descriptors(ends):
    """TX_BATCH_SIZE of the kernel. The larger budget is refused before Linux 6.17."""
    _, sent = of(xdp_peers.c_count(ends, lambda: xdp_peers.c_blast(ends, 30, count=6400)))
    assert sent["kicks"] >= 6400 // 32
    larger = xdp_peers.c_count(ends, lambda: xdp_peers.c_blast(ends, 30, count=6400, batch=256, tx_budget=256))
    if isinstance(larger, str):
        pytest.skip(larger)
    assert larger["peer"]["kicks"] < sent["kicks"]


@c_tests
def test_drops_of_the_device_are_counted(built):
    """With receive processing in a thread the sender overruns veth's ring of 256 packets.

    The kernel's own (multicast reports, router solicitations) may be lost on the full ring too: a handful in a second.
    """
    with lab.two_hosts(static_neighbors=True, threaded_napi=True) as (near, far):
        ends = ends_of(near, far)
        received, sent = of(xdp_peers.c_count(ends, lambda: xdp_peers.c_blast(ends, SECONDS)))
        statistics = Path(f"/sys/class/net/{near.interface.name}/statistics/tx_dropped")
        assert 0 <= int(near.run(statistics.read_text)) - sent["dropped"] <= 10
    assert accounted(received, sent["sent"])


@c_tests
@each_mode
@each_wait
def test_ping_and_pong(ends, mode, wait):
    pong, ping = of(
        xdp_peers.c_pong(
            ends, lambda: xdp_peers.c_ping(ends, 30, mode=mode, wait=wait, count=200), mode=mode, wait=wait
        )
    )
    assert (ping["tool"], ping["count"], ping["lost"], ping["dropped"]) == ("c-xdp-ping", 200, 0, 0)
    rtt = ping["rtt_ns"]
    assert 0 < rtt["min"] <= rtt["p50"] <= rtt["p90"] <= rtt["p99"] <= rtt["max"] < ping["seconds"] * 1e9
    assert (pong["tool"], pong["received"], pong["sent"], pong["dropped"]) == ("c-xdp-pong", 200, 200, 0)


@c_tests
def test_pong_takes_a_flood(ends):
    """All chunks come back: it answers many times what its rings hold."""
    pong, sent = of(xdp_peers.c_pong(ends, lambda: xdp_peers.c_blast(ends, SECONDS)))
    assert sent["sent"] > 2 * RING
    assert accounted(pong, sent["sent"])
    assert pong["sent"] + pong["dropped"] == pong["received"]


@c_tests
def test_ping_without_an_answer(ends):
    report = xdp_peers.c_ping(ends, 0.3)
    assert report["count"] == 0
    assert report["lost"] >= 1


@c_tests
def test_another_queue(ends):
    """A packet sent on a queue of veth arrives on the same one, and a socket sees its own queue only."""
    received, _ = of(xdp_peers.c_count(ends, lambda: xdp_peers.c_blast(ends, 30, queue=1, count=100), queue=1))
    assert received["received"] == 100
    received, _ = of(xdp_peers.c_count(ends, lambda: xdp_peers.c_blast(ends, 30, queue=1, count=100), queue=0))
    assert received["received"] == 0


@c_tests
def test_frames_are_what_a_socket_takes(ends):
    with ends.far.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ends.address, PORT))
        sock.settimeout(5)
        assert xdp_peers.c_blast(ends, 30, count=50)["sent"] == 50
        for _ in range(50):
            assert sock.recvfrom(2000) == (bytes(64), (str(ends.near.interface.ipv4), xdp_peers.SOURCE_PORT))


@c_tests
def test_ping_to_a_kernel_socket(built):
    """On a link of one queue: the kernel chooses the queue that it answers on."""
    with lab.two_hosts(static_neighbors=True) as (near, far):
        ends = ends_of(near, far)
        pong = ends.receiver([str(C / "pingpong"), "--role", "pong", "--bind", ends.target, "--duration-ms", "20000"])
        assert xdp_peers.c_ping(ends, 30, count=50)["count"] == 50
        assert pong.stop()["count"] == 50


@c_tests
def test_a_kernel_socket_has_to_compute_its_checksum_for_pong(built):
    """Over veth it leaves that to a device that is not there; what comes back with such a checksum is dropped."""
    with lab.two_hosts(static_neighbors=True) as (near, far):
        ends = ends_of(near, far)
        ping = [str(C / "pingpong"), "--role", "ping", "--dest", ends.target, "--count", "5", "--timeout-ms", "50"]

        def report():
            return Tool(ping, spawn=near.popen).report(10)

        pong, ours = of(xdp_peers.c_pong(ends, report))
        assert (pong["sent"], ours["count"]) == (5, 0)
        near.interface.set_offloads({"tx": False})
        pong, ours = of(xdp_peers.c_pong(ends, report))
        assert (pong["sent"], ours["count"]) == (5, 5)


@c_tests
def test_the_program_goes_with_the_receiver(ends):
    """Ended by its time, by a signal, and within a second try: nothing stays on the device."""
    counter = [str(C / "xdp_count"), "--iface", ends.far.interface.name]
    for _ in range(3):
        tool = ends.receiver([*counter, "--duration-ms", "5000"])
        assert program_on(ends.far)
        tool.stop()
        assert not program_on(ends.far)
    ends.receiver([*counter, "--duration-ms", "50"]).report(5)
    assert not program_on(ends.far)


@c_tests
def test_a_sender_has_no_program(ends):
    tool = ends.sender([str(C / "xdp_blast"), *xdp_peers.xdp_options(ends.near, "native", 0, 64),
                        *xdp_peers.flow_options(ends), "--duration-ms", "300"])  # fmt: skip
    assert not program_on(ends.near)
    assert tool.report(5)["sent"] > 0


@c_tests
def test_what_the_device_lacks_is_a_reason(ends):
    tool = ends.far.popen(
        [str(C / "xdp_count"), "--iface", ends.far.interface.name, "--zerocopy"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, errors = tool.communicate(timeout=10)
    assert tool.returncode == 1
    assert "zero-copy" in errors
    reason = xdp_peers.c_blast(ends, SECONDS, queue=7)
    assert isinstance(reason, str)
    assert "queue 7" in reason


@c_tests
@pytest.mark.parametrize(
    ("program", "options", "complaint"),
    [
        ("xdp_count", [], "--iface is required"),
        ("xdp_count", ["--iface", "lo", "--ring-size", "100"], "power of two"),
        ("xdp_count", ["--iface", "lo", "--mode", "magic"], "native, generic"),
        ("xdp_pong", ["--iface", "lo"], "--bind is required"),
        ("xdp_pong", ["--iface", "lo", "--bind", "[::1]:9"], "only IPv4"),
        ("xdp_blast", ["--iface", "lo", "--batch", "1024", "--ring-size", "64"], "--ring-size"),
        ("xdp_blast", ["--iface", "lo", "--dest-mac", "02:00"], "no MAC address"),
        ("xdp_ping", ["--iface", "lo"], "--source is required"),
    ],
)
def test_bad_input_is_refused_in_a_line(built, program, options, complaint):
    done = run(str(C / program), *options)
    assert done.returncode == 2, done
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


@c_tests
@pytest.mark.parametrize("program", ["xdp_blast", "xdp_count", "xdp_ping", "xdp_pong"])
def test_help(built, program):
    done = run(str(C / program), "--help")
    assert done.returncode == 0
    assert "--iface" in done.stdout


@c_tests
def test_a_peer_that_fails_leaves_no_program(ends):
    def fails():
        raise ToolError("tool: went wrong")

    assert "went wrong" in xdp_peers.c_count(ends, fails)
    assert not program_on(ends.far)


# ---- what is not there ----


def test_a_program_that_is_absent_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(xdp_peers, "C", tmp_path)
    monkeypatch.setattr(xdp_peers.shutil, "which", lambda name: None)
    host = SimpleNamespace(interface=SimpleNamespace(name="lab0"))
    ends = SimpleNamespace(near=host, far=host)
    never = pytest.fail
    for result, package in (
        (xdp_peers.c_blast(ends, 1.0), "libxdp-dev"),
        (xdp_peers.c_count(ends, never), "libxdp-dev"),
        (xdp_peers.testpmd_txonly(ends, 1.0), "dpdk-dev"),
        (xdp_peers.testpmd_rxonly(ends, never), "dpdk-dev"),
        (xdp_peers.trafficgen_udp(ends, 1.0), "xdp-tools"),
        (xdp_peers.bench_drop(ends, never), "xdp-tools"),
        (xdp_peers.trafgen(ends, 1.0), "netsniff-ng"),
        (xdp_peers.scapy_blast(ends, 1.0, how="sendpfast"), "tcpreplay"),
    ):
        assert isinstance(result, str)
        assert package in result


def test_without_libxdp_the_others_are_built(tmp_path):
    for source in (*REFERENCE.glob("*.[ch]"), REFERENCE / "Makefile"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    make = ["make", "-C", str(tmp_path), "XDP_LIBS=-lno-such-library"]
    done = run(*make)
    assert done.returncode == 0, done.stderr
    assert "apt-get install libxdp-dev" in done.stdout
    assert {path.name for path in (tmp_path / "build").iterdir()} == {"blast", "count", "pingpong"}
    done = run(*make, "xdp")
    assert done.returncode == 2
    assert "apt-get install libxdp-dev" in done.stderr


# ---- other projects' programs ----


@needs_lab
@pytest.mark.skipif(not HAVE_LIBXDP, reason=NO_LIBXDP)
@pytest.mark.skipif(xdp_peers.testpmd_unavailable() is not None, reason=str(xdp_peers.testpmd_unavailable()))
class TestTestpmd:
    def test_txonly(self, ends):
        received, sent = of(xdp_peers.c_count(ends, lambda: xdp_peers.testpmd_txonly(ends, SECONDS)))
        assert 0 < sent["sent"] <= sent["total"]
        assert sent["seconds"] >= SECONDS
        # Frames to our address and port: the count has matched them.
        assert received["received"] > 0
        assert reached(received) >= sent["total"] - sent["dropped"]
        json.dumps(sent)

    def test_txonly_through_a_packet_socket(self, built):
        """In a lab of its own: it takes the device down at its end."""
        with lab.two_hosts(static_neighbors=True) as (near, far):
            ends = ends_of(near, far)
            received, sent = of(
                xdp_peers.c_count(ends, lambda: xdp_peers.testpmd_txonly(ends, SECONDS, packet_socket=True))
            )
        assert 0 < sent["sent"] <= sent["total"]
        assert received["received"] > 0

    def test_rxonly(self, ends):
        received, sent = of(xdp_peers.testpmd_rxonly(ends, lambda: xdp_peers.c_blast(ends, SECONDS)))
        assert received["received"] > 0
        # Strays (neighbour discovery) are among what it counts.
        assert received["received"] <= sent["sent"] + STRAYS
        assert received["cpu_seconds"] > 0
        json.dumps(received)


@needs_lab
@pytest.mark.skipif(not HAVE_LIBXDP, reason=NO_LIBXDP)
def test_trafficgen_runs_or_says_why_not(ends):
    result = xdp_peers.c_count(ends, lambda: xdp_peers.trafficgen_udp(ends, SECONDS))
    if isinstance(result, str):
        assert "xdp-trafficgen" in result
        pytest.skip(result)
    assert result["peer"]["sent"] > 0
    assert result["other"] > 0  # it sends IPv6


@needs_lab
@pytest.mark.skipif(not HAVE_LIBXDP, reason=NO_LIBXDP)
def test_bench_drop_runs_or_says_why_not(ends):
    result = xdp_peers.bench_drop(ends, lambda: xdp_peers.c_blast(ends, SECONDS, count=RING))
    if isinstance(result, str):
        assert "xdp-" in result
        pytest.skip(result)
    assert RING <= result["received"] <= RING + STRAYS


@needs_lab
@pytest.mark.skipif(not HAVE_LIBXDP, reason=NO_LIBXDP)
@pytest.mark.parametrize("how", ["trafgen", "sendp", "sendpfast"])
def test_senders_of_frames(built, how):
    """What they say they sent arrives; afterwards nothing of them runs on. One queue: the kernel chooses among more."""
    with lab.two_hosts(static_neighbors=True) as (near, far):
        senders_of_frames(ends_of(near, far), how)


def senders_of_frames(ends, how):

    def send():
        return xdp_peers.trafgen(ends, SECONDS) if how == "trafgen" else xdp_peers.scapy_blast(ends, SECONDS, how=how)

    result = xdp_peers.c_count(ends, send)
    if isinstance(result, str):
        assert "install" in result
        pytest.skip(result)
    received, sent = of(result)
    assert sent["sent"] > 0
    assert sent["pps"] == pytest.approx(sent["sent"] / sent["seconds"], rel=1e-3)
    warm_up = {"trafgen": 0, "sendp": 1, "sendpfast": 1000}[how]
    assert 0 <= reached(received) - sent["sent"] - warm_up <= STRAYS
    quiet = of(xdp_peers.c_count(ends, lambda: xdp_peers.c_blast(ends, SECONDS, count=1)))[0]
    assert reached(quiet) <= 1 + STRAYS
