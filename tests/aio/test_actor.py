"""Handles to a socket that a task owns."""

import asyncio
import gc
import logging
from typing import Any

import pytest

import fast_socket as fs
from fast_socket import aio
from tests.aio.conftest import LOOPS

HERE = ("127.0.0.1", 0)
LAYOUT = fs.BufferLayout(payload_capacity=2048)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    factory = LOOPS[request.param] or pytest.skip("needs uvloop")

    def start(coroutine: Any) -> Any:
        seen: list[Any] = []

        async def watched() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
            result = await asyncio.wait_for(coroutine, 20)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)
            return result

        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(watched())
        assert not seen, seen
        return result

    return start


def test_many_tasks_share_a_server_and_a_client(run: Any) -> None:
    """Every question of 20 tasks is answered once, by one of four workers, in the frame that it came in."""

    async def main() -> None:
        async with aio.open_actor(HERE) as server, aio.open_actor(remote=server.socket.local_address) as client:
            answered = [0] * 4

            async def work(number: int, handle: Any) -> None:
                async with handle:
                    async for packet in handle:
                        packet.write(0, b"answer")
                        answered[number] += 1
                        await handle.send(packet)

            workers = [asyncio.create_task(work(number, server.clone())) for number in range(4)]
            got: list[bytes] = []

            async def ask(number: int, handle: Any) -> None:
                async with handle:
                    for turn in range(50):
                        await handle.send(b"please %03d %03d" % (number, turn))
                        got.append(bytes(await handle.recv()))

            await asyncio.gather(*(ask(number, client.clone()) for number in range(20)))
            assert sorted(got) == [b"answer %03d %03d" % (n, turn) for n in range(20) for turn in range(50)]
            assert sum(answered) == 1000
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    run(main())


def test_senders_wait_for_room_and_nothing_is_lost(run: Any) -> None:
    async def main() -> None:
        server = aio.open_actor(HERE, backlog=8)
        async with server, aio.open_actor(remote=server.socket.local_address, room=4) as client:

            async def send(number: int, handle: Any) -> None:
                async with handle:
                    for turn in range(20):
                        await handle.send(b"%d %d" % (number, turn))

            sending = asyncio.gather(*(send(number, client.clone()) for number in range(10)))
            seen: dict[bytes, list[int]] = {}
            for _ in range(200):
                number, turn = bytes(await server.recv()).split()
                seen.setdefault(number, []).append(int(turn))
            await sending
            assert seen == {b"%d" % number: list(range(20)) for number in range(10)}

    run(main())


def test_a_packet_outlives_the_socket_and_its_frame_comes_home(run: Any) -> None:
    async def main() -> None:
        pool = fs.FramePool(rx_frames=64, tx_frames=64, rx_layout=LAYOUT, tx_layout=LAYOUT)
        server = aio.open_actor(HERE, pool=pool, backlog=4)
        async with server, aio.open_actor(remote=server.socket.local_address) as client:
            for number in range(10):
                await client.send(b"%d" % number)
            kept = [await server.recv() for _ in range(3)]
        assert [bytes(packet) for packet in kept] == [b"0", b"1", b"2"]
        for packet in kept:
            packet.release()
        await asyncio.sleep(0.01)
        gc.collect()
        assert (pool.rx_available, pool.tx_available) == (64, 64)

    run(main())


def test_cancelled_while_waiting(run: Any) -> None:
    """Of those that wait some are cancelled, also in the moment that they are woken: no packet is lost."""

    async def main() -> None:
        async with aio.open_actor(HERE) as server, aio.open_actor(remote=server.socket.local_address) as client:
            got: list[bytes] = []

            async def take() -> None:
                got.append(bytes(await server.recv()))

            for turn in range(100):
                waiting = [asyncio.create_task(take()) for _ in range(4)]
                await asyncio.sleep(0)
                await client.send(b"%d" % turn)
                for _ in range(turn % 4):
                    await asyncio.sleep(0)
                waiting[0].cancel()
                waiting[2].cancel()
                while len(got) <= turn:
                    await asyncio.sleep(0.001)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            assert got == [b"%d" % turn for turn in range(100)]

    run(main())


def test_all_frames_held(run: Any) -> None:
    """The loop goes on without spinning, and so does the socket when a frame is let go."""

    async def main() -> None:
        pool = fs.FramePool(rx_frames=2, tx_frames=16, rx_layout=LAYOUT, tx_layout=LAYOUT)
        async with (
            aio.open_actor(HERE, pool=pool) as server,
            aio.open_actor(remote=server.socket.local_address) as client,
        ):
            for number in range(4):
                await client.send(b"%d" % number)
            held = [await server.recv(), await server.recv()]
            waiting = asyncio.create_task(server.recv())
            turns = 0
            until = asyncio.get_running_loop().time() + 0.1
            while asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.01)
                turns += 1
            assert turns >= 2 and not waiting.done()
            held.pop().release()
            assert bytes(await waiting) == b"2"

    run(main())


def test_what_the_socket_refuses_is_told(run: Any, caplog: Any) -> None:
    async def main() -> None:
        told: list[Any] = []
        async with aio.open_actor(HERE, on_error=told.append) as handle:
            await handle.send(b"x", ("255.255.255.255", 9))
            await handle.send(b"y", handle.socket.local_address)
            assert bytes(await handle.recv()) == b"y"
            assert [error.errno for error in told] == [13] and handle.refused == 1
            with pytest.raises(fs.ConfigError):
                await handle.send(b"x", "nowhere")
            with pytest.raises(fs.ConfigError):
                await handle.send(bytes(70_000), handle.socket.local_address)
        async with aio.open_actor(HERE) as handle:
            with caplog.at_level(logging.WARNING, "fast_socket.aio"):
                await handle.send(b"x", ("255.255.255.255", 9))
                await asyncio.sleep(0.01)
            assert "refused" in caplog.text

    run(main())


def test_closed(run: Any) -> None:
    async def main() -> None:
        handle = aio.open_actor(HERE)
        other = handle.clone()
        waiting = asyncio.create_task(handle.recv())
        await asyncio.sleep(0)
        handle.close()
        handle.close()
        with pytest.raises(fs.Error, match="closed"):
            await waiting
        for call in (handle.recv(), handle.send(b"x")):
            with pytest.raises(fs.Error, match="closed"):
                await call
        with pytest.raises(fs.Error, match="closed"):
            handle.clone()
        assert [packet async for packet in handle] == []
        await other.send(b"still open", other.socket.local_address)
        assert bytes(await other.recv()) == b"still open"
        sock = other.socket
        other.close()
        with pytest.raises(fs.Error):
            sock.recv(sock.recv_batch(1))

    run(main())


def test_what_is_queued_leaves_when_the_last_is_closed(run: Any) -> None:
    async def main() -> None:
        async with aio.open_actor(HERE) as server:
            async with aio.open_actor(remote=server.socket.local_address) as client:
                for number in range(5):
                    await client.send(b"%d" % number)
            assert [bytes(await server.recv()) for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]

    run(main())


def test_the_owner_ends(run: Any) -> None:
    """Everybody is told, with what ended it."""

    async def main() -> None:
        handle = aio.open_actor(HERE)
        waiting = asyncio.create_task(handle.recv())
        await asyncio.sleep(0.01)
        handle.socket.close()  # under its owner
        handle._owner.sock._wake("recv_batch")
        with pytest.raises(fs.Error, match="has ended"):
            await waiting
        with pytest.raises(fs.Error, match="has ended"):
            await handle.send(b"x")
        handle.close()

    run(main())


@pytest.mark.parametrize(
    "options", [{"backlog": 0}, {"room": True}, {"room": 65537}, {"backlog": "8"}, {"driver": fs.BusyPollDriver}]
)
def test_what_cannot_be(run: Any, options: Any) -> None:
    async def main() -> None:
        with pytest.raises(fs.ConfigError):
            aio.open_actor(HERE, **options)
        with pytest.raises(fs.ConfigError):
            aio.open_actor()

    run(main())
    with pytest.raises(RuntimeError, match="no running event loop"):
        aio.open_actor(HERE)
