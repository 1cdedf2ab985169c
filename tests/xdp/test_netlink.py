"""What is read out of netlink messages that this machine's kernel may not send: VLANs, encapsulations, exceptions."""

import struct
import sys
from ipaddress import ip_address, ip_network

import pytest

from fast_socket import CapabilityError, DeviceError, IfIndex
from fast_socket.xdp import netlink
from fast_socket.xdp.routes import RouteSnapshot
from fast_socket.xdp.tables import RuleAction, RuleRecord

pytest.importorskip("pyroute2")

AF_INET, AF_INET6 = 2, 10
MAIN, LOCAL = 254, 255
ETH_P_8021Q, ETH_P_8021AD = 0x8100, 0x88A8
IFF_NOARP = 0x80


def over_the_wire(message):
    """Encoded, and decoded as if the kernel had sent it."""
    message.encode()
    decoded = type(message)(message.data)
    decoded.decode()
    return decoded


def link(kind=None, data=(), flags=0, family_type=1, **attributes):
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    message["index"], message["ifi_type"], message["flags"] = 5, family_type, flags
    given = {"ifname": "eth0.5", "address": "02:00:00:00:00:05", "mtu": 1496, **attributes}
    message["attrs"] = [(f"IFLA_{name.upper()}", value) for name, value in given.items()]
    if kind:
        info = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data)})]
        message["attrs"].append(("IFLA_LINKINFO", {"attrs": info}))
    return over_the_wire(message)


def vlan_data(protocol):
    return [("IFLA_VLAN_ID", 5), ("IFLA_VLAN_PROTOCOL", protocol)]


def test_an_8021q_device_has_parent_and_id():
    record = netlink._link(link("vlan", vlan_data(ETH_P_8021Q), link=2))
    assert (record.name, record.parent, record.vlan, record.mtu) == ("eth0.5", IfIndex(2), 5, 1496)
    assert record.mac == bytes.fromhex("020000000005") and record.arp


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "vlan", "data": vlan_data(ETH_P_8021AD), "link": 2},
        {"kind": "vlan", "data": vlan_data(ETH_P_8021Q), "link": 2, "link_netnsid": 0},  # its parent is elsewhere
        {"kind": "veth", "link": 2},
        {"link": 2},
    ],
)
def test_no_other_device_is_taken_for_a_vlan_of_its_parent(message):
    record = netlink._link(link(**message))
    assert (record.parent, record.vlan) == (None, None)


def test_devices_without_ethernet_or_arp():
    assert netlink._link(link(family_type=772)).mac == b""  # ARPHRD_LOOPBACK
    assert not netlink._link(link(flags=IFF_NOARP)).arp


def route(header=(), **attributes):
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    message = rtmsg()
    message.update({"family": AF_INET, "dst_len": 24, "table": MAIN, "type": 1, **dict(header)})
    given = {"table": MAIN, "dst": "192.0.2.0", "oif": 2, **attributes}
    message["attrs"] = [(f"RTA_{name.upper()}", value) for name, value in given.items()]
    return message


def test_a_route():
    record = netlink._route(route(gateway="10.0.0.1", priority=7, prefsrc="10.0.0.2"))
    assert record is not None
    assert (record.network, record.metric, record.source) == (ip_network("192.0.2.0/24"), 7, ip_address("10.0.0.2"))
    (hop,) = record.hops
    assert (hop.interface, hop.gateway, hop.weight, hop.alive) == (2, ip_address("10.0.0.1"), 1, True)


@pytest.mark.parametrize(("flags", "alive", "carrier"), [(0x01, False, True), (0x10, True, False), (0x04, True, True)])
def test_flags_of_a_next_hop(flags, alive, carrier):
    record = netlink._route(route({"flags": flags}))  # RTNH_F_DEAD, RTNH_F_LINKDOWN, RTNH_F_ONLINK
    assert record is not None
    assert [(hop.alive, hop.carrier) for hop in record.hops] == [(alive, carrier)]


def test_an_encapsulation_is_a_hop_through_no_device():
    from fast_socket.xdp.tables import NextHop

    record = netlink._route(route(encap={"attrs": [("MPLS_IPTUNNEL_DST", [{"label": 16}])]}))
    assert record is not None and record.hops == (NextHop(IfIndex(0)),)


@pytest.mark.parametrize(
    ("header", "attributes"),
    [
        ({"tos": 8}, {}),
        ({"src_len": 64}, {}),
        ({"flags": 0x200}, {}),  # RTM_F_CLONED
        ({"type": 10}, {}),  # RTN_NAT, long gone
    ],
)
def test_routes_that_a_look_up_by_destination_must_not_find(header, attributes):
    assert netlink._route(route()) is not None
    assert netlink._route(route(header, **attributes)) is None


@pytest.mark.parametrize(("flags", "usable"), [(0x80, True), (0x40, False), (0x44, True), (0x08, False), (0x20, True)])
def test_addresses_under_duplicate_detection_are_no_sources(flags, usable):
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    message = ifaddrmsg()
    message.update({"family": 10, "prefixlen": 64, "index": 2, "scope": 0})
    message["attrs"] = [("IFA_ADDRESS", "2001:db8::1"), ("IFA_FLAGS", flags)]
    record = netlink._address(message)
    assert record is not None and record.usable == usable
    assert record.deprecated == (flags == 0x20)  # IFA_F_DEPRECATED


@pytest.mark.parametrize(("family", "text", "secondary"), [(AF_INET, "192.0.2.2", True), (10, "2001:db8::2", False)])
def test_the_flag_of_secondary_addresses_is_that_of_temporary_ones(family, text, secondary):
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    message = ifaddrmsg()
    message.update({"family": family, "prefixlen": 24, "index": 2, "scope": 0})
    message["attrs"] = [("IFA_ADDRESS", text), ("IFA_FLAGS", 0x81)]
    record = netlink._address(message)
    assert record is not None and record.secondary == secondary


@pytest.mark.parametrize(
    ("address", "state", "known"),
    [
        *(("192.0.2.9", state, True) for state in (0x02, 0x04, 0x08, 0x10, 0x40, 0x80)),
        *(("192.0.2.9", state, False) for state in (0x00, 0x01, 0x20)),  # NONE, INCOMPLETE, FAILED
        ("ff02::16", 0x40, False),
    ],
)
def test_which_neighbours_count_as_resolved(address, state, known):
    from pyroute2.netlink.rtnl.ndmsg import ndmsg

    message = ndmsg()
    message.update({"family": 10 if ":" in address else AF_INET, "ifindex": 2, "state": state})
    message["attrs"] = [("NDA_DST", address), ("NDA_LLADDR", "02:00:00:00:00:09")]
    assert (netlink._neighbor(message) is not None) == known


def test_a_kernel_without_the_netdev_family_cannot_tell(monkeypatch, caplog):
    monkeypatch.setattr(netlink, "_NETDEV_FAMILY", "nonesuch")
    assert netlink.xdp_features(IfIndex(1)) is None
    assert not caplog.records


def test_features_of_a_device_that_is_gone():
    if netlink.xdp_features(IfIndex(1)) is None:
        pytest.skip("needs Linux 6.3")
    with pytest.raises(DeviceError, match="gone"):
        netlink.xdp_features(IfIndex(2**31 - 1))


def test_without_pyroute2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    with pytest.raises(CapabilityError, match=r'pip install "fast-socket\[xdp\]"'):
        RouteSnapshot.read()


NOT = 2
SHORT = struct.Struct("=HHB3x")


def newer(number, value):
    """An attribute that pyroute2 has no name for. One byte is enough for all: who reads asks whether it is 0."""
    return SHORT.pack(SHORT.size - 3, number, value)


DSCP, FLOWLABEL, DPORT_MASK, DSCP_MASK, FUTURE = 25, 26, 29, 30, 99


def rule(*attributes, family=AF_INET, action=1, flags=0, tos=0):
    from pyroute2.netlink.rtnl.fibmsg import fibmsg

    message = fibmsg()
    message["family"], message["action"], message["flags"], message["tos"] = family, action, flags, tos
    named = [attribute for attribute in attributes if isinstance(attribute, tuple)]
    message["attrs"] = [("FRA_PRIORITY", 50), ("FRA_TABLE", 20), ("FRA_OIFNAME", "eth0"), *named]
    message.encode()
    data = bytes(message.data) + b"".join(attribute for attribute in attributes if isinstance(attribute, bytes))
    decoded = fibmsg(len(data).to_bytes(4, sys.byteorder) + data[4:])
    decoded.decode()
    return netlink._rule(decoded)


@pytest.mark.parametrize(
    ("attributes", "values", "never"),
    [
        ((), {}, False),
        ((), {"tos": 16}, True),
        ((("FRA_TUN_ID", 5),), {}, True),
        ((newer(DSCP, 10), newer(DSCP_MASK, 63)), {}, True),
        ((newer(DSCP, 0), newer(DSCP_MASK, 63)), {}, False),
        ((newer(FLOWLABEL, 5),), {"family": AF_INET6}, True),
        ((newer(FLOWLABEL, 0),), {"family": AF_INET6}, False),
    ],
)
def test_rules_are_asked_for_a_packet_without_dscp_tunnel_and_flow_label(attributes, values, never):
    version = 6 if values.get("family") == AF_INET6 else 4
    honoured = RuleRecord(version, 50, 20, oif="eth0")
    nothing = RuleRecord(version, 50, action=RuleAction.NOP)
    always = RuleRecord(version, 50, 20)
    assert rule(*attributes, **values) == (nothing if never else honoured)
    inverted = rule(*attributes, **values, flags=NOT)
    assert inverted == (always if never else RuleRecord(version, 50, 20, oif="eth0", invert=True))


@pytest.mark.parametrize("flags", [0, NOT])
@pytest.mark.parametrize(
    "attribute",
    [("FRA_IP_PROTO", 17), ("FRA_SPORT_RANGE", "1:9"), ("FRA_DPORT_RANGE", "1:9"), newer(DPORT_MASK, 7),
     ("FRA_L3MDEV", 1), ("FRA_SUPPRESS_IFGROUP", 7), newer(FUTURE, 0)],
)  # fmt: skip
def test_a_rule_that_asks_for_what_is_not_known_does_nothing_but_is_there(attribute, flags):
    assert rule(attribute, flags=flags) == RuleRecord(4, 50, action=RuleAction.NOP)


def test_a_rule_of_an_unknown_action_refuses():
    assert rule(action=0).action is rule(action=5).action is RuleAction.BLACKHOLE
