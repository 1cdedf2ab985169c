"""The facts of a device, against what made it so."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from ipaddress import ip_interface

import pytest

from fast_socket import Capabilities, ConfigError, DeviceError, Support
from fast_socket.lab import Lab, why_unavailable
from fast_socket.lab import netlink as lab_netlink
from fast_socket.xdp import interface as interface_module
from fast_socket.xdp import netlink
from fast_socket.xdp.interface import AttachedProgram, Channels, Interface, interfaces

UNAVAILABLE = why_unavailable()
needs_lab = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


def test_the_loopback_device():
    lo = Interface.read("lo")
    assert (lo.index, lo.name, lo.mac, lo.vlan, lo.channels) == (1, "lo", b"", None, None)
    assert ip_interface("127.0.0.1/8") in lo.addresses
    assert "rx_packets" in lo.statistics and not lo.driver
    assert next(each.name for each in interfaces()) == "lo"


def test_an_unknown_device_is_refused_with_those_there_are():
    for name in ("nonesuch", 999_999):
        with pytest.raises(ConfigError, match=rf"no interface {name!r} here; there are .*\blo\b"):
            Interface.read(name)


def test_without_pyroute2_the_extra_is_named():
    code = "import sys; sys.modules['pyroute2'] = None\n" + (
        "from fast_socket.xdp.interface import Interface\n"
        "from fast_socket import CapabilityError\n"
        "try: Interface.read('lo')\nexcept CapabilityError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert 'pip install "fast-socket[xdp]"' in done.stdout


def test_importing_loads_no_pyroute2():
    code = "import sys, fast_socket.xdp.interface, fast_socket.xdp.router; print('pyroute2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "False\n"


def test_an_old_kernel_cannot_tell(monkeypatch):
    monkeypatch.setattr(netlink, "xdp_features", lambda index: None)
    assert Interface.read("lo").capabilities == Capabilities(queues=1)
    assert Interface.read("lo").capabilities.native_xdp is Support.UNKNOWN


def test_every_declared_feature_is_told_apart(monkeypatch):
    from fast_socket import TxOffload

    def read(xdp=0, rx_metadata=0, xsk=0):
        monkeypatch.setattr(netlink, "xdp_features", lambda index: netlink.XdpFeatures(xdp, rx_metadata, xsk))
        return Interface.read("lo").capabilities

    names = ("native_xdp", "zero_copy", "multi_buffer", "rx_timestamp")
    for name, masks in zip(names, ({"xdp": 1}, {"xdp": 8}, {"xdp": 32}, {"rx_metadata": 1}), strict=True):
        assert [other for other in names if getattr(read(**masks), other)] == [name]
    assert read(xsk=3).tx_offloads == TxOffload.TIMESTAMP | TxOffload.UDP_CHECKSUM


@pytest.fixture(scope="module")
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def link(lab):
    return lab.link(lab.host("a"), lab.host("b"), queues=3, mtu=4000)


def read(link):
    return link.a.host.run(Interface.read, link.a.name)


@pytest.mark.root
@needs_lab
def test_a_veth_end(link):
    facts = read(link)
    assert (facts.index, facts.name, facts.mac.hex(":")) == (link.a.index, "lab0", link.a.mac)
    assert (facts.driver, facts.mtu, facts.up, facts.carrier) == ("veth", 4000, True, True)
    assert (facts.rx_queues, facts.tx_queues, len(facts.queues)) == (3, 3, 3)
    assert facts.channels == Channels(combined=0, rx=3, tx=3, max_combined=0, max_rx=3, max_tx=3)
    assert facts.addresses[:2] == tuple(link.a.addresses)
    assert facts.program is None and facts.vlan is None
    assert facts.offloads == link.a.offloads
    assert facts.capabilities.native_xdp is Support.YES  # veth declares it since Linux 6.3
    assert facts.capabilities.zero_copy is Support.NO
    assert facts.capabilities.queues == 3
    assert facts.driver_statistics["peer_ifindex"] == link.b.index
    assert [each.name for each in link.a.host.run(interfaces)] == ["lo", "lab0"]


@pytest.mark.root
@needs_lab
def test_counters_count(link):
    import socket

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(bytes(100), (str(link.b.ipv4), 9))

    link.a.add_neighbor(str(link.b.ipv4), link.b.mac)
    before = read(link).statistics
    link.a.host.run(send)
    after = read(link).statistics
    assert after["tx_packets"] - before["tx_packets"] >= 1
    assert after["tx_bytes"] - before["tx_bytes"] >= 142


@pytest.mark.root
@needs_lab
def test_down_and_without_carrier(lab):
    link = lab.link(lab.host("c"), lab.host("d"))
    link.b.set_up(False)
    deadline = time.monotonic() + 5
    while (facts := read(link)).carrier:
        assert time.monotonic() < deadline
    assert facts.up and not facts.carrier
    link.a.set_up(False)
    assert not read(link).up


def load_xdp_pass() -> int:
    """A program that passes everything: r0 = XDP_PASS; exit. bpf(2), <linux/bpf.h>."""
    BPF_PROG_LOAD, BPF_PROG_TYPE_XDP, SYS_BPF = 5, 6, 321  # x86-64
    if os.uname().machine != "x86_64":
        pytest.skip("the number of bpf(2) is known for x86-64 only")
    code = ctypes.create_string_buffer(bytes.fromhex("b7000000020000009500000000000000"))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = ctypes.create_string_buffer(
        BPF_PROG_TYPE_XDP.to_bytes(4, "little")
        + (2).to_bytes(4, "little")
        + ctypes.addressof(code).to_bytes(8, "little")
        + ctypes.addressof(licence).to_bytes(8, "little"),
        120,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_BPF, BPF_PROG_LOAD, attr, 120)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


@pytest.mark.root
@needs_lab
@pytest.mark.parametrize(("flag", "mode"), [("drv_mode", "native"), ("skb_mode", "generic")])
def test_an_attached_program_is_seen(lab, flag, mode):
    from pyroute2.netlink.rtnl import ifinfmsg

    number = getattr(ifinfmsg, f"XDP_FLAGS_{flag.upper()}")
    link = lab.link(lab.host(f"xdp-{mode}"), lab.host(f"peer-{mode}"))
    fd = load_xdp_pass()
    try:
        link.a.host.run(
            lab_netlink.set_link, link.a.index, xdp={"attrs": [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", number)]}
        )
        program = read(link).program
        assert isinstance(program, AttachedProgram)
        assert program.mode == mode and program.id > 0
    finally:
        os.close(fd)


@pytest.mark.root
@needs_lab
def test_a_device_that_goes_while_it_is_read(lab, monkeypatch):
    link = lab.link(lab.host("e"), lab.host("f"))
    real, once = interface_module._driver, threading.Event()

    def vanish(name):
        if not once.is_set():
            once.set()
            link.remove()
        return real(name)

    monkeypatch.setattr(interface_module, "_driver", vanish)
    with pytest.raises(DeviceError, match="'lab0' is gone"):
        read(link)
