"""Packets as objects: handles and their generations, ownership, freezing, and memory that is being looked at."""

import gc
import queue
import threading

import numpy as np
import pytest

import fast_socket as fs
from tests.conformance.backends import SECONDS, home, layouts, whole

PAYLOADS = [b"zero", b"one", b"two", b"three"]
READERS = {
    "bytes": bytes,
    "len": len,
    "memoryview": memoryview,
    "read": lambda packet: packet.read(0, 1),
    "u8": lambda packet: packet.u8(0),
    "address": lambda packet: packet.address,
    "meta": lambda packet: packet.meta(),
    "frame": lambda packet: packet.frame,
    "headroom": lambda packet: packet.headroom,
    "tailroom": lambda packet: packet.tailroom,
    "prepend": lambda packet: packet.prepend(b""),
    "append": lambda packet: packet.append(b""),
    "write": lambda packet: packet.write(0, b"!"),
    "trim_prefix": lambda packet: packet.trim_prefix(0),
    "trim_suffix": lambda packet: packet.trim_suffix(0),
    "take": lambda packet: packet.take(),
    "release": lambda packet: packet.release(),
    "freeze": lambda packet: packet.freeze(),
    "set address": lambda packet: setattr(packet, "address", ("127.0.0.1", 1)),
}


def assert_gone(packet):
    for name, read in READERS.items():
        with pytest.raises(fs.BufferTakenError):
            pytest.fail(f"{name} gave {read(packet)!r}")
    assert "gone" in repr(packet)


# Handles


def test_one_object_per_packet(pair):
    rx = pair.deliver(PAYLOADS)
    assert rx[1] is rx[1]
    assert [packet is rx[i] for i, packet in enumerate(rx)] == [True] * 4
    assert rx[-1] is rx[3]


@pytest.mark.parametrize("index", [4, -5, 10**9])
def test_index_out_of_range(pair, index):
    rx = pair.deliver(PAYLOADS)
    with pytest.raises(IndexError, match=rf"{index}.*4 packets"):
        rx[index]


def test_reading(pair):
    rx = pair.deliver([bytes(range(1, 17))])
    packet = rx[0]
    assert packet.u8(0) == 1
    assert packet.u16(0) == 0x0102
    assert packet.u32(0) == 0x01020304
    assert packet.u64(8) == 0x090A0B0C0D0E0F10
    assert packet.read(14, 2) == b"\x0f\x10"
    assert packet.read(16, 0) == b""
    assert len(packet) == 16
    for start, size in ((15, 2), (17, 0), (-1, 1), (0, 17), (0, -1), (2**40, 1)):
        with pytest.raises(IndexError, match="16 bytes"):
            packet.read(start, size)
    for field, start in (("u8", 16), ("u16", 15), ("u32", 13), ("u64", 9), ("u8", -1)):
        with pytest.raises(IndexError):
            getattr(packet, field)(start)


def test_writing_in_place(pair):
    rx = pair.deliver([b"....."])
    rx[0].write(1, b"ab")
    memoryview(rx[0])[4] = ord("!")
    assert bytes(rx[0]) == b".ab.!"
    with pytest.raises(IndexError):
        rx[0].write(4, b"ab")
    assert bytes(rx[0]) == b".ab.!"


def test_growing_and_trimming(open_pair):
    pair = open_pair(**layouts(payload=256, headroom=32, tailroom=32))
    rx = pair.deliver([b"payload"])
    packet = rx[0]
    head, tail = packet.headroom, packet.tailroom
    assert head >= 32
    assert tail >= 256 - 7 + 32
    packet.prepend(b"head-")
    packet.append(b"-tail")
    assert bytes(packet) == b"head-payload-tail"
    assert (packet.headroom, packet.tailroom) == (head - 5, tail - 5)
    packet.trim_prefix(5)
    packet.trim_suffix(5)
    assert bytes(packet) == b"payload"
    packet.prepend(b"h" * head)
    with pytest.raises(fs.ConfigError, match="headroom is 0"):
        packet.prepend(b"x")
    with pytest.raises(fs.ConfigError, match=f"tailroom is {tail}"):
        packet.append(b"t" * (tail + 1))
    packet.append(b"t" * tail)
    assert bytes(packet) == b"h" * head + b"payload" + b"t" * tail
    with pytest.raises(IndexError, match="cannot cut"):
        packet.trim_prefix(len(packet) + 1)
    with pytest.raises(IndexError):
        packet.trim_suffix(-1)
    packet.trim_suffix(len(packet))
    assert bytes(packet) == b""


def test_growing_one_leaves_its_neighbours_alone(open_pair):
    pair = open_pair(**layouts(payload=64, headroom=16, tailroom=16))
    rx = pair.deliver([b"a" * 64, b"b" * 64, b"c" * 64])
    rx[1].prepend(b"p" * rx[1].headroom)
    rx[1].append(b"q" * rx[1].tailroom)
    assert bytes(rx[0]) == b"a" * 64
    assert bytes(rx[2]) == b"c" * 64


def test_grown_packet_reflects_whole(open_pair):
    pair = open_pair(**layouts(headroom=16, tailroom=16))
    rx = pair.deliver([b"payload"])
    rx[0].prepend(b"<<")
    rx[0].append(b">>")
    tx = pair.far.tx_batch(1)
    assert tx.take_from(rx) == 1
    assert pair.far.send(tx) == 1
    assert pair.received(pair.near, 1) == [b"<<payload>>"]


# Generations


def test_stale_after_the_next_receive(pair):
    rx = pair.deliver(PAYLOADS)
    held = list(rx)
    pair.deliver([b"other"] * 4, rx)
    for packet in held:
        assert_gone(packet)
    assert [bytes(packet) for packet in rx] == [b"other"] * 4
    for packet in held:  # a look at the new ones does not wake the old ones up
        assert_gone(packet)


def test_stale_after_an_empty_receive(pair):
    rx = pair.deliver(PAYLOADS)
    held = rx[0]
    assert pair.far.recv(rx) == 0
    assert_gone(held)


def test_stale_handle_never_shows_another_packet(pair):
    """Held over many receives, of which each may reuse its slot and its frame."""
    rx = pair.far.recv_batch(4)
    held = []
    for lap in range(10):
        pair.deliver([b"%d" % lap] * 4, rx)
        for packet in held:
            with pytest.raises(fs.BufferTakenError):
                bytes(packet)
        held.append(rx[lap % 4])
        assert bytes(rx[lap % 4]) == b"%d" % lap


def test_stale_after_send(pair):
    tx = pair.near.tx_batch(4)
    for payload in PAYLOADS:
        tx.append(payload, pair.far_address)
    held = list(tx)
    assert pair.near.send(tx) == 4
    for packet in held:
        assert_gone(packet)
    tx.allocate()
    tx.fill(b"new")
    for packet in held:
        assert_gone(packet)


def test_stale_after_release(pair):
    rx = pair.deliver(PAYLOADS)
    packet = rx[1]
    packet.release()
    assert_gone(packet)
    with pytest.raises(fs.BufferTakenError):
        rx[1]


def test_stale_after_moving_on(pair):
    rx = pair.deliver(PAYLOADS)
    held = list(rx)
    tx = pair.far.tx_batch(4)
    assert tx.take_from(rx) == 4
    for packet in held:
        assert_gone(packet)
    assert [bytes(packet) for packet in tx] == PAYLOADS


def test_stale_after_the_batch(pair):
    packet = pair.deliver(PAYLOADS)[0]
    gc.collect()
    assert_gone(packet)
    assert whole(pair.far.pool)


def test_stale_after_freeze(pair):
    rx = pair.deliver(PAYLOADS)
    packet = rx[0]
    frozen = packet.freeze()
    assert_gone(packet)
    assert frozen == PAYLOADS[0]


# take()


def test_taken_packets_survive(pair):
    rx = pair.deliver(PAYLOADS)
    kept = [packet.take() for packet in list(rx)]
    assert list(rx) == []
    for _ in range(3):
        pair.deliver([b"other"] * 4, rx)
    assert [bytes(packet) for packet in kept] == PAYLOADS
    assert kept[0].take() is kept[0]
    assert [packet.address for packet in kept] == [pair.near_address] * 4
    frames = [packet.frame for packet in kept]
    assert len({*frames, *rx.frames.tolist()}) == 8
    del rx
    pair.close()
    assert [bytes(packet) for packet in kept] == PAYLOADS


def test_taken_slot_raises(pair):
    rx = pair.deliver(PAYLOADS)
    kept = rx[1].take()
    with pytest.raises(fs.BufferTakenError, match="slot 1"):
        rx[1]
    assert bytes(kept) == b"one"


def test_dropped_packet_returns_its_frame(pair):
    rx = pair.deliver(PAYLOADS)
    free = home(pair.far.pool)[0]
    kept = [packet.take() for packet in list(rx)]
    assert home(pair.far.pool)[0] == free
    kept.pop()
    assert home(pair.far.pool)[0] == free + 1
    kept.pop().release()
    assert home(pair.far.pool)[0] == free + 2


def test_packets_of_a_transmit_batch_stay(pair):
    tx = pair.near.tx_batch(2)
    tx.append(b"x", pair.far_address)
    for give_up in (tx[0].take, tx[0].release, tx[0].freeze):
        with pytest.raises(fs.ConfigError, match="transmit batch"):
            give_up()
    assert pair.near.send(tx) == 1


def test_taken_packets_cross_threads(pair):
    """Read, and dropped, by other threads than the one that received them."""
    handed, seen = queue.SimpleQueue(), []

    def worker():
        while (packet := handed.get()) is not None:
            seen.append(bytes(packet))
            del packet

    threads = [threading.Thread(target=worker) for _ in range(3)]
    for thread in threads:
        thread.start()
    rx = pair.far.recv_batch(16)
    sent = []
    for lap in range(40):
        payloads = [b"%d/%d" % (lap, i) for i in range(16)]
        sent += payloads
        pair.deliver(payloads, rx)
        for packet in list(rx):
            handed.put(packet.take())
        del packet
    for _ in threads:
        handed.put(None)
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(seen) == sorted(sent)
    del rx
    assert whole(pair.far.pool)


# freeze()


def test_frozen_is_immutable(pair):
    rx = pair.deliver(PAYLOADS)
    frozen = rx[2].freeze()
    assert bytes(frozen) == b"two"
    assert len(frozen) == 3
    assert frozen.u8(0) == ord("t")
    assert frozen.address == pair.near_address
    assert memoryview(frozen).readonly
    assert not np.frombuffer(frozen, np.uint8).flags.writeable
    with pytest.raises(TypeError):
        frozen.address = ("127.0.0.1", 1)
    with pytest.raises(TypeError):
        memoryview(frozen)[0] = 1
    for verb in ("prepend", "append", "write", "trim_prefix", "trim_suffix", "take", "release"):
        assert not hasattr(frozen, verb)
    pair.deliver([b"other"] * 4, rx)
    assert frozen == b"two"


def test_frozen_as_a_key(pair):
    rx = pair.deliver([b"same", b"same", b"else"])
    a, b, c = (packet.freeze() for packet in list(rx))
    assert a == b == b"same" == a
    assert a != c
    assert a != "same"
    assert a != 5
    assert hash(a) == hash(b) == hash(b"same")
    assert {a: 1}[b] == 1
    assert {a: 1}[b"same"] == 1
    assert a == bytearray(b"same") and a == memoryview(b"same")


def test_frozen_comes_home_with_its_last_view(pair):
    rx = pair.deliver([b"one"])
    frozen = rx[0].freeze()
    del rx
    view = memoryview(frozen)[1:]
    array = np.frombuffer(frozen, np.uint8)
    del frozen
    gc.collect()
    free = pair.far.pool.rx_frames - 1
    assert home(pair.far.pool)[0] == free
    assert bytes(view) == b"ne"
    del view
    assert home(pair.far.pool)[0] == free
    assert array.tobytes() == b"one"
    del array
    assert home(pair.far.pool)[0] == free + 1


# Exports


@pytest.mark.parametrize("view", [memoryview, lambda packet: np.frombuffer(packet, np.uint8)], ids=["view", "numpy"])
def test_viewed_packets_stay_where_they_are(pair, view):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    packet = rx[1]
    exported = view(packet)
    refused = {
        "recv": lambda: pair.far.recv(rx),
        "take_from": lambda: tx.take_from(rx),
        "append": lambda: tx.append(packet, pair.near_address),
        "release": packet.release,
        "freeze": packet.freeze,
        "trim_prefix": lambda: packet.trim_prefix(1),
        "trim_suffix": lambda: packet.trim_suffix(1),
        "grow": lambda: packet.append(b"x"),
        "prepend": lambda: packet.prepend(b""),
    }
    for name, call in refused.items():
        with pytest.raises(BufferError, match="memoryview"):
            pytest.fail(f"{name} gave {call()!r}")
    assert bytes(exported) == b"one"
    assert (len(tx), len(rx)) == (0, 4)
    del exported
    assert pair.far.recv(rx) == 0


def test_viewed_transmit_packets_stay(pair):
    tx = pair.near.tx_batch(4)
    tx.append(b"payload", pair.far_address)
    exported = memoryview(tx[0])
    for call in (lambda: pair.near.send(tx), tx.discard, lambda: tx.fill(b"x")):
        with pytest.raises(BufferError):
            call()
    exported[0] = ord("P")
    exported.release()
    assert pair.near.send(tx) == 1
    assert pair.received(pair.far, 1) == [b"Payload"]


def test_viewed_packet_can_be_taken(pair):
    """The view goes with the packet, and frees the batch."""
    rx = pair.deliver(PAYLOADS)
    exported = memoryview(rx[1])
    kept = rx[1].take()
    pair.deliver([b"other"] * 4, rx)
    assert bytes(exported) == bytes(kept) == b"one"
    with pytest.raises(BufferError):
        kept.release()
    exported.release()
    kept.release()


@pytest.mark.parametrize("order", ["batch, socket", "socket, batch"])
def test_memory_outlives_everything(open_pair, order):
    pair = open_pair()
    rx = pair.deliver(PAYLOADS)
    views = [memoryview(rx[1])[1:], memoryview(rx[2]).cast("B"), np.frombuffer(rx[3], np.uint8)]
    if order == "batch, socket":
        del rx
        pair.close()
    else:
        pair.close()
        rx = None
    gc.collect()
    assert [bytes(view) for view in views] == [b"ne", b"two", b"three"]
    missing = pair.far.pool.rx_frames - home(pair.far.pool)[0]
    assert missing == 3, "a viewed frame is nobody else's"
    views.clear()
    assert whole(pair.far.pool)


def test_memory_outlives_the_pool(backend, family):
    pair = backend.open_pair(family)
    rx = pair.deliver(PAYLOADS)
    views = [memoryview(rx[1]), rx.lengths, rx.memory, rx[2].take(), rx[3].freeze(), iter(rx), rx.datagrams()]
    pair.close()
    del rx, pair
    gc.collect()
    assert bytes(views[0]) == b"one"
    assert views[1].tolist() == [4, 3, 3, 5]
    assert views[2].any()
    assert bytes(views[3]) == b"two"
    assert views[4] == b"three"


def test_a_view_of_nothing_else(pair):
    """A view covers the packet's bytes and no more, and its shape is that of bytes."""
    rx = pair.deliver([b"abc"])
    view = memoryview(rx[0])
    assert (view.nbytes, view.format, view.itemsize, view.ndim, view.readonly) == (3, "B", 1, 1, False)
