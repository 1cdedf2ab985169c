"""What the gates count: send, recv and reflect of full batches over loopback, in each configuration.

Run by benchmarks/gates.py under callgrind, with the shared library built from gates.c as its argument. Counting is on
inside the extension's own functions only; a dump after each step carries the step's name.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import NamedTuple

import fast_socket as fs

BATCH = 64
WARM_UP = 4  # batches before counting: lazily made columns, the symbols of the C library
ROUNDS = 8
PAYLOAD = bytes(64)


class Configuration(NamedTuple):
    metadata: fs.Metadata
    offloads: bool  # GSO and GRO: one message for the whole batch


CONFIGURATIONS = {
    "minimal": Configuration(fs.Metadata.NONE, False),
    "coalesced": Configuration(fs.Metadata.NONE, True),
    "full": Configuration(fs.Metadata.ECN | fs.Metadata.LOCAL | fs.Metadata.TTL | fs.Metadata.TIMESTAMP, False),
}
STEPS = ("send", "send_to", "recv", "run", "reflect")
PACKETS = BATCH * ROUNDS


#: AF_XDP on a simulated wire: the two hosts, the metadata, and how many other pairs of sockets work beside. These must
#: not cost an instruction: nothing is shared.
XDP_CONFIGURATIONS = {
    "xdp-v4": (("192.0.2.1", "192.0.2.2"), fs.Metadata.NONE, 0),
    "xdp-v6": (("2001:db8::1", "2001:db8::2"), fs.Metadata.NONE, 0),
    "xdp-v4-full": (("192.0.2.1", "192.0.2.2"), fs.Metadata.ECN | fs.Metadata.LOCAL | fs.Metadata.TTL, 0),
    "xdp-v4-of-four": (("192.0.2.1", "192.0.2.2"), fs.Metadata.NONE, 3),
}


def main(library: str) -> None:
    callgrind = ctypes.CDLL(library)
    handler = ctypes.cast(callgrind.gates_handler, ctypes.c_void_p).value
    assert handler

    def dump(name: str) -> None:
        callgrind.gates_dump(name.encode())

    for name, (hosts, metadata, beside) in XDP_CONFIGURATIONS.items():
        simulated(callgrind, handler, dump, name, hosts, metadata, beside)
    for name, configuration in CONFIGURATIONS.items():
        options: fs.OsUdpOptions = {
            "gso": configuration.offloads,
            "gro": configuration.offloads,
            "metadata": configuration.metadata,
            "recv_buffer": 1 << 20,  # a batch fits, so that what is sent is received
        }
        with (
            fs.OsUdpSocket.bind("127.0.0.1:0", **options) as server,
            fs.OsUdpSocket.connect(server.local_address, **options) as client,
        ):
            peer = client.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=server.local_address))
            out, rx, back = client.tx_batch(BATCH), server.recv_batch(BATCH), server.tx_batch(BATCH)
            # A batch of its own: frames that reflecting took away are not replaced in the step that only receives.
            reflected, answers = server.recv_batch(BATCH), client.recv_batch(BATCH)

            def fill(out: fs.OsTxBatch = out) -> None:
                assert out.allocate() == BATCH
                out.fill(PAYLOAD)

            def receive(sock: fs.OsUdpSocket[fs.WaitDriver], batch: fs.OsRecvBatch) -> None:
                sock.recv(batch)
                assert batch.datagram_count == BATCH, batch.datagram_count

            for turn in range(WARM_UP + ROUNDS):
                if turn == WARM_UP:
                    callgrind.gates_start()
                fill()
                dump("ignored")
                assert client.send(out) == BATCH
                dump(f"{name}/send")
                receive(server, rx)
                dump(f"{name}/recv")
                assert rx.run(handler) == len(rx)
                dump(f"{name}/run")
                # Reflecting is receiving, taking the frames over and sending.
                fill()
                dump("ignored")
                client.send_to(peer, out)
                dump(f"{name}/send_to")
                receive(server, reflected)
                back.take_from(reflected)
                while len(back):
                    server.send(back)
                dump(f"{name}/reflect")
                receive(client, answers)
                dump("ignored")
            callgrind.gates_stop()


class Pair:
    """Two sockets on a simulated wire. It is paused while it is sent to, so that what the kernel would do is done
    outside of what is counted."""

    def __init__(self, hosts: tuple[str, str], metadata: fs.Metadata) -> None:
        self.wire = fs.Wire()
        bits = 64 if ":" in hosts[0] else 24
        near, far = (fs.SimulatedDevice(self.wire, addresses=[f"{host}/{bits}"]) for host in hosts)
        self.peer_address = (hosts[1], 9000)
        self.client = fs.XdpUdpSocket.open(near, local=(hosts[0], 7000), metadata=metadata)
        self.server = fs.XdpUdpSocket.open(far, local=self.peer_address, metadata=metadata)
        self.peer = self.client.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=self.peer_address))
        self.out, self.back = self.client.tx_batch(BATCH), self.server.tx_batch(BATCH)
        self.rx, self.answers = self.server.recv_batch(BATCH), self.client.recv_batch(BATCH)

    def carry(self) -> None:
        self.wire.paused = False
        self.wire.resume()
        self.wire.paused = True

    def turn(self, handler: int, dump: Callable[[str], None], name: str) -> None:
        """Each step once, with a dump behind it."""
        assert self.out.allocate() == BATCH
        self.out.fill(PAYLOAD)
        self.out.set_destinations(self.peer_address)
        dump("ignored")
        assert self.client.send(self.out) == BATCH
        dump(f"{name}/send")
        self.carry()
        assert self.server.recv(self.rx) == BATCH
        dump(f"{name}/recv")
        assert self.rx.run(handler) == BATCH
        dump(f"{name}/run")
        assert self.out.allocate() == BATCH
        self.out.fill(PAYLOAD)
        dump("ignored")
        assert self.client.send_to(self.peer, self.out) == BATCH
        dump(f"{name}/send_to")
        self.carry()
        dump("ignored")
        assert self.server.recv(self.rx) == BATCH
        assert self.back.take_from(self.rx) == BATCH
        assert self.server.send(self.back) == BATCH
        dump(f"{name}/reflect")
        self.carry()
        assert self.client.recv(self.answers) == BATCH
        dump("ignored")

    def close(self) -> None:
        self.client.close()
        self.server.close()


def simulated(
    callgrind: ctypes.CDLL,
    handler: int,
    dump: Callable[[str], None],
    name: str,
    hosts: tuple[str, str],
    metadata: fs.Metadata,
    beside: int,
) -> None:
    """The same steps over a simulated device, while other sockets on wires of their own do the same in between."""

    def unseen(_: str) -> None:
        pass

    pair, *others = [Pair(hosts, metadata) for _ in range(1 + beside)]
    for turn in range(WARM_UP + ROUNDS):
        if turn == WARM_UP:
            callgrind.gates_start()
        for other in others:
            other.turn(handler, unseen, name)
        pair.turn(handler, dump, name)
    callgrind.gates_stop()
    for each in (pair, *others):
        each.close()


if __name__ == "__main__":
    main(sys.argv[1])
