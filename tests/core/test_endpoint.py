"""UdpEndpointSpec and the small value types: checked where they are made."""

import dataclasses
import ipaddress
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fast_socket as fs

REMOTE = ("192.0.2.1", 9)


@given(
    host=st.ip_addresses(),
    port=st.integers(1, 65_535),
    source=st.none() | st.ip_addresses(),
    source_port=st.none() | st.integers(1, 65_535),
    ecn=st.none() | st.sampled_from(fs.Ecn),
    ttl=st.none() | st.integers(1, 255),
    gso_size=st.integers(0, 65_535),
    payload_len=st.none() | st.integers(0, 65_535),
)
def test_good_specs(host, port, source, source_port, ecn, ttl, gso_size, payload_len):
    spec = fs.UdpEndpointSpec(remote=(host, port), source=source, source_port=source_port, ecn=ecn, ttl=ttl,
                              gso_size=gso_size, payload_len=payload_len)  # fmt: skip
    assert spec.remote == (str(host), port)
    assert spec.source == (None if source is None else str(source))
    assert (spec.source_port, spec.ecn, spec.ttl, spec.gso_size, spec.payload_len) == (
        source_port, ecn, ttl, gso_size, payload_len)  # fmt: skip
    assert dataclasses.replace(spec) == spec == pickle.loads(pickle.dumps(spec))
    assert hash(spec) == hash(dataclasses.replace(spec))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("source_port", (0, -1, 65_536, "9", 1.5)),
        ("ttl", (0, 256, -1, "9", 1.5)),
        ("gso_size", (-1, 65_536, "9", 1.5, None)),
        ("payload_len", (-1, 65_536, "9", 1.5)),
        ("ecn", (4, -1, "CE", [], 1.5)),
        ("source", ("nonsense", 5, "", b"x", "127.0.0.1:5")),
        ("remote", (("192.0.2.1", 0), "192.0.2.1:0", "x", None)),
    ],
)
def test_bad_fields_are_named(field, values):
    for value in values:
        with pytest.raises(fs.ConfigError) as caught:
            pytest.fail(f"took {value!r}: {fs.UdpEndpointSpec(**{'remote': REMOTE} | {field: value})!r}")
        assert f"UdpEndpointSpec.{field}" in str(caught.value)


def test_ecn_by_number():
    assert fs.UdpEndpointSpec(remote=REMOTE, ecn=3).ecn is fs.Ecn.CE


def test_source_as_an_address():
    assert fs.UdpEndpointSpec(remote=REMOTE, source=ipaddress.ip_address("192.0.2.9")).source == "192.0.2.9"


def test_only_a_yes_is_true():
    assert [bool(answer) for answer in (fs.Support.YES, fs.Support.NO, fs.Support.UNKNOWN)] == [True, False, False]


def test_values_are_immutable():
    for value, field in (
        (fs.UdpEndpointSpec(remote=REMOTE), "ttl"),
        (fs.UdpRecvMeta(source=REMOTE), "ttl"),
        (fs.UdpStats(), "sent"),
        (fs.RawDeviceStats(), "rx_packets"),
        (fs.Capabilities(), "queues"),
        (fs.QueueAffinity(fs.QueueId(0), (1,)), "cpus"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 1)
