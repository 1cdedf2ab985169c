"""Every test here runs on every backend, over IPv4, IPv6 and dual-stack; afterwards every frame must be at home."""

import os

import pytest

from fast_socket.lab import why_unavailable
from tests.conformance.backends import BACKENDS, Pair, whole

PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


LIVE = {"xdp"}
UNAVAILABLE = why_unavailable()


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    """A live one needs root, and not only by its marker: of its tests some have nothing to test."""
    if request.param.name in LIVE and UNAVAILABLE is not None:
        if os.environ.get("FAST_SOCKET_REQUIRE_ROOT_TESTS"):
            pytest.fail(UNAVAILABLE)
        pytest.skip(UNAVAILABLE)
    return request.param


@pytest.fixture(params=("v4", "v6", "dual"))
def family(request, backend):
    if request.param not in backend.families:
        pytest.skip(f"{backend.name} has no {request.param}")
    return request.param


@pytest.fixture
def open_pair(request, backend, family):
    """Opens pairs that are closed at the end, when no frame of theirs may be missing."""
    opened: list[Pair] = []

    def make(**options):
        opened.append(backend.open_pair(family, **options))
        return opened[-1]

    yield make
    for pair in opened:
        pair.close()
    if request.node.stash.get(PASSED, False):  # a failed test's traceback keeps its batches
        assert [pool for pair in opened for pool in pair.pools if not whole(pool)] == [], "frames are missing"


@pytest.fixture
def pair(open_pair):
    return open_pair()
