"""Routers are structural: the default one and one of a user's own, and an answer that narrows by its truth."""

from ipaddress import ip_address
from typing import assert_type

import fast_socket as fs
from fast_socket.core.routes import IpAddress
from fast_socket.xdp.egress import Egress
from fast_socket.xdp.router import XdpQueueLocalRouter, XdpUdpRouter


class OneGateway:
    generation = 0

    def __init__(self, egress: Egress) -> None:
        self.egress = egress

    def resolve(self, destination: IpAddress) -> Egress | fs.Unresolved:
        return fs.Unresolved.NO_ROUTE if destination.is_multicast else self.egress


def routers(default: XdpQueueLocalRouter, own: OneGateway) -> list[XdpUdpRouter]:
    return [default, own]


def resolvers(router: XdpUdpRouter) -> fs.EgressResolver[Egress]:
    return router


def narrowed(router: XdpUdpRouter) -> str:
    answer = router.resolve(ip_address("192.0.2.1"))
    if answer:
        assert_type(answer, Egress)
        return answer.destination_mac.hex(":")
    assert_type(answer, fs.Unresolved)
    return answer.text
