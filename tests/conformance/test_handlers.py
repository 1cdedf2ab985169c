"""Compiled handlers, and coalesced packets walked as the datagrams that they came as."""

import contextlib
import ctypes
import ipaddress

import numpy as np
import pytest

import fast_socket as fs
from tests.conformance.backends import home, layouts


class Packet(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("length", "room", "index", "source_length")]


HANDLER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(Packet), ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_void_p
)
PAYLOADS = [b"zero", b"one", b"two", b"three"]
DROP, KEEP, REFLECT, FORWARD = range(4)


def address_of(function):
    return ctypes.cast(function, ctypes.c_void_p).value


def recorder(verdict=lambda data: 1):
    """A handler that remembers what it was called with."""
    calls = []

    @HANDLER
    def handler(packet, data, source, user):
        calls.append((ctypes.string_at(data, packet[0].length), user))
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
    def handler(packet, data, source, user):
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
    def handler(packet, data, source, user):
        for number, attempt in enumerate(attempts):
            try:
                outcomes.append((number, attempt()))
            except fs.BufferTakenError as error:
                outcomes.append((number, error))
            except fs.Error:
                pass
        return DROP if packet[0].length == 3 else KEEP

    assert rx.run(address_of(handler)) == 2
    assert outcomes == []
    assert [bytes(packet) for packet in rx] == [b"zero", b"three"]


def test_handler_may_close_the_socket(pair):
    rx = pair.deliver(PAYLOADS)

    @HANDLER
    def handler(packet, data, source, user):
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


def address_record(pair, host, port):
    """As `source` of a handler at the far end holds it, from its third byte on."""
    v6 = ":" in pair.far.local_address[0]
    packed = ipaddress.ip_address(host).packed
    mapped = bytes(10) + b"\xff\xff" + packed if v6 and len(packed) == 4 else packed
    return port.to_bytes(2, "big") + (bytes(4) if v6 else b"") + mapped


def test_handler_is_told_who_and_where(pair):
    rx = pair.deliver(PAYLOADS)
    rx[0].release()
    told = []

    @HANDLER
    def handler(packet, data, source, user):
        told.append((packet[0].index, packet[0].length, bytes(source[2 : packet[0].source_length]), user))
        return KEEP

    assert rx.run(address_of(handler), 5) == 3
    record = address_record(pair, *pair.near_address)
    assert [(index, length, user) for index, length, _, user in told] == [(1, 3, 5), (2, 3, 5), (3, 5, 5)]
    v6 = ":" in pair.far.local_address[0]
    assert all(found.startswith(record) and len(found) == (26 if v6 else 14) for _, _, found, _ in told)


def test_handler_without_user_gets_its_own(pair):
    rx = pair.deliver(PAYLOADS)
    handler, calls = recorder()

    class Compiled:
        address = address_of(handler)
        user = 77

    rx.run(Compiled())
    rx.run(Compiled(), 78)
    rx.run(address_of(handler))
    assert [user for _, user in calls] == [77] * 4 + [78] * 4 + [None] * 4


def test_handler_answers_in_place(pair):
    """Reflected packets leave with the length that the handler gave them; the others stay, in order."""
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)

    @HANDLER
    def handler(packet, data, source, user):
        if packet[0].length != 3:
            return KEEP
        ctypes.memmove(data, b"answer", 6)
        packet[0].length = 6
        return REFLECT

    assert rx.run(address_of(handler), reflect=tx) == 2
    assert [bytes(packet) for packet in rx] == [b"zero", b"three"]
    assert [bytes(packet) for packet in tx] == [b"answer", b"answer"]
    assert pair.far.send(tx) == 2
    assert pair.received(pair.near, 2) == [b"answer", b"answer"]
    assert home(pair.far.pool)[0] + len(list(rx)) <= pair.far.pool.rx_frames


def test_handler_shortens_and_grows_what_stays(pair):
    rx = pair.deliver(PAYLOADS)
    rooms = []

    @HANDLER
    def handler(packet, data, source, user):
        rooms.append(packet[0].room)
        if packet[0].length == 3:
            packet[0].length = 0
        else:
            ctypes.memset(data, ord("x"), packet[0].room)
            packet[0].length = packet[0].room
        return KEEP

    assert rx.run(address_of(handler)) == 4
    assert rx.lengths.tolist() == [rooms[0], 0, 0, rooms[3]]
    assert bytes(rx[0]) == b"x" * rooms[0]
    assert bytes(rx[1]) == b""
    assert rx[0].tailroom == 0


def test_handler_chooses_where_to_reflect(pair):
    """To what it writes into `source`."""
    rx, tx = pair.deliver([b"one", b"two"]), pair.far.tx_batch(4)

    @HANDLER
    def handler(packet, data, source, user):
        source[2], source[3] = (0x12, 0x34) if packet[0].index else (0, 0)
        return REFLECT

    assert rx.run(address_of(handler), reflect=tx) == 1, "nothing can be sent to port 0"
    assert [bytes(packet) for packet in rx] == [b"one"]
    assert tx.destination_ports.tolist() == [0x1234]


def test_handler_cannot_change_the_family(pair):
    """What reads an address goes by it; a sockaddr_in6 would reach into the next record."""
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)

    @HANDLER
    def handler(packet, data, source, user):
        source[0], source[1] = (10, 0) if source[0] == 2 else (2, 0)
        return REFLECT if packet[0].index else KEEP

    assert rx.run(address_of(handler), reflect=tx) == 1
    assert rx[0].address == pair.near_address
    assert pair.far.send(tx) == 3
    assert pair.received(pair.near, 3) == PAYLOADS[1:]


def test_handler_forwards(pair):
    """Into another batch, with no destination; both may be the same batch."""
    rx, back, on = pair.deliver(PAYLOADS), pair.far.tx_batch(4), pair.far.tx_batch(4)
    verdicts = iter([DROP, FORWARD, REFLECT, FORWARD])

    @HANDLER
    def handler(packet, data, source, user):
        return next(verdicts)

    assert rx.run(address_of(handler), reflect=back, forward=on) == 0
    assert [bytes(packet) for packet in back] == [b"two"]
    assert [bytes(packet) for packet in on] == [b"one", b"three"]
    assert back.destination_ports.tolist() == [pair.near_address[1]]
    assert on.destination_ports.tolist() == [0, 0]
    verdicts = iter([REFLECT, FORWARD, REFLECT, FORWARD])
    pair.deliver(PAYLOADS, rx)
    both = pair.far.tx_batch(8)
    assert rx.run(address_of(handler), reflect=both, forward=both) == 0
    assert [bytes(packet) for packet in both] == PAYLOADS
    assert [port > 0 for port in both.destination_ports] == [True, False, True, False]


def test_packets_stay_without_a_batch_to_go_to(pair):
    rx, small = pair.deliver(PAYLOADS), pair.far.tx_batch(2)
    verdicts = [REFLECT, FORWARD, REFLECT, REFLECT]

    @HANDLER
    def handler(packet, data, source, user):
        return verdicts[packet[0].index]

    assert rx.run(address_of(handler)) == 4
    assert rx.run(address_of(handler), reflect=small) == 2
    assert [bytes(packet) for packet in rx] == [b"one", b"three"]
    assert [bytes(packet) for packet in small] == [b"zero", b"two"]
    assert small.take_from(rx) == 0


@pytest.mark.parametrize("verdict", [4, 5, 2**31 - 1])
def test_other_verdicts_keep(pair, verdict):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    handler, _ = recorder(lambda data: verdict)
    assert rx.run(address_of(handler), reflect=tx, forward=tx) == 4
    assert len(tx) == 0


def test_failing_handlers_are_counted(pair):
    """Below 0, and a length that there is no room for: dropped, and the others carry on."""
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(4)
    free = home(pair.far.pool)[0]

    @HANDLER
    def handler(packet, data, source, user):
        if packet[0].index == 0:
            return -1
        if packet[0].index == 1:
            packet[0].length = packet[0].room + 1
        if packet[0].index == 2:
            packet[0].length = 2**32 - 1
        return REFLECT

    assert rx.handler_errors == 0
    assert rx.run(address_of(handler), reflect=tx) == 0
    assert rx.handler_errors == 3
    assert [bytes(packet) for packet in tx] == [b"three"]
    assert home(pair.far.pool)[0] == free + 3
    pair.deliver(PAYLOADS, rx)
    assert rx.handler_errors == 3, "it counts since the batch was made"


def test_handler_cannot_touch_the_batches_it_fills(pair):
    rx, tx = pair.deliver(PAYLOADS), pair.far.tx_batch(8)
    tx.append(b"before", pair.near_address)
    outcomes = []
    attempts = (
        lambda: pair.far.send(tx), lambda: tx[0], tx.discard, lambda: tx.take_from(rx), lambda: tx.append(b"x"),
        tx.allocate, lambda: tx.fill(b"x"), lambda: rx.run(1, reflect=tx),
    )  # fmt: skip

    @HANDLER
    def handler(packet, data, source, user):
        for attempt in attempts:
            with contextlib.suppress(fs.Error):
                outcomes.append(attempt())
        return REFLECT

    assert rx.run(address_of(handler), reflect=tx) == 0
    assert outcomes == []
    assert [bytes(packet) for packet in tx] == [b"before", *PAYLOADS]


def test_batches_that_handlers_cannot_fill(pair, open_pair):
    rx, other = pair.deliver(PAYLOADS), open_pair()
    handler, calls = recorder()
    for name in ("reflect", "forward"):
        with pytest.raises(fs.ConfigError, match="pool"):
            rx.run(address_of(handler), **{name: other.near.tx_batch(4)})
        with pytest.raises(TypeError):
            rx.run(address_of(handler), **{name: rx})
    tx = pair.far.tx_batch(4)
    tx.append(b"viewed", pair.near_address)
    with memoryview(tx[0]), pytest.raises(BufferError):
        rx.run(address_of(handler), reflect=tx)
    assert calls == []
    assert [bytes(packet) for packet in rx] == PAYLOADS


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


def test_coalesced_verdict_is_the_largest(coalesced):
    """And its datagrams keep their lengths."""
    pair, rx = coalesced()
    tx, on = pair.far.tx_batch(16), pair.far.tx_batch(16)
    handler, _ = recorder(lambda data: {DATAGRAMS[2]: FORWARD, DATAGRAMS[3]: 9}.get(data, REFLECT))
    assert rx.run(address_of(handler), reflect=tx, forward=on) == 0
    assert (len(tx), len(on)) == (1, 1)
    assert bytes(on[0]) == b"".join(DATAGRAMS[:-1])
    assert on.segment_sizes.tolist() == [20]

    pair, rx = coalesced()
    rooms = []

    @HANDLER
    def longer(packet, data, source, user):
        rooms.append(packet[0].room)
        packet[0].length += 1
        return KEEP

    assert rx.run(address_of(longer)) == 1
    assert rx.handler_errors == 1
    assert rooms[0] == 20
    assert [bytes(packet)[:5] for packet in rx] == [b"alone"]
    assert next(iter(rx.datagrams()))[:5] == b"alone"
    assert rx.gro_strides[len(rx) - 1] == 6


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
