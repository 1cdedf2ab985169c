"""Columns that are the caller's to write hold anything at all: nothing crashes, and nothing leaves its frame."""

import gc
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fast_socket as fs

ALL_METADATA = fs.Metadata.ECN | fs.Metadata.LOCAL | fs.Metadata.TTL | fs.Metadata.TXTIME
COLUMNS = ("lengths", "segment_sizes", "destination_ports", "destination_addresses", "source_addresses", "interfaces",
           "ecn", "ttl", "departure_times")  # fmt: skip
LAYOUT = fs.BufferLayout(payload_capacity=256, headroom=32, tailroom=32)
FRAME = LAYOUT.chunk_size


@pytest.fixture(params=["127.0.0.1", "::1"], scope="module")
def sock(request):
    with fs.OsUdpSocket.bind((request.param, 0), rx_layout=LAYOUT, tx_layout=LAYOUT, rx_frames=64, tx_frames=64,
                             metadata=ALL_METADATA, broadcast=True) as sock:  # fmt: skip
        yield sock


@pytest.fixture(autouse=True)
def nothing_is_lost(sock):
    yield
    gc.collect()
    assert sock.pool.tx_available == sock.pool.tx_frames


def drain(sock):
    rx = sock.recv_batch(64)
    while sock.recv(rx):
        assert (rx.lengths <= FRAME).all()


def test_length_too_large(sock):
    tx = sock.tx_batch(3)
    for payload in (b"before", b"bad", b"after"):
        tx.append(payload, sock.local_address)
    for length in (FRAME + 1, 2**31, 2**32 - 1):
        tx.lengths[-2] = length
        with pytest.raises(fs.SendError, match=str(length)):
            sock.send(tx)
        assert len(tx) == 2, "what was in front of it has gone"
    assert len(tx[0]) <= FRAME
    assert len(bytes(tx[0])) == len(memoryview(tx[0])) == len(tx[0]), "handles are cut to the frame"
    assert tx.gather(2**31, "u1").tolist() == [0, 0]
    with pytest.raises(fs.ConfigError):
        tx.scatter(2**31, np.zeros(2, "u1"))
    tx.lengths[0] = 3
    assert sock.send(tx) == 2
    drain(sock)


def test_length_up_to_the_frames_end(sock):
    """What follows the payload in its frame may be sent; what follows the frame may not."""
    tx = sock.tx_batch(2)
    tx.allocate()
    room = FRAME - LAYOUT.payload_offset
    tx.memory[int(tx.offsets[0]) :][:room] = 7
    tx.set_destinations(sock.local_address)
    tx.lengths[:] = (room, room + 1)
    with pytest.raises(fs.SendError) as caught:
        sock.send(tx)
    assert caught.value.accepted == 1
    del caught
    rx = sock.recv_batch(1)
    sock.recv(rx)
    assert len(rx[0]) == min(room, FRAME - LAYOUT.payload_offset)
    tx.discard()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_random_garbage(sock, data):
    """Any bytes in any writable column, then everything that reads them."""
    count = data.draw(st.integers(1, 6))
    tx = sock.tx_batch(6)
    for i in range(count):
        tx.append(bytes([i]) * 40, sock.local_address)
    for name in data.draw(st.sets(st.sampled_from(COLUMNS), min_size=1)):
        column = getattr(tx, name)
        garbage = data.draw(st.binary(min_size=column.nbytes, max_size=column.nbytes))
        column[:] = np.frombuffer(garbage, column.dtype).reshape(column.shape)
    for packet in tx:
        assert len(bytes(packet)) == len(packet) <= FRAME
        packet.address, packet.meta(), packet.headroom, packet.tailroom
        with memoryview(packet) as view:
            assert len(view) == len(packet)
    tx.gather(0, "u8")
    endpoint = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=sock.local_address, gso_size=33))
    send = data.draw(st.sampled_from([sock.send, lambda tx: sock.send_to(endpoint, tx)]))
    while len(tx):
        before = len(tx)
        try:
            accepted = send(tx)
        except fs.SendError as error:
            accepted = error.accepted
            assert len(tx) == before - accepted
            tx.discard(1)
        assert 0 <= accepted <= before
    drain(sock)


@pytest.mark.parametrize("columns", [("lengths",), ("segment_sizes",), ("lengths", "segment_sizes", "ecn", "ttl")])
def test_columns_written_during_a_send(sock, columns):
    """By another thread, all the time: each length is used as it was checked, or not at all."""
    tx, stop = sock.tx_batch(64), threading.Event()
    tx.allocate()
    whole = [getattr(tx, name) for name in columns]  # views of the memory, whatever the batch does
    tx.discard()

    def scribble():
        random = np.random.default_rng(1)
        while not stop.is_set():
            for column in whole:
                limit = min(2**32, np.iinfo(column.dtype).max)
                column[:] = random.integers(
                    0, min(limit, int(random.choice([64, 400, limit]))), len(column), column.dtype
                )

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            while tx.room and sock.pool.tx_available:
                tx.append(b"x" * 200, sock.local_address)
            try:
                sock.send(tx)
            except fs.SendError:
                tx.discard(1)
            for packet in tx:
                assert len(bytes(packet)) <= FRAME
            drain(sock)
    finally:
        stop.set()
        thread.join()
    tx.discard()
