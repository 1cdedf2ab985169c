"""Machines where a lab cannot be made: importing works, and every refusal says what is missing and what to do."""

import os
import subprocess
import sys
import textwrap

import pytest

from fast_socket.core.errors import CapabilityError
from fast_socket.lab import Lab, namespaces, why_unavailable


def run(code: str) -> list[str]:
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=20).stdout.splitlines()


def test_import_needs_no_pyroute2_and_use_says_how_to_get_it() -> None:
    (refusal,) = run("""
        import sys
        sys.modules["pyroute2"] = None
        import fast_socket.lab
        from fast_socket.core.errors import CapabilityError
        fast_socket.lab.namespaces.missing_capabilities = list
        try:
            fast_socket.lab.Lab()
        except CapabilityError as error:
            print(error)
    """)
    assert 'pip install "fast-socket[xdp]"' in refusal


def test_import_loads_no_pyroute2() -> None:
    assert run("import sys, fast_socket.lab; print('pyroute2' in sys.modules)") == ["False"]


def test_missing_capabilities_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "missing_capabilities", lambda: ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"])
    assert "CAP_NET_ADMIN, CAP_SYS_ADMIN" in str(why_unavailable())
    with pytest.raises(CapabilityError, match="sudo"):
        Lab()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give it up")
def test_an_ordinary_user_is_told() -> None:
    lines = run("""
        import os
        from fast_socket.lab import Lab, why_unavailable
        from fast_socket.core.errors import CapabilityError
        why_unavailable()  # what it imports may lie where only root can read
        os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        print(why_unavailable())
        try:
            Lab()
        except CapabilityError as error:
            print(error)
    """)
    assert lines[0] == lines[1]
    assert "CAP_SYS_ADMIN" in lines[0] and "sudo" in lines[0]
