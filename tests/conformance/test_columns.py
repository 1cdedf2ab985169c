"""Columns: types, shapes, byte order, who may write, and that they are views of live memory."""

import gc
import ipaddress
import time

import numpy as np
import pytest

import fast_socket as fs

RX_COLUMNS = {"offsets": "u8", "lengths": "u4", "frames": "u4", "source_ports": ">u2"}
TX_WRITABLE = {"lengths": "u4", "destination_ports": ">u2", "segment_sizes": "u4"}
TX_READ_ONLY = {"offsets": "u8", "frames": "u4"}


def packed(host: str, width: int) -> list[int]:
    address = ipaddress.ip_address(host)
    if address.version == 4 and width == 16:
        address = ipaddress.IPv6Address(f"::ffff:{host}")
    return list(address.packed)


@pytest.mark.parametrize("name", RX_COLUMNS)
def test_receive_columns(pair, name):
    rx = pair.deliver([b"a", b"bb", b"ccc"])
    column = getattr(rx, name)
    assert column.dtype == np.dtype(RX_COLUMNS[name])
    assert column.shape == (3,)
    assert not column.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        column.flags.writeable = True


@pytest.mark.parametrize("name", TX_WRITABLE)
def test_writable_transmit_columns(pair, name):
    tx = pair.near.tx_batch(4)
    tx.allocate(3)
    column = getattr(tx, name)
    assert column.dtype == np.dtype(TX_WRITABLE[name])
    assert column.shape == (3,)
    column[:] = (1, 2, 3)
    assert getattr(tx, name).tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", TX_READ_ONLY)
def test_read_only_transmit_columns(pair, name):
    tx = pair.near.tx_batch(4)
    tx.allocate(3)
    column = getattr(tx, name)
    assert column.dtype == np.dtype(TX_READ_ONLY[name])
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 1


def test_lengths_and_content(pair):
    payloads = [b"a", b"", b"ccc"]
    rx = pair.deliver(payloads)
    assert rx.lengths.tolist() == [1, 0, 3]
    assert rx.memory.dtype == np.uint8
    cut = [bytes(rx.memory[int(o) : int(o) + int(n)]) for o, n in zip(rx.offsets, rx.lengths, strict=True)]
    assert cut == payloads


def test_source_columns(pair, family):
    rx = pair.deliver([b"x"] * 3)
    width = 4 if family == "v4" else 16
    assert rx.source_addresses.shape == (3, width)
    assert rx.source_addresses.dtype == np.uint8
    assert rx.source_addresses.tolist() == [packed(pair.near_address[0], width)] * 3
    assert rx.source_ports.tolist() == [pair.near_address[1]] * 3
    assert (rx.source_ports == pair.near_address[1]).all()
    # Network byte order in memory, whatever the machine's.
    assert rx.source_ports.tobytes() == pair.near_address[1].to_bytes(2, "big") * 3


def test_destination_columns(pair):
    tx = pair.far.tx_batch(4)
    tx.allocate(2)
    tx.fill(b"by column")
    width = tx.destination_addresses.shape[1]
    tx.destination_addresses[:] = packed(pair.near_address[0], width)
    tx.destination_ports[:] = pair.near_address[1]
    assert [packet.address for packet in tx] == [pair.near_address] * 2
    assert pair.far.send(tx) == 2
    assert pair.received(pair.near, 2) == [b"by column"] * 2


def test_fresh_slots_are_not_set(pair):
    """What an earlier packet left in a slot's columns does not reach the next one."""
    tx = pair.near.tx_batch(2)
    for _ in range(2):
        tx.allocate()
        assert tx.lengths.tolist() == [0, 0]
        assert tx.destination_ports.tolist() == [0, 0]
        assert not tx.destination_addresses.any()
        assert tx.segment_sizes.tolist() == [0, 0]
        assert [packet.address for packet in tx] == [("", 0)] * 2
        tx.fill(b"x" * 40)
        tx.set_destinations(pair.far_address)
        tx.segment_sizes[:] = 10
        tx.discard()


def test_columns_show_the_present_contents(pair):
    rx = pair.far.recv_batch(4)
    assert rx.lengths.shape == (0,)
    pair.deliver([b"a" * 5] * 4, rx)
    lengths = rx.lengths
    assert lengths.tolist() == [5] * 4
    pair.deliver([b"b" * 9] * 4, rx)
    assert lengths.tolist() == [9] * 4, "a column is a view of live memory"
    assert rx.lengths.base is lengths.base


def test_columns_follow_the_head(pair):
    tx = pair.near.tx_batch(4)
    for size in (1, 2, 3):
        tx.append(b"x" * size, pair.far_address)
    tx.destination_ports[1] = 0
    with pytest.raises(fs.SendError):
        pair.near.send(tx)
    assert tx.lengths.tolist() == [2, 3]
    assert tx.destination_ports.tolist() == [0, pair.far_address[1]]


def test_taken_packets_leave_a_mark(pair):
    rx = pair.deliver([b"a", b"b", b"c"])
    kept = rx[1].take()
    assert rx.frames[1] == 2**32 - 1
    assert [bytes(packet) for packet in rx] == [b"a", b"c"]
    assert len(rx) == 3
    assert bytes(kept) == b"b"


def test_columns_outlive_everything(open_pair):
    pair = open_pair()
    rx = pair.deliver([b"abc"] * 3)
    lengths, ports, memory, offset = rx.lengths, rx.source_ports, rx.memory, int(rx.offsets[2])
    pair.close()
    del rx
    gc.collect()
    assert lengths.tolist() == [3] * 3
    assert ports.tolist() == [pair.near_address[1]] * 3
    assert bytes(memory[offset : offset + 3]) == b"abc"


def test_missing_columns_say_what_to_ask_for(pair):
    rx, tx = pair.far.recv_batch(2), pair.near.tx_batch(2)
    for batch, column, needed in (
        (rx, "ecn", "Metadata.ECN"),
        (rx, "ttl", "Metadata.TTL"),
        (rx, "local_addresses", "Metadata.LOCAL"),
        (rx, "interfaces", "Metadata.LOCAL"),
        (rx, "timestamps", "Metadata.TIMESTAMP"),
        (rx, "gro_strides", "gro=True"),
        (tx, "ecn", "Metadata.ECN"),
        (tx, "ttl", "Metadata.TTL"),
        (tx, "source_addresses", "Metadata.LOCAL"),
        (tx, "departure_times", "Metadata.TXTIME"),
    ):
        with pytest.raises(fs.ConfigError, match=needed) as caught:
            getattr(batch, column)
        assert column in str(caught.value)


# Metadata


def test_metadata_columns(open_pair, backend, family):
    pair = open_pair(metadata=backend.metadata)
    before = time.time_ns()
    rx = pair.deliver([b"x"] * 2)
    width = 4 if family == "v4" else 16
    assert rx.ecn.tolist() == [fs.Ecn.NOT_ECT] * 2
    assert rx.ecn.dtype == np.uint8
    assert (rx.ttl > 0).all()
    assert rx.ttl.dtype == np.uint8
    assert rx.local_addresses.tolist() == [packed(pair.far_address[0], width)] * 2
    assert (rx.interfaces > 0).all()
    assert rx.interfaces.dtype == np.uint32
    stamped = fs.Metadata.TIMESTAMP in backend.metadata
    if stamped:
        assert rx.timestamps.dtype == np.int64
        # Wall clocks can be set while a test runs; a day is more than that and less than a wrong unit.
        assert abs(int(rx.timestamps[0]) - before) < 86_400 * 10**9
        assert not rx.timestamps.flags.writeable
    assert not any(c.flags.writeable for c in (rx.ecn, rx.ttl, rx.local_addresses, rx.interfaces))
    meta = rx[0].meta()
    assert meta == fs.UdpRecvMeta(
        source=pair.near_address,
        local=pair.far_address[0],
        interface=fs.IfIndex(int(rx.interfaces[0])),
        ecn=fs.Ecn.NOT_ECT,
        ttl=int(rx.ttl[0]),
        timestamp_ns=int(rx.timestamps[0]) if stamped else None,
    )
    assert rx[0].take().meta() == meta, "a taken packet carries its metadata along"


def test_metadata_per_slot(open_pair, backend):
    pair = open_pair(metadata=backend.metadata)
    tx = pair.near.tx_batch(4)
    for payload in (b"a", b"b", b"c", b"d"):
        tx.append(payload, pair.far_address)
    assert tx.ecn.tolist() == [255] * 4
    tx.ecn[:] = (fs.Ecn.ECT0, fs.Ecn.CE, 255, fs.Ecn.ECT1)
    tx.ttl[:] = (7, 0, 9, 255)
    assert pair.near.send(tx) == 4
    pair.settle(pair)
    rx = pair.far.recv_batch(4)
    assert pair.far.recv(rx) == 4
    assert rx.ecn.tolist() == [fs.Ecn.ECT0, fs.Ecn.CE, fs.Ecn.NOT_ECT, fs.Ecn.ECT1]
    assert rx.ttl.tolist()[::2] == [7, 9]
    assert rx.ttl[3] == 255
    assert [bytes(packet) for packet in rx] == [b"a", b"b", b"c", b"d"]


def test_metadata_of_an_endpoint(open_pair, backend):
    pair = open_pair(metadata=backend.metadata)
    spec = fs.UdpEndpointSpec(remote=pair.far_address, ecn=fs.Ecn.ECT1, ttl=33, source=pair.near_address[0])
    endpoint = pair.near.prepare_udp_endpoint(spec)
    tx = pair.near.tx_batch(2)
    tx.append(b"x")
    assert pair.near.send_to(endpoint, tx) == 1
    pair.settle(pair)
    rx = pair.far.recv_batch(2)
    assert pair.far.recv(rx) == 1
    assert (rx.ecn.tolist(), rx.ttl.tolist()) == ([fs.Ecn.ECT1], [33])


def test_no_metadata_is_none(pair):
    rx = pair.deliver([b"x"])
    assert rx[0].meta() == fs.UdpRecvMeta(source=pair.near_address)


def test_gather(pair):
    rx = pair.deliver([b"\x01\x02\x03\x04", b"\x05\x06", b"\x07\x08\x09\x0a\x0b"])
    assert rx.gather(0, ">u2").tolist() == [0x0102, 0x0506, 0x0708]
    assert rx.gather(2, ">u2").tolist() == [0x0304, 0, 0x090A], "zero where the packet is too short"
    assert rx.gather(10, "u1").tolist() == [0, 0, 0]
    pairs = rx.gather(0, np.dtype([("a", "u1"), ("b", "u1")]))
    assert pairs["b"].tolist() == [2, 6, 8]
    rx[0].release()
    assert rx.gather(0, "u1").tolist() == [0, 5, 7], "zero where the packet is gone"
