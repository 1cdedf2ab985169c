"""Addresses: text, tuples and binary records are one and the same; anything else is refused by name."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fast_socket as fs

PORTS = st.integers(0, 65_535)
DESTINATION_PORTS = st.integers(1, 65_535)
LAYOUT = fs.BufferLayout(payload_capacity=64)


@pytest.fixture(scope="module")
def batches():
    pool = fs.FramePool(rx_frames=1, tx_frames=8, rx_layout=LAYOUT, tx_layout=LAYOUT)
    made = {v6: fs.OsTxBatch(pool, 4, v6=v6) for v6 in (False, True)}
    for batch in made.values():
        batch.allocate()
    return made


def text(host, port):
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


@given(host=st.ip_addresses(), port=PORTS)
def test_every_form_is_one_address(host, port):
    want = (str(host), port)
    assert fs.parse_address(text(host, port)) == want
    assert fs.parse_address((str(host), port)) == want
    assert fs.parse_address((host, port)) == want
    assert fs.parse_address([str(host), port]) == want


@given(host=st.ip_addresses(v=4), port=DESTINATION_PORTS)
def test_ipv4_records(batches, host, port):
    batch = batches[False]
    batch.set_destinations((host, port))
    assert bytes(batch.destination_addresses[0]) == host.packed
    assert batch.destination_ports[0] == port
    assert batch[0].address == (str(host), port)


@given(host=st.ip_addresses(v=6), port=DESTINATION_PORTS)
def test_ipv6_records(batches, host, port):
    batch = batches[True]
    batch.set_destinations((host, port))
    assert bytes(batch.destination_addresses[0]) == host.packed
    assert batch.destination_ports[0] == port
    shown, shown_port = batch[0].address
    assert shown_port == port
    # IPv4-mapped addresses read as IPv4, the others as any IPv6 address.
    assert ipaddress.ip_address(shown) == (host.ipv4_mapped or host)


def test_port_0_is_no_destination(batches):
    for to in ("192.0.2.1:0", ("192.0.2.1", 0)):
        with pytest.raises(fs.ConfigError, match="port 0"):
            batches[False].set_destinations(to)


@given(host=st.ip_addresses(v=4), port=DESTINATION_PORTS)
def test_ipv4_on_an_ipv6_socket_is_mapped(batches, host, port):
    batch = batches[True]
    batch.set_destinations((host, port))
    assert bytes(batch.destination_addresses[0]) == bytes(10) + b"\xff\xff" + host.packed
    assert batch[0].address == (str(host), port)


@given(host=st.ip_addresses(), port=PORTS)
def test_what_is_shown_can_be_given_again(batches, host, port):
    batch = batches[True]
    batch[1].address = (host, port)
    shown = batch[1].address
    if shown != ("", 0):
        batch[2].address = shown
        assert batch[2].address == shown
        assert bytes(batch.destination_addresses[1]) == bytes(batch.destination_addresses[2])


@given(given_text=st.text(alphabet=st.characters(), max_size=40))
def test_any_text_is_parsed_or_refused(given_text):
    """Also with surrogates, NULs and digits of other scripts. What is accepted is an IP address and a port."""
    try:
        host, port = fs.parse_address(given_text)
    except fs.ConfigError as error:
        assert str(error)
    else:
        ipaddress.ip_address(host.partition("%")[0])
        assert 0 <= port <= 65_535


@given(host=st.text(alphabet="0123456789abcdef.:%[]lo\0", max_size=24), port=st.integers(-10, 70_000))
def test_near_misses(host, port):
    try:
        got = fs.parse_address((host, port))
    except fs.ConfigError:
        return
    assert got == (host, port)
    assert 0 <= port <= 65_535
    # As strict as the system itself: what it resolves without a name service.
    assert socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@given(thing=ANYTHING)
def test_anything_else_is_refused(thing):
    try:
        fs.parse_address(thing)
    except fs.ConfigError as error:
        assert "address" in str(error)


def test_scopes(batches):
    batch, index = batches[True], socket.if_nametoindex("lo")
    for address in ("[fe80::1%lo]:5", ("fe80::1%lo", 5), (f"fe80::1%{index}", 5), ("fe80::1", 5, 0, index)):
        batch.set_destinations(address)
        assert batch[0].address == ("fe80::1%lo", 5)
    with pytest.raises(fs.ConfigError, match="nosuchif0"):
        batch.set_destinations("[fe80::1%nosuchif0]:5")
    with pytest.raises(fs.ConfigError):
        batches[False].set_destinations(("10.0.0.1%lo", 5))


def test_what_is_asked_for_is_named():
    with pytest.raises(fs.ConfigError, match="listen address 'x'"):
        fs.parse_address("x", "listen address")
