"""What callers may get wrong about AF_XDP sockets, on simulated devices: refused by name, and nothing stays."""

from ipaddress import ip_address
from typing import Any

import pytest

import fast_socket as fs
from fast_socket.xdp.options import umem_layouts
from tests.conformance.backends import whole

MAC = b"\x02\x00\x00\x00\x00\x01"


@pytest.fixture
def device() -> fs.SimulatedDevice:
    return fs.SimulatedDevice(fs.Wire(), addresses=["192.0.2.1/24"])


def open_udp(device: Any, **options: Any) -> Any:
    return fs.XdpUdpSocket.open(device, local="192.0.2.1:1000", **options)


class NoRouter:
    generation = 1


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"router": object()}, fs.ConfigError, "router is .*resolve"),
        ({"router": NoRouter()}, fs.ConfigError, "router is .*resolve"),
        ({"program": "mine"}, fs.ConfigError, "program"),
        ({"program": 5}, fs.ConfigError, "program"),
        ({"mode": "zero_copy"}, fs.CapabilityError, "zero-copy"),
        ({"attach": "offload"}, fs.CapabilityError, "offload"),
        ({"metadata": fs.Metadata.TXTIME}, fs.CapabilityError, "OS sockets"),
        ({"pool": "mine"}, fs.ConfigError, "pool"),
        ({"tx_budget": 16}, fs.ConfigError, "tx_budget"),
        ({"tx_budget": 128, "tx_ring": 64}, fs.ConfigError, "tx_budget"),
        ({"numa_node": 1000}, fs.ConfigError, "numa_node"),
        ({"numa_node": "mine"}, fs.ConfigError, "numa_node"),
    ],
)
def test_options_that_cannot_work(device: Any, options: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        open_udp(device, **options)
    open_udp(device).close()


@pytest.mark.parametrize("side", ["rx_layout", "tx_layout"])
@pytest.mark.parametrize("headroom", [0, 79])
def test_a_pool_needs_room_for_headers(device: Any, side: str, headroom: int) -> None:
    layouts = dict(zip(("rx_layout", "tx_layout"), umem_layouts(), strict=True))
    layouts[side] = fs.BufferLayout(payload_capacity=1500, l2_headroom=headroom, chunk_size=2048)
    pool = fs.FramePool(rx_frames=16, tx_frames=16, **layouts)
    with pytest.raises(fs.ConfigError, match="l2_headroom"):
        open_udp(device, pool=pool)
    assert whole(pool)


def test_batches_made_by_hand_are_those_of_the_socket_or_refused(device: Any) -> None:
    with open_udp(device, rx_frames=16, tx_frames=16) as sock:
        tx = fs.XdpUdpTxBatch(sock.pool, 4, v6=False)
        tx.append(b"without a segment size", ("192.0.2.1", 9))
        with pytest.raises(fs.ConfigError, match="another socket"):
            sock.send(tx)
        rx = fs.XdpUdpRecvBatch(sock.pool, 4, v6=False, segment_sizes=True)
        with pytest.raises(fs.ConfigError, match="another socket"):
            sock.recv(rx)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interface", 0), ("interface", "eth0"), ("interface", True), ("interface", 1.5),
        ("source_mac", b"12345"), ("source_mac", "02:00:00:00:00:01"), ("source_mac", b"\xff" * 6),
        ("destination_mac", bytearray(6)), ("mtu", 67), ("mtu", 1 << 16), ("mtu", "1500"), ("mtu", True),
        ("vlan", -1), ("vlan", 1 << 16), ("vlan", 4095), ("vlan", "7"), ("vlan", True),
        ("source", "192.0.2.1"), ("source", b"\xc0\x00\x02\x01"), ("source", 1),
    ],
)  # fmt: skip
def test_an_egress_that_can_never_work(field: str, value: Any) -> None:
    good: dict[str, Any] = {
        "interface": fs.IfIndex(1), "source_mac": MAC, "destination_mac": MAC, "mtu": 1500, "vlan": 7,
        "source": ip_address("192.0.2.1"),
    }  # fmt: skip
    fs.Egress(**good)
    with pytest.raises(fs.ConfigError, match=f"Egress.{field}"):
        fs.Egress(**good | {field: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mac", 6), ("mac", b"12345"), ("mac", "020000000001"), ("mac", b"\x01" * 6), ("mtu", 67), ("mtu", True),
        ("mtu", "1500"), ("queues", 0), ("queues", 65), ("queues", 1.0), ("addresses", ["nowhere"]), ("addresses", 5),
        ("name", 5),
    ],
)  # fmt: skip
def test_a_simulated_device_that_cannot_be(option: str, value: Any) -> None:
    wire = fs.Wire()
    with pytest.raises(fs.ConfigError, match=option):
        fs.SimulatedDevice(wire, **{option: value})
    assert wire.devices == []
    with pytest.raises(fs.ConfigError, match="wire"):
        fs.SimulatedDevice(value)


@pytest.mark.parametrize("name", ["wire", "mac", "mtu", "queue_count", "name", "addresses", "ifindex"])
def test_what_a_simulated_device_is_it_stays(device: Any, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(device, name, None)
