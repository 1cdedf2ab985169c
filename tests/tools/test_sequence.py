"""Losses and reorderings told from crafted columns."""

import ipaddress

import numpy as np
import pytest

import fast_socket as fs
from benchmarks.sequence import NOT_A_NUMBER, Sequences, Stream, merged, source_keys


def noted(*batches: list[int]) -> Stream:
    stream = Stream()
    for batch in batches:
        stream.note(np.array(batch, np.int64))
    return stream


@pytest.mark.parametrize(
    ("batches", "lost", "reordered"),
    [
        ([[0, 1, 2, 3]], 0, 0),
        ([[0, 1], [2, 3]], 0, 0),
        ([[0, 1, 5]], 3, 0),
        ([[3, 4]], 3, 0),  # lost before the first one that arrived
        ([[0, 1], [4]], 2, 0),  # across batches
        ([[0, 2, 1, 3]], 0, 1),
        ([[0, 3], [1, 2, 4]], 0, 2),  # late, and in a later batch
        ([[5, 4, 3, 2, 1, 0]], 0, 5),
        ([[0, 1, 1, 2]], 0, 1),  # a duplicate is not higher than what came before
        ([[0]], 0, 0),
    ],
)
def test_stream(batches, lost, reordered):
    stream = noted(*batches)
    assert (stream.lost, stream.reordered) == (lost, reordered)


@pytest.mark.parametrize("numbers", [[0, 0, 0], [NOT_A_NUMBER], [7, NOT_A_NUMBER]])
def test_what_is_not_numbered_is_not_judged(numbers):
    sequences = Sequences()
    sequences.note_columns(np.zeros(len(numbers), np.uint64), np.array(numbers, np.int64))
    assert merged([sequences]) == {"lost": None, "reordered": None}


def test_nothing_received():
    assert merged([Sequences()]) == {"lost": None, "reordered": None}


def test_sources_are_told_apart():
    """Two threads of a sender, interleaved, each numbering from 0."""
    sequences = Sequences()
    keys = np.array([1, 2, 1, 2, 1, 2], np.uint64)
    sequences.note_columns(keys, np.array([0, 0, 1, 2, 2, 1], np.int64))
    assert sequences.streams[1] == Stream(received=3, highest=2, reordered=0)
    assert sequences.streams[2] == Stream(received=3, highest=2, reordered=1)
    assert merged([sequences]) == {"lost": 0, "reordered": 1}


def test_a_stream_over_two_sockets_is_put_together():
    first, second = Sequences(), Sequences()
    first.note_columns(np.ones(2, np.uint64), np.array([0, 2], np.int64))
    second.note_columns(np.ones(1, np.uint64), np.array([1], np.int64))
    assert merged([first, second]) == {"lost": 0, "reordered": 0}


@pytest.mark.parametrize("hosts", [("10.0.0.1", "10.0.0.2", "192.0.2.1"), ("fd00::1", "fd00::2", "fd01::1")])
def test_keys_of_different_sources_differ(hosts):
    packed = [list(ipaddress.ip_address(host).packed) for host in hosts for _ in range(2)]
    keys = source_keys(np.array(packed, np.uint8), np.array([1000, 1001] * 3, ">u2"))
    assert len(set(keys.tolist())) == 6


def test_a_batch_with_coalesced_packets():
    """GRO packets are taken apart, and each datagram belongs to its packet's source."""
    with (
        fs.OsUdpSocket.bind("127.0.0.1:0", gro=True) as server,
        fs.OsUdpSocket.connect(server.local_address) as one,
        fs.OsUdpSocket.connect(server.local_address) as other,
    ):
        for sock, numbers in ((one, range(10)), (other, (0, 1, 4, 3))):
            tx = sock.tx_batch(16)
            for number in numbers:
                tx.append(number.to_bytes(8, "big") + bytes(56))
            while len(tx):
                sock.send(tx)
        rx, sequences = server.recv_batch(64), Sequences()
        received = 0
        while received < 14:
            assert server.driver.wait(5)
            server.recv(rx)
            received += rx.datagram_count
            sequences.note(rx)
    assert len(sequences.streams) == 2
    assert merged([sequences]) == {"lost": 1, "reordered": 1}
