"""What asyncio documents of datagram endpoints, over its own transport and ours."""

import asyncio
import gc
import os
import socket
from typing import Any

import pytest

HERE = ("127.0.0.1", 0)


class Recorder(asyncio.DatagramProtocol):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.got: list[tuple[bytes, Any]] = []
        self.lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.news = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.told.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.append((data, addr))
        self.news.set()

    def error_received(self, exc: Exception) -> None:
        self.told.append(exc)
        self.news.set()

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")
        self.news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(("lost", exc))
        self.lost.set_result(exc)

    async def until(self, count: int) -> None:
        while len(self.got) < count:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 5)


async def pair(create: Any, **options: Any) -> tuple[Recorder, Recorder]:
    """A server, and a client connected to it."""
    _, server = await create(Recorder, HERE, **options)
    address = server.transport.get_extra_info("sockname")
    _, client = await create(Recorder, remote_addr=address[:2], **options)
    return server, client


async def end(*protocols: Recorder) -> None:
    for protocol in protocols:
        protocol.transport.close()
    for protocol in protocols:
        assert await protocol.lost is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_there_and_back(run: Any, create: Any, host: str) -> None:
    async def main() -> None:
        _, server = await create(Recorder, (host, 0))
        address = server.transport.get_extra_info("sockname")
        _, client = await create(Recorder, remote_addr=address[:2])
        assert server.told == client.told == ["made"]
        client.transport.sendto(b"one")
        client.transport.sendto(bytearray(b"two"), None)
        client.transport.sendto(memoryview(b"three"), client.transport.get_extra_info("peername"))
        await server.until(3)
        name = client.transport.get_extra_info("sockname")
        assert server.got == [(b"one", name), (b"two", name), (b"three", name)]
        for data, sender in server.got:
            server.transport.sendto(data.upper(), sender)
        await client.until(3)
        assert client.got == [(b"ONE", address), (b"TWO", address), (b"THREE", address)]
        await end(server, client)
        assert server.told == client.told == ["made", ("lost", None)]

    run(main())


def test_what_is_known_of_a_transport(run: Any, create: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        transport = client.transport
        sock = transport.get_extra_info("socket")
        assert sock.getsockname() == transport.get_extra_info("sockname")
        assert sock.getpeername() == transport.get_extra_info("peername") == server.transport.get_extra_info("sockname")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
        assert server.transport.get_extra_info("peername") is None
        assert transport.get_extra_info("nonsense", "default") == "default"
        assert transport.get_protocol() is client
        assert not transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        await end(server, client)
        assert transport.is_closing()

    run(main())


def test_another_protocol_takes_over(run: Any, create: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        other = Recorder()
        server.transport.set_protocol(other)
        assert server.transport.get_protocol() is other
        client.transport.sendto(b"to the other")
        await other.until(1)
        assert server.got == []
        other.transport = server.transport
        server.lost.set_result(None)
        client.transport.close()
        await end(other)

    run(main())


@pytest.mark.parametrize("data", ["text", 3, None])
def test_what_is_no_data(run: Any, create: Any, data: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        with pytest.raises(TypeError):
            client.transport.sendto(data)
        await end(server, client)

    run(main())


def test_an_address_beside_the_peers(run: Any, create: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        with pytest.raises(ValueError, match="Invalid address"):
            client.transport.sendto(b"x", ("127.0.0.1", 9))
        await end(server, client)

    run(main())


def test_nobody_listens(run: Any, create: Any) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(HERE)
            address = unused.getsockname()
        _, client = await create(Recorder, remote_addr=address)
        client.transport.sendto(b"is anybody there")
        await asyncio.wait_for(client.news.wait(), 5)
        assert isinstance(client.told[1], ConnectionRefusedError)
        assert not client.transport.is_closing()
        await end(client)

    run(main())


def test_an_error_is_not_the_end_of_receiving(run: Any, create: Any) -> None:
    """Nobody listens, then somebody does, and sends."""

    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as later:
            later.bind(HERE)
            port = later.getsockname()[1]
        _, client = await create(Recorder, remote_addr=("127.0.0.1", port))
        for _ in range(3):
            client.transport.sendto(b"anybody?")
            await asyncio.sleep(0.01)
        assert ConnectionRefusedError in map(type, client.told)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as later:
            later.bind(("127.0.0.1", port))
            for number in range(2):
                later.sendto(b"%d" % number, client.transport.get_extra_info("sockname"))
            await client.until(2)
        await end(client)

    run(main())


@pytest.mark.parametrize("size", [10, 5000])
def test_both_families_on_one_socket(run: Any, create: Any, size: int) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as both:
            both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            both.bind(("::", 0))
            _, server = await create(Recorder, sock=both.dup())
        port = server.transport.get_extra_info("sockname")[1]
        for host in ("127.0.0.1", "::1"):
            _, client = await create(Recorder, remote_addr=(host, port))
            client.transport.sendto(b"x" * size)
            await server.until(1)
            data, sender = server.got.pop()
            server.transport.sendto(data, sender)
            await client.until(1)
            assert client.got[0][0] == b"x" * size
            await end(client)
        await end(server)

    run(main())


def test_close_once_and_again(run: Any, create: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        for _ in range(3):
            client.transport.close()
        assert client.transport.is_closing()
        assert await client.lost is None
        client.transport.close()
        client.transport.abort()
        client.transport.sendto(b"too late")
        await asyncio.sleep(0.01)
        assert client.told == ["made", ("lost", None)]
        assert server.got == []
        await end(server)

    run(main())


def test_what_was_sent_before_close_arrives(run: Any, create: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        for number in range(50):
            client.transport.sendto(b"%d" % number)
        client.transport.close()
        await server.until(50)
        assert [data for data, _ in server.got] == [b"%d" % number for number in range(50)]
        await client.lost
        await end(server)

    run(main())


def test_abort(run: Any, create: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        client.transport.abort()
        assert client.transport.is_closing()
        assert await client.lost is None
        await end(server)

    run(main())


def test_closing_from_within_the_protocol(run: Any, create: Any) -> None:
    class Closes(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.close()

    async def main() -> None:
        _, server = await create(Closes, HERE)
        _, client = await create(Recorder, remote_addr=server.transport.get_extra_info("sockname"))
        for _ in range(5):
            client.transport.sendto(b"x")
        assert await server.lost is None
        assert len(server.got) == 1
        await end(client)

    run(main())


@pytest.mark.parametrize("where", ["datagram_received", "error_received"])
def test_a_protocol_that_raises(run: Any, create: Any, where: str) -> None:
    """The loop hears of it, and the endpoint goes on."""

    class Raises(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if len(self.got) == 1:
                raise ZeroDivisionError

    async def main() -> None:
        _, server = await create(Raises, HERE)
        _, client = await create(Recorder, remote_addr=server.transport.get_extra_info("sockname"))
        for number in range(3):
            client.transport.sendto(b"%d" % number)
        await server.until(3)
        assert [data for data, _ in server.got] == [b"0", b"1", b"2"]
        await end(server, client)

    errors: list[Any] = []
    run(main(), errors=errors)
    assert [type(context["exception"]) for context in errors] == [ZeroDivisionError]


def test_the_limits_of_the_buffer(run: Any, create: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        transport = client.transport
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        transport.set_write_buffer_limits(high=0)
        for high, low in ((1, 2), (-1, None)):
            with pytest.raises(ValueError, match="high"):
                transport.set_write_buffer_limits(high, low)
        await end(server, client)

    run(main())


@pytest.mark.parametrize("size", [1, 1472, 9000, 65_507])
def test_payloads_of_any_size(run: Any, create: Any, size: int) -> None:
    async def main() -> None:
        server, client = await pair(create)
        sent = [bytes([number]) * size for number in range(3)]
        for data in sent:
            client.transport.sendto(data)
        await server.until(3)
        assert [data for data, _ in server.got] == sent
        await end(server, client)

    run(main())


def test_a_payload_that_is_too_large(run: Any, create: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        client.transport.sendto(bytes(65_508))
        await asyncio.wait_for(client.news.wait(), 5)
        assert isinstance(client.told[1], OSError)
        client.transport.sendto(b"the next one goes")
        await server.until(1)
        await end(server, client)

    run(main())


def test_a_socket_that_is_given(run: Any, create: Any) -> None:
    async def main() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(HERE)
        name = sock.getsockname()
        _, server = await create(Recorder, sock=sock)
        assert server.transport.get_extra_info("sockname") == name
        _, client = await create(Recorder, remote_addr=name)
        client.transport.sendto(b"hello")
        await server.until(1)
        await end(server, client)
        assert sock.fileno() == -1

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"local_addr": HERE, "sock": "sock"},
        {"local_addr": ("127.0.0.1", 0), "remote_addr": ("::1", 9)},
        {"sock": "stream"},
    ],
    ids=["nothing", "too much", "two families", "no datagrams"],
)
def test_arguments_that_cannot_be(run: Any, create: Any, options: Any) -> None:
    async def main() -> None:
        kind = socket.SOCK_STREAM if options.get("sock") == "stream" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as sock, pytest.raises(ValueError, match=r"."):
            await create(Recorder, **({**options, "sock": sock} if "sock" in options else options))

    run(main())


def test_a_port_that_is_taken(run: Any, create: Any) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(HERE)
            with pytest.raises(OSError, match=r"."):
                await create(Recorder, taken.getsockname())

    run(main())


def test_a_port_that_is_shared(run: Any, create: Any) -> None:
    async def main() -> None:
        _, one = await create(Recorder, HERE, reuse_port=True)
        _, two = await create(Recorder, one.transport.get_extra_info("sockname"), reuse_port=True)
        await end(one, two)

    run(main())


def test_broadcast_needs_to_be_allowed(run: Any, create: Any) -> None:
    async def main() -> None:
        _, server = await create(Recorder, ("0.0.0.0", 0))
        port = server.transport.get_extra_info("sockname")[1]
        _, client = await create(Recorder, remote_addr=("127.255.255.255", port), allow_broadcast=True)
        client.transport.sendto(b"to all")
        await server.until(1)
        await end(server, client)

    run(main())


def test_thousands_of_endpoints_leave_nothing(run: Any, create: Any) -> None:
    async def main() -> None:
        before = len(descriptors())
        for _ in range(100):
            both = [await pair(create) for _ in range(10)]
            for server, client in both:
                client.transport.sendto(b"x")
                await server.until(1)
                await end(server, client)
        await asyncio.sleep(0.01)
        assert len(descriptors()) <= before
        assert len(asyncio.all_tasks()) <= 2

    run(main())


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_cancelled_while_it_is_made(run: Any, create: Any, name: str) -> None:
    """At whichever await: what was opened is closed, and the protocol is told."""

    async def main() -> None:
        before = len(descriptors())
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        for steps in range(8):
            task = asyncio.create_task(create(factory, (name, 0), family=socket.AF_INET))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            try:
                transport, _ = await task
            except asyncio.CancelledError:
                continue
            transport.close()
        await asyncio.sleep(0.05)
        assert all(protocol.told in ([], ["made", ("lost", None)]) for protocol in made), [it.told for it in made]
        del made[:]
        gc.collect()
        assert len(descriptors()) <= before + 1  # a thread that resolves names may have its own

    run(main())


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")
