"""The lab: makes hosts and links, and removes them however the program leaves it."""

import atexit
import contextlib
import itertools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fast_socket.core.errors import CapabilityError, ConfigError
from fast_socket.lab import namespaces, netlink
from fast_socket.lab.host import Host, end_processes
from fast_socket.lab.link import (
    AddressLike,
    Link,
    LinkOptions,
    check_options,
    create_link,
    default_addresses,
    default_macs,
    default_name,
    parse_interface_addresses,
    parse_mac,
)

log = logging.getLogger("fast_socket.lab")

_numbers = itertools.count()
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class Lab:
    """Hosts on one machine, joined by links; everything is gone when the `with` block ends.

        with Lab() as lab:
            a, b = lab.host("a"), lab.host("b")
            lab.link(a, b, queues=4)

    Making one also removes what killed runs left. CapabilityError without root, pyroute2 or a kernel with namespaces.
    Its methods may be called from any thread, but not at the same time as `close`.
    """

    def __init__(self) -> None:
        if reason := why_unavailable():
            raise CapabilityError(reason)
        self.sweep()
        self.hosts: dict[str, Host] = {}
        """The hosts by name."""
        self._number = next(_numbers)
        self._links = 0
        self._owner = os.getpid()
        self._closed = False
        atexit.register(self.close)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def host(self, name: str) -> Host:
        """A new host with nothing but its loopback. ConfigError if the name is taken or not of [A-Za-z0-9_.-]{1,32}."""
        if self._closed:
            raise ConfigError("the lab is closed")
        if not _HOST_NAME.fullmatch(name):
            raise ConfigError(f"host name {name!r}: 1 to 32 letters, digits, '_', '.' or '-', a letter or digit first")
        if name in self.hosts:
            raise ConfigError(f"the lab has a host {name!r} already")
        host = self.hosts[name] = Host(name, namespaces.make_name(self._number, name))
        return host

    def link(
        self,
        a: Host,
        b: Host,
        *,
        queues: int = 1,
        mtu: int = 1500,
        addresses: tuple[Sequence[AddressLike], Sequence[AddressLike]] | None = None,
        macs: tuple[str, str] | None = None,
        names: tuple[str, str] | None = None,
        threaded_napi: bool = False,
        offloads: Mapping[str, bool] | None = None,
        qdisc: str | None = None,
        static_neighbors: bool = False,
    ) -> Link:
        """Join two hosts by a veth pair and return its ends, up and ready for traffic.

        queues            transmit queues, and receive queues, of each end: 1 to 4096
        mtu               in bytes: 68 to 65535, for IPv6 at least 1280
        addresses         for each end its addresses with prefix lengths; by default 10.77.n.1/24, fd77:0:0:n::1/64 and
                          10.77.n.2/24, fd77:0:0:n::2/64 on the lab's link number n, from 0; `((), ())` for none
        macs              by default 02:00:00:00:nn:01 and :02
        names             of the devices; by default lab0, lab1... in each host, so that a mistake cannot name an eth0
        threaded_napi     receive processing in kernel threads of its own, which lets it use another CPU (Linux >= 5.12)
        offloads          to switch, as in `Interface.set_offloads`; veth starts with GRO off
        qdisc             root queueing discipline, such as "fq" for SO_TXTIME
        static_neighbors  no ARP and no neighbour discovery between the addresses of the two ends

        IPv4 multicast leaves a host by its first link. ConfigError for a bad value, CapabilityError for what this
        kernel lacks, TimeoutError if the link is not usable within 5 s; the link does not exist after an error.
        """
        if a is b or any(self.hosts.get(host.name) is not host for host in (a, b)):
            raise ConfigError(f"a link joins two different hosts of this lab, not {a!r} and {b!r}")
        number = self._links
        options = LinkOptions(
            queues=queues,
            mtu=mtu,
            addresses=parse_interface_addresses(addresses or default_addresses(number, mtu)),
            macs=(parse_mac(macs[0]), parse_mac(macs[1])) if macs else default_macs(number),
            names=names or (default_name(a), default_name(b)),
            threaded_napi=threaded_napi,
            offloads=offloads or {},
            qdisc=qdisc,
            static_neighbors=static_neighbors,
        )
        check_options(options)
        link = create_link(a, b, options)
        self._links += 1
        return link

    def close(self) -> None:
        """End every process and remove every host; may be called again. Runs at exit of the interpreter too.

        Functions still running in a host cannot be ended: their sockets have no device any more.
        """
        # In a forked child the lab is the parent's.
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        atexit.unregister(self.close)
        with contextlib.ExitStack() as steps:  # each runs, whatever the others raise
            for host in self.hosts.values():
                steps.callback(host._remove)
            steps.callback(end_processes, [p for host in self.hosts.values() for p in host.processes])

    @staticmethod
    def sweep() -> list[str]:
        """Remove what labs of processes that no longer exist left behind, with the processes in it; return the names.

        CapabilityError without the right to.
        """
        removed = namespaces.leftovers()
        for name in removed:
            log.info("removing %s, left by a process that is gone", name)
            try:
                namespaces.remove(name)
            except PermissionError as error:
                raise CapabilityError(f"removing the leftover namespace {name} needs root: {error}") from error
        return removed


@contextlib.contextmanager
def two_hosts(**link_options: Any) -> Iterator[tuple[Host, Host]]:
    """A lab of two hosts, "a" and "b", and one link between them; the options are those of `Lab.link`."""
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b, **link_options)
        yield a, b


def why_unavailable() -> str | None:
    """Why a lab cannot be made here and what to do about it; None if it can. Takes a few milliseconds."""
    if not sys.platform.startswith("linux"):
        return f"a lab needs Linux, this is {sys.platform}"
    if missing := namespaces.missing_capabilities():
        return f"a lab needs root, here {', '.join(missing)}: run it with sudo, or in a privileged container"
    try:
        netlink.load()
    except CapabilityError as error:
        return str(error)
    # The only sure answer: seccomp filters, security modules and sysctls may refuse it to root.
    return _on_thread(_try_isolation)


def _try_isolation() -> str | None:
    try:
        namespaces.isolate()
    except OSError as error:
        return f"the kernel or a security policy refuses namespaces even to root ({error}): try a privileged container"
    return None


def _on_thread(fn: Callable[[], str | None]) -> str | None:
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(fn()))
    thread.start()
    thread.join()
    return answer[0]
