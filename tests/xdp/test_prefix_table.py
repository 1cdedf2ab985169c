"""Longest-prefix match: whatever the table, the answer is that of a look through all prefixes."""

import threading
from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fast_socket as fs
from fast_socket.xdp.prefix_table import NO_MATCH, PrefixTable

WIDTHS = {4: 4, 6: 16}


def table(networks, version=4):
    """One whose answers are the networks' numbers."""
    nets = [ip_network(network) for network in networks]
    rows = np.frombuffer(b"".join(net.network_address.packed for net in nets), np.uint8)
    return PrefixTable(rows.reshape(-1, WIDTHS[version]), [net.prefixlen for net in nets], range(len(nets)),
                       v6=version == 6)  # fmt: skip


def linear(networks, addresses):
    """The reference: of those that contain the address the longest, of equals the last."""
    found = []
    for address in addresses:
        best, length = NO_MATCH, -1
        for number, network in enumerate(networks):
            if address in network and network.prefixlen >= length:
                best, length = number, network.prefixlen
        found.append(best)
    return found


def rows_of(addresses, version):
    packed = b"".join(address.packed for address in addresses)
    return np.frombuffer(packed, np.uint8).reshape(-1, WIDTHS[version])


def edges(network):
    """Its first and last address and those beside them."""
    first, last = int(network[0]), int(network[-1])
    most = (1 << network.max_prefixlen) - 1
    make = type(network[0])
    return [make(min(max(number, 0), most)) for number in (first - 1, first, last, last + 1)]


@st.composite
def tables(draw, version):
    """Prefixes that lie in each other often: few different bits, any length."""
    width = WIDTHS[version] * 8
    bits = st.one_of(st.integers(0, (1 << width) - 1), st.sampled_from([0, (1 << width) - 1, 0xA5 << (width - 8)]))
    make = ip_network
    networks = []
    for number, length in draw(st.lists(st.tuples(bits, st.integers(0, width)), max_size=40)):
        clear = width - length
        networks.append(make(((number >> clear << clear), length) if version == 4 else
                             (ip_address((number >> clear << clear).to_bytes(16, "big")), length)))  # fmt: skip
    return networks


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data())
def test_it_is_what_a_look_through_all_says(version, data):
    networks = data.draw(tables(version))
    addresses = [address for network in networks for address in edges(network)]
    addresses += data.draw(st.lists(st.ip_addresses(v=version), max_size=20))
    built, want = table(networks, version), linear(networks, addresses)
    assert built.lookup(rows_of(addresses, version)).tolist() == want
    assert [built.find(address.packed) for address in addresses] == [None if x == NO_MATCH else x for x in want]
    assert len(built) == len(networks)


@pytest.mark.parametrize("version", [4, 6])
def test_a_large_table(version):
    """Large enough for the wide direct look-up, and for prefixes on both sides of its width."""
    rng = np.random.default_rng(version)
    count, size = 20_000, WIDTHS[version]
    rows = rng.integers(0, 256, (count, size), dtype=np.uint8)
    rows[:, : size // 4] = rng.integers(0, 4, (count, size // 4))
    lengths = rng.integers(0, 8 * size + 1, count)
    built = PrefixTable(rows, lengths, np.arange(count), v6=version == 6)
    shorter: dict[tuple[int, int], int] = {}
    for number, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        shorter[length, int.from_bytes(bytes(row), "big") >> (8 * size - length)] = number
    addresses = np.concatenate([rows[:2000], rng.integers(0, 256, (2000, size), dtype=np.uint8)])
    addresses[2000:, : size // 4] = 1
    want = []
    for row in addresses:
        number = int.from_bytes(bytes(row), "big")
        hits = (shorter.get((length, number >> (8 * size - length))) for length in range(8 * size, -1, -1))
        want.append(next((hit for hit in hits if hit is not None), NO_MATCH))
    assert built.lookup(addresses).tolist() == want


def test_of_equal_prefixes_the_last_holds_and_bits_behind_a_prefix_do_not_count():
    built = PrefixTable(bytes([10, 1, 2, 3, 10, 9, 9, 9]), [8, 8], [5, 6])
    assert built.find(bytes([10, 0, 0, 1])) == 6
    assert built.find(bytes([11, 0, 0, 1])) is None


@pytest.mark.parametrize("version", [4, 6])
def test_an_empty_table_and_one_with_a_default_route(version):
    address = bytes(WIDTHS[version])
    assert table([], version).find(address) is None
    assert table(["0.0.0.0/0" if version == 4 else "::/0"], version).find(address) == 0


def test_columns_and_results_of_the_callers():
    built = table(["192.0.2.0/24", "198.51.100.0/24"])
    record = np.zeros((5, 16), np.uint8)
    record[:, 4:8] = [(192, 0, 2, 1), (198, 51, 100, 7), (192, 0, 3, 1), (192, 0, 2, 255), (10, 0, 0, 1)]
    column, out = record[:, 4:8], np.zeros(5, np.uint32)  # strided, as in a batch
    assert built.lookup(column, out) is out
    assert out.tolist() == [0, 1, NO_MATCH, 0, NO_MATCH]
    assert built.lookup(column[:0]).shape == (0,)
    many = np.repeat(column, 1000, axis=0)
    assert built.lookup(many).tolist() == np.repeat(out, 1000).tolist()


@pytest.mark.parametrize(
    ("networks", "lengths", "answers", "message"),
    [
        (bytes(5), [8], [0], "rows of 4"),
        (bytes(4), [33], [0], "0 to 32"),
        (bytes(4), [-1], [0], "0 to 32"),
        (bytes(4), [8], [NO_MATCH], "answers"),
        (bytes(4), [8], [-1], "answers"),
        (bytes(4), [8, 9], [0], "one for each"),
        (bytes(4), [8], [0, 1], "one for each"),
        (bytes(4), ["x"], [0], "PrefixTable"),
        ([[256, 0, 0, 0]], [8], [0], "PrefixTable"),
        ([[-1, 0, 0, 0]], [8], [0], "PrefixTable"),
        (bytes(4), [8.5], [0], "PrefixTable"),
        ("text", [8], [0], "PrefixTable"),
    ],
)
def test_what_is_no_table(networks, lengths, answers, message):
    with pytest.raises(fs.ConfigError, match=message):
        PrefixTable(networks, lengths, answers)


def test_what_cannot_be_looked_up():
    built = table(["10.0.0.0/8"])
    for addresses in (np.zeros((2, 16), np.uint8), np.zeros(4, np.uint8), np.zeros((2, 4), np.uint16), b"12345",
                      np.zeros((2, 8), np.uint8)[:, ::2], 7, None, "10.0.0.1", [bytes(4)]):  # fmt: skip
        with pytest.raises(fs.ConfigError):
            built.lookup(addresses)
    for out in (np.zeros(3, np.uint32), np.zeros(2, np.uint64), np.zeros(4, np.uint32)[::2], bytes(8), 7):
        with pytest.raises(fs.ConfigError):
            built.lookup(np.zeros((2, 4), np.uint8), out)
    for address in (bytes(5), bytes(16), b""):
        with pytest.raises(fs.ConfigError):
            built.find(address)


def test_threads_look_up_at_once():
    built = table([f"10.{i}.0.0/16" for i in range(256)])
    addresses = np.zeros((10_000, 4), np.uint8)
    addresses[:, 0], addresses[:, 1] = 10, np.arange(10_000) % 256
    wrong: list[int] = []

    def look() -> None:
        for _ in range(20):
            wrong.extend(np.nonzero(built.lookup(addresses) != addresses[:, 1])[0])

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("address", [None, 5, "10.0.0.1", bytes(3), bytes(16), np.zeros((2, 2), np.uint8), np.zeros(4)])
def test_addresses_that_are_none(address):
    with pytest.raises(fs.ConfigError, match="find"):
        PrefixTable(bytes([10, 0, 0, 0]), [8], [1]).find(address)
