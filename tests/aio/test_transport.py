"""What our endpoint does beyond asyncio's: batches, budgets, back-pressure, sockets of other backends, clear errors."""

import asyncio
import errno
import gc
import socket
import threading
from typing import Any

import numpy as np
import pytest

import fast_socket as fs
from fast_socket import aio
from fast_socket.lab import Lab, why_unavailable
from tests.aio.test_contract import HERE, Recorder, end, pair

create = aio.create_datagram_endpoint
UNAVAILABLE = why_unavailable()
needs_lab = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return "asyncio, ours"


def test_batches_in_place_of_datagrams(run: Any) -> None:
    class Batches(Recorder):
        sums, count = 0, 0

        def datagrams_received(self, batch: fs.RecvBatch) -> None:
            self.sums += int(batch.datagrams().gather(0, ">u4").sum())
            self.count += batch.datagram_count
            self.news.set()
            if self.count > 50:
                raise ZeroDivisionError

    async def main() -> None:
        _, server = await create(Batches, HERE)
        _, client = await create(Recorder, remote_addr=server.transport.get_extra_info("sockname"))
        for number in range(50):
            client.transport.sendto(number.to_bytes(4, "big"))
        while server.count < 50:
            server.news.clear()
            await asyncio.wait_for(server.news.wait(), 5)
        assert server.sums == sum(range(50))
        client.transport.sendto(bytes(4))
        while server.count < 51:
            await asyncio.sleep(0.001)
        assert server.got == []
        await end(server, client)

    errors: list[Any] = []
    run(main(), errors=errors)
    assert [type(context["exception"]) for context in errors] == [ZeroDivisionError]


def test_a_batch_of_ones_own(run: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        sock = client.transport.get_extra_info("fast_socket")
        tx = sock.tx_batch(8)
        client.transport.sendto(b"first")
        for number in range(8):
            tx.append(b"%d" % number)
        assert client.transport.send_batch(tx) == 8
        await server.until(9)
        assert [data for data, _ in server.got] == [b"first", *(b"%d" % number for number in range(8))]
        await end(server, client)
        tx.append(b"late")
        with pytest.raises(fs.Error):
            sock.send(tx)
        assert client.transport.send_batch(tx) == 0
        tx.discard()

    run(main())


def test_runs_of_one_size_leave_as_large_sends(run: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        for _ in range(100):
            client.transport.sendto(b"x" * 64)
        await server.until(100)
        stats = client.transport.get_extra_info("fast_socket").stats()
        assert stats.sent == 100
        assert 0 < stats.gso_sends <= 3
        await end(server, client)

    run(main())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_million_datagrams_both_ways(run: Any) -> None:
    """From one plain protocol to another and back: none is lost that is not reported, by the kernel, as dropped."""
    count, window = 1_000_000, 256

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data, addr)

    class Ask(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.sent, self.seen = transport, 0, np.zeros(count, np.uint8)
            self.received = 0

        def ask(self) -> None:
            if self.sent < count:
                self.transport.sendto(self.sent.to_bytes(8, "big"))
                self.sent += 1

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.seen[int.from_bytes(data, "big")] += 1
            self.received += 1
            self.ask()

    async def main() -> None:
        there, _ = await create(Echo, HERE)
        here, ask = await create(Ask, remote_addr=there.get_extra_info("sockname"))
        before = -1
        while ask.sent < count or ask.received != before:
            if ask.received == before or not ask.sent:  # so many were lost that none is under way
                for _ in range(window):
                    ask.ask()
            before = ask.received
            await asyncio.sleep(0.2)
        dropped = sum(end.get_extra_info("fast_socket").stats().kernel_drops or 0 for end in (here, there))
        assert ask.seen.max() == 1
        assert ask.received == ask.seen.sum()
        assert ask.received == count or dropped > 0, (ask.received, dropped)
        assert ask.received > count // 2
        for transport in (here, there):
            transport.close()

    run(main(), seconds=300)


def test_a_flood_starves_nobody(run: Any) -> None:
    """A wake-up hands out its budget, then others have their turn."""
    turns: list[int] = []

    async def main() -> None:
        _, server = await create(Recorder, HERE, budget=10, gro=False, recv_buffer=1 << 20)
        _, client = await create(Recorder, remote_addr=server.transport.get_extra_info("sockname"), gso=False)
        for _ in range(300):
            client.transport.sendto(b"x")
        loop = asyncio.get_running_loop()

        def turn() -> None:
            turns.append(len(server.got))
            if len(server.got) < 300:
                loop.call_soon(turn)

        turn()
        await server.until(300)
        await end(server, client)

    run(main())
    assert len(turns) >= 2
    assert np.diff(turns).max() <= 10 + 256  # the budget, and what was in the batch that exceeded it


def test_writing_pauses_and_goes_on(run: Any) -> None:
    """A socket that has no room for a while, as the kernel says it: EAGAIN."""

    class Full:
        """Takes nothing while `stuck`."""

        def __init__(self, sock: Any) -> None:
            self.sock, self.stuck = sock, False

        def send(self, tx: Any) -> int:
            return 0 if self.stuck else int(self.sock.send(tx))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    async def main() -> None:
        _, server = await create(Recorder, HERE, recv_buffer=4 << 20)
        full = Full(fs.OsUdpSocket.connect(server.transport.get_extra_info("sockname"), tx_frames=16))
        _, client = await create(Recorder, sock=full)
        client.transport.set_write_buffer_limits(high=1000)
        full.stuck = True
        for number in range(100):
            client.transport.sendto(b"%03d" % number * 10)
        await asyncio.sleep(0.01)
        assert client.told == ["made", "pause"]
        assert client.transport.get_write_buffer_size() == 100 * 38
        full.stuck = False
        await server.until(100)
        assert [data[:3] for data, _ in server.got] == [b"%03d" % number for number in range(100)]
        assert client.told == ["made", "pause", "resume"]
        assert client.transport.get_write_buffer_size() == 0
        full.stuck = True
        client.transport.sendto(b"last")
        client.transport.close()
        await asyncio.sleep(0.01)
        assert not client.lost.done()
        full.stuck = False
        assert await client.lost is None
        await server.until(101)
        _, third = await create(Recorder, sock=Full(fs.OsUdpSocket.connect((*HERE[:1], 9))))
        third.transport.get_extra_info("fast_socket").stuck = True
        third.transport.sendto(b"never")
        third.transport.abort()
        assert await third.lost is None
        await end(server)

    run(main())


def test_a_simulated_device(run: Any) -> None:
    async def main() -> None:
        wire = fs.Wire()
        devices = [fs.SimulatedDevice(wire, addresses=[f"192.0.2.{i}/24"]) for i in (1, 2)]
        socks = [fs.XdpUdpSocket.open(d, local=f"192.0.2.{i}:9000") for i, d in enumerate(devices, 1)]
        (_, near), (_, far) = [await create(Recorder, sock=sock) for sock in socks]
        for number in range(300):
            near.transport.sendto(b"%d" % number, ("192.0.2.2", 9000))
        await far.until(300)
        assert far.got == [(b"%d" % number, ("192.0.2.1", 9000)) for number in range(300)]
        far.transport.sendto(b"back", far.got[0][1])
        await near.until(1)
        near.transport.sendto(b"nowhere", ("198.51.100.1", 9))
        await asyncio.wait_for(near.news.wait(), 5)
        await asyncio.sleep(0)
        assert isinstance(near.told[1], OSError)
        await end(near, far)
        assert all(sock.closed for sock in socks)

    run(main())


def test_an_error_that_is_answered_with_a_send_does_not_stop_the_loop(run: Any) -> None:
    class Stubborn(Recorder):
        def error_received(self, exc: Exception) -> None:
            self.transport.sendto(b"again", ("127.255.255.255", 9))  # a broadcast that was not allowed

    async def main() -> None:
        _, client = await create(Stubborn, HERE)
        client.transport.sendto(b"first", ("127.255.255.255", 9))
        for _ in range(10):
            await asyncio.sleep(0.001)
        client.transport.abort()
        assert await client.lost is None

    run(main())


def test_a_view_that_is_kept_costs_its_batch_not_the_endpoint(run: Any) -> None:
    views: list[Any] = []

    class Viewing(Recorder):
        def datagrams_received(self, batch: Any) -> None:
            self.got += [(bytes(packet), None) for packet in batch]
            if not views:
                views.append(memoryview(batch[0]))
            self.news.set()

    async def main() -> None:
        _, server = await create(Viewing, HERE)
        _, client = await create(Recorder, remote_addr=server.transport.get_extra_info("sockname"))
        for number in range(3):
            client.transport.sendto(b"%d" % number)
            await server.until(number + 1)
        assert bytes(views[0]) == b"0"
        views.pop().release()
        await end(server, client)

    errors: list[Any] = []
    run(main(), errors=errors)
    assert ["viewed" in context["message"] for context in errors] == [True]


def test_a_neighbour_that_does_not_answer_is_given_up(run: Any) -> None:
    """What is behind it leaves, and the endpoint closes."""

    class Silent:
        generation = 0

        def __init__(self, device: Any) -> None:
            self.real = device.make_router()

        def resolve(self, destination: Any) -> Any:
            silent = str(destination) == "192.0.2.77"
            return fs.Unresolved.NEIGHBOR if silent else self.real.resolve(destination)

    async def main() -> None:
        wire = fs.Wire()
        devices = [fs.SimulatedDevice(wire, addresses=[f"192.0.2.{i}/24"]) for i in (1, 2)]
        _, near = await create(
            Recorder, sock=fs.XdpUdpSocket.open(devices[0], local="192.0.2.1:1", router=Silent(devices[0]))
        )
        _, far = await create(Recorder, sock=fs.XdpUdpSocket.open(devices[1], local="192.0.2.2:2"))
        near.transport.sendto(b"nobody", ("192.0.2.77", 5))
        near.transport.sendto(b"after", ("192.0.2.2", 2))
        near.transport.close()
        await far.until(1)
        assert far.got[0][0] == b"after"
        assert await near.lost is None
        assert [told.errno for told in near.told[1:-1]] == [errno.EHOSTUNREACH]
        await end(far)

    run(main())


def test_the_buffer_shrinks_as_packets_leave(run: Any) -> None:
    class Slow:
        """Has room for seven at a time."""

        def __init__(self, sock: Any) -> None:
            self.sock, self.sent = sock, 0

        def send(self, tx: Any) -> int:
            if len(tx) <= 7:
                return int(self.sock.send(tx))
            some = self.sock.tx_batch(7)
            for packet in list(tx)[:7]:
                some.append(bytes(packet))
            tx.discard(7)
            return int(self.sock.send(some))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    async def main() -> None:
        _, server = await create(Recorder, HERE)
        slow = Slow(fs.OsUdpSocket.connect(server.transport.get_extra_info("sockname")))
        _, client = await create(Recorder, sock=slow)
        transport = client.transport
        transport.set_write_buffer_limits(high=900, low=500)
        sizes = []
        client.resume_writing = lambda: sizes.append(transport.get_write_buffer_size())  # type: ignore[method-assign]
        for number in range(100):
            transport.sendto(b"%02d" % number)
        await server.until(100)
        assert [data for data, _ in server.got] == [b"%02d" % number for number in range(100)]
        assert len(sizes) == 1 and 430 <= sizes[0] <= 500
        assert transport.get_write_buffer_size() == 0
        await end(server, client)

    run(main())


class Stuck(socket.socket):
    """Has no room for what is sent by itself, while `stuck`."""

    stuck = True

    def send(self, data: Any, flags: int = 0) -> int:
        if self.stuck:
            raise BlockingIOError
        return super().send(data, flags)


@pytest.mark.parametrize("how", ["goes on", "close", "close in pause", "abort in pause"])
def test_large_datagrams_wait_for_room_in_their_order(run: Any, how: str) -> None:
    """What does not fit a frame goes past the batch, and keeps its place among what does."""
    sizes = [10, 4000, 20, 4001, 4002, 30, 5000, 40]

    async def main() -> None:
        _, server = await create(Recorder, HERE)
        own = Stuck(socket.AF_INET, socket.SOCK_DGRAM)
        own.connect(server.transport.get_extra_info("sockname"))
        _, client = await create(Recorder, sock=own)
        transport = client.transport
        if how.endswith("in pause"):
            client.pause_writing = transport.close if how.startswith("close") else transport.abort  # type: ignore[method-assign]
        transport.set_write_buffer_limits(high=4000)
        for size in sizes:
            transport.sendto(b"x" * size)
        await asyncio.sleep(0.01)
        kept = transport.get_write_buffer_size()
        for wrong in (5, "text", None):
            if not transport.is_closing():
                with pytest.raises(TypeError, match="bytes-like"):
                    transport.sendto(wrong)
        assert transport.get_write_buffer_size() == kept
        if how.startswith("abort"):
            assert await client.lost is None and kept == 0
        else:
            assert kept == (4008 if how == "close in pause" else sum(sizes) + 8 * len(sizes) - 18)
            if how == "close":
                transport.close()
            own.stuck = False
            wanted = sizes[:2] if how == "close in pause" else sizes
            await server.until(len(wanted))
            assert [len(data) for data, _ in server.got] == wanted
            assert transport.get_write_buffer_size() == 0
            if how == "goes on":
                assert client.told == ["made", "pause", "resume"]
                await end(client)
            assert await client.lost is None
        await end(server)

    run(main())


def test_large_views_are_measured_in_bytes(run: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        client.transport.sendto(memoryview(np.arange(1000, dtype=np.uint32)))
        await server.until(1)
        assert server.got[0][0] == np.arange(1000, dtype=np.uint32).tobytes()
        await end(server, client)

    run(main())


def test_a_backend_by_name(run: Any) -> None:
    async def main() -> None:
        wire = fs.Wire()
        devices = [fs.SimulatedDevice(wire, addresses=[f"192.0.2.{i}/24"]) for i in (1, 2)]
        (_, near), (_, far) = [
            await create(Recorder, (f"192.0.2.{i}", 9000), backend="xdp", device=device, rx_ring=64)
            for i, device in enumerate(devices, 1)
        ]
        near.transport.sendto(b"there", ("192.0.2.2", 9000))
        await far.until(1)
        assert far.transport.get_extra_info("sockname") == ("192.0.2.2", 9000)
        await end(near, far)
        for wrong in ({"device": devices[0]}, {"local_addr": ("192.0.2.1", 1)}, {"backend": "dpdk"}):
            with pytest.raises(ValueError):
                await create(Recorder, **{"backend": "xdp", **wrong})
        with pytest.raises(ValueError):
            await create(Recorder, ("192.0.2.1", 1), ("192.0.2.2", 1), backend="xdp", device=devices[0])

    run(main())


@pytest.mark.root
@needs_lab
def test_a_queue_of_a_device(run: Any) -> None:
    """An endpoint on an AF_XDP queue answers what a kernel socket asks, and the other way round."""
    with Lab() as lab:
        near, far = lab.host("a"), lab.host("b")
        link = lab.link(near, far)
        server = far.run(fs.XdpUdpSocket.open, link.b.name, local=(link.b.ipv4, 9000))
        client = near.run(fs.OsUdpSocket.connect, (link.b.ipv4, 9000))

        async def main() -> None:
            (_, there), (_, here) = [await create(Recorder, sock=sock) for sock in (server, client)]
            for number in range(500):
                here.transport.sendto(b"%d" % number)
                if number % 50 == 49:
                    await there.until(number + 1)
            assert [data for data, _ in there.got] == [b"%d" % number for number in range(500)]
            for number, (data, sender) in enumerate(there.got):
                there.transport.sendto(data, sender)
                if number % 50 == 49:  # the buffer of a kernel socket has room for some 250
                    await here.until(number + 1)
            assert [data for data, _ in here.got] == [b"%d" % number for number in range(500)]
            await end(there, here)

        run(main())


@pytest.mark.root
@needs_lab
def test_no_way_there_is_told_once_for_each(run: Any) -> None:
    """The same error may be an earlier datagram's (ICMP) or this one's: neither is told twice."""
    with Lab() as lab:
        nowhere = lab.host("a").run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)

        async def main() -> None:
            _, client = await create(Recorder, sock=nowhere)
            for number in range(5):
                client.transport.sendto(b"%d" % number, ("192.0.2.1", 9))
            await asyncio.sleep(0.01)
            assert [told.errno for told in client.told[1:]] == [errno.ENETUNREACH] * 5
            await end(client)

        run(main())


def test_a_protocol_that_holds_all_frames(run: Any) -> None:
    """It is told, the loop goes on without spinning, and what waited is received when a frame is let go."""

    async def main() -> None:
        class Keeping(Recorder):
            def datagrams_received(self, batch: Any) -> None:
                self.got += [packet.take() for packet in batch]  # type: ignore[misc]
                self.news.set()

        layout = fs.BufferLayout(payload_capacity=2048)
        pool = fs.FramePool(rx_frames=4, tx_frames=16, rx_layout=layout, tx_layout=layout)
        _, server = await create(Keeping, HERE, pool=pool, gro=False)
        _, client = await create(Recorder, remote_addr=server.transport.get_extra_info("sockname"))
        for number in range(6):
            client.transport.sendto(b"%d" % number)
        await server.until(4)
        before = len(server.told)
        await asyncio.sleep(0.1)
        assert 0 < len(server.told) - before <= 110
        assert {error.errno for error in server.told[before:]} == {errno.ENOBUFS}
        for packet in server.got:
            packet.release()
        await server.until(6)
        assert [bytes(packet) for packet in server.got[4:]] == [b"4", b"5"]
        await end(server, client)

    run(main())


def test_a_neighbour_that_is_awaited(run: Any) -> None:
    class Asking:
        generation = 0
        known = False

        def __init__(self, device: Any) -> None:
            self.real = device.make_router()

        def resolve(self, destination: Any) -> Any:
            return self.real.resolve(destination) if self.known else fs.Unresolved.NEIGHBOR

    async def main() -> None:
        wire = fs.Wire()
        devices = [fs.SimulatedDevice(wire, addresses=[f"192.0.2.{i}/24"]) for i in (1, 2)]
        router = Asking(devices[0])
        _, near = await create(Recorder, sock=fs.XdpUdpSocket.open(devices[0], local="192.0.2.1:1", router=router))
        _, far = await create(Recorder, sock=fs.XdpUdpSocket.open(devices[1], local="192.0.2.2:2"))
        near.transport.sendto(b"patience", ("192.0.2.2", 2))
        await asyncio.sleep(0.02)
        assert far.got == []
        router.known = True
        await far.until(1)
        await end(near, far)

    run(main())


def test_a_protocol_without_error_received(run: Any) -> None:
    """Its AttributeError is the loop's to report; what was behind the refused datagram leaves."""

    class Bare(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def __getattribute__(self, name: str) -> Any:
            if name == "error_received":
                raise AttributeError(name)
            return super().__getattribute__(name)

    async def main() -> None:
        _, server = await create(Recorder, HERE)
        transport, _ = await create(Bare, HERE)
        address = server.transport.get_extra_info("sockname")
        transport.sendto(b"to nobody", ("240.0.0.1", 0))
        transport.sendto(b"too large" * 10_000, address)
        transport.sendto(b"fine", address)
        await server.until(1)
        assert server.got[0][0] == b"fine"
        await end(server)
        transport.close()
        await asyncio.sleep(0.01)

    errors: list[Any] = []
    run(main(), errors=errors)
    assert {type(context["exception"]) for context in errors} == {AttributeError}


@pytest.mark.parametrize("bound", ["::1", "::"])
def test_an_ipv6_socket_of_ours(run: Any, bound: str) -> None:
    """Its addresses have four parts, as of every IPv6 endpoint; those of IPv4 peers are mapped."""

    async def main() -> None:
        sock = fs.OsUdpSocket.bind((bound, 0))
        _, server = await create(Recorder, sock=sock)
        name = server.transport.get_extra_info("sockname")
        assert name == (bound, sock.local_address[1], 0, 0)
        clients = [("::1", "::1")] + ([("127.0.0.1", "::ffff:127.0.0.1")] if bound == "::" else [])
        for host, seen in clients:
            _, client = await create(Recorder, (host, 0))
            client.transport.sendto(b"hello", (host, name[1]))
            server.got.clear()
            await server.until(1)
            [(data, address)] = server.got
            port = client.transport.get_extra_info("sockname")[1]
            assert (data, address) == (b"hello", (seen, port, 0, 0))
            server.transport.sendto(b"and back", address)
            await client.until(1)
            assert client.got[0][0] == b"and back"
            await end(client)
        await end(server)

    run(main())


def test_a_connected_socket_of_ours_that_raises_icmp_errors(run: Any) -> None:
    """The error is an earlier datagram's: the one that met it is sent again."""

    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(HERE)
            address = gone.getsockname()
        sock = fs.OsUdpSocket.connect(address, icmp_errors="raise")
        _, client = await create(Recorder, sock=sock)
        assert client.transport.get_extra_info("peername") == address
        client.transport.sendto(b"nobody hears this")
        await asyncio.sleep(0.05)
        _, server = await create(Recorder, address)
        client.transport.sendto(b"somebody hears this")
        await server.until(1)
        assert server.got[0][0] == b"somebody hears this"
        told = [error for error in client.told if isinstance(error, Exception)]
        assert [type(error) for error in told] == [ConnectionRefusedError]
        await end(server, client)

    run(main())


def test_another_thread_is_told_so(run: Any) -> None:
    async def main() -> None:
        server, client = await pair(create)
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                client.transport.sendto(b"x")
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "call_soon_threadsafe" in str(errors[0])
        client.transport.sendto(b"from here")
        await server.until(1)
        await end(server, client)

    run(main())


def test_a_factory_that_raises_leaves_nothing(run: Any) -> None:
    def factory() -> Any:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await create(factory, HERE)
        gc.collect()  # a socket left open would warn, and warnings are errors

    run(main())


def test_a_transport_that_is_forgotten_says_so() -> None:
    async def main() -> Any:
        _, protocol = await create(Recorder, HERE)
        return protocol.transport

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        transport = asyncio.run(main())
        protocol = transport.get_protocol()
        del protocol.transport, protocol, transport
        gc.collect()


@pytest.mark.parametrize(
    "options",
    [{"budget": 0}, {"budget": True}, {"no_such_option": 1}, {"gro": "yes"}],
    ids=str,
)
def test_options_that_cannot_be(run: Any, options: Any) -> None:
    async def main() -> None:
        with pytest.raises(fs.ConfigError):
            await create(Recorder, HERE, **options)
        gc.collect()

    run(main())


def test_sockets_that_cannot_be(run: Any) -> None:
    async def main() -> None:
        with fs.OsUdpSocket.bind("127.0.0.1:0", driver=fs.BusyPollDriver) as spins:
            for sock in (spins, 3, object()):
                with pytest.raises(fs.ConfigError):
                    await create(Recorder, sock=sock)
        with fs.OsUdpSocket.bind("127.0.0.1:0") as given, pytest.raises(fs.ConfigError, match="gro"):
            await create(Recorder, sock=given, gro=True)

    run(main())
