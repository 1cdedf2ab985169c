"""What all tests share: root, time, and how hard hypothesis looks."""

import gc
import os

import hypothesis
import pytest

# Packet I/O on a shared machine takes as long as it takes: no example is judged by the clock.
# HYPOTHESIS_PROFILE=thorough looks harder than a change has time for.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=50, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

IS_ROOT = os.geteuid() == 0


def pytest_addoption(parser):
    parser.addoption(
        "--require-root-tests",
        action="store_true",
        default=os.environ.get("FAST_SOCKET_REQUIRE_ROOT_TESTS") == "1",
        help="a test marked root that is skipped, for whatever reason, is a failure (FAST_SOCKET_REQUIRE_ROOT_TESTS=1)",
    )


def pytest_collection_modifyitems(items):
    if IS_ROOT:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    """Thousands of tests in memory would be gone through by each collection that one of them asks for."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    required = item.config.getoption("require_root_tests") and item.get_closest_marker("root")
    if required and report.skipped and not hasattr(report, "wasxfail"):
        fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A module that skips itself hides its tests, those that need root as well."""
    report = yield
    path = getattr(collector, "path", None)
    required = collector.config.getoption("require_root_tests") and path and path.is_file()
    if required and report.skipped and "mark.root" in path.read_text():
        fail(report)
    return report


def fail(report):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"needs root and was left out though it must run: {reason}"
