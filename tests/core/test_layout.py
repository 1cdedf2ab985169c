"""BufferLayout: every layout that is accepted keeps its invariants, every other one names what is wrong."""

import itertools
import pickle

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import fast_socket as fs

SIZES = st.integers(0, 70_000)
ALIGNMENTS = st.sampled_from([2**n for n in range(15)])
FIELDS = ("payload_capacity", "headroom", "tailroom", "l2_headroom", "alignment", "chunk_size", "segments")


@given(
    payload=st.integers(1, 70_000), head=SIZES, tail=SIZES, l2=SIZES, alignment=ALIGNMENTS, segments=st.integers(1, 64)
)
def test_chosen_chunk_is_the_smallest_that_fits(payload, head, tail, l2, alignment, segments):
    layout = fs.BufferLayout(payload_capacity=payload, headroom=head, tailroom=tail, l2_headroom=l2,
                             alignment=alignment, segments=segments)  # fmt: skip
    assert layout.used == payload + head + tail + l2
    assert layout.used <= layout.chunk_size < layout.used + alignment
    assert layout.chunk_size % alignment == 0
    assert layout.payload_offset == l2 + head
    assert layout.payload_offset + payload + tail <= layout.chunk_size
    assert layout.packet_capacity == payload * segments
    assert pickle.loads(pickle.dumps(layout)) == layout


@given(payload=st.integers(1, 70_000), head=SIZES, alignment=ALIGNMENTS, chunk=st.integers(1, 200_000))
def test_given_chunk(payload, head, alignment, chunk):
    def make():
        return fs.BufferLayout(payload_capacity=payload, headroom=head, alignment=alignment, chunk_size=chunk)

    if chunk % alignment == 0 and payload + head <= chunk:
        assert make().chunk_size == chunk
    else:
        with pytest.raises(fs.ConfigError, match=rf"chunk_size is {chunk}\b"):
            make()


@given(value=st.integers())
def test_alignment_is_a_power_of_two(value):
    assume(value.bit_count() != 1 or not 1 <= value <= 1 << 30)
    with pytest.raises(fs.ConfigError, match=rf"alignment is {value}: give"):
        fs.BufferLayout(alignment=value)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [-1, 2**31, 1.5, "64", None, True])
def test_bad_fields_are_named(field, value):
    with pytest.raises(fs.ConfigError, match=f"BufferLayout.{field} is {value!r}: give an int from"):
        fs.BufferLayout(**{field: value})


@pytest.mark.parametrize("field", ["payload_capacity", "alignment", "segments"])
def test_zero_where_one_is_the_least(field):
    with pytest.raises(fs.ConfigError, match=f"{field} is 0: give an int from 1"):
        fs.BufferLayout(**{field: 0})


def test_immutable():
    with pytest.raises(AttributeError):
        fs.BufferLayout().headroom = 5


layouts = st.builds(
    fs.BufferLayout,
    payload_capacity=st.integers(1, 3000),
    headroom=st.integers(0, 200),
    tailroom=st.integers(0, 200),
    l2_headroom=st.integers(0, 100),
    alignment=st.sampled_from([1, 8, 64, 2048]),
)


@given(rx=layouts, tx=layouts, rx_frames=st.integers(0, 5), tx_frames=st.integers(1, 5), data=st.data())
def test_frames_of_a_pool_do_not_overlap(rx, tx, rx_frames, tx_frames, data):
    """Where a frame's packets may lie, as the batch's columns and the handles' rooms say, is that frame's alone."""
    pool = fs.FramePool(rx_frames=rx_frames, tx_frames=tx_frames, rx_layout=rx, tx_layout=tx)
    assert (pool.rx_available, pool.tx_available) == (rx_frames, tx_frames)
    batch = fs.OsTxBatch(pool, tx_frames, v6=False)
    assert batch.allocate() == tx_frames
    assert sorted(batch.frames.tolist()) == list(range(rx_frames, rx_frames + tx_frames))
    spans = []
    for i, packet in enumerate(batch):
        offset = int(batch.offsets[i])
        assert packet.headroom == tx.headroom, "l2_headroom is the backend's"
        assert packet.tailroom == tx.chunk_size - tx.payload_offset
        assert (offset - tx.payload_offset) % tx.chunk_size == 0, "chunks are aligned"
        spans.append((offset - tx.payload_offset, offset + packet.tailroom))
    spans.sort()
    assert spans[0][0] >= rx_frames * rx.chunk_size
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] <= pool.memory.size
    payload = data.draw(st.binary(max_size=tx.payload_capacity))
    batch.fill(payload)
    assert [bytes(packet) for packet in batch] == [payload] * tx_frames


@pytest.mark.parametrize("field", ["rx_frames", "tx_frames"])
@pytest.mark.parametrize("value", [-1, 2**24 + 1, 1.0, "4", None, True])
def test_bad_frame_counts(field, value):
    options = {"rx_frames": 4, "tx_frames": 4, "rx_layout": fs.BufferLayout(), "tx_layout": fs.BufferLayout()}
    with pytest.raises(fs.ConfigError, match=f"FramePool.{field} is {value!r}: give an int from 0 to"):
        fs.FramePool(**options | {field: value})


@pytest.mark.parametrize("field", ["rx_layout", "tx_layout"])
def test_bad_layouts(field):
    options = {"rx_frames": 4, "tx_frames": 4, "rx_layout": fs.BufferLayout(), "tx_layout": fs.BufferLayout()}
    with pytest.raises(fs.ConfigError, match=f"FramePool.{field} is 2048: give a BufferLayout"):
        fs.FramePool(**options | {field: 2048})
