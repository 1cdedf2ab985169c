"""Senders, listeners, ping and the examples over loopback, with tiny counts."""

import json
import os
import shlex
import signal
import socket
import subprocess

import pytest

from fast_socket.lab import two_hosts, why_unavailable
from tests.tools.conftest import (
    BENCHMARKS,
    BLAST,
    CUSTOM_ROUTER,
    PONG_SERVER,
    PYTHON,
    ROOT,
    SECONDS,
    end,
    last_json,
    report_of,
    run,
    wait_ready,
)

UNAVAILABLE = why_unavailable()

LISTENER = [*BENCHMARKS, "os-listener"]
SENDER = [*BENCHMARKS, "os-sender", "blast"]
PING = [*BENCHMARKS, "os-ping"]
REFERENCE = ROOT / "benchmarks" / "reference"
PATIENT = ["--timeout-ms", "5000"]  # a machine with much else to do answers late
BUFFER = ["--recv-buffer", "4000000"]


@pytest.mark.parametrize("count", [1, 127, 128, 1000, 3001])
@pytest.mark.parametrize("offload", ["--gso", "--no-gso"])
def test_blast_sends_exactly_count(start, target, count, offload):
    listener = start(*LISTENER, "count", "--bind", target, "--count", str(count), *BUFFER, "--json")
    wait_ready(listener)
    report = report_of(*BLAST, "--device", "lo", "--target", target, "--count", str(count), offload)
    assert (report["tool"], report["mode"], report["sent"], report["errors"]) == ("blast", "os", count, 0)
    assert report["seconds"] > 0
    assert report["pps"] > 0
    received = end(listener, None)
    assert (received["received"], received["dropped"], received["lost"]) == (count, 0, None if count > 1 else 0)


def test_blast_with_large_payloads(start, target):
    """More than a large send may carry, and more than the device takes at once."""
    listener = start(*LISTENER, "count", "--bind", target, "--no-sequence", *BUFFER, "--json")
    wait_ready(listener)
    for payload in ("1400", "9000"):
        sent = report_of(
            *BLAST, "--device", "lo", "--target", target, "--payload-len", payload, "--count", "50", "--batch", "1000"
        )
        assert sent["sent"] == 50
    assert end(listener)["received"] == 100


@pytest.mark.parametrize("offload", ["gso", "no-gso"])
def test_numbered_threads_arrive_whole(start, target, offload):
    listener = start(*LISTENER, "count", "--bind", target, *BUFFER, "--json")
    wait_ready(listener)
    sent = report_of(*SENDER, "--dest", target, "--threads", "3", "--count", "1001", f"--{offload}")
    assert (sent["tool"], sent["mode"], sent["sent"], sent["errors"]) == ("os-sender", "blast", 1001, 0)
    received = end(listener)
    assert (received["tool"], received["mode"]) == ("os-listener", "count")
    assert (received["received"], received["dropped"], received["lost"], received["reordered"]) == (1001, 0, 0, 0)


def test_sender_sends_given_bytes(target):
    host, port = target.split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, int(port)))
        sock.settimeout(SECONDS)
        sent = report_of(*SENDER, "--dest", target, "--payload-hex", "00 ff 10", "--count", "5")
        assert (sent["sent"], sent["payload_len"], sent["sequence"]) == (5, 3, False)
        assert [sock.recv(100) for _ in range(5)] == [b"\x00\xff\x10"] * 5


@pytest.mark.parametrize("payload", ["", "0", "xy"])
def test_sender_refuses_what_is_not_hex(target, payload):
    done = run(*SENDER, "--dest", target, "--payload-hex", payload)
    assert done.returncode == 2
    assert "--payload-hex" in done.stderr


def test_listener_takes_exactly_count_without_gro(start, target):
    listener = start(*LISTENER, "count", "--bind", target, "--no-gro", "--count", "300", *BUFFER, "--json")
    wait_ready(listener)
    report_of(*SENDER, "--dest", target, "--count", "333", "--no-gso")
    assert end(listener, None)["received"] == 300


def test_the_kernel_counts_a_coalesced_buffer_as_one_drop(start, target):
    """So that the drops do not add up to what is missing: only the numbers tell, up to the last one that arrived."""
    listener = start(*LISTENER, "count", "--bind", target, "--recv-buffer", "40000", "--json")
    wait_ready(listener)
    listener.send_signal(signal.SIGSTOP)
    sent = report_of(*SENDER, "--dest", target, "--count", "128000")["sent"]
    listener.send_signal(signal.SIGCONT)
    report = end(listener)
    assert 0 < report["dropped"] < sent - report["received"]
    assert (report["lost"] or 0) <= sent - report["received"]


def assert_histogram(report):
    """Each bucket's least value is the value with all but its four leading bits zero."""
    buckets = [bucket for bucket, _ in report["rtt_histogram"]]
    assert buckets == sorted(set(buckets))
    assert sum(count for _, count in report["rtt_histogram"]) == report["count"]
    for place, value in ((0, report["rtt_ns"]["min"]), (-1, report["rtt_ns"]["max"])):
        assert bin(buckets[place])[2:].rstrip("0") == bin(value)[2:6].rstrip("0")
        assert buckets[place].bit_length() == value.bit_length()


@pytest.mark.parametrize("wait", ["poll", "spin"])
def test_the_references_ping_alike(start, target, wait):
    pong = start(PYTHON, str(REFERENCE / "plain_socket.py"), "pong", "--bind", target, "--wait", wait)
    wait_ready(pong)
    made = subprocess.run(["make", "--quiet", "-C", REFERENCE], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("the C loops cannot be built here")
    plain = [PYTHON, str(REFERENCE / "plain_socket.py"), "ping"]
    for ping in (plain, [str(REFERENCE / "build" / "pingpong"), "--role", "ping"]):
        done = run(*ping, "--dest", target, "--count", "20", "--wait", wait, *PATIENT)
        assert_histogram(last_json(done.stdout))


@pytest.mark.parametrize("wait", ["poll", "spin"])
def test_ping_and_pong(start, target, wait):
    pong = start(*LISTENER, "pong", "--bind", target, "--wait", wait, "--json")
    wait_ready(pong)
    report = report_of(*PING, "--dest", target, "--count", "50", "--wait", wait, *PATIENT)
    assert (report["count"], report["lost"], report["errors"]) == (50, 0, 0)
    rtt = report["rtt_ns"]
    assert 0 < rtt["min"] <= rtt["p50"] <= rtt["p90"] <= rtt["p99"] <= rtt["max"]
    assert_histogram(report)
    reflected = end(pong)
    assert (reflected["mode"], reflected["received"], reflected["sent"]) == ("pong", 50, 50)


def test_ping_without_an_answer(target):
    report = report_of(*PING, "--dest", target, "--count", "3", "--timeout-ms", "10")
    assert (report["count"], report["lost"]) == (0, 3)


@pytest.mark.parametrize("offload", ["--gro", "--no-gro"])
def test_pong_server(start, target, offload):
    server = start(*PONG_SERVER, "--device", "lo", "--target", target, "--json", offload)
    wait_ready(server)
    assert report_of(*PING, "--dest", target, "--count", "20")["count"] == 20
    blasted = report_of(*BLAST, "--device", "lo", "--target", target, "--count", "100")
    report = end(server)
    assert report["received"] == 20 + blasted["sent"]
    assert (report["sent"], report["dropped"], report["errors"]) == (report["received"], 0, 0)


def test_pong_server_ends_by_count(start, target):
    server = start(*PONG_SERVER, "--device", "lo", "--target", target, "--count", "5", "--json")
    wait_ready(server)
    report_of(*PING, "--dest", target, "--count", "5")
    assert end(server, None)["sent"] == 5


def test_one_socket_for_each_queue(start, target):
    listener = start(*LISTENER, "count", "--bind", target, "--reuse-port", "--incoming-cpu", "lo", "--json")
    wait_ready(listener)
    report_of(*SENDER, "--dest", target, "--count", "100")
    assert end(listener)["received"] == 100


def test_ipv6(start):
    listener = start(*LISTENER, "count", "--bind", "[::1]:9797", "--json")
    wait_ready(listener)
    report_of(*SENDER, "--dest", "[::1]:9797", "--count", "200", "--threads", "2")
    report = end(listener)
    assert (report["received"], report["lost"]) == (200, 0)


@pytest.mark.parametrize(
    "argv",
    [
        [*SENDER, "--dest", "127.0.0.1:9"],
        [*BLAST, "--device", "lo", "--target", "127.0.0.1:9"],
        [*PING, "--dest", "127.0.0.1:9"],
    ],
)
def test_duration(argv):
    report = report_of(*argv, "--duration-ms", "100")
    assert report["seconds"] > 0.05


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "argv",
    [
        [*LISTENER, "count", "--bind", "{}"],
        [*LISTENER, "pong", "--bind", "{}"],
        [*LISTENER, "pong", "--bind", "{}", "--wait", "spin"],
        [*PONG_SERVER, "--device", "lo", "--target", "{}"],
    ],
)
def test_a_signal_ends_a_listener_with_its_report(start, target, argv, number):
    tool = start(*(part.format(target) for part in argv), "--json")
    wait_ready(tool)
    assert end(tool, number)["received"] == 0


@pytest.mark.parametrize(
    "argv",
    [
        [*SENDER, "--dest", "127.0.0.1:9", "--threads", "2"],
        [*BLAST, "--device", "lo", "--target", "127.0.0.1:9"],
    ],
)
def test_a_signal_ends_a_sender_with_its_report(start, argv):
    tool = start(*argv, "--duration-ms", "60000", "--json", "--progress")
    assert "progress" in json.loads(tool.stdout.readline())  # it sends
    assert end(tool)["sent"] > 0


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([*SENDER, "--dest", "nowhere"], "nowhere"),
        ([*SENDER, "--dest", "127.0.0.1:70000"], "70000"),
        ([*SENDER, "--dest", "127.0.0.1:9", "--threads", "0"], "--threads"),
        ([*SENDER, "--dest", "127.0.0.1:9", "--payload-len", "4"], "--payload-len"),
        ([*SENDER, "--dest", "127.0.0.1:9", "--cpu", "4000"], "4000"),
        ([*SENDER], "--dest"),
        ([*LISTENER, "count", "--bind", "127.0.0.1"], "127.0.0.1"),
        ([*LISTENER, "count", "--bind", "127.0.0.1:9797", "--incoming-cpu", "no-such-device"], "no-such-device"),
        ([*LISTENER, "count", "--bind", "127.0.0.1:9797", "--count", "0"], "--count"),
        ([*PING, "--dest", "127.0.0.1:0"], "port 0"),
        ([*BLAST, "--device", "no-such-device", "--target", "127.0.0.1:9"], "no-such-device"),
        ([*BLAST, "--device", "lo", "--target", "127.0.0.1:9", "--payload-len", "65508"], "--payload-len"),
        ([*PONG_SERVER, "--device", "no-such-device", "--target", "127.0.0.1:9"], "no-such-device"),
        ([*BENCHMARKS, "bench", "--only", "no-such-figure"], "no-such-figure"),
    ],
)
def test_bad_input_is_refused_in_a_line(argv, complaint):
    done = run(*argv)
    assert done.returncode == 2, done
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("tool", [BLAST, PONG_SERVER, [*BENCHMARKS, "xdp-count"]])
def test_xdp_on_a_device_that_is_not_there(tool):
    mode = ["--bind", "192.0.2.1:9"] if "xdp-count" in tool else ["--target", "192.0.2.1:9", "--mode", "xdp"]
    done = run(*tool, "--device", "nosuch0", *mode)
    assert done.returncode == 2, done
    assert "nosuch0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_xdp_tools_over_a_lab():
    """All that is sent arrives or is reported; what goes to the pong server comes back; a router of one's own."""
    with two_hosts(static_neighbors=True) as (near, far):
        target = f"{far.interface.ipv4}:9000"

        def tool(host, argv):
            return host.popen([*argv, "--json"], stdout=subprocess.PIPE, text=True, cwd=ROOT)

        def report(process):
            output, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, output
            return json.loads(output.splitlines()[-1])

        blast = [*BLAST, "--device", near.interface.name, "--target", target, "--mode", "xdp", "--count", "5000"]
        with tool(far, [*BENCHMARKS, "xdp-count", "--device", far.interface.name, "--bind", target,
                        "--duration-ms", "4000", "--wait", "poll"]) as counting:  # fmt: skip
            assert counting.stdout.readline() == "ready\n"
            sent = report(tool(near, blast))
            assert (sent["sent"], sent["errors"], sent["completions"]) == (5000, 0, 5000)
            counted = report(counting)
        assert counted["received"] + counted["dropped"] == 5000
        with tool(far, [*PONG_SERVER, "--device", far.interface.name, "--target", "0.0.0.0:9000", "--mode", "xdp",
                        "--duration-ms", "4000"]) as server:  # fmt: skip
            assert server.stdout.readline() == "ready\n"
            pings = report(tool(near, [*BENCHMARKS, "os-ping", "--dest", target, "--count", "50", *PATIENT]))
            assert (pings["count"], pings["lost"]) == (50, 0)
            pings = report(tool(near, [*BENCHMARKS, "xdp-ping", "--device", near.interface.name, "--dest", target,
                                       "--count", "50", *PATIENT]))  # fmt: skip
            assert (pings["count"], pings["lost"]) == (50, 0)
            served = report(server)
        assert served["received"] == served["sent"] == 100
        one = report(tool(near, [*CUSTOM_ROUTER, "--device", near.interface.name, "--target", target, "--mac",
                                 "02:00:00:00:00:99", "--count", "1"]))  # fmt: skip
        assert one["sent"] == 1


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
@pytest.mark.parametrize(("queues", "family"), [(1, "ipv4"), (4, "ipv6")])
def test_xdp_tools_over_every_queue(queues, family):
    """All that is sent through any queue is counted or reported as dropped; what the kernel sends comes back."""
    with two_hosts(queues=queues) as (near, far):
        bracket = "[{}]" if family == "ipv6" else "{}"
        target = f"{bracket.format(getattr(far.interface, family))}:9000"
        local = f"{bracket.format(getattr(near.interface, family))}:7000"

        def tool(host, *argv):
            return host.popen([*BENCHMARKS, *argv, "--json"], stdout=subprocess.PIPE, text=True, cwd=ROOT)

        def report(process):
            output, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, output
            return json.loads(output.splitlines()[-1])

        listener = ["xdp-listener", "count", "--iface", far.interface.name, "--bind", target]
        sender = ["xdp-sender", "blast", "--iface", near.interface.name, "--local", local, "--dest", target]
        with tool(far, *listener) as counting:
            assert counting.stdout.readline() == "ready\n"
            sent = report(tool(near, *sender, "--all-queues", "--count", "10001"))
            assert (sent["sent"], sent["completions"], sent["errors"], sent["unfinished"]) == (10001, 10001, 0, 0)
            assert sent["source_ports"] == [7000 + queue for queue in range(queues)]
            shares = [10001 // queues + (queue < 10001 % queues) for queue in range(queues)]
            assert [sent["by_queue"][str(queue)] for queue in range(queues)] == shares
            counting.send_signal(signal.SIGINT)
            counted = report(counting)
        assert counted["received"] + counted["dropped"] == 10001
        assert (counted["reordered"], counted["other"]) == (0, 0)
        assert sum(counted["by_queue"].values()) == counted["received"]
        assert counted["workers"] == sent["workers"] == min(queues, len(os.sched_getaffinity(0)))
        with tool(far, "xdp-listener", "pong", *listener[2:], "--progress") as server:
            assert server.stdout.readline() == "ready\n"
            # An answer to a host whose MAC address is not known yet is refused, and has it asked for.
            tries = [report(tool(near, "os-ping", "--dest", target, "--count", "1", *PATIENT))]
            while tries[-1]["lost"] and len(tries) < 10:
                tries.append(report(tool(near, "os-ping", "--dest", target, "--count", "1", *PATIENT)))
            for payload in ("64", "8", "1433"):
                ping = ["os-ping", "--dest", target, "--count", "20", "--payload-len", payload, *PATIENT]
                pings = report(tool(near, *ping))
                assert (pings["count"], pings["lost"]) == (20, 0)
            server.send_signal(signal.SIGTERM)
            served = report(server)
        assert (served["received"], served["sent"] + served["errors"], served["other"]) == (60 + len(tries),) * 2 + (0,)
        assert served["errors"] < len(tries)
        one = report(tool(near, *sender, "--queue", str(queues - 1), "--duration-ms", "50", "--no-sequence"))
        assert list(one["by_queue"]) == [str(queues - 1)]
        assert one["sent"] == one["completions"] > 0
        for argv, status, complaint in (
            ([*sender, "--queue", str(queues)], 2, f"from 0 to {queues - 1}"),
            ([*sender, "--payload-len", "4"], 2, "--no-sequence"),
            ([*sender, "--dest", "198.51.100.1:9"], 2 if family == "ipv6" else 1, ""),
            (["xdp-listener", "count", "--iface", "lo0", "--bind", target], 2, "lo0"),
            (["xdp-listener", "count", "--iface", far.interface.name, "--bind", "nowhere"], 2, "nowhere"),
        ):
            refused = far if argv[0] == "xdp-listener" else near
            process = refused.popen([*BENCHMARKS, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                    cwd=ROOT)  # fmt: skip
            output = process.communicate(timeout=SECONDS)[0]
            assert (process.returncode, "Traceback" in output) == (status, False), output
            assert complaint in output


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
@pytest.mark.parametrize("tool", ["xdp-listener", "pong_server"])
def test_a_sender_that_nobody_knows_does_not_hold_up_the_others(tool):
    """One packet from a made-up neighbour: its answer waits for ARP, and nobody else's does."""
    with two_hosts() as (near, far):
        device, target = far.interface.name, f"{far.interface.ipv4}:9000"
        argv = [*BENCHMARKS, "xdp-listener", "pong", "--iface", device, "--bind", target]
        if tool == "pong_server":
            argv = [*PONG_SERVER, "--device", device, "--target", target, "--mode", "xdp"]

        def pretend():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
                sock.bind((str(near.interface.ipv4 + 40), 7000))
                for _ in range(5):
                    sock.sendto(b"answer me", (str(far.interface.ipv4), 9000))

        with far.popen([*argv, "--json"], stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
            assert server.stdout.readline() == "ready\n"
            near.run(pretend)
            ping = near.popen([*BENCHMARKS, "os-ping", "--dest", target, "--count", "20", *PATIENT, "--json"],
                              stdout=subprocess.PIPE, text=True, cwd=ROOT)  # fmt: skip
            pings = last_json(ping.communicate(timeout=SECONDS)[0])
            server.send_signal(signal.SIGINT)
            served = last_json(server.communicate(timeout=SECONDS)[0])
        assert pings["count"] >= 19
        assert served["errors"] == 5


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_the_commands_that_the_readme_shows():
    """As they stand there, with the lab's device and addresses; listeners are ended when their senders are done."""
    block = (ROOT / "README.md").read_text().partition("## Eight tools")[2].partition("```console\n")[2]
    groups = [group.splitlines() for group in block.partition("```")[0].split("\n\n")]
    assert sum(len(group) for group in groups) == 8
    with two_hosts(queues=2) as (near, far):

        def start(host, command):
            text = command.replace("eth0", host.interface.name).replace("192.0.2.10:", f"{far.interface.ipv4}:")
            argv = shlex.split(text.replace("192.0.2.1:", f"{near.interface.ipv4}:").replace("3000", "300"))
            return host.popen([PYTHON, *argv[1:], "--json"], stdout=subprocess.PIPE, text=True, cwd=ROOT)

        def report(process, command):
            output = process.communicate(timeout=SECONDS)[0]
            assert process.returncode == 0, (command, output)
            return json.loads(output.splitlines()[-1])

        tools = set()
        for listen, *others in groups:
            with start(far, listen) as listener:
                assert listener.stdout.readline() == "ready\n"
                for command in others:
                    talked = report(start(near, command), command)
                    assert talked.get("sent", talked.get("count")) > 0
                    tools.add(talked["tool"])
                listener.send_signal(signal.SIGINT)
                heard = report(listener, listen)
                assert heard["received"] > 0
                tools.add(heard["tool"])
        assert len(tools) == 8


def test_what_the_system_refuses(start, target):
    """A port that is taken: not the command line's fault."""
    wait_ready(start(*LISTENER, "count", "--bind", target, "--json"))
    done = run(*LISTENER, "count", "--bind", target)
    assert done.returncode == 1
    assert target in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        BLAST,
        PONG_SERVER,
        CUSTOM_ROUTER,
        BENCHMARKS,
        *(
            [*BENCHMARKS, name]
            for name in (
                "os-listener",
                "os-sender",
                "os-ping",
                "xdp-listener",
                "xdp-sender",
                "xdp-count",
                "xdp-pong",
                "xdp-ping",
                "demo",
                "bench",
            )
        ),
        [*LISTENER, "count"],
        [*LISTENER, "pong"],
        SENDER,
        [*BENCHMARKS, "gates"],
    ],
)
def test_help(argv):
    done = run(*argv, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_a_report_for_people(target):
    done = run(*BLAST, "--device", "lo", "--target", target, "--count", "1234")
    assert done.returncode == 0
    assert "1,234" in done.stdout
    with pytest.raises(json.JSONDecodeError):
        last_json(done.stdout)


@pytest.mark.parametrize("policy", ["spin", "busy-poll", "poll", "gather-20us", "busy-gather-20us", "gather-100us"])
def test_waiting_counts_receives(start, target, policy):
    receiver = start(*BENCHMARKS, "waiting", "--bind", target, "--policy", policy, "--count", "1000", "--json")
    wait_ready(receiver)
    assert report_of(*SENDER, "--dest", target, "--count", "1000", "--no-gso", "--batch", "10")["sent"] == 1000
    report = end(receiver, None)
    assert (report["mode"], report["received"], report["dropped"]) == (policy, 1000, 0)
    assert 1000 / 64 <= report["receives"] <= 1000
    assert report["mean_batch"] == pytest.approx(1000 / report["receives"], abs=0.01)
    assert report["cpu_ns"] > 0


def test_waiting_for_nothing(target):
    report = report_of(*BENCHMARKS, "waiting", "--bind", target, "--duration-ms", "10")
    assert (report["received"], report["receives"], report["mean_batch"], report["cpu_ns"]) == (0, 0, 0.0, 0.0)


def test_api_shapes():
    """Every shape is timed, at each batch size."""
    report = report_of(*BENCHMARKS, "api-shapes", "--rounds", "3")
    times = report["ns_per_packet"]
    assert {"objects: packet.u8(0)", "handler by numba: rx.run", "DNS answer, python handler"} <= times.keys()
    for name, by_size in times.items():
        assert set(by_size) == {"64", "256"}
        assert all(value is None or value > 0 for value in by_size.values()), name
        assert all(value is not None for value in by_size.values()) or "numba" in name or "handler" in name
