"""Transmit batches: filling them in every way, reflecting into them, and giving frames back."""

import gc

import numpy as np
import pytest

import fast_socket as fs
from tests.conformance.backends import home, layouts, whole

PAYLOADS = [b"zero", b"one", b"two", b"three"]


def small(**options):
    return {"rx_frames": 32, "tx_frames": 8, **options}


# take_from


def test_reflects_to_the_senders(pair):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    before = rx.frames.tolist()
    assert tx.take_from(rx) == 4
    assert tx.frames.tolist() == before, "the same frames: nothing was copied"
    assert list(rx) == []
    assert [packet.address for packet in tx] == [pair.near_address] * 4
    assert pair.far.send(tx) == 4
    assert pair.received(pair.near, 4) == PAYLOADS
    pair.deliver(PAYLOADS, rx)
    assert [bytes(packet) for packet in rx] == PAYLOADS


def test_reflects_for_ever(open_pair):
    """Far more packets than there are frames: every frame comes home to where it came from."""
    pair = open_pair(rx_frames=16, tx_frames=8)
    rx, tx = pair.far.recv_batch(8), pair.far.tx_batch(8)
    for lap in range(50):
        payloads = [b"%d/%d" % (lap, i) for i in range(8)]
        pair.deliver(payloads, rx)
        assert tx.take_from(rx) == 8
        assert pair.far.send(tx) == 8
        assert pair.received(pair.near, 8) == payloads


def test_takes_what_there_is_room_for(pair):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(3)
    tx.append(b"first", pair.near_address)
    assert tx.take_from(rx) == 2
    assert [bytes(packet) for packet in tx] == [b"first", b"zero", b"one"]
    assert [bytes(packet) for packet in rx] == [b"two", b"three"], "the rest stays behind"
    assert tx.take_from(rx) == 0
    assert pair.far.send(tx) == 3
    assert tx.take_from(rx) == 2
    assert pair.far.send(tx) == 2
    assert pair.received(pair.near, 5) == [b"first", *PAYLOADS]


def test_takes_nothing_from_an_empty_batch(pair):
    assert pair.far.tx_batch(4).take_from(pair.far.recv_batch(4)) == 0


def test_forwards_without_reply(open_pair, backend, family):
    """From one socket to another over one pool, to wherever the caller says."""
    pair = open_pair()
    other = backend.open_pair(family, far={"pool": pair.far.pool})
    rx, tx = pair.deliver(PAYLOADS), other.far.tx_batch(4)
    assert tx.take_from(rx, reply=False) == 4
    assert [packet.address for packet in tx] == [("", 0)] * 4
    tx.set_destinations(other.near_address)
    assert other.far.send(tx) == 4
    assert other.received(other.near, 4) == PAYLOADS
    other.close()


def test_skips_what_was_taken(pair):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    kept = rx[1].take()
    assert tx.take_from(rx) == 3
    assert [bytes(packet) for packet in tx] == [b"zero", b"two", b"three"]
    assert bytes(kept) == b"one"


def test_port_zero_cannot_be_answered(pair):
    """It stays behind; with reply=False it moves like any other."""
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    rx[1].address = (pair.near_address[0], 0)
    rx[2].address = (pair.near_address[0], 0)
    assert tx.take_from(rx) == 2
    assert [bytes(packet) for packet in tx] == [b"zero", b"three"]
    assert [bytes(packet) for packet in rx] == [b"one", b"two"]
    assert tx.take_from(rx, reply=False) == 2
    tx.set_destinations(pair.near_address)
    assert pair.far.send(tx) == 4
    assert pair.received(pair.near, 4) == [b"zero", b"three", b"one", b"two"]


def test_needs_one_pool(pair):
    rx = pair.deliver(PAYLOADS)
    with pytest.raises(fs.ConfigError, match="pool"):
        pair.near.tx_batch(4).take_from(rx)
    assert [bytes(packet) for packet in rx] == PAYLOADS


def test_replies_leave_from_where_they_were_sent_to(open_pair, backend, family):
    pair = open_pair(metadata=fs.Metadata.LOCAL)
    rx, tx = pair.deliver(PAYLOADS[:1]), pair.far.tx_batch(1)
    assert tx.take_from(rx) == 1
    assert tx.source_addresses.tolist() == rx.local_addresses.tolist()
    assert pair.far.send(tx) == 1
    back = pair.near.recv_batch(1)
    pair.settle(pair)
    assert pair.near.recv(back) == 1
    assert back[0].address == pair.far_address


# append


def test_append_bytes_likes(pair):
    tx = pair.near.tx_batch(8)
    view = memoryview(b"..view..")[2:6]
    for data in (b"bytes", bytearray(b"array"), view, np.arange(4, dtype=np.uint8), b""):
        tx.append(data, pair.far_address)
    assert pair.near.send(tx) == 5
    assert pair.received(pair.far, 5) == [b"bytes", b"array", b"view", b"\0\1\2\3", b""]


@pytest.mark.parametrize("form", ["tuple", "text", "ipaddress"])
def test_append_takes_every_form_of_address(pair, form):
    import ipaddress

    host, port = pair.far_address
    to = {
        "tuple": (host, port),
        "text": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "ipaddress": (ipaddress.ip_address(host), port),
    }[form]
    tx = pair.near.tx_batch(1)
    tx.append(b"x", to)
    assert tx[0].address == pair.far_address
    assert pair.near.send(tx) == 1


def test_append_moves_a_packet_of_the_same_pool(pair):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    packet, owned = rx[1], rx[2].take()
    frames = [packet.frame, owned.frame]
    tx.append(packet)
    tx.append(owned, pair.near_address)
    assert tx.frames.tolist() == frames
    for gone in (packet, owned):
        with pytest.raises(fs.BufferTakenError):
            bytes(gone)
    assert [bytes(p) for p in rx] == [b"zero", b"three"]
    assert pair.far.send(tx) == 2
    assert pair.received(pair.near, 2) == [b"one", b"two"]


def test_append_copies_a_packet_of_another_pool(pair):
    rx, tx = pair.deliver(PAYLOADS), pair.near.tx_batch(4)
    packet = rx[1]
    tx.append(packet, pair.far_address)
    assert bytes(packet) == b"one", "it was copied, and is still here"
    assert pair.near.send(tx) == 1
    assert pair.received(pair.far, 1) == [b"one"]


def test_append_copies_a_frozen_packet(pair):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    frozen = rx[0].freeze()
    for _ in range(3):
        tx.append(frozen, pair.near_address)
    assert pair.far.send(tx) == 3
    assert pair.received(pair.near, 3) == [b"zero"] * 3
    assert frozen == b"zero"


def test_append_to_a_full_batch(pair):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(2)
    tx.append(b"a", pair.near_address)
    tx.append(b"b", pair.near_address)
    free = home(pair.far.pool)[1]
    with pytest.raises(fs.Error, match="2 of 2 slots"):
        tx.append(b"c", pair.near_address)
    with pytest.raises(fs.Error, match="full"):
        tx.append(rx[0], pair.near_address)
    assert bytes(rx[0]) == b"zero", "on an error nothing has changed"
    assert home(pair.far.pool)[1] == free
    assert [bytes(packet) for packet in tx] == [b"a", b"b"]


def test_append_without_frames(open_pair):
    pair = open_pair(**small(tx_frames=2))
    tx = pair.near.tx_batch(4)
    tx.append(b"a", pair.far_address)
    tx.append(b"b", pair.far_address)
    with pytest.raises(fs.Error, match="tx_frames"):
        tx.append(b"c", pair.far_address)
    assert len(tx) == 2
    assert pair.near.send(tx) == 2
    tx.append(b"c", pair.far_address)
    assert pair.near.send(tx) == 1
    assert pair.received(pair.far, 3) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("to", ["nonsense", ("127.0.0.1", 99_999), ("example.org", 5), 7, ("127.0.0.1", "5"), b"::1"])
def test_append_with_a_bad_address_changes_nothing(pair, to):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    for data in (b"x", rx[0]):
        with pytest.raises(fs.ConfigError) as caught:
            tx.append(data, to)
        assert repr(to) in str(caught.value) or repr(to[0]) in str(caught.value)
    assert len(tx) == 0
    assert bytes(rx[0]) == b"zero"


def test_append_what_does_not_fit(open_pair):
    pair = open_pair(**layouts(payload=128))
    tx = pair.near.tx_batch(4)
    layout = pair.near.pool.tx_layout
    most = layout.chunk_size - layout.payload_offset
    with pytest.raises(fs.ConfigError, match=rf"{most + 1} bytes.*{most}"):
        tx.append(b"x" * (most + 1), pair.far_address)
    with pytest.raises(TypeError):
        tx.append("text", pair.far_address)
    assert len(tx) == 0
    tx.append(b"x" * 128, pair.far_address)
    assert pair.near.send(tx) == 1


# allocate, fill, scatter, gather, discard


def test_allocate(open_pair):
    pair = open_pair(**small())
    tx = pair.near.tx_batch(6)
    assert tx.allocate(2) == 2
    assert tx.allocate(0) == 0
    assert tx.allocate() == 4
    assert tx.allocate(5) == 0
    assert home(pair.near.pool)[1] == 2
    second = pair.near.tx_batch(6)
    assert second.allocate() == 2, "as many as the pool has"
    assert len({*tx.frames.tolist(), *second.frames.tolist()}) == 8, "no frame twice"
    assert tx.room == 0
    assert second.room == 4
    with pytest.raises(fs.ConfigError, match="-1"):
        tx.allocate(-1)


def test_fill_with_one_payload(pair):
    tx = pair.near.tx_batch(4)
    tx.allocate(3)
    tx.fill(b"payload")
    tx.set_destinations(pair.far_address)
    assert tx.lengths.tolist() == [7] * 3
    assert pair.near.send(tx) == 3
    assert pair.received(pair.far, 3) == [b"payload"] * 3


def test_fill_with_rows(pair):
    tx = pair.near.tx_batch(4)
    tx.allocate(3)
    rows = np.arange(12, dtype=">u2").reshape(3, 4)
    tx.fill(rows)
    tx.set_destinations(pair.far_address)
    assert pair.near.send(tx) == 3
    assert pair.received(pair.far, 3) == [row.tobytes() for row in rows]


def test_fill_refuses(open_pair):
    pair = open_pair(**layouts(payload=64))
    tx = pair.near.tx_batch(4)
    tx.allocate(3)
    tx.fill(b"before")
    layout = pair.near.pool.tx_layout
    more = layout.chunk_size - layout.payload_offset + 1
    for payload, why in (
        (np.zeros((2, 8), np.uint8), "2 rows for 3"),
        (np.zeros((4, 8), np.uint8), "4 rows for 3"),
        (np.zeros((3, 2, 2), np.uint8), "3 dimensions"),
        (b"x" * more, f"{more} bytes"),
        (np.zeros((3, more), np.uint8), f"{more} bytes"),
    ):
        with pytest.raises(fs.ConfigError, match=why):
            tx.fill(payload)
    with pytest.raises((ValueError, BufferError)):
        tx.fill(np.zeros((3, 16), np.uint8)[:, ::2])
    with pytest.raises(TypeError):
        tx.fill("text")
    assert [bytes(packet) for packet in tx] == [b"before"] * 3


def test_fill_touches_pending_slots_only(pair):
    tx = pair.near.tx_batch(4)
    for payload in PAYLOADS:
        tx.append(payload, pair.far_address)
    tx.destination_ports[2] = 0
    with pytest.raises(fs.SendError):
        pair.near.send(tx)
    tx.fill(b"rest")
    tx.set_destinations(pair.far_address)
    assert pair.near.send(tx) == 2
    assert pair.received(pair.far, 4) == [b"zero", b"one", b"rest", b"rest"]


def test_scatter_and_gather(pair):
    tx = pair.near.tx_batch(4)
    tx.allocate(3)
    tx.fill(b"." * 10)
    tx.scatter(2, np.array([1, 2, 0x0102], ">u4"))
    assert tx.gather(2, ">u4").tolist() == [1, 2, 0x0102]
    assert tx.gather(5, "u1").tolist() == [1, 2, 2]
    tx.set_destinations(pair.far_address)
    assert pair.near.send(tx) == 3
    want = [b".." + value.to_bytes(4, "big") + b"...." for value in (1, 2, 0x0102)]
    assert pair.received(pair.far, 3) == want


def test_scatter_refuses(pair):
    tx = pair.near.tx_batch(4)
    tx.allocate(3)
    tx.fill(b"." * 10)
    for offset, values, why in (
        (0, np.zeros(2, "u1"), "3 values"),
        (0, np.zeros((3, 2), "u1"), "1-D"),
        (7, np.zeros(3, "u4"), "outside packet 0 of 10 bytes"),
        (-1, np.zeros(3, "u1"), "offset is -1"),
        (2**33, np.zeros(3, "u1"), "offset"),
    ):
        with pytest.raises(fs.ConfigError, match=why):
            tx.scatter(offset, values)
    for offset in (-1, 2**33):
        with pytest.raises(fs.ConfigError, match="offset"):
            tx.gather(offset, "u1")
    with pytest.raises(fs.ConfigError, match="dtype"):
        tx.gather(0, object)
    assert [bytes(packet) for packet in tx] == [b"." * 10] * 3


def test_discard(pair):
    tx = pair.near.tx_batch(4)
    free = home(pair.near.pool)[1]
    for payload in PAYLOADS:
        tx.append(payload, pair.far_address)
    assert tx.discard(1) == 1
    assert [bytes(packet) for packet in tx] == PAYLOADS[1:]
    assert home(pair.near.pool)[1] == free - 3
    assert tx.discard(0) == 0
    assert tx.discard(10) == 3
    assert tx.discard() == 0
    assert tx.room == 4
    assert home(pair.near.pool)[1] == free
    with pytest.raises(fs.ConfigError, match="-2"):
        tx.discard(-2)
    assert pair.nothing_at(pair.far)


def test_dropped_batches_give_their_frames_back(open_pair):
    pair = open_pair(**small())
    for _ in range(5):
        tx = pair.near.tx_batch(8)
        assert tx.allocate() == 8
        del tx
        gc.collect()
        assert whole(pair.near.pool)


def test_set_destinations(pair):
    tx = pair.near.tx_batch(4)
    tx.allocate(2)
    tx.fill(b"x")
    tx.set_destinations(pair.far_address)
    assert [packet.address for packet in tx] == [pair.far_address] * 2
    with pytest.raises(fs.ConfigError, match="nowhere"):
        tx.set_destinations("nowhere")
    assert [packet.address for packet in tx] == [pair.far_address] * 2
    tx[0].address = pair.near_address
    assert tx[0].address == pair.near_address


def test_packet_address_refuses_in_place(pair):
    """A bad address leaves the old one."""
    tx = pair.near.tx_batch(1)
    tx.append(b"x", pair.far_address)
    with pytest.raises(fs.ConfigError, match="99999"):
        tx[0].address = (pair.far_address[0], 99_999)
    assert tx[0].address == pair.far_address
