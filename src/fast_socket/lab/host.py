"""A host of a lab: one network namespace, the thread that keeps it, and what runs inside."""

import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fast_socket.core.errors import ConfigError
from fast_socket.lab import namespaces, netlink
from fast_socket.lab.link import AddressLike, Interface, parse_address, parse_network

log = logging.getLogger("fast_socket.lab")

P = ParamSpec("P")
T = TypeVar("T")
_Task = tuple["Future[Any]", Callable[[], Any]]

_TERMINATE_SECONDS = 2.0
_KILL_SECONDS = 2.0


class Host:
    """One host. `Lab.host` makes it; its methods may be called from any thread, also from inside another host."""

    # Two kinds of thread. The keeper lives as long as the host: it makes the namespaces, configures them, and forks
    # every process, for PR_SET_PDEATHSIG strikes when the forking thread ends, not the process. Functions get a fresh
    # thread each, which joins the keeper's namespaces and ends with the function, for a thread cannot come back.

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        """The name given to `Lab.host`."""
        self.namespace = namespace
        """The name under which `ip netns` knows it."""
        self.interfaces: list[Interface] = []
        """Ends of links in this host, in the order of the links."""
        self.processes: list[subprocess.Popen[Any]] = []
        """Every process started by `popen`."""
        self._functions: set[Future[Any]] = set()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._fds: tuple[int, int] | None = None
        self._keeper = threading.Thread(target=self._keep, name=f"{namespace} keeper", daemon=True)
        self._keeper.start()
        try:
            self._fds = self._on_keeper(self._set_up)
        except BaseException:
            self._remove()
            raise

    def __repr__(self) -> str:
        return f"<Host {self.name!r} in {self.namespace}{'' if self._fds else ', closed'}>"

    @property
    def interface(self) -> Interface:
        """The host's end of its first link. ConfigError without one."""
        if not self.interfaces:
            raise ConfigError(f"host {self.name!r} has no link yet")
        return self.interfaces[0]

    def run(self, fn: Callable[..., T], /, *args: Any, timeout: float | None = None, **kwargs: Any) -> T:
        """Call a function inside the host, on a thread of its own, and return its value or raise its exception.

        Sockets that it makes stay in the host wherever they are used later. It sees the host's devices under
        `/sys/class/net` and its settings under `/proc/sys/net`; but `/proc/net` is the main thread's: read
        `/proc/thread-self/net`. Processes that it starts live in the host too, and end with the lab.

        After `timeout` seconds it raises TimeoutError while the function goes on: a thread cannot be stopped.
        """
        return self.start(fn, *args, **kwargs).result(timeout)

    def start(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """As `run`, but return a Future at once. The thread is a daemon: it does not keep the interpreter alive."""
        net, mnt = self._open_fds()
        directory = os.getcwd()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def body() -> None:
            try:
                namespaces.join(net, mnt, directory)
                joined.set()
                value = fn(*args, **kwargs)
            except BaseException as error:  # SystemExit and KeyboardInterrupt too: they are the caller's to see
                joined.set()
                future.set_exception(error)
            else:
                future.set_result(value)

        joined = threading.Event()
        self._functions.add(future)
        future.add_done_callback(self._functions.discard)
        name = getattr(fn, "__name__", type(fn).__name__)
        threading.Thread(target=body, name=f"{self.namespace} {name}", daemon=True).start()
        joined.wait()  # or a close could pull the descriptors from under it
        return future

    def popen(self, argv: Sequence[str | os.PathLike[str]], **kwargs: Any) -> "subprocess.Popen[Any]":
        """Start a process inside the host; the keyword options are those of `subprocess.Popen`.

        It gets SIGTERM, and SIGKILL 2 s later, when the lab closes, and SIGKILL when this process dies in any way. The
        latter does not reach its own children; the next `Lab` ends those.
        """
        kwargs.setdefault("cwd", os.getcwd())
        theirs: Callable[[], None] | None = kwargs.pop("preexec_fn", None)
        parent = os.getpid()

        def in_child() -> None:
            namespaces.die_with_parent(parent)
            if theirs is not None:
                theirs()

        def fork() -> "subprocess.Popen[Any]":
            # Python code between fork and exec may deadlock on a lock that another thread held; this is one system
            # call, and there is no other way to set the signal on a program that does not do so itself.
            process = subprocess.Popen(argv, preexec_fn=in_child, **kwargs)  # noqa: PLW1509
            self.processes.append(process)  # here, so that a caller interrupted while it waits loses nothing
            log.debug("%s: process %d: %s", self.namespace, process.pid, process.args)
            return process

        return self._on_keeper(fork)

    def add_address(self, address: AddressLike, interface: Interface | None = None) -> None:
        """Give an interface, by default the first, another address such as "10.0.0.1/8". ConfigError if it is wrong."""
        (interface or self.interface).add_address(address)

    def add_route(self, destination: str, gateway: str | None = None, *, interface: Interface | None = None) -> None:
        """Route a network, "default" or "default6" for everything, to a gateway or, without one, out of an interface.

        The interface is the first if neither is given. ConfigError if the gateway cannot be reached.
        """
        network = parse_network(destination)
        via = None if gateway is None else parse_address(gateway)
        if interface is None and via is None:
            interface = self.interface
        self._on_keeper(netlink.add_route, network, interface.index if interface else None, via)

    # What follows is for Lab, Link and Interface.

    def _on_keeper(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._keeper.is_alive():
            raise ConfigError(f"host {self.name!r} is closed")
        future: Future[T] = Future()
        self._tasks.put((future, lambda: fn(*args, **kwargs)))
        return future.result()

    def _keep(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, work = task
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            del task, future, work  # or they live until the next task comes

    def _set_up(self) -> tuple[int, int]:
        namespaces.isolate(self.namespace)
        for setting in ("all", "default"):
            try:  # link-local addresses usable at once: nobody else can hold them on a veth
                Path(f"/proc/sys/net/ipv6/conf/{setting}/accept_dad").write_text("0", encoding="ascii")
            except OSError as error:
                log.debug("%s: duplicate address detection stays on: %s", self.namespace, error)
        netlink.set_link(1, state="up")  # lo is 1 in every namespace (LOOPBACK_IFINDEX, include/net/flow.h)
        flags = os.O_RDONLY | os.O_CLOEXEC
        return os.open("/proc/thread-self/ns/net", flags), os.open("/proc/thread-self/ns/mnt", flags)

    def _open_fds(self) -> tuple[int, int]:
        if self._fds is None:
            raise ConfigError(f"host {self.name!r} is closed")
        return self._fds

    def _remove(self) -> None:
        """End what runs in the host and remove it. Processes of `popen` should have been ended before."""
        try:
            for interface in self.interfaces:
                self._on_keeper(netlink.delete_link, interface.index)
        finally:
            if self._functions:
                log.warning("%s: closed while %d functions still run", self.namespace, len(self._functions))
            fds, self._fds = self._fds, None
            for fd in fds or ():
                os.close(fd)
            self._tasks.put(None)
            self._keeper.join()  # before the removal: if the set-up was interrupted, it may yet be making the name
            namespaces.remove(self.namespace)


def end_processes(processes: Sequence["subprocess.Popen[Any]"]) -> None:
    """SIGTERM to all, SIGKILL after 2 s to those that are left; returns when they are gone, or after 2 s more."""
    for process in processes:
        process.terminate()
    for end, seconds in (("kill", _TERMINATE_SECONDS), (None, _KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                if end:
                    process.kill()
                else:
                    log.warning("process %d does not end", process.pid)
