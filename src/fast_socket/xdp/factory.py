"""A device's queues, shared out among workers: claim, divide, and open in each worker what is its own.

    with fs.XdpFactory("eth0").claim(fs.All).ports([9000]).workers(2).build() as factory:
        workers.run(factory.plans, serve)

Two phases. `build` loads and attaches one program for all claimed queues, divides them by NUMA node, and gives each
worker a CPU of its own near them. What comes of it are plans: small values that can be pickled. A worker opens its plan
where it runs, in this process or another; program and socket map come to it as file descriptors over a Unix socket of
the factory. So only the factory needs CAP_BPF and CAP_NET_ADMIN; workers need CAP_NET_RAW.
"""

import errno
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fast_socket.core.addresses import Address
from fast_socket.core.affinity import QueueAffinity, available_cpus, cpu_numa_node
from fast_socket.core.errors import ConfigError, DeviceError, Error
from fast_socket.xdp.claim import Claim, queue_numbers
from fast_socket.xdp.device import XdpDevice
from fast_socket.xdp.ebpf import XdpFilter, XdpMode, XdpProgram
from fast_socket.xdp.ip import IpFamilies, XdpIpPacketSocket
from fast_socket.xdp.udp import XdpUdpSocket

__all__ = ["WorkerPlan", "XdpFactory"]

HAND_OVER_SECONDS = 5.0
ACCEPT_PAUSE = 0.05
ASK_SECONDS = 0.5  # that whoever connects has to say what it wants: the others wait
TOKEN_SIZE = 32
UCRED = struct.Struct("=iII")  # struct ucred, <sys/socket.h>


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What one worker opens: queues of a device, and the CPU to run on. Made by `XdpFactory.build`, or by hand: without
    a `factory`, a program of its own is loaded when it is opened."""

    device: str
    queues: tuple[int, ...]
    cpu: int | None = None
    """Where `fast_socket.workers.run` pins its worker."""
    numa_node: int = -1
    place: str = ""
    """Machine, boot and network namespace that it was made in; empty: not looked at."""
    factory: bytes = field(default=b"", repr=False)
    """The name of the Unix socket that hands the program over."""
    token: bytes = field(default=b"", repr=False)
    """What it has to be asked with."""

    def program(self) -> XdpProgram:
        """The factory's program; close it when the sockets are open, or let go of it. Raises `ConfigError` for a plan
        of another place, `DeviceError` where the factory is closed."""
        if self.place and self.place != here():
            raise ConfigError(
                f"this plan for {self.device} was made on another machine, before a restart, or in another network "
                f"namespace: build plans where they are opened"
            )
        if not self.factory:
            raise ConfigError("this plan has no factory: open_udp and open_ip load a program of its own")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(HAND_OVER_SECONDS)
            try:
                channel.connect(self.factory)
                channel.sendall(self.token)
                return XdpProgram.receive_fds(channel)
            except (BlockingIOError, TimeoutError) as error:
                raise DeviceError(f"the factory of this plan for {self.device} does not answer", error.errno) from error
            except (ConnectionError, FileNotFoundError) as error:
                raise DeviceError(f"the factory of this plan for {self.device} is closed", error.errno) from error
            except Error:
                raise
            except (OSError, TypeError) as error:
                raise ConfigError(
                    f"this plan for {self.device} has the factory {self.factory!r}: {error}; take plans as "
                    f"XdpFactory.build makes them"
                ) from error

    def open_udp(self, *, local: Address, **options: Any) -> tuple[XdpUdpSocket[Any], ...]:
        """An `XdpUdpSocket` on each of its queues; options and errors are those of `XdpUdpSocket.open`. Either all are
        open or none."""
        return self._open(XdpUdpSocket.open, {"local": local, **options})

    def open_ip(self, *, families: IpFamilies = IpFamilies.Mixed, **options: Any) -> tuple[XdpIpPacketSocket[Any], ...]:
        """An `XdpIpPacketSocket` on each of its queues, as `open_udp`."""
        return self._open(XdpIpPacketSocket.open, {"families": families, **options})

    def _open(self, open_one: Any, options: dict[str, Any]) -> tuple[Any, ...]:
        opened: list[Any] = []
        try:
            if self.factory:
                options = {"program": self.program(), **options}
            elif len(self.queues) > 1 and "program" not in options:
                raise ConfigError(f"this plan was written by hand for queues {self.queues}: give open a program= that "
                                  f"is attached to {self.device}, for sockets on several queues share one")  # fmt: skip
            for queue in self.queues:
                opened.append(open_one(self.device, queue, **options))
        except BaseException:
            for sock in opened:
                sock.close()
            raise
        return tuple(opened)


class XdpFactory:
    """Claims queues of a device for workers. Each setting returns the factory; `build` ends the first phase.

    Linux 5.18, libbpf, CAP_BPF and CAP_NET_ADMIN. Threads: one makes and closes it; plans are opened from any.
    """

    def __init__(self, device: str) -> None:
        """Raises `ConfigError` where there is no such device."""
        self._device = XdpDevice(device)
        self._claimed: tuple[int, ...] | None = None
        self._filter: dict[str, Any] = {}
        self._addresses: tuple[str, ...] = ()
        self._mode, self._workers = XdpMode.AUTO, 1
        self._own: tuple[tuple[Any, tuple[Any, ...]], ...] = ()
        self._program: XdpProgram | None = None
        self._listener: socket.socket | None = None
        self._plans: tuple[WorkerPlan, ...] = ()

    def __repr__(self) -> str:
        return f"<XdpFactory {self._device.name} {'built' if self._program else 'not built'}>"

    def claim(self, which: "Claim") -> Self:
        """Which queues: `All`, `First(n)` or `Queues([...])`."""
        self._claimed = queue_numbers(self._device, which)
        return self

    def ports(self, ports: Iterable[int]) -> Self:
        """Redirect UDP to these ports."""
        self._filter = {"ports": ports if isinstance(ports, range) else frozenset(ports)}
        return self

    def all_ip(self) -> Self:
        """Redirect every IP packet but fragments and neighbour discovery: for IP packet sockets."""
        self._filter = {"all_ip": True}
        return self

    def addresses(self, *addresses: str) -> Self:
        """Of these only what goes to these destinations. Without: any."""
        self._addresses = addresses
        return self

    def attach(self, mode: XdpMode) -> Self:
        """Where the program runs. Without: native, else generic."""
        self._mode = mode
        return self

    def workers(self, count: int) -> Self:
        """How many, each with as many queues as the others and a CPU of its own near them. Without: one."""
        if not _is_int(count) or count < 1:
            raise ConfigError(f"workers({count!r}): give a number from 1")
        self._workers, self._own = count, ()
        return self

    def assign(self, *assignments: tuple[int | None, Sequence[int]]) -> Self:
        """In place of `workers`: for each its CPU, or None, and its queues."""
        for assignment in assignments:
            if not isinstance(assignment, tuple) or len(assignment) != 2:
                raise ConfigError(f"assign({assignment!r}): give (cpu, [queue, ...]) for each worker")
        self._own = tuple((cpu, tuple(queues)) for cpu, queues in assignments)
        return self

    def build(self) -> Self:
        """Divide the queues, load and attach the program. Raises `ConfigError` with the arithmetic where it does not
        come out even, and what `XdpProgram.load` and `attach` raise; nothing stays attached then."""
        if self._program is not None or self._listener is not None:
            raise ConfigError("this factory is built already: make another one")
        if self._claimed is None:
            raise ConfigError("nothing is claimed: call claim(All), claim(First(n)) or claim(Queues([...]))")
        if not self._filter:
            raise ConfigError("nothing is asked for: call ports([...]) or all_ip()")
        affinity = {int(each.queue): each for each in self._device.queues}
        claimed = [affinity[number] for number in self._claimed]
        shares: Sequence[tuple[int | None, int, tuple[int, ...]]]
        if self._own:
            shares = own_shares(self._own, claimed)
        else:
            shares = partition(claimed, self._workers, nodes_of(available_cpus()))
        program = XdpProgram.load(
            XdpFilter(addresses=self._addresses, **self._filter), queues=max(self._claimed) + 1
        )  # fmt: skip
        try:
            program.attach(self._device.name, self._mode)
            self._listen(program)
        except BaseException:
            program.detach()
            program.close()
            raise
        self._program = program
        place = here()
        self._plans = tuple(
            WorkerPlan(self._device.name, queues, cpu, node, place, self._name, self._token)
            for cpu, node, queues in shares
        )
        return self

    @property
    def plans(self) -> tuple[WorkerPlan, ...]:
        """One for each worker, once built."""
        return self._plans

    @property
    def program(self) -> XdpProgram:
        """The program of all claimed queues. Raises `ConfigError` before `build` and after `close`."""
        if self._program is None:
            raise ConfigError("this factory has no program: it is not built, or closed")
        return self._program

    def close(self) -> None:
        """Detach the program, whoever still has it, and hand it over no more. Again is nothing."""
        listener, self._listener = self._listener, None
        program, self._program = self._program, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._thread.join()
            listener.close()
        if program is not None:
            try:
                program.detach()
            finally:
                program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _listen(self, program: XdpProgram) -> None:
        self._token = secrets.token_bytes(TOKEN_SIZE)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind("")  # the kernel picks a name in the abstract namespace: unix(7)
            listener.listen()
            self._thread = threading.Thread(
                target=hand_over, args=(listener, program, self._token), name="fast_socket factory", daemon=True
            )
            self._thread.start()
        except BaseException:
            listener.close()
            raise
        self._listener, self._name = listener, listener.getsockname()


def hand_over(listener: socket.socket, program: XdpProgram, token: bytes) -> None:
    """Send program and maps to whoever has a plan, and the factory's user; until the listener is shut down."""
    while True:
        try:
            channel, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EBADF):  # shut down
                return
            time.sleep(ACCEPT_PAUSE)  # this process has no descriptor left, or whoever asked is gone
            continue
        with channel, suppress(OSError):  # whoever asked is gone, or too slow
            _, user, _ = UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
            if user not in (0, os.geteuid()):
                continue
            given, until = b"", time.monotonic() + ASK_SECONDS
            while len(given) < TOKEN_SIZE and (left := until - time.monotonic()) > 0:
                channel.settimeout(left)
                if not (more := channel.recv(TOKEN_SIZE - len(given))):
                    break
                given += more
            channel.settimeout(ASK_SECONDS)
            if secrets.compare_digest(given, token):
                program.send_fds(channel)


def partition(
    queues: Sequence[QueueAffinity], workers: int, cpus: dict[int, list[int]]
) -> list[tuple[int, int, tuple[int, ...]]]:
    """(CPU, NUMA node, queues) of each worker: whole shares of equal size, within a node, and a CPU for each. `cpus`
    are those of each node; a device whose node nobody knows (-1) may use all."""
    total = len(queues)
    if total % workers:
        fitting = [count for count in range(1, total + 1) if total % count == 0]
        raise ConfigError(
            f"{total} queue(s) over {workers} workers are {total // workers} each and {total % workers} left over: "
            f"give {' or '.join(map(str, fitting))} workers"
        )
    each = total // workers
    nodes: dict[int, list[QueueAffinity]] = {}
    for queue in queues:
        nodes.setdefault(int(queue.numa_node), []).append(queue)
    shares: list[tuple[int, int, tuple[int, ...]]] = []
    taken: set[int] = set()
    for node, local in sorted(nodes.items()):
        if len(local) % each:
            sizes = ", ".join(f"{len(some)} on node {which}" for which, some in sorted(nodes.items()))
            raise ConfigError(
                f"{total} queues ({sizes}) over {workers} workers are {each} each, which does not divide the "
                f"{len(local)} of node {node}: no worker spans nodes, use assign() to have it so"
            )
        near = [cpu for which, some in sorted(cpus.items()) if node in (-1, which) for cpu in some]
        for at in range(0, len(local), each):
            share = local[at : at + each]
            # Best is where the first queue's interrupt goes.
            free = [cpu for cpu in (*share[0].cpus, *near) if cpu in near and cpu not in taken]
            if not free:
                raise ConfigError(
                    f"{len(local) // each} workers on node {node} need a CPU each, but this process may use "
                    f"{len(near)} there ({near}): give fewer workers, or use assign()"
                )
            taken.add(free[0])
            shares.append((free[0], node, tuple(int(queue.queue) for queue in share)))
    return shares


def own_shares(
    assignments: Sequence[tuple[Any, tuple[Any, ...]]], claimed: Sequence[QueueAffinity]
) -> list[tuple[int | None, int, tuple[int, ...]]]:
    """The caller's assignment: every claimed queue once."""
    nodes = {int(queue.queue): int(queue.numa_node) for queue in claimed}
    assigned = [queue for _, queues in assignments for queue in queues]
    if sorted(assigned, key=repr) != sorted(nodes, key=repr):
        raise ConfigError(
            f"assign(): queues {sorted(assigned, key=repr)} are assigned, but {sorted(nodes)} are claimed: give each "
            f"of them to one worker"
        )
    allowed = available_cpus()
    for cpu, queues in assignments:
        if cpu is not None and (not _is_int(cpu) or cpu not in allowed):
            raise ConfigError(f"assign(): CPU {cpu!r} for queues {queues}: this process may use {allowed}")
        if not queues:
            raise ConfigError(f"assign(): CPU {cpu!r} has no queues: leave it out")
    return [(cpu, nodes[queues[0]], queues) for cpu, queues in assignments]


def nodes_of(cpus: Iterable[int]) -> dict[int, list[int]]:
    """CPUs by NUMA node."""
    nodes: dict[int, list[int]] = {}
    for cpu in cpus:
        nodes.setdefault(int(cpu_numa_node(cpu)), []).append(cpu)
    return nodes


def here() -> str:
    """This machine since its last start, and the network namespace of the calling thread."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/thread-self/ns/net').st_ino}"
    except OSError as error:
        raise Error(f"cannot tell where this is: /proc is not mounted: {error.strerror}", error.errno) from error


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
