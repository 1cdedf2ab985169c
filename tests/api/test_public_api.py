"""The public API is a file under review: a change to it must show in the diff of the commit that makes it."""

import importlib

import pytest

import fast_socket
from scripts import public_api


def test_listing_is_current():
    diff = public_api.difference(public_api.render())
    if diff:
        pytest.fail(f"not the committed public API; if wanted: make api\n{diff}", pytrace=False)


@pytest.mark.parametrize("package", ["fast_socket", "fast_socket.os", "fast_socket.lab"])
def test_every_listed_name_is_there(package):
    """The listing is read from sources; this holds it against the built package."""
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_every_name_has_a_definition():
    assert "?" not in [line.rpartition(": ")[2] for line in public_api.render().splitlines()]


def test_public_names_say_what_they_are():
    """Every public class and function has a docstring."""
    undocumented = [
        name
        for name in fast_socket.__all__
        if callable(thing := getattr(fast_socket, name)) and not (thing.__doc__ or "").strip()
    ]
    assert undocumented == []
