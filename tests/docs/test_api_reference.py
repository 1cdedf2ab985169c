"""The API reference: every public name is in it, with what it is for."""

import re

import pytest

import fast_socket
from scripts import api_reference, public_api


@pytest.fixture(scope="module")
def pages():
    pytest.importorskip("numba")
    return api_reference.pages()


def sections(page):
    """Name and text of each section."""
    pieces = re.split(r"^## (\w+)$", page, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def test_every_public_name_has_a_section(pages):
    for package in public_api.PACKAGES:
        found = sections(pages[f"api/{package}.md"])
        assert set(found) == set(public_api.exports(package, api_reference.SOURCES)), package


def test_sections_say_what_a_name_is_for(pages):
    """Prose, and not the signature alone; constants and aliases may go without."""
    for name, text in sections(pages["api/fast_socket.md"]).items():
        if isinstance(getattr(fast_socket, name), type):
            prose = [line for line in text.splitlines() if line and not line.startswith("    ")]
            assert prose, name


def test_members_have_their_docstrings(pages):
    text = sections(pages["api/fast_socket.md"])["RecvBatch"]
    assert "run(self, handler" in text
    assert "a sockaddr_in6 for an IPv6 or dual-stack socket" in text
    assert "struct packet { uint32_t length, room, index, source_length; };" in text


def test_every_page_is_in_the_contents():
    contents = (api_reference.ROOT / "mkdocs.yml").read_text()
    for package in public_api.PACKAGES:
        assert f"api/{package}.md" in contents


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("One `a < b` and c < d.", "One `a < b` and c &lt; d."),
        ("Say::\n\n    x = 1 * 2 < 3\n\nor 2**8.", "Say:\n\n    x = 1 * 2 < 3\n\nor 2\\*\\*8."),
        ("``x[*]`` stays", "``x[*]`` stays"),
    ],
)
def test_docstrings_as_markdown(docstring, markdown):
    assert api_reference.prose(docstring) == markdown
