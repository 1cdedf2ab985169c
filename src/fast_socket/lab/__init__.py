"""Hosts on one machine: network namespaces joined by veth, for the demo, the tests and the benchmarks.

    with two_hosts(queues=4) as (a, b):
        server = b.start(serve, str(b.interface.ipv4))      # a function on a thread inside host b
        client = a.popen(["ping", "-c1", str(b.interface.ipv4)])   # a process inside host a

Each host is a named network namespace (`ip netns` lists it) with a private `/sys` that shows only its own devices. A
link is a veth pair made directly inside the two namespaces, so nothing is ever created, renamed or configured in the
machine's own namespace. Leaving the `with` block ends every process and removes every namespace; what a killed run
left behind is removed when the next `Lab` starts.

Needs Linux 5.3 (`pidfd_open`), root and `pip install "fast-socket[xdp]"` (pyroute2); threaded NAPI needs Linux 5.12.
Importing this package needs none of them: `why_unavailable()` says what is missing, and so does the `CapabilityError`
that making a `Lab` raises. A queueing discipline or offload that this kernel lacks is a `CapabilityError` too, never a
silent no-op.
"""

from fast_socket.lab.host import Host
from fast_socket.lab.lab import Lab, two_hosts, why_unavailable
from fast_socket.lab.link import Interface, Link

__all__ = ["Host", "Interface", "Lab", "Link", "two_hosts", "why_unavailable"]
