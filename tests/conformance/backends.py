"""The backends that the conformance suite runs over.

A backend is an entry here: how to open two sockets that reach each other, and what it can do. The tests know nothing
else of it. `near` and `far` are two sockets; what near sends to `Pair.far_address` arrives at far, and the other way.
"""

import atexit
import dataclasses
import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import fast_socket as fs
from fast_socket.lab import Lab

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


def xdp_backend(name: str, devices: Callable[[], tuple[Any, Any]], **facts: Any) -> Backend:
    """Sockets on queue 0 of two devices that are joined; `devices` gives for each how to call something where it is,
    and what to open."""
    ports, queues = itertools.count(), itertools.cycle(range(facts["queues"]))

    def open_pair(family: str, options: dict[str, Any]) -> Pair:
        near_host, far_host, far_name = LINK[family]
        socks, names = [], []
        queue = next(queues)  # what is sent on one arrives on the other end's queue of the same number
        for side, host, (run, device, fixed) in zip(("near", "far"), (near_host, far_host), devices(), strict=True):
            chosen = {key: value for key, value in options.items() if key not in ("near", "far")} | options.get(
                side, {}
            )
            names.append((host, next(ports) % 50_000 + 10_000))
            socks.append(run(fs.XdpUdpSocket.open, device, queue, local=names[-1], **fixed, **chosen))
        return Pair(*socks, names[0], (far_name, names[1][1]), facts["settle"])

    return Backend(
        name=name,
        open=open_pair,
        recv_batch=fs.XdpUdpRecvBatch,
        tx_batch=fs.XdpUdpTxBatch,
        fills_frames=True,
        metadata=facts["metadata"],
    )


def simulated_devices() -> Any:
    wire = fs.xdp.sim.Wire()
    wire.clock_ns = time.time_ns()
    return [
        (lambda call, *args, **options: call(*args, **options), fs.xdp.sim.SimulatedDevice(
            wire, f"sim{i}", addresses=[f"192.0.2.{i}/24", f"2001:db8::{i}/64"], mtu=3000), {})
        for i in (1, 2)
    ]  # fmt: skip


@functools.cache
def live_devices() -> Any:
    """Two hosts for the whole run, gone with the process, each with a program that serves all sockets of the run."""
    lab = Lab()
    atexit.register(lab.close)
    link = lab.link(lab.host("conform1"), lab.host("conform2"), mtu=3000, queues=LIVE_QUEUES, static_neighbors=True,
                    addresses=tuple((f"192.0.2.{i}/24", f"2001:db8::{i}/64") for i in (1, 2)))  # fmt: skip
    ends = []
    for end in link:
        program = fs.XdpProgram.load(fs.XdpFilter(ports=range(10_000, 60_000)), queues=LIVE_QUEUES)
        end.host.run(program.attach, end.name)
        atexit.register(program.close)
        ends.append((end.host.run, end.name, {"program": program}))
    return ends


def settle_live(pair: Pair) -> None:
    """A veth delivers within the call that sends, but for what is left to a kernel thread."""
    time.sleep(0.001)


LIVE_QUEUES = 4
COLUMNS = fs.Metadata.ECN | fs.Metadata.LOCAL | fs.Metadata.TTL

BACKENDS = (
    os_backend("os", {}),
    os_backend("os-portable", {"batch_calls": False}),
    xdp_backend("sim", simulated_devices, queues=1, settle=no_settling, metadata=COLUMNS | fs.Metadata.TIMESTAMP),
    xdp_backend("xdp", live_devices, queues=LIVE_QUEUES, settle=settle_live, metadata=COLUMNS),
)


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
