"""Frameworks beside asyncio: they wait for the driver's descriptor, and receive without waiting."""

from typing import Any

import pytest

import fast_socket as fs

COUNT = 20_000


async def until_received(wait_readable: Any, sock: Any, count: int) -> int:
    rx = sock.recv_batch(64)
    received = 0
    while received < count:
        await wait_readable(sock.driver.fileno())
        while sock.recv(rx):
            received += rx.datagram_count
    return received


async def send_all(wait_writable: Any, sock: Any, count: int) -> None:
    tx = sock.tx_batch(64)
    for number in range(count):
        tx.append(number.to_bytes(8))
        while not tx.room or (number == count - 1 and len(tx)):
            sock.send(tx)
            await wait_writable(sock.driver.fileno())  # at once, as a rule: whoever receives has a turn


def ends() -> tuple[Any, Any]:
    server = fs.OsUdpSocket.bind(("127.0.0.1", 0))
    return server, fs.OsUdpSocket.connect(server.local_address)


def test_trio() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> int:
        server, client = ends()
        with server, client, trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, trio.lowlevel.wait_writable, client, COUNT)
                return await until_received(trio.lowlevel.wait_readable, server, COUNT)

    assert trio.run(main) == COUNT


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio(backend: str) -> None:
    anyio = pytest.importorskip("anyio")
    pytest.importorskip(backend)

    async def main() -> int:
        server, client = ends()
        with server, client, anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(send_all, anyio.wait_writable, client, COUNT)
                return await until_received(anyio.wait_readable, server, COUNT)

    assert anyio.run(main, backend=backend) == COUNT


def test_a_wait_that_is_cancelled_takes_nothing() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        server, client = ends()
        with server, client:
            with trio.move_on_after(0.01) as scope:
                await until_received(trio.lowlevel.wait_readable, server, 1)
            assert scope.cancelled_caught
            await send_all(trio.lowlevel.wait_writable, client, 3)
            with trio.fail_after(5):
                assert await until_received(trio.lowlevel.wait_readable, server, 3) == 3

    trio.run(main)
