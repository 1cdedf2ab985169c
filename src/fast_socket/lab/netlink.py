"""All that the lab asks of pyroute2, which has no type information: the one place where `Any` is at home.

Every function acts on the network namespace of the calling thread and opens its own netlink socket. pyroute2 is
imported on first use. Kernel errors come back as `ConfigError` (the value is wrong), `CapabilityError` (this kernel or
user cannot) or a plain OSError.
"""

import contextlib
import errno
import fnmatch
import importlib
import ipaddress
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fast_socket.core.errors import CapabilityError, ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_IFA_F_NODAD, _IFA_F_TENTATIVE = 0x02, 0x40  # <linux/if_addr.h>
_TC_H_ROOT = 0xFFFFFFFF  # <linux/pkt_sched.h>
_NUD_PERMANENT = 0x80  # <linux/neighbour.h>
_WRONG_VALUE = {
    errno.EINVAL, errno.EEXIST, errno.ERANGE, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.ESRCH,
}  # fmt: skip
_CANNOT = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT}

# The short names of ethtool(8) -K and what they stand for among the kernel's own (net/ethtool/common.c,
# netdev_features_strings). "tx-checksum" is ours, for the symmetry.
_OFFLOAD_GROUPS = {
    "rx": "rx-checksum",
    "tx": "tx-checksum-*",
    "tx-checksum": "tx-checksum-*",
    "sg": "tx-scatter-gather",
    "tso": "tx-tcp*-segmentation",
    "gso": "tx-generic-segmentation",
    "gro": "rx-gro",
    "lro": "rx-lro",
}


class LinkState(NamedTuple):
    """What the kernel says of a device."""

    mac: str
    mtu: int
    tx_queues: int
    rx_queues: int
    qdisc: str
    ready: bool
    """Carrier on, operational, and no address still under duplicate address detection."""


class VethEnd(NamedTuple):
    """One end of a veth pair to be made."""

    name: str
    mac: str
    queues: int
    mtu: int


def load(module: str = "pyroute2") -> Any:
    """pyroute2, or CapabilityError with the way to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CapabilityError(
            'fast_socket.lab needs pyroute2, which cannot be imported: pip install "fast-socket[xdp]"'
        ) from error


@contextlib.contextmanager
def _route(doing: str) -> Iterator[Any]:
    pyroute2 = load()
    try:
        with pyroute2.IPRoute() as route:
            yield route
    except pyroute2.NetlinkError as error:
        raise _explained(error.code, doing) from error


def _explained(code: int, doing: str) -> OSError:
    message = f"{doing}: {os.strerror(code)}"
    if code in _CANNOT:
        return CapabilityError(message)
    return ConfigError(message) if code in _WRONG_VALUE else OSError(code, message)


def create_veth(near: VethEnd, far: VethEnd, far_namespace: int) -> None:
    """Make a veth pair: `near` in this namespace, `far` in that of a file descriptor."""
    with _route(f"making veth {near} - {far}") as route:
        route.link("add", kind="veth", **_end(near), peer=_end(far) | {"net_ns_fd": far_namespace})


def _end(end: VethEnd) -> dict[str, Any]:
    return {
        "ifname": end.name,
        "address": end.mac,
        "mtu": end.mtu,
        "num_tx_queues": end.queues,
        "num_rx_queues": end.queues,
    }


def index_of(name: str) -> int:
    """Interface index of a device."""
    with _route(f"looking for device {name!r}") as route:
        found: list[int] = route.link_lookup(ifname=name)
    if not found:
        raise ConfigError(f"no device {name!r} here")
    return found[0]


def delete_link(index: int) -> None:
    """Remove a device, and with a veth its peer; nothing if it is gone."""
    with _route(f"removing device {index}") as route, contextlib.suppress(load().NetlinkError):
        route.link("del", index=index)


def set_link(index: int, **values: object) -> None:
    """Set attributes of a device, such as state="up" or mtu=9000."""
    with _route(f"setting {values} on device {index}") as route:
        route.link("set", index=index, **values)


def link_state(index: int) -> LinkState:
    """What the kernel says of a device now."""
    with _route(f"reading device {index}") as route:
        (link,) = route.get_links(index)
        tentative = any((a.get("flags") or 0) & _IFA_F_TENTATIVE for a in route.get_addr(index=index))
    return LinkState(
        mac=link.get("address"),
        mtu=link.get("mtu"),
        tx_queues=link.get("num_tx_queues"),
        rx_queues=link.get("num_rx_queues"),
        qdisc=link.get("qdisc"),
        ready=link.get("carrier") == 1 and link.get("operstate") == "UP" and not tentative,
    )


def add_address(index: int, address: InterfaceAddress) -> None:
    """Give a device an address, an IPv6 one without duplicate address detection so that it is usable at once."""
    flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
    with _route(f"adding address {address} to device {index}") as route:
        route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags)


def add_route(destination: Network, index: int | None, gateway: Address | None) -> None:
    """Route a network through a device, a gateway, or both."""
    values: dict[str, Any] = {"dst": str(destination), "family": 2 if destination.version == 4 else 10}
    if index is not None:
        values["oif"] = index
    if gateway is not None:
        values["gateway"] = str(gateway)
    with _route(f"adding route {values}") as route:
        route.route("add", **values)


def add_neighbor(index: int, address: Address, mac: str) -> None:
    """Make a permanent neighbour, or replace the one there is."""
    with _route(f"adding neighbour {address} at {mac} to device {index}") as route:
        route.neigh("replace", ifindex=index, dst=str(address), lladdr=mac, state=_NUD_PERMANENT)


def set_qdisc(index: int, kind: str | None, options: Mapping[str, object]) -> None:
    """Replace the root queueing discipline of a device; None gives it back the kernel's default."""
    try:
        with _route(f"setting qdisc {kind} on device {index}") as route:
            if kind is None:
                route.tc("del", index=index, handle=0, parent=_TC_H_ROOT)
            else:
                # Handle 0 lets the kernel choose: with the one that is in force it would refuse another kind.
                route.tc("replace", kind, index, handle=0, parent=_TC_H_ROOT, **options)
    except FileNotFoundError as error:  # ENOENT
        if kind is not None:
            raise CapabilityError(
                f"this kernel has no queueing discipline {kind!r}: it needs CONFIG_NET_SCH_{kind.upper()} or the"
                f" module sch_{kind}"
            ) from error


@contextlib.contextmanager
def _ethtool(name: str) -> Iterator[Any]:
    # The ioctl half of pyroute2's Ethtool; its netlink half cannot set features.
    ioctl = load("pyroute2.ethtool.ioctl")
    try:
        with contextlib.closing(ioctl.IoctlEthtool(name)) as ethtool:
            yield ethtool
    except ioctl.NoSuchDevice as error:
        raise ConfigError(f"no device {name!r} here") from error


def offloads(name: str) -> dict[str, bool]:
    """The kernel's features of a device by name, and whether each is on."""
    with _ethtool(name) as ethtool:
        return {feature: bool(on) for feature, on, *_ in ethtool.get_features() if feature}


def set_offloads(name: str, wanted: Mapping[str, bool]) -> None:
    """Switch features by the kernel's name or ethtool's short one. CapabilityError if one did not take."""
    targets: dict[str, bool] = {}
    with _ethtool(name) as ethtool:
        features = ethtool.get_features()
        changeable = {feature: bool(available) for feature, _, available, *_ in features if feature}
        for asked, on in wanted.items():
            matching = fnmatch.filter(changeable, _OFFLOAD_GROUPS.get(asked, asked))
            if not matching:
                raise ConfigError(f"unknown offload {asked!r}; known are {', '.join([*_OFFLOAD_GROUPS, *changeable])}")
            # A group means what the device has of it; a feature that it has not is refused below.
            chosen = [feature for feature in matching if changeable[feature]] or matching
            targets |= dict.fromkeys(chosen, on)
        for feature, on in targets.items():
            features[feature] = on
        # pyroute2's answer for every outcome but "all as wished"; reading back tells which were not
        with contextlib.suppress(load("pyroute2.ethtool.ioctl").NotSupportedError):
            ethtool.set_features(features)
    now = offloads(name)
    if refused := [f"{feature} {_on_off(now[feature])}" for feature, on in targets.items() if now[feature] != on]:
        raise CapabilityError(
            f"device {name!r} keeps {', '.join(refused)}: fixed by its driver, or dependent on another offload"
        )


def _on_off(on: bool) -> str:
    return "on" if on else "off"
