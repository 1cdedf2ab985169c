"""Never run: the types of the OS backend as its user meets them."""

import socket
from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fast_socket as fs
from fast_socket.core.addresses import Address


def constructors(given: socket.socket, options: fs.OsUdpOptions) -> None:
    """The driver= option decides the type; every other one leaves it."""
    address = "127.0.0.1:0"
    assert_type(fs.OsUdpSocket.bind(address), fs.OsUdpSocket[fs.WaitDriver])
    assert_type(fs.OsUdpSocket.bind(address, driver=fs.WaitDriver), fs.OsUdpSocket[fs.WaitDriver])
    assert_type(fs.OsUdpSocket.bind(address, driver=fs.BusyPollDriver), fs.OsUdpSocket[fs.BusyPollDriver])
    assert_type(fs.OsUdpSocket.bind(("::1", 9), gro=True, metadata=fs.Metadata.ECN), fs.OsUdpSocket[fs.WaitDriver])
    assert_type(fs.OsUdpSocket.bind(address, **options), fs.OsUdpSocket[fs.WaitDriver])
    assert_type(
        fs.OsUdpSocket.bind(address, driver=fs.BusyPollDriver, **options),
        fs.OsUdpSocket[fs.BusyPollDriver],
    )
    assert_type(fs.OsUdpSocket.connect(address, local=("127.0.0.1", 0)), fs.OsUdpSocket[fs.WaitDriver])
    assert_type(
        fs.OsUdpSocket.connect(address, local=None, driver=fs.BusyPollDriver, ttl=3),
        fs.OsUdpSocket[fs.BusyPollDriver],
    )
    assert_type(fs.OsUdpSocket.from_socket(given), fs.OsUdpSocket[fs.WaitDriver])
    assert_type(fs.OsUdpSocket.from_socket(given, driver=fs.BusyPollDriver), fs.OsUdpSocket[fs.BusyPollDriver])


def parts(sock: fs.OsUdpSocket[fs.WaitDriver], spinning: fs.OsUdpSocket[fs.BusyPollDriver]) -> None:
    """Everything concrete."""
    assert_type(sock.driver, fs.WaitDriver)
    assert_type(sock.driver.fileno(), int)
    assert_type(spinning.driver, fs.BusyPollDriver)
    assert_type(sock.recv_batch(1), fs.OsRecvBatch)
    assert_type(sock.tx_batch(1), fs.OsTxBatch)
    assert_type(sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="192.0.2.1:9")), fs.OsUdpEndpoint)
    assert_type(sock.pool, fs.FramePool)
    assert_type(sock.local_address, tuple[str, int])
    assert_type(sock.remote_address, tuple[str, int] | None)
    assert_type(sock.stats(), fs.UdpStats)
    assert_type(sock.stats().kernel_drops, int | None)
    assert_type(sock.capabilities(), fs.UdpCapabilities)
    with sock as same:
        assert_type(same, fs.OsUdpSocket[fs.WaitDriver])


def batches(rx: fs.OsRecvBatch, tx: fs.OsTxBatch) -> None:
    """Columns have their element types, iteration gives packets."""
    assert_type(rx.lengths, NDArray[np.uint32])
    assert_type(rx.offsets, NDArray[np.uint64])
    assert_type(rx.source_ports, NDArray[np.uint16])
    assert_type(rx.timestamps, NDArray[np.int64])
    assert_type(rx.gather(0, ">u2"), NDArray[Any])
    assert_type(iter(rx), Iterator[fs.PacketBuffer])
    assert_type(rx.datagrams(), fs.Datagrams)
    assert_type(rx.datagrams()[0], bytes)
    for packet in rx:
        assert_type(packet, fs.PacketBuffer)
        assert_type(packet.meta(), fs.UdpRecvMeta)
        assert_type(packet.meta().ecn, fs.Ecn | None)
        assert_type(packet.take().freeze(), fs.FrozenPacket)
        assert_type(bytes(packet), bytes)
        assert_type(memoryview(packet), memoryview[int])
        hash(packet.freeze())
        packet.address = ("192.0.2.1", 9)
        packet.address = "192.0.2.1:9"
        tx.append(packet)
    assert_type(tx.take_from(rx, reply=False), int)
    assert_type(tx[0], fs.PacketBuffer)
    tx.fill(b"payload")
    tx.fill(np.zeros((4, 64), dtype=np.uint8))
    tx.scatter(0, np.arange(4, dtype=">u4"))
    tx.append(bytearray(5), to=("192.0.2.1", 9))
    to: Address = ("fe80::1", 9, 0, 2)
    tx.set_destinations(to)
    tx.departure_times[:] = 0
