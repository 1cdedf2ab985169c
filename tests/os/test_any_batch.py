"""Whatever a batch holds, what arrives is what a plain model says: coalescing, splitting and chunking are invisible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fast_socket as fs
from tests.os.helpers import bind, gso_segments, send_all

# In flight at once, in bytes as the kernel charges them to a receive buffer, whose default is 212,992.
MAX_CHARGE = 180_000
LAYOUT = fs.BufferLayout(payload_capacity=8192)


SEGMENT_SIZES = st.sampled_from([0, 0, 0, 60, 100, 1000, 65_000])


@st.composite
def batches(draw, sizes=SEGMENT_SIZES):
    """Slots as (length, segment size, receiver, ecn), many of them alike so that runs arise."""
    lengths = st.sampled_from([0, 1, 2, 60, 61, 100, 1232, 1233, 1472, 4000, 8192]) | st.integers(0, 300)
    slots = []
    for _ in range(draw(st.integers(1, 12))):
        slot = draw(lengths), draw(sizes), draw(st.integers(0, 1)), draw(st.sampled_from([255, 0, 2]))
        slots += [slot] * draw(st.sampled_from([1, 1, 2, 3, 70]) if slot[0] < 300 else st.integers(1, 3))
    kept, total = [], 0
    for slot in slots:
        total += 2 * slot[0] + 1000 * max(1, -(-slot[0] // (slot[1] or 65_535)))
        if total > MAX_CHARGE:
            break
        kept.append(slot)
    return kept


def model(slots, payloads):
    """For each receiver the datagrams, in order, with their ECN marks."""
    arrives = [[], []]
    for (length, size, to, ecn), payload in zip(slots, payloads, strict=True):
        step = size if 0 < size < length else max(length, 1)
        for start in range(0, max(length, 1), step):
            arrives[to].append((payload[start : start + step], 0 if ecn == 255 else ecn))
    return arrives


@pytest.fixture(scope="module")
def receivers():
    """An ordinary receiver and one with GRO: the datagrams must be the same."""
    with (
        bind("v4", metadata=fs.Metadata.ECN, rx_layout=LAYOUT) as first,
        bind("v4", metadata=fs.Metadata.ECN, gro=True) as second,
    ):
        yield first, second


def arrived(sock):
    rx = sock.recv_batch(512)
    got = []
    while sock.recv(rx):
        marks = rx.ecn.tolist()
        walked = rx.datagrams()
        got += [(data, marks[slot]) for data, slot in zip(walked, walked.slots.tolist(), strict=True)]
    return got


@pytest.mark.parametrize("family", ["v4", "dual"])
@pytest.mark.parametrize(
    ("gso", "batch_calls", "gso_size"),
    [(False, False, 0), (True, False, 0), (False, True, 0), (True, True, 0), (True, True, 60), (True, True, 1000)],
)
@pytest.mark.parametrize("metadata", [fs.Metadata.NONE, fs.Metadata.ECN])
def test_what_arrives_is_what_the_model_says(receivers, family, gso, batch_calls, gso_size, metadata):
    options = {"gso": gso, "gso_size": gso_size, "batch_calls": batch_calls, "metadata": metadata, "tx_layout": LAYOUT}
    with bind(family, **options) as sock:

        @given(batches(), st.integers(0, 255))
        def check(slots, seed):
            batch = sock.tx_batch(1024)
            payloads = [bytes((seed + 7 * i + j) % 256 for j in range(slot[0])) for i, slot in enumerate(slots)]
            for slot, payload in zip(slots, payloads, strict=True):
                batch.append(payload, receivers[slot[2]].local_address)
            batch.segment_sizes[:] = [slot[1] for slot in slots]
            if metadata:
                batch.ecn[:] = [slot[3] for slot in slots]
            expected = model(slots, payloads)
            if not metadata:
                expected = [[(data, 0) for data, _ in one] for one in expected]
            before = sock.stats().sent
            assert send_all(sock, batch) == len(slots)
            assert [arrived(receiver) for receiver in receivers] == expected
            assert sock.stats().sent - before == sum(map(len, expected))
            assert sock.pool.tx_available == sock.pool.tx_frames

        check()
    assert sock.stats().gso_fallbacks == 0
    assert (sock.stats().gso_sends > 0) == (gso and batch_calls and gso_segments() > 1)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("options", [{"gso": False}, {"gso": True}, {"gso_size": 60}])
@given(data=st.data())
def test_the_same_through_a_prepared_endpoint(receivers, connected, options, data):
    size = data.draw(st.sampled_from([0, 2, 60, 100, 1000]))
    slots = [(length, size, 0, fs.Ecn.ECT0) for length, *_ in data.draw(batches(st.just(size)))]
    payloads = [bytes((i + j) % 256 for j in range(slot[0])) for i, slot in enumerate(slots)]
    to = receivers[0].local_address
    with (
        fs.OsUdpSocket.connect(to, **options, tx_layout=LAYOUT, tx_frames=256, rx_frames=1)
        if connected
        else bind("v4", **options, tx_layout=LAYOUT, tx_frames=256, rx_frames=1)
    ) as sock:
        endpoint = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=to, gso_size=size, ecn=fs.Ecn.ECT0))
        batch = sock.tx_batch(256)
        for payload in payloads:
            batch.append(payload)
        sent = 0
        while len(batch):
            sent += sock.send_to(endpoint, batch)
        assert sent == len(slots)
        assert arrived(receivers[0]) == model(slots, payloads)[0]
        assert sock.stats().sent == len(model(slots, payloads)[0])
