"""Sockets: round trips, prefixes, order, endpoints, closing, counters."""

import threading
import time

import pytest

import fast_socket as fs
from tests.conformance.backends import SECONDS, home


def numbered(count, size=16):
    return [i.to_bytes(4, "big").ljust(size, b".") for i in range(count)]


def test_round_trip(pair):
    rx = pair.deliver([b"ping"])
    assert [bytes(packet) for packet in rx] == [b"ping"]
    assert rx[0].address == pair.near_address
    tx = pair.far.tx_batch(4)
    tx.append(b"pong", rx[0].address)
    assert pair.far.send(tx) == 1
    assert pair.received(pair.near, 1) == [b"pong"]


def test_order_and_content(pair):
    sizes = [1, 2, 63, 64, 65, 1000, 1472, 0, 2048, 7] * 6
    payloads = [bytes([i % 256]) * size for i, size in enumerate(sizes)]
    pair.send(payloads)
    assert pair.received(pair.far, len(payloads)) == payloads


def test_equal_runs_arrive_as_they_were_sent(pair):
    """What a backend may coalesce: runs of one length, the last one shorter, and then another run."""
    payloads = [*numbered(130, 40), b"short", *numbered(70, 24), b"", *numbered(3, 40)]
    pair.send(payloads)
    assert pair.received(pair.far, len(payloads)) == payloads


def test_nothing_arrived(pair):
    rx = pair.far.recv_batch(4)
    assert pair.far.recv(rx) == 0
    assert len(rx) == 0
    assert list(rx) == []
    assert rx.datagram_count == 0


def test_batch_is_reused(pair):
    rx = pair.far.recv_batch(8)
    tx = pair.near.tx_batch(8)
    first_frames = None
    for lap in range(20):
        for payload in numbered(8, 10 + lap):
            tx.append(payload, pair.far_address)
        assert pair.near.send(tx) == 8
        assert len(tx) == 0
        assert tx.room == 8
        pair.settle(pair)
        assert pair.far.recv(rx) == 8
        assert [bytes(packet) for packet in rx] == numbered(8, 10 + lap)
        frames = sorted(rx.frames.tolist())
        first_frames = first_frames or frames
        if pair.far.pool.rx_with_device == 0:
            assert frames == first_frames, "a receive batch keeps its frames while nobody takes one"


def test_receive_takes_no_more_than_there_is_room_for(pair):
    pair.send(numbered(10))
    rx = pair.far.recv_batch(4)
    got = []
    for expected in (4, 4, 2, 0):
        assert pair.far.recv(rx) == expected
        assert len(rx) == expected
        got += [bytes(packet) for packet in rx]
    assert got == numbered(10)


def test_accepts_a_prefix_and_goes_on(pair):
    """A slot that cannot be sent stops the send in front of it; the rest stays and can go once that one is mended."""
    tx = pair.near.tx_batch(8)
    for payload in numbered(5):
        tx.append(payload, pair.far_address)
    tx.destination_ports[2] = 0
    with pytest.raises(fs.SendError) as caught:
        pair.near.send(tx)
    assert caught.value.accepted == 2
    assert len(tx) == 3
    assert [bytes(packet) for packet in tx] == numbered(5)[2:]
    assert pair.received(pair.far, 2) == numbered(5)[:2]
    with pytest.raises(fs.SendError) as again:
        pair.near.send(tx)
    assert again.value.accepted == 0
    tx.destination_ports[0] = pair.far_address[1]
    assert pair.near.send(tx) == 3
    assert pair.received(pair.far, 3) == numbered(5)[2:]


def test_refused_slot_can_be_discarded(pair):
    tx = pair.near.tx_batch(8)
    for payload in numbered(5):
        tx.append(payload, pair.far_address)
    tx.destination_ports[2] = 0
    with pytest.raises(fs.SendError):
        pair.near.send(tx)
    assert tx.discard(1) == 1
    assert pair.near.send(tx) == 2
    assert pair.received(pair.far, 4) == [numbered(5)[i] for i in (0, 1, 3, 4)]


def test_accepted_slots_are_gone(pair):
    tx = pair.near.tx_batch(4)
    for payload in numbered(3):
        tx.append(payload, pair.far_address)
    tx.destination_ports[1] = 0
    handles = list(tx)
    with pytest.raises(fs.SendError):
        pair.near.send(tx)
    with pytest.raises(fs.BufferTakenError):
        bytes(handles[0])
    assert bytes(handles[1]) == numbered(3)[1]
    tx.discard()
    for handle in handles:
        with pytest.raises(fs.BufferTakenError):
            handle.read(0, 1)


def test_sending_an_empty_batch(pair):
    assert pair.near.send(pair.near.tx_batch(4)) == 0
    assert pair.nothing_at(pair.far)


def test_large_batch(pair):
    """More packets than one system call takes."""
    payloads = numbered(1500)
    rx = pair.far.recv_batch(2000)
    got = []
    tx = pair.near.tx_batch(1500)
    for start in range(0, 1500, 100):  # the default receive buffer holds no 1,500 datagrams
        for payload in payloads[start : start + 100]:
            tx.append(payload, pair.far_address)
        assert pair.near.send(tx) == 100
        pair.settle(pair)
        assert pair.far.recv(rx) == 100
        got += [bytes(packet) for packet in rx]
    assert got == payloads


# Endpoints


def test_endpoint(pair):
    endpoint = pair.near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=pair.far_address))
    tx = pair.near.tx_batch(4)
    for payload in numbered(4):
        tx.append(payload)
    assert pair.near.send_to(endpoint, tx) == 4
    assert pair.received(pair.far, 4) == numbered(4)


def test_endpoint_overrides_the_slots(pair):
    endpoint = pair.near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=pair.far_address))
    tx = pair.near.tx_batch(4)
    tx.append(b"to near", pair.near_address)
    assert pair.near.send_to(endpoint, tx) == 1
    assert pair.received(pair.far, 1) == [b"to near"]
    assert pair.nothing_at(pair.near)


def test_endpoint_segments(pair):
    """Packets longer than gso_size leave as datagrams of that size, also the last, shorter one."""
    endpoint = pair.near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=pair.far_address, gso_size=100))
    tx = pair.near.tx_batch(4)
    tx.append(bytes(range(250)))
    tx.append(b"x" * 100)
    tx.append(b"y" * 30)
    assert pair.near.send_to(endpoint, tx) == 3
    whole = bytes(range(250))
    assert pair.received(pair.far, 5) == [whole[:100], whole[100:200], whole[200:], b"x" * 100, b"y" * 30]


def test_slot_segments(pair):
    tx = pair.near.tx_batch(4)
    tx.append(b"a" * 70, pair.far_address)
    tx.append(b"b" * 70, pair.far_address)
    tx.segment_sizes[:] = (30, 0)
    assert pair.near.send(tx) == 2
    assert pair.received(pair.far, 4) == [b"a" * 30, b"a" * 30, b"a" * 10, b"b" * 70]


def test_endpoint_with_fixed_length(pair):
    endpoint = pair.near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=pair.far_address, payload_len=16))
    tx = pair.near.tx_batch(4)
    for payload in [*numbered(2), b"other"]:
        tx.append(payload)
    with pytest.raises(fs.SendError, match=r"5 bytes.*payload_len") as caught:
        pair.near.send_to(endpoint, tx)
    assert caught.value.accepted == 2
    assert pair.received(pair.far, 2) == numbered(2)


def test_endpoint_remembers_its_spec(pair):
    spec = fs.UdpEndpointSpec(remote=pair.far_address, ttl=9)
    assert pair.near.prepare_udp_endpoint(spec).spec is spec


# Completions, capabilities, counters


def test_completions_and_doorbell(pair):
    """Portable everywhere: after notify and drain the frames of what was sent are at home."""
    free = home(pair.near.pool)[1]
    assert pair.send(numbered(5)) == 5
    assert pair.near.notify_tx() is None
    drained = pair.near.drain_tx_completions()
    assert drained <= (5 if pair.near.capabilities().explicit_completions else 0)
    assert home(pair.near.pool)[1] == free


def test_statistics_add_up(pair):
    payloads = [b"x" * size for size in (1, 10, 100)] + numbered(64)
    pair.send(payloads)
    assert pair.received(pair.far, len(payloads)) == payloads
    near, far = pair.near.stats(), pair.far.stats()
    size = sum(map(len, payloads))
    assert (near.sent, near.sent_bytes, near.received) == (len(payloads), size, 0)
    assert (far.received, far.received_bytes, far.sent) == (len(payloads), size, 0)
    assert far.truncated == 0


def test_truncation_is_counted(open_pair, backend):
    if backend.fills_frames:
        pytest.skip(f"{backend.name} has no frames too small for a datagram")
    pair = open_pair(far={"rx_layout": fs.BufferLayout(payload_capacity=64)})
    rx = pair.deliver([b"a" * 64, b"b" * 65, b"c" * 200, b"d"])
    assert [bytes(packet) for packet in rx] == [b"a" * 64, b"b" * 64, b"c" * 64, b"d"]
    assert pair.far.stats().truncated == 2


def test_capabilities_hold(pair):
    capabilities = pair.near.capabilities()
    assert capabilities.max_gso_segments >= 1
    payload = b"m" * min(capabilities.max_payload, 2048)
    assert [bytes(packet) for packet in pair.deliver([payload])] == [payload]


def test_batches_are_the_backends_own(pair, backend):
    assert type(pair.near.recv_batch(3)) is backend.recv_batch
    assert type(pair.near.tx_batch(3)) is backend.tx_batch
    assert pair.near.recv_batch(3).capacity == 3
    assert pair.near.recv_batch(3).pool is pair.near.pool


def test_frame_shortage(open_pair, backend):
    """Fewer frames than slots: what there is is used, and counted; none at all is an error that says so."""
    pair = open_pair(far={"rx_frames": 4})
    rx = pair.deliver(numbered(3), pair.far.recv_batch(3))
    kept = [packet.take() for packet in list(rx)]
    pair.send(numbered(3))
    wide = pair.far.recv_batch(3)
    assert pair.far.recv(wide) == 1
    assert pair.far.stats().frame_shortages >= 1
    kept.append(wide[0].take())
    with pytest.raises(fs.Error, match="rx_frames"):
        pair.far.recv(wide)
    kept.clear()
    assert pair.far.recv(wide) == (0 if backend.fills_frames else 2)
    assert pair.far.stats().kernel_drops == (2 if backend.fills_frames else 0)


# Closing


def test_close_twice(pair):
    pair.near.close()
    pair.near.close()
    assert pair.near.closed


def test_with_closes(pair):
    with pair.near as sock:
        assert sock is pair.near
    assert pair.near.closed


@pytest.mark.parametrize("call", ["recv", "send", "send_to", "wait", "wait_writable", "local_address", "endpoint"])
def test_closed_socket_says_so(pair, call):
    sock, rx, tx = pair.near, pair.near.recv_batch(2), pair.near.tx_batch(2)
    endpoint = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=pair.far_address))
    tx.append(b"x", pair.far_address)
    sock.close()
    with pytest.raises(fs.Error, match="closed"):
        {
            "recv": lambda: sock.recv(rx),
            "send": lambda: sock.send(tx),
            "send_to": lambda: sock.send_to(endpoint, tx),
            "wait": lambda: sock.driver.wait(0),
            "wait_writable": lambda: sock.driver.wait_writable(0),
            "local_address": lambda: sock.local_address,
            "endpoint": lambda: sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=pair.far_address, source_port=9)),
        }[call]()
    assert len(tx) == 1


def test_everything_stays_readable_after_close(pair):
    rx = pair.deliver(numbered(3))
    owned, view, frozen = rx[0].take(), memoryview(rx[1]), rx[2].freeze()
    pair.close()
    assert bytes(owned) == numbered(3)[0]
    assert bytes(view) == numbered(3)[1]
    assert frozen == numbered(3)[2]
    assert rx.lengths.tolist() == [16, 16, 16]
    assert pair.far.stats().received == 3
    assert "closed" in repr(pair.far)


@pytest.mark.parametrize("driver", [fs.WaitDriver, fs.BusyPollDriver])
def test_close_wakes_a_waiting_thread(open_pair, driver):
    pair = open_pair(driver=driver)
    waiting, outcome = threading.Event(), []

    def wait():
        waiting.set()
        try:
            outcome.append(pair.far.driver.wait(60))
        except fs.Error as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    time.sleep(0.05)  # in the kernel by now, most likely; if not, it finds the socket closed
    pair.far.close()
    thread.join(SECONDS)
    assert not thread.is_alive(), "the waiting thread was not woken"
    assert isinstance(outcome[0], fs.Error)
    assert "closed" in str(outcome[0])


def test_close_during_sends_of_another_thread(open_pair):
    pair = open_pair()
    started, outcome = threading.Event(), []

    def blast():
        tx = pair.near.tx_batch(64)
        try:
            while True:
                while tx.room:
                    tx.append(b"x" * 32, pair.far_address)
                pair.near.send(tx)
                started.set()
        except fs.Error as error:
            outcome.append(error)

    thread = threading.Thread(target=blast)
    thread.start()
    assert started.wait(SECONDS)
    pair.near.close()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert "closed" in str(outcome[0])
    assert pair.near.fileno() == -1
