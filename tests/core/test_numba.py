"""`fast_socket.numba`: Python functions compiled as handlers. What handlers may do is in the conformance tests."""

import subprocess
import sys
import threading

import numpy as np
import pytest

import fast_socket as fs

numba = pytest.importorskip("numba")

from fast_socket.numba import DROP, KEEP, PACKET, REFLECT, PacketHandler, packet_handler, signature  # noqa: E402

PAYLOADS = [b"zero", b"one", b"two", b"three"]


@pytest.fixture
def received():
    """Gives a receive batch with PAYLOADS, its socket and the sender's."""
    with fs.OsUdpSocket.bind("127.0.0.1:0") as near, fs.OsUdpSocket.bind("127.0.0.1:0") as far:
        tx, rx = near.tx_batch(4), far.recv_batch(4)
        for payload in PAYLOADS:
            tx.append(payload, far.local_address)
        near.send(tx)
        assert far.driver.wait(5.0)
        far.recv(rx)
        yield rx, far, near


def test_a_handler_answers_in_place(received):
    rx, far, near = received

    @packet_handler
    def shout(packet, data, source, state):
        if packet.length != 3:
            return DROP if packet.index == 0 else KEEP
        for i in range(packet.length):
            data[i] -= 32
        data[3] = 33
        packet.length += 1
        return REFLECT

    tx = far.tx_batch(4)
    assert rx.run(shout, reflect=tx) == 1
    assert [bytes(packet) for packet in rx] == [b"three"]
    assert far.send(tx) == 2
    assert near.driver.wait(5.0)
    answers = near.recv_batch(4)
    near.recv(answers)
    assert [bytes(packet) for packet in answers] == [b"ONE!", b"TWO!"]
    assert rx.handler_errors == 0


def test_a_handler_sees_who_sent(received):
    rx, _, near = received
    seen = np.zeros(6, np.uint8)

    @packet_handler(state=seen)
    def look(packet, data, source, state):
        state[:] = source[2:8]
        return KEEP

    assert rx.run(look) == 4
    assert bytes(seen) == near.local_address[1].to_bytes(2, "big") + bytes([127, 0, 0, 1])


def test_state_is_by_reference_and_may_be_exchanged(received):
    rx, _, _ = received
    kind = np.dtype([("packets", "u8"), ("by_length", "u4", (8,))], align=True)
    first, second = np.zeros(1, kind), np.zeros(1, kind)

    @packet_handler(state=first)
    def count(packet, data, source, state):
        state[0].packets += np.uint64(1)
        state[0].by_length[packet.length] += np.uint32(1)
        return KEEP

    rx.run(count)
    rx.run(count)
    rx.run(count.with_state(second))
    rx.run(count, count.with_state(second).user)
    assert first[0]["packets"] == second[0]["packets"] == 8
    assert first[0]["by_length"].tolist() == second[0]["by_length"].tolist() == [0, 0, 0, 4, 2, 2, 0, 0]
    assert count.state is first


@pytest.mark.parametrize("where", ["packet", "state", "source", "divide"])
def test_exceptions_are_counted(received, where):
    """Hostile bytes cannot lead a handler out of its arrays: the packet is dropped, nothing is printed or raised."""
    rx, far, _ = received
    state = np.zeros(2, np.int64)
    free = far.pool.rx_available

    if where == "packet":

        @packet_handler(state=state)
        def fails(packet, data, source, state):
            return KEEP if packet.length != 3 else data[packet.room + data[0]]

    elif where == "state":

        @packet_handler(state=state)
        def fails(packet, data, source, state):
            state[packet.index * 2 if packet.length == 3 else 0] = 1
            return KEEP

    elif where == "source":

        @packet_handler(state=state)
        def fails(packet, data, source, state):
            source[16 if packet.length == 3 else 15] = 0  # a sockaddr_in has 16 bytes
            return KEEP

    else:

        @packet_handler(state=state)
        def fails(packet, data, source, state):
            return 1 // (packet.length - 3) * 0 + KEEP

    assert rx.run(fails) == 2
    assert rx.handler_errors == 2
    assert [bytes(packet) for packet in rx] == [b"zero", b"three"]
    assert far.pool.rx_available == free + 2


def test_a_cfunc_of_the_signature_will_do(received):
    rx, _, _ = received

    @numba.cfunc(signature())
    def short(packet, data, source, user):
        return KEEP if numba.carray(packet, 1)[0].length < 4 else DROP

    assert rx.run(short) == 2
    assert [bytes(packet) for packet in rx] == [b"one", b"two"]


def test_the_function_can_be_tested_without_compiling():
    @packet_handler
    def short(packet, data, source, state):
        return KEEP if packet.length < 4 else DROP

    assert isinstance(short, PacketHandler)
    packet = np.zeros(1, PACKET).view(np.recarray)[0]
    assert short(packet, np.zeros(8, np.uint8), None, None) == KEEP
    packet.length = 4
    assert short(packet, np.zeros(8, np.uint8), None, None) == DROP


@pytest.mark.parametrize(
    "state",
    [
        [1, 2],
        b"bytes",
        np.zeros(3, object),
        np.zeros((4, 4))[:, ::2],
        np.float64(3.0),
        np.array(1),
        np.frombuffer(b"readonly", np.uint8),
    ],
)
def test_bad_states(state):
    with pytest.raises(fs.ConfigError, match="state is"):
        packet_handler(state=state)(lambda packet, data, source, state: KEEP)


def test_another_state_must_be_alike():
    handler = packet_handler(state=np.zeros(4))(lambda packet, data, source, state: KEEP)
    for other in (np.zeros(5), np.zeros(4, np.uint8), np.zeros((4, 1))):
        with pytest.raises(fs.ConfigError, match="compiled for"):
            handler.with_state(other)
    with pytest.raises(fs.ConfigError, match="without a state"):
        packet_handler(lambda packet, data, source, state: KEEP).with_state(np.zeros(4))


def test_what_numba_cannot_compile_is_its_own_error():
    with pytest.raises(numba.core.errors.NumbaError):
        packet_handler(lambda packet, data, source, state: print(open))


def test_one_handler_on_several_threads(received):
    """Its own state for each."""

    @packet_handler(state=np.zeros(1, np.int64))
    def count(packet, data, source, state):
        state[0] += 1
        return DROP

    states = [np.zeros(1, np.int64) for _ in range(4)]

    def serve(state):
        mine = count.with_state(state)
        with fs.OsUdpSocket.bind("127.0.0.1:0") as sock:
            rx, tx = sock.recv_batch(16), sock.tx_batch(16)
            for _ in range(200):
                tx.allocate()
                tx.fill(b"x")
                tx.set_destinations(sock.local_address)
                sock.send(tx)
                left = 16
                while left:
                    assert sock.driver.wait(5.0)
                    left -= sock.recv(rx)
                    rx.run(mine)

    threads = [threading.Thread(target=serve, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(state[0]) for state in states] == [3200] * 4


def test_without_numba():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import fast_socket\n"
        "try: import fast_socket.numba\n"
        "except fast_socket.CapabilityError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'fast-socket[numba]'" in done.stdout
