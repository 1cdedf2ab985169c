"""Ownership: whatever is done in whatever order, no frame is lost, none is in two places, and contents stay.

A model beside the real thing: which packet is in which slot, what it must read, and who owns its frame. After every
step the model's count of frames must agree with the pools' and every packet that is alive must read as it should.
"""

import gc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import fast_socket as fs
from tests.conformance.backends import layouts, whole

FRAMES = 7
MOST_IN_FLIGHT = 32
ANY = st.integers(0, 7)
PAYLOADS = st.binary(max_size=24)


def accepted_before_refusal(sock, batch):
    """Apart, because an exception that is kept keeps its traceback, and that every batch in sight."""
    try:
        return f"no refusal but {sock.send(batch)}"
    except fs.SendError as error:
        return error.accepted


class Handle:
    """A PacketBuffer that the test holds. In a batch, owned by itself, or gone."""

    def __init__(self, packet, data, place, slot):
        self.packet, self.data, self.place, self.slot = packet, data, place, slot
        self.pool = place.batch.pool
        self.gone = False
        self.views = []

    @property
    def owned(self):
        return not self.gone and self.place is None


class Rx:
    def __init__(self, end, batch):
        self.end, self.batch = end, batch
        self.frames = 0  # frames that the batch keeps, used or not
        self.slots = []  # bytes, or None where the packet left
        self.handles = {}

    @property
    def viewed(self):
        return any(handle.views for handle in self.handles.values())

    def leave(self, slot):
        """The packet and its frame leave the batch."""
        self.slots[slot] = None
        self.frames -= 1
        return self.handles.pop(slot, None)

    def forget(self):
        for handle in self.handles.values():
            handle.place, handle.gone = None, True
        self.handles = {}


class Tx:
    def __init__(self, end, batch):
        self.end, self.batch = end, batch
        self.slots = []  # [bytes, the end it goes to or None, whether in a receive frame]


class Ownership(RuleBasedStateMachine):
    def __init__(self, backend, family, shared):
        super().__init__()
        room = layouts(payload=64, headroom=8, tailroom=8)
        self.pair = backend.open_pair(family, near={"rx_frames": FRAMES, "tx_frames": FRAMES, **room},
                                      far={"rx_frames": FRAMES, "tx_frames": FRAMES, **room})  # fmt: skip
        if shared:
            self.pair.close()
            pool = self.pair.near.pool
            self.pair = backend.open_pair(family, pool=pool)
        self.ends = (self.pair.near, self.pair.far)
        # near and far as each names the other; an end's packets to itself go by its own name.
        self.names = (self.pair.near_address, self.pair.far_address)
        self.arriving = ([], [])
        self.closed = [False, False]
        self.rx, self.tx, self.handles, self.frozen = [], [], [], []
        self.fills_frames = backend.fills_frames

        # Something to work with from the start: most steps then find what they need.
        for end in (0, 1):
            self.new_receive_batch(end, 4)
            self.new_transmit_batch(end, 5)

    def pools(self):
        return list({id(end.pool): end.pool for end in self.ends}.values())

    def pick(self, things, number):
        return things[number % len(things)] if things else None

    def slot_of(self, rx, number):
        """A slot whose packet is there, or None."""
        present = [slot for slot, data in enumerate(rx.slots) if data is not None]
        return self.pick(present, number)

    def handle_at(self, rx, slot):
        if slot not in rx.handles:
            rx.handles[slot] = Handle(rx.batch[slot], rx.slots[slot], rx, slot)
        assert rx.batch[slot] is rx.handles[slot].packet
        return rx.handles[slot]

    # Batches

    @precondition(lambda self: len(self.rx) < 3)
    @rule(end=st.integers(0, 1), capacity=st.integers(1, 5))
    def new_receive_batch(self, end, capacity):
        self.rx.append(Rx(end, self.ends[end].recv_batch(capacity)))

    @precondition(lambda self: len(self.tx) < 3)
    @rule(end=st.integers(0, 1), capacity=st.integers(1, 5))
    def new_transmit_batch(self, end, capacity):
        self.tx.append(Tx(end, self.ends[end].tx_batch(capacity)))

    @precondition(lambda self: self.rx)
    @rule(number=ANY)
    def drop_receive_batch(self, number):
        rx = self.rx.pop(number % len(self.rx))
        for handle in rx.handles.values():
            handle.place = None
            handle.gone = not handle.views  # what is being looked at lives on, as its own owner
        rx.handles = {}

    @precondition(lambda self: self.tx)
    @rule(number=ANY)
    def drop_transmit_batch(self, number):
        del self.tx[number % len(self.tx)]

    # Filling

    @precondition(lambda self: self.tx)
    @rule(number=ANY, payload=PAYLOADS, to=st.integers(0, 1))
    def append_bytes(self, number, payload, to):
        tx = self.pick(self.tx, number)
        to = self.reachable(tx.end, to)
        if not tx.batch.room or not tx.batch.pool.tx_available:
            with pytest.raises(fs.Error):
                tx.batch.append(payload, self.names[to])
        else:
            tx.batch.append(payload, self.names[to])
            tx.slots.append([payload, to, False])

    @precondition(lambda self: self.tx)
    @rule(number=ANY, payload=PAYLOADS, count=st.integers(0, 5), to=st.integers(0, 1))
    def allocate_and_fill(self, number, payload, count, to):
        tx = self.pick(self.tx, number)
        to = self.reachable(tx.end, to)
        expected = min(count, tx.batch.room, tx.batch.pool.tx_available)
        assert tx.batch.allocate(count) == expected
        tx.slots += [[b"", to, False]] * expected
        tx.batch.fill(payload)
        tx.batch.set_destinations(self.names[to])
        tx.slots = [[payload, to, in_receive_frame] for _, _, in_receive_frame in tx.slots]

    @precondition(lambda self: self.tx and any(handle.owned for handle in self.handles))
    @rule(number=ANY, which=ANY, to=st.integers(0, 1))
    def append_owned(self, number, which, to):
        tx, handle = self.pick(self.tx, number), self.pick([h for h in self.handles if h.owned], which)
        self.append_packet(tx, handle, to)

    @precondition(lambda self: self.tx and self.rx)
    @rule(number=ANY, which=ANY, slot=ANY, to=st.integers(0, 1))
    def append_received(self, number, which, slot, to):
        tx, rx = self.pick(self.tx, number), self.pick(self.rx, which)
        slot = self.slot_of(rx, slot)
        if slot is not None:
            handle = self.handle_at(rx, slot)
            if handle not in self.handles:
                self.handles.append(handle)
            self.append_packet(tx, handle, to)

    def append_packet(self, tx, handle, to):
        to = self.reachable(tx.end, to)
        moves = handle.pool is tx.batch.pool
        full = not tx.batch.room
        if full or (moves and handle.views) or (not moves and not tx.batch.pool.tx_available):
            with pytest.raises((fs.Error, BufferError)):
                tx.batch.append(handle.packet, self.names[to])
            return
        tx.batch.append(handle.packet, self.names[to])
        tx.slots.append([handle.data, to, moves])
        if moves:
            if handle.place is not None:
                handle.place.leave(handle.slot)
                handle.place = None
            handle.gone = True

    @precondition(lambda self: self.tx and self.rx)
    @rule(number=ANY, which=ANY, to=st.integers(0, 1))
    def take_from(self, number, which, to):
        tx, rx = self.pick(self.tx, number), self.pick(self.rx, which)
        to = self.reachable(tx.end, to)
        if tx.batch.pool is not rx.batch.pool:
            with pytest.raises(fs.ConfigError):
                tx.batch.take_from(rx.batch, reply=False)
        elif rx.viewed:
            with pytest.raises(BufferError):
                tx.batch.take_from(rx.batch, reply=False)
        else:
            room, present = tx.batch.room, [slot for slot, data in enumerate(rx.slots) if data is not None]
            assert tx.batch.take_from(rx.batch, reply=False) == min(room, len(present))
            for slot in present[:room]:
                tx.slots.append([rx.slots[slot], to, True])
                handle = rx.leave(slot)
                if handle is not None:
                    handle.place, handle.gone = None, True
            for packet, (_, peer, _) in zip(tx.batch, tx.slots, strict=True):
                packet.address = self.names[peer]

    @precondition(lambda self: self.tx)
    @rule(number=ANY, count=st.none() | st.integers(0, 6))
    def discard(self, number, count):
        tx = self.pick(self.tx, number)
        pending = len(tx.slots)
        assert tx.batch.discard(count) == (pending if count is None else min(count, pending))
        del tx.slots[: pending if count is None else count]

    # Traffic

    @precondition(lambda self: self.tx)
    @rule(number=ANY, end=st.integers(0, 1), spoilt=st.none() | ANY)
    def send(self, number, end, spoilt):
        """By a socket of the batch's pool. A spoilt slot, port 0, stops it in front."""
        tx = self.pick(self.tx, number)
        sock = self.ends[tx.end]
        if any(len(queue) > MOST_IN_FLIGHT for queue in self.arriving):
            return
        accepted = len(tx.slots)
        room = self.room_to_receive()
        if spoilt is not None and tx.slots:
            accepted = spoilt % len(tx.slots)
            tx.batch.destination_ports[accepted] = 0
        if self.closed[tx.end]:
            with pytest.raises(fs.Error, match="closed"):
                sock.send(tx.batch)
            accepted = 0
        elif accepted < len(tx.slots):
            assert accepted_before_refusal(sock, tx.batch) == accepted
        else:
            assert sock.send(tx.batch) == accepted
        self.pair.settle(self.pair)
        for data, to, _ in tx.slots[:accepted]:
            self.arrive(to, [data], room)
        del tx.slots[:accepted]
        for packet, (_, to, _) in zip(tx.batch, tx.slots, strict=True):
            packet.address = self.names[to]

    @precondition(lambda self: self.tx)
    @rule(number=ANY, to=st.integers(0, 1))
    def send_to(self, number, to):
        tx = self.pick(self.tx, number)
        to = self.reachable(tx.end, to)
        if self.closed[tx.end] or any(len(queue) > MOST_IN_FLIGHT for queue in self.arriving):
            return
        sock = self.ends[tx.end]
        room = self.room_to_receive()
        endpoint = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=self.names[to]))
        assert sock.send_to(endpoint, tx.batch) == len(tx.slots)
        self.pair.settle(self.pair)
        self.arrive(to, [data for data, _, _ in tx.slots], room)
        tx.slots = []

    def reachable(self, end, to):
        """A device does not hear itself; within the kernel a socket does."""
        return 1 - end if self.fills_frames else to

    def room_to_receive(self):
        """What each end's device has frames for; without end where the kernel keeps what finds none."""
        return [
            sock.queue_stats().filled - len(arriving) if self.fills_frames else 1 << 30
            for sock, arriving in zip(self.ends, self.arriving, strict=True)
        ]

    def arrive(self, to, payloads, room):
        if not self.closed[to]:
            self.arriving[to].extend(payloads[: max(room[to], 0)])
            room[to] -= len(payloads)

    @precondition(lambda self: any(not self.closed[rx.end] for rx in self.rx))
    @rule(number=ANY)
    def recv(self, number):
        rx = self.pick([rx for rx in self.rx if not self.closed[rx.end]], number)
        sock = self.ends[rx.end]
        if rx.viewed:
            with pytest.raises(BufferError):
                sock.recv(rx.batch)
            return
        rx.forget()
        arriving = self.arriving[rx.end]
        if self.fills_frames:
            rx.frames = min(rx.batch.capacity, len(arriving))
            try:
                assert sock.recv(rx.batch) == rx.frames
            except fs.Error as error:
                assert rx.frames == sock.queue_stats().filled == 0, error
            rx.slots = arriving[: rx.frames]
            del arriving[: rx.frames]
            return
        rx.frames += min(rx.batch.capacity - rx.frames, rx.batch.pool.rx_available)
        if rx.frames == 0:
            with pytest.raises(fs.Error, match="rx_frames"):
                sock.recv(rx.batch)
            rx.slots = []
            return
        count = min(rx.frames, len(arriving))
        assert sock.recv(rx.batch) == count
        rx.slots = arriving[:count]
        del arriving[:count]

    @rule(end=st.integers(0, 1), really=st.integers(0, 9))
    def close(self, end, really):
        if really == 0:
            self.ends[end].close()
            self.closed[end] = True
            self.arriving[end].clear()

    @precondition(lambda self: self.rx)
    @rule(number=ANY, payloads=st.lists(PAYLOADS, min_size=1, max_size=4))
    def traffic(self, number, payloads):
        """All the way into a receive batch, so that there are packets to do things with."""
        rx = self.pick(self.rx, number)
        if any(self.closed) or len(self.arriving[rx.end]) > MOST_IN_FLIGHT:
            return
        sender = 1 - rx.end
        tx = Tx(sender, self.ends[sender].tx_batch(4))
        self.tx.append(tx)
        for payload in payloads:
            self.append_bytes(len(self.tx) - 1, payload, rx.end)
        self.send(len(self.tx) - 1, sender, None)
        self.tx.remove(tx)
        self.recv([batch for batch in self.rx if not self.closed[batch.end]].index(rx))

    # Packets

    @precondition(lambda self: self.rx)
    @rule(number=ANY, slot=ANY)
    def hold(self, number, slot):
        rx = self.pick(self.rx, number)
        slot = self.slot_of(rx, slot)
        if slot is not None and (handle := self.handle_at(rx, slot)) not in self.handles:
            self.handles.append(handle)

    @precondition(lambda self: self.rx)
    @rule(number=ANY, slot=ANY)
    def take(self, number, slot):
        rx = self.pick(self.rx, number)
        slot = self.slot_of(rx, slot)
        if slot is not None:
            handle = self.handle_at(rx, slot)
            assert handle.packet.take() is handle.packet
            rx.leave(slot)
            handle.place = None
            if handle not in self.handles:
                self.handles.append(handle)

    @precondition(lambda self: self.handles)
    @rule(number=ANY)
    def drop_handle(self, number):
        """Forget about it without a word: an owned packet's frame goes home; others stay in their batch."""
        self.handles.pop(number % len(self.handles))

    @precondition(lambda self: self.handles)
    @rule(number=ANY)
    def release(self, number):
        handle = self.pick(self.handles, number)
        if handle.gone or handle.views:
            with pytest.raises(BufferError):
                handle.packet.release()
            return
        handle.packet.release()
        if handle.place is not None:
            handle.place.leave(handle.slot)
        handle.place, handle.gone = None, True

    @precondition(lambda self: self.handles)
    @rule(number=ANY)
    def freeze(self, number):
        handle = self.pick(self.handles, number)
        if handle.gone or handle.views:
            with pytest.raises(BufferError):
                handle.packet.freeze()
            return
        self.frozen.append((handle.packet.freeze(), handle.data, handle.pool))
        if handle.place is not None:
            handle.place.leave(handle.slot)
        handle.place, handle.gone = None, True

    @precondition(lambda self: self.frozen)
    @rule(number=ANY)
    def drop_frozen(self, number):
        del self.frozen[number % len(self.frozen)]

    @precondition(lambda self: self.handles)
    @rule(number=ANY)
    def view(self, number):
        handle = self.pick(self.handles, number)
        if handle.gone:
            with pytest.raises(fs.BufferTakenError):
                memoryview(handle.packet)
        else:
            handle.views.append(memoryview(handle.packet))

    @precondition(lambda self: any(handle.views for handle in self.handles))
    @rule(number=ANY)
    def unview(self, number):
        self.pick([handle for handle in self.handles if handle.views], number).views.pop().release()

    @precondition(lambda self: self.handles)
    @rule(number=ANY, front=st.booleans(), data=st.binary(min_size=1, max_size=8))
    def grow(self, number, front, data):
        handle = self.pick(self.handles, number)
        grow = handle.packet.prepend if front else handle.packet.append
        if handle.gone or handle.views:
            with pytest.raises(BufferError):
                grow(data)
            return
        if len(data) > (handle.packet.headroom if front else handle.packet.tailroom):
            with pytest.raises(fs.ConfigError):
                grow(data)
            return
        grow(data)
        self.changed(handle, data + handle.data if front else handle.data + data)

    @precondition(lambda self: self.handles)
    @rule(number=ANY, front=st.booleans(), count=st.integers(0, 8))
    def trim(self, number, front, count):
        handle = self.pick(self.handles, number)
        trim = handle.packet.trim_prefix if front else handle.packet.trim_suffix
        if handle.gone or handle.views:
            with pytest.raises(BufferError):
                trim(count)
        elif count > len(handle.data):
            with pytest.raises(IndexError):
                trim(count)
        else:
            trim(count)
            self.changed(handle, handle.data[count:] if front else handle.data[: len(handle.data) - count])

    def changed(self, handle, data):
        handle.data = data
        if handle.place is not None:
            handle.place.slots[handle.slot] = data

    # What always holds

    @invariant()
    def contents(self):
        for rx in self.rx:
            assert [bytes(packet) for packet in rx.batch] == [data for data in rx.slots if data is not None]
            assert rx.batch.lengths.tolist() == [
                len(data) if data is not None else length
                for data, length in zip(rx.slots, rx.batch.lengths.tolist(), strict=True)
            ]
        for tx in self.tx:
            assert [bytes(packet) for packet in tx.batch] == [data for data, _, _ in tx.slots]
        for handle in self.handles:
            if handle.gone:
                with pytest.raises(fs.BufferTakenError):
                    bytes(handle.packet)
            else:
                assert bytes(handle.packet) == handle.data
            assert [bytes(view) for view in handle.views] == [handle.data] * len(handle.views)
        for frozen, data, _ in self.frozen:
            assert frozen == data

    @invariant()
    def frames(self):
        for pool in self.pools():
            owned = [handle.packet.frame for handle in self.handles if handle.owned and handle.pool is pool]
            owned += [frozen.frame for frozen, _, of in self.frozen if of is pool]
            rx = [batch for batch in self.rx if batch.batch.pool is pool]
            tx = [batch for batch in self.tx if batch.batch.pool is pool]
            kept = sum(batch.frames for batch in rx)
            lent = sum(in_receive_frame for batch in tx for _, _, in_receive_frame in batch.slots)
            pending = sum(len(batch.slots) for batch in tx)
            assert pool.rx_available + pool.rx_with_device + kept + lent + len(owned) == pool.rx_frames, (
                "a receive frame is lost"
            )
            assert pool.tx_available + pool.tx_with_device + pending - lent == pool.tx_frames, (
                "a transmit frame is lost"
            )
            seen = owned + [frame for batch in rx + tx for frame in batch.batch.frames.tolist() if frame != 2**32 - 1]
            assert len(seen) == len(set(seen)), "a frame is in two places"

    def teardown(self):
        pools = self.pools()
        views = [view for handle in self.handles for view in handle.views]
        while self.rx:
            self.rx.pop().forget()
        self.rx, self.tx, self.handles, self.frozen = [], [], [], []
        for view in views:
            view.release()
        views.clear()
        gc.collect()
        self.pair.close()
        for pool in pools:
            assert whole(pool), f"after everything was dropped: {pool}"


@pytest.mark.timeout(600)  # for a failure, which takes long to make small; a pass takes seconds
@pytest.mark.parametrize("shared", [False, True], ids=["own pools", "one pool"])
def test_ownership(backend, shared):
    run_state_machine_as_test(
        lambda: Ownership(backend, "v4", shared), settings=settings(stateful_step_count=60, deadline=None)
    )
