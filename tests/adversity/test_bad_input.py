"""Bad input: an error of the right class that names the value and what is accepted, and nothing changed."""

import gc
import socket

import numpy as np
import pytest

import fast_socket as fs
from fast_socket.os.options import CheckedOptions


@pytest.fixture
def sock():
    with fs.OsUdpSocket.bind("127.0.0.1:0") as sock:
        yield sock
        gc.collect()  # exceptions that a test looked at keep what was in sight
        assert sock.pool.tx_available == sock.pool.tx_frames


# Opening

BAD_ADDRESSES = [
    "nonsense",
    "",
    ":",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:-1",
    "127.0.0.1:65536",
    "127.0.0.1:5x",
    "256.0.0.1:5",
    "::1:5",
    "[::1]",
    "[::g]:5",
    "localhost:5",
    "127.0.0.1\0:5",
    ("127.0.0.1", -1),
    ("127.0.0.1", 65_536),
    ("127.0.0.1", 10**30),
    ("127.0.0.1", "5"),
    ("127.0.0.1", 5.0),
    ("127.0.0.1", True),
    ("127.0.0.1", None),
    ("127.0.0.1",),
    ("127.0.0.1", 5, 0),
    ("127.0.0.1\0.example.org", 5),
    ("fe80::1%nosuchif0", 5),
    ("fe80::1%lo\0", 5),
    ("", 5),
    ("\ud800", 5),
    (None, 5),
    (b"127.0.0.1", 5),
    None,
    5,
    b"127.0.0.1:5",
    ...,
    {},
]


def parts(address):
    """What a message may quote: the address, its host, or the host without brackets."""
    host = address[0] if isinstance(address, tuple) else str(address).rpartition(":")[0]
    return address, host, str(host).strip("[]"), str(host).partition("%")[2]


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=ascii)
def test_bad_addresses(address, sock):
    tx = sock.tx_batch(2)
    tx.append(b"x", ("127.0.0.1", 9))
    uses = {
        "bind": lambda: fs.OsUdpSocket.bind(address),
        "connect": lambda: fs.OsUdpSocket.connect(address),
        "parse_address": lambda: fs.parse_address(address),
        "spec": lambda: fs.UdpEndpointSpec(remote=address),
        "set_destinations": lambda: tx.set_destinations(address),
        "packet": lambda: setattr(tx[0], "address", address),
    }
    if address is not None:  # None says "no destination" to these two
        uses["append"] = lambda: tx.append(b"x", address)
        uses["local"] = lambda: fs.OsUdpSocket.connect("127.0.0.1:9", local=address)
    for name, use in uses.items():
        with pytest.raises(fs.ConfigError) as caught:
            pytest.fail(f"{name} took it: {use()!r}")
        assert any(repr(part) in str(caught.value) for part in parts(address)), name
    assert len(tx) == 1
    assert tx[0].address == ("127.0.0.1", 9)


def test_ridiculously_long_port():
    with pytest.raises(fs.ConfigError):
        fs.parse_address("127.0.0.1:" + "9" * 5000)


def test_wrong_family(sock):
    tx = sock.tx_batch(2)
    with pytest.raises(fs.ConfigError, match=r"::1.*IPv6.*IPv4"):
        tx.append(b"x", ("::1", 9))
    with pytest.raises(fs.ConfigError, match="IPv6"):
        sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="[::1]:9"))
    with pytest.raises(fs.ConfigError, match="IPv6"):
        sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="127.0.0.1:9", source="::1"))
    with pytest.raises(fs.ConfigError, match="one family"):
        fs.OsUdpSocket.connect("127.0.0.1:9", local="[::1]:0")
    with fs.OsUdpSocket.bind("[::1]:0") as v6:
        endpoint = v6.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="[::1]:9"))
        tx.append(b"x")
        with pytest.raises(fs.ConfigError, match="family"):
            sock.send_to(endpoint, tx)
        assert len(tx) == 1
        tx.discard()


def test_addresses_that_cannot_be_bound(sock):
    with pytest.raises(fs.Error, match=r"192\.0\.2\.1.*not an address of this host"):
        fs.OsUdpSocket.bind("192.0.2.1:0")
    port = sock.local_address[1]
    with pytest.raises(fs.Error, match="reuse_port"):
        fs.OsUdpSocket.bind(("127.0.0.1", port))
    with pytest.raises(fs.ConfigError, match="port 0"):
        fs.OsUdpSocket.connect("127.0.0.1:0")


@pytest.mark.parametrize("name", ["device", "multicast_interface"])
def test_unknown_interface(name):
    with pytest.raises(fs.Error, match="nosuchif0"):
        fs.OsUdpSocket.bind("127.0.0.1:0", **{name: "nosuchif0"})


def test_unknown_device_lists_what_there_is():
    with pytest.raises(fs.ConfigError, match=r"nosuchif0.*lo"):
        fs.device_queue_affinity("nosuchif0")


def test_unknown_option():
    with pytest.raises(fs.ConfigError, match=r"'recv_bufer'.*recv_buffer"):
        fs.OsUdpSocket.bind("127.0.0.1:0", recv_bufer=1)


NUMBERS = {
    "gso_size": (-1, 65_536, 1.5, "x"),
    "rx_frames": (-1, 2**25, 1.5, "x"),
    "tx_frames": (-1, 2**25, 1.5, "x"),
    "huge_pages": ("x", 1),
    "min_batch": (0, -1, 2**21, "x", None),
    "max_wait": (-1, 2, float("nan"), "x", None),
    "incoming_cpu": (-1, 2**17, "x"),
    "recv_buffer": (0, -1, 2**31, "x"),
    "send_buffer": (0, -1, 2**31, "x"),
    "ttl": (0, 256, "x"),
    "multicast_ttl": (-1, 256, "x"),
    "tos": (-1, 256, "x"),
    "busy_poll": (-1, 2**31, "x"),
    "busy_poll_budget": (0, 2**16, "x"),
    "metadata": (None, 5, "ECN"),
    "pool": (5, "x"),
    "rx_layout": (2048, "x"),
    "tx_layout": (2048, "x"),
    "path_mtu": ("do", 2),
    "driver": (None, "wait", int, []),
    "pacing_clock": ("wall", None, 1),
    "icmp_errors": ("ignore", None, True),
    "device": (5, b"lo"),
    "multicast_interface": (5, b"lo"),
    **{
        name: ("yes", 2.5, [], object())
        for name in ("gso", "gro", "reuse_port", "reuse_address", "broadcast", "prefer_busy_poll", "report_enobufs",
                     "batch_calls", "v6only", "multicast_loop")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_bad_options(name):
    for value in NUMBERS[name]:
        with pytest.raises(fs.ConfigError) as caught:
            pytest.fail(f"took {value!r}: {fs.OsUdpSocket.bind('127.0.0.1:0', **{name: value})!r}")
        assert name in str(caught.value)
        assert repr(value) in str(caught.value)


def test_every_option_is_tried():
    """A new option needs a row of bad values above."""
    assert set(CheckedOptions.__dataclass_fields__) == set(NUMBERS)


def test_options_that_exclude_each_other(sock):
    for options, why in (
        ({"pool": sock.pool, "rx_frames": 4}, "pool is given"),
        ({"batch_calls": False, "gro": True}, "gro=True"),
        ({"batch_calls": False, "gso_size": 64}, "batch_calls=True"),
        ({"gso": False, "gso_size": 64}, "gso=True"),
        ({"metadata": fs.Metadata.TXTIME | fs.Metadata.TIMESTAMP}, "TXTIME"),
    ):
        with pytest.raises(fs.ConfigError, match=why):
            fs.OsUdpSocket.bind("127.0.0.1:0", **options)
    for metadata in (fs.Metadata.CHECKSUM, fs.Metadata.VLAN):
        with pytest.raises(fs.CapabilityError, match="AF_XDP"):
            fs.OsUdpSocket.bind("127.0.0.1:0", metadata=metadata)


def test_from_socket_refuses():
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    for given, options, why in (
        (tcp, {}, "UDP socket"),
        (unix, {}, "UDP socket"),
        (closed, {}, "closed"),
        (5, {}, "give a socket.socket"),
        (None, {}, "give a socket.socket"),
        (bound, {"reuse_port": True}, "take effect at bind"),
        (bound, {"v6only": False}, "take effect at bind"),
        (bound, {"ttl": 0}, "ttl is 0"),
        (bound, {"multicast_interface": "nosuchif0"}, "nosuchif0"),
    ):
        with pytest.raises(fs.ConfigError, match=why):
            fs.OsUdpSocket.from_socket(given, **options)
    assert bound.getsockname()[1] > 0, "after an error the socket is still its owner's"
    for made in (tcp, unix, bound):
        made.close()


# Batches


@pytest.mark.parametrize("capacity", [0, -1, 2**20 + 1, 10**30, 1.0, "4", None, True])
def test_bad_capacity(sock, capacity):
    for make in (sock.recv_batch, sock.tx_batch):
        with pytest.raises(fs.ConfigError, match=r"from 1 to 1048576") as caught:
            make(capacity)
        assert repr(capacity) in str(caught.value)


def test_largest_capacity(sock):
    """Allowed, and only paid for where it is used."""
    tx = sock.tx_batch(2**20)
    assert tx.allocate() == sock.pool.tx_frames
    assert tx.room == 2**20 - sock.pool.tx_frames


def test_batches_of_another_socket(sock):
    with (
        fs.OsUdpSocket.bind("127.0.0.1:0") as other,
        fs.OsUdpSocket.bind("[::1]:0", pool=sock.pool) as v6,
        fs.OsUdpSocket.bind("127.0.0.1:0", pool=sock.pool, metadata=fs.Metadata.ECN) as richer,
    ):
        for stranger in (other, v6, richer):
            rx, tx = stranger.recv_batch(2), stranger.tx_batch(2)
            tx.allocate(1)
            with pytest.raises(fs.ConfigError, match=r"another socket.*recv_batch"):
                sock.recv(rx)
            with pytest.raises(fs.ConfigError, match=r"another socket.*tx_batch"):
                sock.send(tx)
            assert len(tx) == 1
        rx, tx = v6.recv_batch(2), sock.tx_batch(2)
        with pytest.raises(fs.ConfigError, match=r"IPv4.*IPv6"):
            tx.take_from(rx)


@pytest.mark.parametrize("thing", [None, 5, b"x", [], object()])
def test_things_that_are_no_batches(sock, thing):
    tx = sock.tx_batch(1)
    for call in (sock.recv, sock.send, tx.take_from, lambda thing: sock.send_to(thing, tx)):
        with pytest.raises(TypeError):
            call(thing)
    with pytest.raises(TypeError):
        sock.recv(tx)
    with pytest.raises(TypeError):
        sock.send(sock.recv_batch(1))
    with pytest.raises(fs.ConfigError, match="UdpEndpointSpec"):
        sock.prepare_udp_endpoint(thing)


def test_oversize_datagram():
    """Larger than UDP can carry: refused where it stands, and its neighbours go."""
    layout = fs.BufferLayout(payload_capacity=70_000)
    with fs.OsUdpSocket.bind("127.0.0.1:0", rx_layout=layout, tx_layout=layout, rx_frames=8, tx_frames=8) as sock:
        tx, rx = sock.tx_batch(3), sock.recv_batch(3)
        for size in (10, 65_508, 20):
            tx.append(b"x" * size, sock.local_address)
        with pytest.raises(fs.SendError, match=r"65508 bytes.*65,507") as caught:
            sock.send(tx)
        assert caught.value.accepted == 1
        tx.discard(1)
        assert sock.send(tx) == 1
        tx.append(b"y" * 65_507, sock.local_address)
        assert sock.send(tx) == 1
        sock.recv(rx)
        assert rx.lengths.tolist() == [10, 20, 65_507]


def test_no_destination(sock):
    tx = sock.tx_batch(2)
    tx.append(b"x")
    with pytest.raises(fs.SendError, match=r"no destination.*not connected") as caught:
        sock.send(tx)
    assert caught.value.accepted == 0
    assert len(tx) == 1
    tx.discard()


def test_broadcast_needs_the_option(sock):
    tx = sock.tx_batch(1)
    tx.append(b"x", ("255.255.255.255", 9))
    with pytest.raises(fs.SendError, match=r"255\.255\.255\.255"):
        sock.send(tx)
    tx.discard()


def test_multicast_refuses(sock):
    for group, options, why in (
        ("10.0.0.1", {}, r"10\.0\.0\.1.*224"),
        ("nonsense", {}, "nonsense"),
        ("ff02::1", {}, "IPv6"),
        ("224.1.1.1", {"interface": "nosuchif0"}, "nosuchif0"),
        ("224.1.1.1", {"source": "::1"}, "families"),
        ("224.1.1.1", {"source": "x"}, "'x'"),
    ):
        for verb in (sock.join, sock.leave):
            with pytest.raises(fs.ConfigError, match=why):
                verb(group, **options)
    with pytest.raises(fs.Error, match=r"leave 224\.1\.1\.1"):
        sock.leave("224.1.1.1")


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e12, 10**30, "1", [], object()])
def test_bad_timeouts(sock, timeout):
    for wait in (sock.driver.wait, sock.driver.wait_writable):
        with pytest.raises((fs.ConfigError, TypeError)):
            wait(timeout)


def test_gather_of_shaped_dtypes(sock):
    """Either right or refused, never silently something else."""
    tx = sock.tx_batch(2)
    tx.allocate()
    tx.fill(bytes(range(1, 9)))
    try:
        rows = tx.gather(0, "(2,)u1")
    except fs.ConfigError:
        pass
    else:
        assert rows.tolist() == [[1, 2], [1, 2]]
    tx.discard()


def test_frozen_equality_never_raises(sock):
    tx, rx = sock.tx_batch(2), sock.recv_batch(2)
    for _ in range(2):
        tx.append(b"abc", sock.local_address)
    sock.send(tx)
    sock.recv(rx)
    frozen, gone = rx[0].freeze(), rx[1]
    gone.release()
    released = memoryview(b"abc")
    released.release()
    for other in (gone, released, None, 5, "abc", np.arange(3), [97, 98, 99]):
        assert (frozen == other) is False
        assert (frozen != other) is True


class Text(str):
    """What a program of its own kind of strings passes."""


def test_text_of_a_subclass_is_text(sock):
    with fs.OsUdpSocket.bind((Text("127.0.0.1"), 0)) as other:
        tx = sock.tx_batch(1)
        tx.append(b"x")
        tx.set_destinations((Text("127.0.0.1"), other.local_address[1]))
        assert sock.send(tx) == 1


def test_values_of_the_wrong_kind_are_named(sock):
    rx, tx = sock.recv_batch(1), sock.tx_batch(1)
    tx.append(b"12345678")
    for call, names in (
        (lambda: sock.driver.wait("abc"), "abc"),
        (lambda: sock.driver.wait([]), "timeout"),
        (lambda: rx.run(None), "handler"),
        (lambda: rx.run("x"), "handler"),
        (lambda: rx.run(1, 2**64), "user"),
        (lambda: tx.gather(0, "zzz"), "zzz"),
        (lambda: tx.gather(0, None), "None"),
        (lambda: tx.gather(True, "u1"), "True"),
        (lambda: tx.fill(np.zeros((1, 8), "u1")[:, ::2]), "fill"),
        (lambda: fs.OsUdpSocket.bind("127.0.0.1:0", device="\ud800"), "device"),
        (lambda: fs.OsUdpSocket.bind("127.0.0.1:0", device="lo\0"), "device"),
        (lambda: sock.join("224.0.0.1", interface=5), "interface"),
        (lambda: sock.join("224.0.0.1", interface="a\0"), "interface"),
        (lambda: sock.join(b"\xe0\0\0\1"), "group"),
        (lambda: fs.OsUdpSocket.bind("127.0.0.1:0", driver=np.zeros(3)), "driver"),
        (lambda: fs.OsUdpSocket.bind("127.0.0.1:0", ttl=True), "ttl"),
        (lambda: fs.OsUdpSocket.bind("127.0.0.1:0", min_batch=True), "min_batch"),
        (lambda: fs.OsUdpSocket.bind("127.0.0.1%lo:0"), "no scope"),
    ):
        with pytest.raises(fs.ConfigError, match=names):
            pytest.fail(f"{names}: took it: {call()!r}")


def test_what_an_endpoint_cannot_be_sent_with_is_said(sock):
    with fs.OsUdpSocket.bind("[::]:0") as dual, pytest.raises(fs.ConfigError, match="one family"):
        dual.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=("::1", 9), source="127.0.0.5"))
    tx = sock.tx_batch(1)
    tx.append(b"123")
    strange = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=("127.0.0.1", 9), source="192.0.2.77"))
    with pytest.raises(fs.SendError, match=r"192\.0\.2\.77 an address of this host"):
        sock.send_to(strange, tx)
    fixed = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=("127.0.0.1", 9), payload_len=5))
    with pytest.raises(fs.SendError, match="payload_len=5"):
        sock.send_to(fixed, tx)


def test_v6only_is_for_ipv6():
    with pytest.raises(fs.ConfigError, match="v6only"):
        fs.OsUdpSocket.bind("127.0.0.1:0", v6only=True)
