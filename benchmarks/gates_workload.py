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
STEPS = ("send", "send_to", "recv", "reflect")
PACKETS = BATCH * ROUNDS


#: AF_XDP on a simulated wire: the two hosts, and the metadata.
XDP_CONFIGURATIONS = {
    "xdp-v4": (("192.0.2.1", "192.0.2.2"), fs.Metadata.NONE),
    "xdp-v6": (("2001:db8::1", "2001:db8::2"), fs.Metadata.NONE),
    "xdp-v4-full": (("192.0.2.1", "192.0.2.2"), fs.Metadata.ECN | fs.Metadata.LOCAL | fs.Metadata.TTL),
}


def main(library: str) -> None:
    callgrind = ctypes.CDLL(library)

    def dump(name: str) -> None:
        callgrind.gates_dump(name.encode())

    for name, (hosts, metadata) in XDP_CONFIGURATIONS.items():
        simulated(callgrind, dump, name, hosts, metadata)
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


def simulated(
    callgrind: ctypes.CDLL, dump: Callable[[str], None], name: str, hosts: tuple[str, str], metadata: fs.Metadata
) -> None:
    """The same steps over a simulated device. Its wire is paused while it is sent to, so that what the kernel would do
    is done outside of what is counted."""
    wire = fs.Wire()
    devices = [fs.SimulatedDevice(wire, addresses=[f"{host}/{64 if ':' in host else 24}"]) for host in hosts]
    with (
        fs.XdpUdpSocket.open(devices[0], local=(hosts[0], 7000), metadata=metadata) as client,
        fs.XdpUdpSocket.open(devices[1], local=(hosts[1], 9000), metadata=metadata) as server,
    ):
        peer = client.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=(hosts[1], 9000)))
        out, rx, back = client.tx_batch(BATCH), server.recv_batch(BATCH), server.tx_batch(BATCH)
        answers = client.recv_batch(BATCH)

        def carry() -> None:
            wire.paused = False
            wire.resume()
            wire.paused = True

        for turn in range(WARM_UP + ROUNDS):
            if turn == WARM_UP:
                callgrind.gates_start()
            assert out.allocate() == BATCH
            out.fill(PAYLOAD)
            out.set_destinations((hosts[1], 9000))
            dump("ignored")
            assert client.send(out) == BATCH
            dump(f"{name}/send")
            carry()
            assert server.recv(rx) == BATCH
            dump(f"{name}/recv")
            assert out.allocate() == BATCH
            out.fill(PAYLOAD)
            dump("ignored")
            assert client.send_to(peer, out) == BATCH
            dump(f"{name}/send_to")
            carry()
            dump("ignored")
            assert server.recv(rx) == BATCH
            assert back.take_from(rx) == BATCH
            assert server.send(back) == BATCH
            dump(f"{name}/reflect")
            carry()
            assert client.recv(answers) == BATCH
            dump("ignored")
        callgrind.gates_stop()


if __name__ == "__main__":
    main(sys.argv[1])
