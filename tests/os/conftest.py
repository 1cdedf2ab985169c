"""A lab of two hosts for the tests that look at a wire."""

import pytest

from fast_socket.lab import Lab, why_unavailable
from tests.os.helpers import Capture


@pytest.fixture(scope="module")
def lab():
    if reason := why_unavailable():
        pytest.skip(reason)
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def wire(lab):
    """A link whose every datagram is a frame with all its checksums: nothing is left to the device."""
    offloads = {"tx-udp-segmentation": False, "tx": False, "gro": False}
    return lab.link(lab.host("near"), lab.host("far"), offloads=offloads)


@pytest.fixture(scope="module")
def offloading(lab):
    """A link that takes large sends whole and computes no checksum: what GSO is fastest on."""
    return lab.link(lab.host("here"), lab.host("there"))


@pytest.fixture
def fresh(lab, request):
    """A link of two new hosts, for tests that change it."""
    name = f"{abs(hash(request.node.nodeid)) % 10**8}"
    link = lab.link(lab.host(f"x{name}"), lab.host(f"y{name}"))
    yield link
    link.remove()


@pytest.fixture
def capture():
    """Makes captures that are closed afterwards."""
    made = []

    def make(interface):
        made.append(Capture(interface))
        return made[-1]

    yield make
    for one in made:
        one.close()
