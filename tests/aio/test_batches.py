"""Batches that are awaited: all that is sent arrives, cancellation loses nothing, misuse is told."""

import asyncio
from typing import Any

import pytest

import fast_socket as fs
from fast_socket import aio


@pytest.fixture(params=["asyncio, ours", "uvloop, ours"])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def test_there_and_back(run: Any) -> None:
    async def main() -> None:
        async with aio.open_udp("127.0.0.1:0") as server, aio.open_udp(remote=server.socket.local_address) as client:

            async def echo() -> None:
                tx = server.tx_batch(256)
                async for rx in server:
                    tx.take_from(rx)
                    await server.send_batch(tx)

            task = asyncio.create_task(echo())
            tx, got = client.tx_batch(64), []
            for number in range(64):
                tx.append(b"%d" % number)
            assert await client.send_batch(tx) == 64
            while len(got) < 64:
                got += [bytes(packet) for packet in await client.recv_batch()]
            assert got == [b"%d" % number for number in range(64)]
            server.close()
            await task

    run(main())


def test_a_million_small_datagrams(run: Any) -> None:
    """None is lost that is not reported: by the kernel, as dropped."""
    count = 1_000_000

    async def main() -> None:
        async with (
            aio.open_udp("127.0.0.1:0", gro=True, recv_buffer=8 << 20,
                         rx_layout=fs.BufferLayout(payload_capacity=65_535), rx_frames=64, batch=32) as server,
            aio.open_udp(remote=server.socket.local_address) as client,
        ):  # fmt: skip

            async def send() -> None:
                tx, left = client.tx_batch(256), count
                while left:
                    now = tx.allocate(min(left, 256))
                    tx.fill(b"x" * 8)
                    await client.send_batch(tx)
                    left -= now

            task = asyncio.create_task(send())
            received = 0
            while not (task.done() and received + (server.socket.stats().kernel_drops or 0) >= count):
                try:
                    rx = await asyncio.wait_for(server.recv_batch(), 0.5)
                except TimeoutError:
                    break
                received += rx.datagram_count
            await task
            assert client.socket.stats().sent == count
            drops = server.socket.stats().kernel_drops
            assert received == count or drops, (received, drops)
            assert received == server.socket.stats().received

    run(main())


def test_cancelled_while_it_waits(run: Any) -> None:
    async def main() -> None:
        async with aio.open_udp("127.0.0.1:0") as server, aio.open_udp(remote=server.socket.local_address) as client:
            for number in range(5):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(server.recv_batch(), 0.01)
                tx = client.tx_batch(1)
                tx.append(b"%d" % number)
                await client.send_batch(tx)
                rx = await asyncio.wait_for(server.recv_batch(), 5)
                assert [bytes(packet) for packet in rx] == [b"%d" % number]

    run(main())


def test_two_readers_of_which_one_was_just_woken(run: Any) -> None:
    async def main() -> None:
        async with aio.open_udp("127.0.0.1:0") as server, aio.open_udp(remote=server.socket.local_address) as client:
            first = asyncio.create_task(server.recv_batch())
            await asyncio.sleep(0)
            tx = client.tx_batch(1)
            tx.append(b"x")
            await client.send_batch(tx)
            server._wake("recv_batch")  # as the loop does; its task has yet to go on
            with pytest.raises(RuntimeError, match="another task"):
                await server.recv_batch()
            assert [bytes(packet) for packet in await first] == [b"x"]

    run(main())


def test_a_flood_leaves_others_their_turn(run: Any) -> None:
    async def main() -> None:
        async with aio.open_udp("127.0.0.1:0", batch=1) as server:
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            with fs.OsUdpSocket.connect(server.socket.local_address) as client:
                tx = client.tx_batch(100)
                for _ in range(100):
                    tx.append(b"x")
                client.send(tx)
            await server.recv_batch()
            before = turns
            for _ in range(90):
                await server.recv_batch()
            assert turns > before
            task.cancel()

    run(main())


def test_one_socket_has_one_owner(run: Any) -> None:
    async def main() -> None:
        with fs.OsUdpSocket.bind("127.0.0.1:0") as sock:
            first = aio.open_udp(sock=sock)
            with pytest.raises(fs.ConfigError, match="belongs to"):
                aio.open_udp(sock=sock)
            with pytest.raises(fs.ConfigError, match="belongs to"):
                await aio.create_datagram_endpoint(asyncio.DatagramProtocol, sock=sock)
            assert not sock.closed
            first.close()
        for _ in range(3):  # the same descriptor, another socket
            async with aio.open_udp("127.0.0.1:0"):
                pass

    run(main())


def test_closed_after_its_loop() -> None:
    async def main() -> Any:
        opened = aio.open_udp("127.0.0.1:0")
        task = asyncio.create_task(opened.recv_batch())
        await asyncio.sleep(0)
        task.cancel()
        return opened

    opened = asyncio.run(main())
    opened.close()
    assert opened.socket.closed


def test_two_at_once(run: Any) -> None:
    async def main() -> None:
        async with aio.open_udp("127.0.0.1:0") as sock:
            first = asyncio.create_task(sock.recv_batch())
            await asyncio.sleep(0.01)
            with pytest.raises(RuntimeError, match="another task"):
                await sock.recv_batch()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sock.recv_batch(), 0.01)

    run(main())


def test_closed_under_whoever_waits(run: Any) -> None:
    async def main() -> None:
        sock = aio.open_udp("127.0.0.1:0")
        waiting = asyncio.create_task(sock.recv_batch())
        await asyncio.sleep(0.01)
        sock.close()
        sock.close()
        with pytest.raises(fs.Error):
            await waiting
        with pytest.raises(fs.Error):
            await sock.recv_batch()
        assert [rx async for rx in sock] == []

    run(main())


def test_another_loop() -> None:
    async def first() -> Any:
        sock = aio.open_udp("127.0.0.1:0")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sock.recv_batch(), 0.01)
        return sock

    sock = asyncio.run(first())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(sock.recv_batch())
    sock.close()


def test_a_simulated_device(run: Any) -> None:
    async def main() -> None:
        wire = fs.Wire()
        devices = [fs.SimulatedDevice(wire, addresses=[f"192.0.2.{i}/24"]) for i in (1, 2)]
        near, far = (
            aio.open_udp(sock=fs.XdpUdpSocket.open(d, local=f"192.0.2.{i}:9000", tx_ring=16, tx_frames=64))
            for i, d in enumerate(devices, 1)
        )
        async with near, far:
            tx = near.tx_batch(64)
            wire.paused = True  # the ring fills, the rest waits
            for number in range(64):
                tx.append(b"%d" % number, ("192.0.2.2", 9000))
            sending = asyncio.create_task(near.send_batch(tx))
            await asyncio.sleep(0.01)
            assert 0 < len(tx) < 64
            wire.paused = False
            wire.resume()
            assert await sending == 64
            got: list[bytes] = []
            while len(got) < 64:
                got += [bytes(packet) for packet in await far.recv_batch()]
            assert got == [b"%d" % number for number in range(64)]

    run(main())


@pytest.mark.parametrize(
    "options", [{}, {"sock": 1, "local": "127.0.0.1:0"}, {"local": "127.0.0.1:0", "driver": fs.BusyPollDriver}], ids=str
)
def test_what_cannot_be_opened(options: Any) -> None:
    with pytest.raises(fs.ConfigError):
        aio.open_udp(**options)
