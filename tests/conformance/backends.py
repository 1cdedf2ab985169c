"""The backends that the conformance suite runs over.

A backend is an entry here: how to open two sockets that reach each other, and what it can do. The tests know nothing
else of it. `near` and `far` are two sockets; what near sends to `Pair.far_address` arrives at far, and the other way.
"""

import dataclasses
import gc
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import fast_socket as fs

SECONDS = 5.0

#: For each family: the host near is bound to, far's, and how near names far.
LOOPBACK = {
    "v4": ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
    "v6": ("::1", "::1", "::1"),
    "dual": ("127.0.0.1", "::", "127.0.0.1"),
}


@dataclasses.dataclass
class Pair:
    near: Any
    far: Any
    near_address: tuple[str, int]
    far_address: tuple[str, int]
    settle: Callable[["Pair"], None]
    pools: set[Any] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.pools = {self.near.pool, self.far.pool}

    def send(self, payloads: Iterable[bytes]) -> int:
        """From near to far, all of them; returns how many."""
        payloads = list(payloads)
        tx = self.near.tx_batch(max(len(payloads), 1))
        for payload in payloads:
            tx.append(payload, self.far_address)
        while len(tx):
            if self.near.send(tx) == 0:
                assert self.near.driver.wait_writable(SECONDS)
            self.near.notify_tx()
        self.settle(self)
        return len(payloads)

    def deliver(self, payloads: Iterable[bytes], rx: Any = None) -> Any:
        """From near to far; a receive batch that holds them."""
        sent = self.send(payloads)
        rx = self.far.recv_batch(64) if rx is None else rx
        assert self.far.driver.wait(SECONDS), "nothing arrived"
        assert self.far.recv(rx) == min(sent, rx.capacity)
        return rx

    def received(self, sock: Any, count: int) -> list[bytes]:
        """The next `count` payloads that arrive at `sock`, in order of arrival."""
        self.settle(self)
        rx, got = sock.recv_batch(64), []
        while len(got) < count:
            assert sock.driver.wait(SECONDS), f"{len(got)} of {count} arrived"
            sock.recv(rx)
            got += [bytes(packet) for packet in rx]
        return got

    def nothing_at(self, sock: Any) -> bool:
        self.settle(self)
        return not sock.driver.wait(0)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """`open(family, options)` gives a `Pair`; `options` are those that every backend has, see `open_pair`."""

    name: str
    open: Callable[[str, dict[str, Any]], Pair]
    recv_batch: type
    tx_batch: type
    families: tuple[str, ...] = ("v4", "v6", "dual")
    coalesces: bool = False
    """Understands coalesce=True: several datagrams may arrive as one packet with a stride."""
    fills_frames: bool = False
    """The device fills frames that were given to it: none is too small, and a packet that finds none is lost."""
    metadata: fs.Metadata = fs.Metadata.NONE
    """Columns that it can deliver."""

    def open_pair(self, family: str, **options: Any) -> Pair:
        """Options: near={} and far={} for one side; pool, rx_frames, tx_frames, rx_layout, tx_layout, metadata,
        driver, coalesce for both."""
        return self.open(family, options)


def no_settling(pair: Pair) -> None:
    """Loopback has delivered when a send returns."""


def os_backend(name: str, forced: dict[str, Any]) -> Backend:
    def options_of(options: dict[str, Any], side: str) -> dict[str, Any]:
        both = {key: value for key, value in options.items() if key not in ("near", "far")}
        both |= options.get(side, {})
        if both.pop("coalesce", False):
            both["gro"] = True
        return both | forced

    def open_pair(family: str, options: dict[str, Any]) -> Pair:
        near_host, far_host, far_name = LOOPBACK[family]
        near = fs.OsUdpSocket.bind((near_host, 0), **options_of(options, "near"))
        far = fs.OsUdpSocket.bind((far_host, 0), **options_of(options, "far"))
        return Pair(near, far, near.local_address, (far_name, far.local_address[1]), no_settling)

    return Backend(
        name=name,
        open=open_pair,
        recv_batch=fs.OsRecvBatch,
        tx_batch=fs.OsTxBatch,
        coalesces="batch_calls" not in forced,
        metadata=fs.Metadata.ECN | fs.Metadata.LOCAL | fs.Metadata.TTL | fs.Metadata.TIMESTAMP,
    )


#: As LOOPBACK, for two devices on a link.
LINK = {
    "v4": ("192.0.2.1", "192.0.2.2", "192.0.2.2"),
    "v6": ("2001:db8::1", "2001:db8::2", "2001:db8::2"),
    "dual": ("192.0.2.1", "::", "192.0.2.2"),
}


def simulated_backend() -> Backend:
    ports = itertools.count(10_000)

    def open_pair(family: str, options: dict[str, Any]) -> Pair:
        near_host, far_host, far_name = LINK[family]
        wire = fs.xdp.sim.Wire()
        wire.clock_ns = time.time_ns()
        devices = [
            fs.xdp.sim.SimulatedDevice(wire, f"sim{i}", addresses=[f"192.0.2.{i}/24", f"2001:db8::{i}/64"], mtu=3500)
            for i in (1, 2)
        ]
        names = []
        socks = []
        for side, device, host in (("near", devices[0], near_host), ("far", devices[1], far_host)):
            chosen = {key: value for key, value in options.items() if key not in ("near", "far")} | options.get(side, {})
            names.append((host, next(ports) % 50_000 + 10_000))
            socks.append(fs.XdpUdpSocket.open(device, local=names[-1], **chosen))
        return Pair(*socks, names[0], (far_name, names[1][1]), no_settling)

    return Backend(
        name="sim",
        open=open_pair,
        recv_batch=fs.XdpUdpRecvBatch,
        tx_batch=fs.XdpUdpTxBatch,
        fills_frames=True,
        metadata=fs.Metadata.ECN | fs.Metadata.LOCAL | fs.Metadata.TTL | fs.Metadata.TIMESTAMP,
    )


BACKENDS = (os_backend("os", {}), os_backend("os-portable", {"batch_calls": False}), simulated_backend())


def layouts(*, payload: int = 2048, headroom: int = 0, tailroom: int = 0) -> dict[str, fs.BufferLayout]:
    """The same room in frames of both kinds."""
    layout = fs.BufferLayout(payload_capacity=payload, headroom=headroom, tailroom=tailroom)
    return {"rx_layout": layout, "tx_layout": layout}


def whole(pool: fs.FramePool) -> bool:
    """Whether every frame is at home, after what is garbage has been collected."""
    frames = (pool.rx_frames, pool.tx_frames)
    if home(pool) != frames:
        gc.collect()
    return home(pool) == frames


def home(pool: fs.FramePool) -> tuple[int, int]:
    """Receive and transmit frames that nobody holds: on the stacks, or given to the device to receive into."""
    return pool.rx_available + pool.rx_with_device, pool.tx_available + pool.tx_with_device
