"""Any public call on anything, from several threads at once: run by test_storm.py in a process of its own.

    python storm.py SEED THREADS CALLS

It ends with status 0 if every call returned or raised what this package raises, and all frames were home at the end.
"""

import ctypes
import gc
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import fast_socket as fs

#: What a call may raise: ours, and what Python's own protocols say. A batch of another kind of socket is a TypeError.
EXPECTED = (fs.Error, BufferError, IndexError, TypeError)


class Asked(ctypes.Structure):
    """`struct packet` of `RecvBatch.run`."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("length", "room", "index", "source_length")]


HANDLER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(Asked), ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_void_p
)
KEPT = 40  # packets, views and columns that a thread holds on to


class World:
    """Sockets of every kind that needs no privilege, on pools that they share, and batches for them."""

    def __init__(self) -> None:
        self.wire = fs.Wire(drop=0.01, duplicate=0.01)
        devices = [fs.SimulatedDevice(self.wire, f"sim{i}", addresses=[f"192.0.2.{i}/24"], queues=4) for i in (1, 2)]
        self.pool = fs.FramePool(
            rx_frames=256, tx_frames=256,
            **dict(zip(("rx_layout", "tx_layout"), fs.umem_layouts(), strict=True)),
        )  # fmt: skip
        self.sockets: list[Any] = [
            fs.XdpUdpSocket.open(devices[0], queue, local="192.0.2.1:9000", pool=self.pool, rx_ring=64, tx_ring=64)
            for queue in (0, 1)
        ]
        self.sockets.append(fs.XdpUdpSocket.open(devices[1], 0, local="192.0.2.2:9000", rx_frames=128, tx_frames=128))
        self.sockets.append(fs.XdpIpPacketSocket.open(devices[1], 1, rx_frames=128, tx_frames=128))
        self.aggregate = fs.XdpUdpAggregate.open(
            devices[1], fs.Queues([2, 3]), local="192.0.2.2:9000", rx_frames=128, tx_frames=128
        )
        layout = fs.BufferLayout(payload_capacity=512)
        shared = fs.FramePool(rx_frames=128, tx_frames=128, rx_layout=layout, tx_layout=layout)
        for _ in range(2):
            self.sockets.append(fs.OsUdpSocket.bind("127.0.0.1:0", pool=shared))
        self.sockets.append(self.aggregate)
        self.pools = {id(sock.pool): sock.pool for sock in self.sockets}
        self.endpoints = [
            (sock, sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=self.peer(sock), gso_size=size)))
            for sock in self.sockets
            if hasattr(sock, "prepare_udp_endpoint")
            for size in (0, 10)
        ]
        self.batches = [(sock, sock.recv_batch(16), sock.tx_batch(16)) for sock in self.sockets for _ in range(2)]
        self.rx, self.tx = [rx for _, rx, _ in self.batches], [tx for _, _, tx in self.batches]
        self.packets: list[Any] = []

    def peer(self, sock: Any) -> tuple[str, int]:
        if isinstance(sock, fs.OsUdpSocket):
            address: tuple[str, int] = self.sockets[4].local_address
            return address
        return ("192.0.2.2", 9000) if sock in self.sockets[:2] else ("192.0.2.1", 9000)


def calls(world: World, dice: random.Random) -> list[Callable[[], Any]]:
    kept: list[Any] = []
    tokens = iter(range(1 << 60))

    def keep(thing: Any) -> None:
        kept.append(thing)
        if len(kept) > KEPT:
            del kept[dice.randrange(len(kept))]

    def packet() -> Any:
        if world.packets and dice.random() < 0.5:
            return world.packets[dice.randrange(len(world.packets))]
        batch = dice.choice(world.rx + world.tx)
        return batch[dice.randrange(max(len(batch), 1))]

    def share() -> None:
        world.packets.append(packet())
        if len(world.packets) > KEPT:
            del world.packets[0]

    def some() -> tuple[Any, Any, Any]:
        """A socket and batches: its own, most of the time."""
        sock, rx, tx = dice.choice(world.batches)
        return (sock, rx, tx) if dice.random() < 0.9 else (sock, dice.choice(world.rx), dice.choice(world.tx))

    def receive() -> None:
        sock, rx, _ = some()
        sock.recv(rx)

    def send() -> None:
        sock, _, tx = some()
        sock.send(tx)

    def send_to() -> None:
        sock, endpoint = dice.choice(world.endpoints)
        mine = [tx for owner, _, tx in world.batches if owner is sock]
        sock.send_to(endpoint, dice.choice(mine if dice.random() < 0.9 else world.tx))

    def produce() -> None:
        sock, _, tx = some()
        tx.append(b"y" * dice.randrange(60), world.peer(sock))

    def reflect() -> None:
        _, rx, tx = some()
        tx.take_from(rx)

    def spoil() -> None:
        batch = dice.choice(world.tx)
        batch.lengths[: dice.randrange(4)] = dice.choice([0, 1, 100, 5000, 0xFFFFFFFF])
        batch.segment_sizes[: dice.randrange(4)] = dice.choice([0, 1, 7, 0xFFFFFFFF])

    def column() -> None:
        batch = dice.choice(world.rx + world.tx)
        keep(getattr(batch, dice.choice(["lengths", "offsets", "frames", "memory"]))[:3])

    def walk() -> None:
        for each in dice.choice(world.rx + world.tx):
            each.u8(0)

    def write() -> None:
        packet().write(0, next(tokens).to_bytes(8, "big"))

    def wait() -> None:
        dice.choice(world.sockets).driver.wait(0)

    def address() -> None:
        packet().address = ("192.0.2.2", 9)

    def look() -> None:
        sock = dice.choice(world.sockets)
        sock.stats(), repr(sock), sock.capabilities() if hasattr(sock, "capabilities") else None
        repr(sock.pool)

    @HANDLER
    def handler(asked: Any, data: int, source: Any, user: int) -> int:
        # Called within the native loop, with the GIL taken again: others have their turn meanwhile.
        if dice.random() < 0.3:
            asked[0].length = dice.choice([0, 1, asked[0].room, asked[0].room + 1, 0xFFFFFFFF])
        if dice.random() < 0.1:
            source[2], source[3] = 0, 0
        return dice.choice([-1, 0, 1, 2, 2, 2, 3, 3, 9])

    def handle() -> None:
        _, rx, tx = some()
        targets = [None, tx, tx, dice.choice(world.tx)]
        address_of = ctypes.cast(handler, ctypes.c_void_p).value
        rx.run(address_of, reflect=dice.choice(targets), forward=dice.choice(targets))

    batch = world.rx + world.tx
    return [
        *[receive, send, produce] * 3, send_to, reflect, handle, handle,
        lambda: dice.choice(world.tx).allocate(dice.randrange(20)),
        lambda: dice.choice(world.tx).fill(b"x" * dice.randrange(60)),
        lambda: dice.choice(world.tx).append(packet(), ("192.0.2.1", 9000)),
        lambda: dice.choice(world.tx).set_destinations(("192.0.2.1", 9000)),
        lambda: dice.choice(world.tx).discard(dice.randrange(3)),
        lambda: dice.choice(batch).gather(dice.randrange(40), ">u2"),
        lambda: dice.choice(world.rx).datagrams().gather(0, "u1"),
        lambda: keep(packet()),
        lambda: keep(packet().take()),
        lambda: keep(memoryview(packet())),
        lambda: keep(packet().freeze()),
        lambda: packet().release(),
        lambda: packet().prepend(b"ab"),
        lambda: packet().append(b"cd"),
        lambda: packet().trim_prefix(1),
        lambda: packet().trim_suffix(1),
        lambda: (bytes(packet()), packet().meta(), len(packet()), packet().address),
        lambda: dice.choice(world.sockets).drain_tx_completions(),
        lambda: dice.choice(world.sockets).notify_tx(),
        kept.clear,
        share, spoil, column, walk, write, wait, address, look, world.wire.resume,
    ]  # fmt: skip


def main(seed: int, threads: int, count: int) -> None:
    world = World()
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        choices = calls(world, dice)
        for at in range(count):
            try:
                dice.choice(choices)()
            except EXPECTED:
                pass
            except BaseException as error:
                wrong.append(error)
                return
            if at == count * 3 // 4 and number == 0:  # towards the end sockets close under everybody
                for sock in world.sockets:
                    sock.close()

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if wrong:
        raise wrong[0]
    pools = list(world.pools.values())
    moved = sum(sock.stats().received for sock in world.sockets if not isinstance(sock, fs.XdpIpPacketSocket))
    assert moved > 0
    world.packets.clear()
    for kept in (world.rx, world.tx, world.batches):
        kept.clear()
    world.endpoints.clear()
    running.clear()
    gc.collect()
    for pool in pools:
        assert (pool.rx_available, pool.tx_available) == (pool.rx_frames, pool.tx_frames), pool


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
