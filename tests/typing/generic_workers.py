"""Never run: worker code written against the traits alone, and what mypy and pyright make of it with a backend."""

from typing import TypeVar, assert_type

import fast_socket as fs

Rx = TypeVar("Rx", bound=fs.RecvBatch)
Tx = TypeVar("Tx", bound=fs.TxBatch)
Driver = TypeVar("Driver", bound=fs.PollDriver)
Waiting = TypeVar("Waiting", bound=fs.WaitDriven)
Endpoint = TypeVar("Endpoint")


def parts(sock: fs.UdpSocket[Rx, Tx, Driver, Endpoint]) -> tuple[Rx, Tx, Driver, Endpoint]:
    """One of everything that a worker holds."""
    endpoint = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="192.0.2.1:9"))
    return sock.recv_batch(64), sock.tx_batch(64), sock.driver, endpoint


def pong(sock: fs.UdpSocket[Rx, Tx, Driver, Endpoint]) -> int:
    """The whole loop, for any backend."""
    rx, tx, driver, endpoint = parts(sock)
    answered = 0
    while driver.wait(timeout=1.0):
        sock.recv(rx)
        tx.take_from(rx)
        answered += sock.send(tx)
    tx.allocate(1)
    answered += sock.send_to(endpoint, tx)
    sock.notify_tx()
    return answered + sock.drain_tx_completions()


def register(sock: fs.UdpSocket[Rx, Tx, Waiting, Endpoint]) -> int:
    """Asks for a driver with a descriptor, as event loops need it."""
    return sock.driver.fileno()


def closing(sock: fs.UdpSocket[Rx, Tx, Driver, Endpoint]) -> fs.UdpStats:
    """A context manager that stays what it is."""
    with sock as same:
        assert_type(same, fs.UdpSocket[Rx, Tx, Driver, Endpoint])
        return same.stats()


class OwnDriver:
    """Satisfies the protocol without inheriting from it."""

    def wait(self, timeout: float | None = None) -> bool:
        return timeout is None

    def wait_writable(self, timeout: float | None = None) -> bool:
        return timeout is None


def os_backend(sock: fs.OsUdpSocket[fs.WaitDriver], spinning: fs.OsUdpSocket[fs.BusyPollDriver]) -> None:
    """Generic code keeps the concrete types of the OS backend."""
    rx, tx, driver, endpoint = parts(sock)
    assert_type(rx, fs.OsRecvBatch)
    assert_type(tx, fs.OsTxBatch)
    assert_type(driver, fs.WaitDriver)
    assert_type(endpoint, fs.OsUdpEndpoint)
    assert_type(
        parts(spinning),
        tuple[fs.OsRecvBatch, fs.OsTxBatch, fs.BusyPollDriver, fs.OsUdpEndpoint],
    )
    assert_type(pong(sock) + pong(spinning) + register(sock), int)
    assert_type(closing(spinning), fs.UdpStats)

    widened(sock)
    widened(spinning)
    waits: fs.WaitDriven = sock.driver
    polls: fs.PollDriver = spinning.driver
    own: fs.PollDriver = OwnDriver()
    assert_type([waits.wait(), polls.wait(1), own.wait_writable(None)], list[bool])


def widened(sock: fs.UdpSocket[fs.OsRecvBatch, fs.OsTxBatch, fs.PollDriver, fs.OsUdpEndpoint]) -> None:
    """Any driver, one backend."""
    assert_type(sock.driver, fs.PollDriver)
    assert_type(sock.recv_batch(1), fs.OsRecvBatch)
