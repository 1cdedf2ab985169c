"""examples/dns_responder.py: the compiled handler answers as the one in plain Python does, and as resolvers expect."""

import random
import socket
import sys

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fast_socket as fs
from benchmarks.processes import ROOT, Tool

pytest.importorskip("numba")

from examples import dns_responder

NAMES = {f"host{number}.example.com": bytes([10, 0, 0, number]) for number in range(20)} | {"a": bytes([192, 0, 2, 1])}
RECORDS = {dns_responder.wire_name(name): address for name, address in NAMES.items()}


@pytest.fixture(scope="module")
def ask():
    """Gives what both handlers answer to a query, None for nothing."""
    compiled, in_python = dns_responder.compiled(RECORDS), dns_responder.in_python(RECORDS)
    with fs.OsUdpSocket.bind("127.0.0.1:0") as near, fs.OsUdpSocket.bind("127.0.0.1:0") as far:
        out, rx, answers = near.tx_batch(1), far.recv_batch(1), far.tx_batch(1)

        def receive(query):
            out.append(query, far.local_address)
            near.send(out)
            assert far.driver.wait(5.0)
            far.recv(rx)

        def taken():
            found = bytes(answers[0]) if len(answers) else None
            answers.discard()
            return found

        def both(query):
            receive(query)
            rx.run(compiled, reflect=answers)
            first = taken()
            receive(query)
            in_python(rx, answers)
            return first, taken()

        yield both


def query(name, kind="A", **options):
    return dns.message.make_query(name, kind, **options).to_wire()


@pytest.mark.parametrize("name", [*NAMES, "HOST7.Example.COM"])
def test_known_names(ask, name):
    compiled, plain = ask(query(name))
    assert compiled == plain
    answer = dns.message.from_wire(compiled)
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.flags & dns.flags.AA
    (records,) = answer.answer
    assert [str(record) for record in records] == [socket.inet_ntoa(NAMES[name.lower()])]
    assert (str(records.name).rstrip("."), records.ttl) == (name, 60)


@pytest.mark.parametrize(
    ("name", "kind", "rcode"), [("host7.example.com", "AAAA", dns.rcode.NOERROR), ("nobody.", "A", dns.rcode.NXDOMAIN)]
)
def test_empty_answers(ask, name, kind, rcode):
    compiled, plain = ask(query(name, kind, use_edns=0))
    assert compiled == plain
    answer = dns.message.from_wire(compiled)
    assert (answer.rcode(), answer.answer) == (rcode, [])


@st.composite
def queries(draw):
    """Real ones with some bytes changed, cut or grown; and any bytes at all."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=600))
    found = bytearray(query(draw(st.sampled_from([*NAMES, "x.y.z", "host7.example.org"]))))
    for _ in range(draw(st.integers(0, 3))):
        found[draw(st.integers(0, len(found) - 1))] = draw(st.integers(0, 255))
    return bytes(found[: draw(st.integers(0, len(found)))] if draw(st.booleans()) else found)


@given(query=queries())
@example(query=query("a")[:-1])
@example(query=query("host7.example.com").replace(b"\x05host7", b"\x05\0ost7"))
@example(query=bytes(4) + b"\0\1" + bytes(6) + b"\x3f" + b"a" * 63 + b"\xc0\x0c\0\1\0\1")
def test_both_handlers_answer_alike(ask, query):
    """Whatever comes; and what they answer is a message of the same id."""
    compiled, plain = ask(query)
    assert compiled == plain
    if compiled is not None:
        assert compiled[:2] == query[:2]
        assert compiled[2] & 0x80


def test_frames_full_of_noise(ask):
    chance = random.Random(1)
    for _ in range(2000):
        head = query(chance.choice([*NAMES]))[:12]
        noise = head + chance.randbytes(chance.randrange(1400))
        compiled, plain = ask(noise)
        assert compiled == plain


@pytest.mark.parametrize("handler", ["compiled", "python"])
def test_it_answers_a_resolver(handler):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "dns_responder.py"), "--device", "lo", "--json"]
    command += ["--target", f"127.0.0.1:{port}", "--record", "www.example.com=192.0.2.80", "--handler", handler]
    tool = Tool([*command, "--duration-ms", "60000"]).wait_ready()
    try:
        for _ in range(3):
            answer = dns.query.udp(dns.message.make_query("www.example.com", "A"), "127.0.0.1", port=port, timeout=10.0)
            assert str(answer.answer[0][0]) == "192.0.2.80"
    finally:
        report = tool.stop()
    assert (report["received"], report["sent"], report["errors"], report["malformed"]) == (3, 3, 0, 0)


@pytest.mark.parametrize(
    "record", ["www", "www=", "www=2001:db8::1", "=192.0.2.1", "a..b=192.0.2.1", "a" * 64 + "=1.2.3.4"]
)
def test_bad_records(record):
    command = [sys.executable, str(ROOT / "examples" / "dns_responder.py"), "--device", "lo", "--target", "127.0.0.1:0"]
    tool = Tool([*command, "--record", record, "--count", "1"])
    assert tool.wait(20.0)
    with pytest.raises(fs.Error, match="status 2"):
        tool.output(1.0)
    assert any("domain name" in line or "NAME=IPv4" in line for line in tool.lines), tool.lines
