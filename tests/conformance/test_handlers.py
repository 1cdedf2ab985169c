"""Compiled handlers, and coalesced packets walked as the datagrams that they came as."""

import ctypes

import numpy as np
import pytest

import fast_socket as fs
from tests.conformance.backends import home, layouts

HANDLER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
PAYLOADS = [b"zero", b"one", b"two", b"three"]


def address_of(function):
    return ctypes.cast(function, ctypes.c_void_p).value


def recorder(verdict=lambda data: 1):
    """A handler that remembers what it was called with."""
    calls = []

    @HANDLER
    def handler(data, length, user):
        calls.append((ctypes.string_at(data, length), user))
        return verdict(calls[-1][0])

    return handler, calls


# run()


def test_handler_sees_every_packet_in_order(pair):
    rx = pair.deliver(PAYLOADS)
    handler, calls = recorder()
    assert rx.run(address_of(handler), 7) == 4
    assert calls == [(payload, 7) for payload in PAYLOADS]
    assert [bytes(packet) for packet in rx] == PAYLOADS


def test_handler_drops(pair):
    rx = pair.deliver(PAYLOADS)
    free, held = home(pair.far.pool)[0], rx[0]
    handler, _ = recorder(lambda data: len(data) == 3)
    assert rx.run(address_of(handler)) == 2
    assert [bytes(packet) for packet in rx] == [b"one", b"two"]
    assert home(pair.far.pool)[0] == free + 2
    assert rx.lengths.tolist() == [4, 3, 3, 5]
    with pytest.raises(fs.BufferTakenError):
        bytes(held)
    tx = pair.far.tx_batch(4)
    assert tx.take_from(rx) == 2
    assert pair.far.send(tx) == 2
    assert pair.received(pair.near, 2) == [b"one", b"two"]


def test_handler_rewrites(pair):
    rx = pair.deliver(PAYLOADS)

    @HANDLER
    def handler(data, length, user):
        ctypes.memset(data, ord("*"), 1)
        return 1

    assert rx.run(address_of(handler)) == 4
    assert [bytes(packet) for packet in rx] == [b"*ero", b"*ne", b"*wo", b"*hree"]


def test_handler_as_an_object(pair):
    """Anything with an address: a numba cfunc looks like this."""
    rx = pair.deliver(PAYLOADS)
    handler, calls = recorder()

    class Compiled:
        address = address_of(handler)

    assert rx.run(Compiled()) == 4
    assert len(calls) == 4


def test_handler_passes_over_taken_packets(pair):
    rx = pair.deliver(PAYLOADS)
    kept = rx[1].take()
    handler, calls = recorder()
    assert rx.run(address_of(handler)) == 3
    assert [data for data, _ in calls] == [b"zero", b"two", b"three"]
    assert bytes(kept) == b"one"


def test_handler_on_an_empty_batch(pair):
    handler, calls = recorder()
    assert pair.far.recv_batch(4).run(address_of(handler)) == 0
    assert calls == []


def test_handler_cannot_touch_its_batch(pair):
    """Whatever a handler calls back into is refused while the loop runs, and works again afterwards."""
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    held, walked, outcomes = rx[2], rx.datagrams(), []
    attempts = (
        lambda: pair.far.recv(rx),
        lambda: tx.take_from(rx),
        lambda: tx.append(held, pair.near_address),
        lambda: rx[0],
        lambda: list(rx),
        lambda: rx.gather(0, "u1"),
        lambda: rx.run(1),
        rx.datagrams,
        lambda: fs.Datagrams(rx),
        lambda: walked[0],
        lambda: walked.gather(0, "u1"),
        lambda: walked.source(0),
        lambda: bytes(held),
        lambda: memoryview(held),
        held.take,
        held.release,
        held.freeze,
        lambda: held.append(b"x"),
    )

    @HANDLER
    def handler(data, length, user):
        for number, attempt in enumerate(attempts):
            try:
                outcomes.append((number, attempt()))
            except fs.BufferTakenError as error:
                outcomes.append((number, error))
            except fs.Error:
                pass
        return 0 if length == 3 else 1

    assert rx.run(address_of(handler)) == 2
    assert outcomes == []
    assert [bytes(packet) for packet in rx] == [b"zero", b"three"]


def test_handler_may_close_the_socket(pair):
    rx = pair.deliver(PAYLOADS)

    @HANDLER
    def handler(data, length, user):
        pair.far.close()
        return 1

    assert rx.run(address_of(handler)) == 4
    assert [bytes(packet) for packet in rx] == PAYLOADS


@pytest.mark.parametrize("handler", [0, None, "name", 2**70, 1.5, object()])
def test_bad_handlers(pair, handler):
    rx = pair.deliver(PAYLOADS)
    with pytest.raises((fs.ConfigError, TypeError, OverflowError)):
        rx.run(handler)
    assert [bytes(packet) for packet in rx] == PAYLOADS


def test_handler_is_refused_while_packets_are_viewed(pair):
    rx = pair.deliver(PAYLOADS)
    handler, calls = recorder()
    view = memoryview(rx[0])
    with pytest.raises(BufferError):
        rx.run(address_of(handler))
    assert calls == []
    view.release()


# Datagrams


def test_walk_without_coalescing(pair):
    rx = pair.deliver(PAYLOADS)
    walked = rx.datagrams()
    assert list(walked) == PAYLOADS
    assert len(walked) == rx.datagram_count == 4
    assert walked.slots.tolist() == [0, 1, 2, 3]
    assert (walked.slots.dtype, walked.offsets.dtype, walked.lengths.dtype) == (np.uint32, np.uint64, np.uint32)
    assert walked.source(2) == pair.near_address


def test_walk_passes_over_taken_packets(pair):
    rx = pair.deliver(PAYLOADS)
    rx[1].release()
    assert list(rx.datagrams()) == [b"zero", b"two", b"three"]
    assert rx.datagrams().slots.tolist() == [0, 2, 3]


def test_walk_goes_stale(pair):
    rx = pair.deliver(PAYLOADS)
    walked = rx.datagrams()
    assert walked[-1] == b"three"
    rx[1].release()
    rx[2].trim_suffix(1)
    for index in (1, 2):
        with pytest.raises(fs.BufferTakenError):
            walked[index]
    with pytest.raises(fs.BufferTakenError):
        walked.gather(0, "u1")
    assert walked[0] == b"zero"
    pair.deliver([b"other"] * 4, rx)
    for call in (lambda: walked[0], lambda: walked.source(0), lambda: walked.gather(0, "u1"), lambda: list(walked)):
        with pytest.raises(fs.BufferTakenError, match="anew"):
            call()


@pytest.mark.parametrize("index", [4, -5, 2**70])
def test_walk_index_out_of_range(pair, index):
    walked = pair.deliver(PAYLOADS).datagrams()
    for look in (walked.__getitem__, walked.source):
        with pytest.raises((IndexError, OverflowError)):
            look(index)


@pytest.fixture
def coalesced(open_pair, backend):
    """Gives (pair, receive batch), the batch with DATAGRAMS in as few packets as they came in."""
    if not backend.coalesces:
        pytest.skip(f"{backend.name} does not coalesce")

    def receive():
        layout = fs.BufferLayout(payload_capacity=65_535, headroom=64, tailroom=64)
        pair = open_pair(far={"coalesce": True, "rx_frames": 64, "rx_layout": layout})
        endpoint = pair.near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=pair.far_address, gso_size=20))
        tx = pair.near.tx_batch(4)
        for payload in (bytes(range(207)), b"alone"):
            tx.append(payload)
            assert pair.near.send_to(endpoint, tx) == 1
        pair.settle(pair)
        rx = pair.far.recv_batch(16)
        pair.far.recv(rx)
        return pair, rx

    return receive


DATAGRAMS = [bytes(range(207))[i : i + 20] for i in range(0, 207, 20)] + [b"alone"]


def test_coalesced_walk(coalesced):
    pair, rx = coalesced()
    assert len(rx) < len(DATAGRAMS), "nothing was coalesced"
    assert rx.datagram_count == len(DATAGRAMS)
    assert rx.gro_strides.dtype == np.uint32
    assert rx.gro_strides[0] == 20
    walked = rx.datagrams()
    assert list(walked) == DATAGRAMS
    assert walked.lengths.tolist() == [len(datagram) for datagram in DATAGRAMS]
    assert walked.gather(1, "u1").tolist() == [datagram[1] for datagram in DATAGRAMS]
    assert walked.gather(10, "u1").tolist() == [d[10] if len(d) > 10 else 0 for d in DATAGRAMS]
    assert {walked.source(i) for i in range(len(walked))} == {pair.near_address}
    cut = [bytes(rx.memory[int(o) : int(o + n)]) for o, n in zip(walked.offsets, walked.lengths, strict=True)]
    assert cut == DATAGRAMS


def test_coalesced_statistics(coalesced):
    pair, _ = coalesced()
    assert pair.far.stats().received == len(DATAGRAMS)
    assert pair.far.stats().received_bytes == sum(map(len, DATAGRAMS))


def test_coalesced_handler(coalesced):
    """Called for every datagram; one that is kept keeps its packet."""
    _, rx = coalesced()
    handler, calls = recorder(lambda data: data == DATAGRAMS[4])
    assert rx.run(address_of(handler)) == 1
    assert [data for data, _ in calls] == DATAGRAMS
    assert len(list(rx)) == 1


def test_coalesced_reflection(coalesced):
    """It leaves as the datagrams that it came as."""
    pair, rx = coalesced()
    tx = pair.far.tx_batch(16)
    tx.take_from(rx)
    while len(tx):
        pair.far.send(tx)
    assert pair.received(pair.near, len(DATAGRAMS)) == DATAGRAMS


def test_coalesced_packet_appended(coalesced):
    pair, rx = coalesced()
    tx = pair.far.tx_batch(16)
    for packet in list(rx):
        tx.append(packet.take())
    pair.far.send(tx)
    assert pair.received(pair.near, len(DATAGRAMS)) == DATAGRAMS


def test_single_datagram_grown_stays_single(coalesced):
    """A datagram that was not coalesced has no boundary in it, so none appears where it grows."""
    pair, rx = coalesced()
    alone = rx[len(rx) - 1]
    alone.append(b"-and-more")
    assert list(rx.datagrams())[-1] == b"alone-and-more"
    tx = pair.far.tx_batch(16)
    tx.append(alone)
    pair.far.send(tx)
    assert pair.received(pair.near, 1) == [b"alone-and-more"]


def test_single_datagram_grown_then_reflected(open_pair, backend):
    if not backend.coalesces:
        pytest.skip(f"{backend.name} does not coalesce")
    pair = open_pair(far={"coalesce": True, "rx_frames": 32, **layouts(payload=2048, headroom=16, tailroom=16)})
    rx, tx = pair.deliver([b"payload"]), pair.far.tx_batch(1)
    rx[0].prepend(b"<<")
    rx[0].append(b">>")
    assert tx.take_from(rx) == 1
    assert pair.far.send(tx) == 1
    assert pair.received(pair.near, 1) == [b"<<payload>>"]
