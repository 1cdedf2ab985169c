"""`fast-socket doctor` and `info`: what they say of this machine, and of machines that lack something."""

import errno
import importlib.metadata
import json
import os
import re
import resource
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fast_socket import Capabilities, CapabilityError, ConfigError, Support, cli, doctor
from fast_socket.lab import two_hosts, why_unavailable
from fast_socket.xdp.interface import AttachedProgram, Channels, Interface

UNAVAILABLE = why_unavailable()
COMMAND = [sys.executable, "-m", "fast_socket.cli"]
WORDS = {"ok", "missing", "could not tell"}


def run(*arguments, **options):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)


def last_object(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def by_name(checks):
    return {check.name: check for check in checks}


def test_the_console_script_is_this_module():
    (script,) = (e for e in importlib.metadata.distribution("fast-socket").entry_points if e.name == "fast-socket")
    assert script.load() is cli.main


def test_doctor_says_one_line_for_each_check():
    done = run("doctor", "lo")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert all(re.match(r"(ok|missing|could not tell) {2,}\S", line) for line in lines)
    names = [check.name for check in [*doctor.check_device("lo"), *doctor.check_machine()]]
    assert len(lines) == len(names)
    assert all(name in line for name, line in zip(names, lines, strict=True))


def test_doctor_as_json():
    report = last_object(run("doctor", "lo", "--json"))
    assert (report["tool"], report["device"]) == ("doctor", "lo")
    assert all(set(check) == {"name", "answer", "found", "advice"} for check in report["checks"])
    assert {check["answer"] for check in report["checks"]} <= WORDS
    kernel = next(check for check in report["checks"] if check["name"] == "kernel")
    assert kernel["found"] == os.uname().release
    assert last_object(run("doctor", "--json"))["device"] is None


def test_info_as_json_and_as_text():
    facts = last_object(run("info", "lo", "--json"))
    assert (facts["tool"], facts["name"], facts["index"]) == ("info", "lo", 1)
    assert "127.0.0.1/8" in facts["addresses"]
    assert set(facts) - {"tool"} == set(Interface.__dataclass_fields__)
    text = run("info", "lo")
    assert text.returncode == 0
    assert [line.split()[0] for line in text.stdout.splitlines()] == list(Interface.__dataclass_fields__)


@pytest.mark.parametrize("command", ["doctor", "info"])
def test_a_device_that_is_not_there(command):
    done = run(command, "nonesuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: no (device|interface) 'nonesuch' here; there are .*\blo\b.*\n", done.stderr)


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_without_the_extra_it_is_named(module):
    code = f"import sys; sys.modules[{module!r}] = None; from fast_socket.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and 'pip install "fast-socket[cli]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_without_pyroute2_the_doctor_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    (check,) = doctor.check_device("lo")
    assert check.answer is Support.UNKNOWN and 'pip install "fast-socket[xdp]"' in check.advice
    with pytest.raises(ConfigError):
        doctor.check_device("nonesuch")
    with pytest.raises(CapabilityError):
        Interface.read("lo")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert by_name(doctor.check_machine())["pyroute2"].answer is Support.NO


@pytest.mark.parametrize(
    ("release", "answer", "advice"),
    [
        ("4.19.0-amd64", Support.NO, ["AF_XDP needs 5.10", "5.11", "6.3", "6.6", "6.8"]),
        ("5.10.0", Support.YES, ["5.11", "6.3", "6.6", "6.8"]),
        ("6.6.1-rc1", Support.YES, ["6.8"]),
        ("6.18.4", Support.YES, []),
    ],
)
def test_the_kernel_and_what_newer_ones_add(monkeypatch, release, answer, advice):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", release, "", "x86_64")))
    check = by_name(doctor.check_machine())["kernel"]
    assert (check.answer, check.found) == (answer, release)
    assert re.findall(r"AF_XDP needs [\d.]+|\d\.\d+(?=:)", check.advice) == advice


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (None, Support.YES),
        (errno.EPERM, Support.YES),
        (errno.EAFNOSUPPORT, Support.NO),
        (errno.EMFILE, Support.UNKNOWN),
    ],
)
def test_af_xdp_is_tried(monkeypatch, error, answer):
    real = socket.socket

    class Fake(real):
        def __init__(self, family=-1, *arguments, **options):
            if family == doctor.AF_XDP:
                if error:
                    raise OSError(error, os.strerror(error))
                family, arguments = socket.AF_INET, (socket.SOCK_DGRAM,)
            super().__init__(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", Fake)
    assert by_name(doctor.check_machine())["AF_XDP"].answer is answer


def machine_with(monkeypatch, **files):
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(Path(path).name))
    return by_name(doctor.check_machine())


def test_privileges_are_told_apart(monkeypatch):
    def held(*bits):
        mask = sum(1 << bit for bit in bits)
        checks = machine_with(monkeypatch, status=f"Name:\tx\nCapEff:\t{mask:016x}")
        return {name for name in doctor._CAPABILITIES if checks[name].answer}, checks

    assert held()[0] == set()
    assert held(13)[0] == {"CAP_NET_RAW"}
    assert held(12)[0] == {"CAP_NET_ADMIN"}
    assert held(21)[0] == held(39)[0] == {"CAP_BPF"}  # CAP_SYS_ADMIN stands in for it
    assert held(14)[1]["CAP_SYS_RESOURCE"].advice == "none needed: CAP_IPC_LOCK is there"
    assert "AmbientCapabilities=CAP_SYS_RESOURCE" in held()[1]["CAP_SYS_RESOURCE"].advice
    assert machine_with(monkeypatch)["CAP_NET_RAW"].answer is Support.UNKNOWN


@pytest.mark.parametrize(
    ("limit", "lifted", "answer"),
    [
        (8 << 20, False, Support.NO),
        (8 << 20, True, Support.YES),
        (64 << 20, False, Support.YES),
        (-1, False, Support.YES),
    ],
)
def test_memlock(monkeypatch, limit, lifted, answer):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    check = machine_with(monkeypatch, status=f"CapEff:\t{lifted << 14:x}")["memlock"]
    assert check.answer is answer
    assert ("LimitMEMLOCK" in check.advice) == (answer is Support.NO)


def test_bpf_switches(monkeypatch):
    files = {"unprivileged_bpf_disabled": "2", "bpf_jit_enable": "1"}
    assert [machine_with(monkeypatch, **files)[name].answer for name in ("bpf()", "BPF JIT")] == [Support.YES] * 2
    assert machine_with(monkeypatch, bpf_jit_enable="0")["BPF JIT"].answer is Support.NO
    bare = machine_with(monkeypatch)
    assert (bare["bpf()"].answer, bare["BPF JIT"].answer) == (Support.NO, Support.UNKNOWN)


def test_huge_pages(monkeypatch):
    for total, answer in (("0", Support.NO), ("7", Support.YES)):
        checks = machine_with(monkeypatch, nr_hugepages=total, free_hugepages="3")
        pools = [check for name, check in checks.items() if name.startswith("huge pages")]
        if not list(Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")):
            pytest.skip("this kernel has no huge pages")
        assert {check.answer for check in pools} == {answer}
        assert all(check.found == f"{total} reserved, 3 free" for check in pools)


def test_no_libbpf(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    check = doctor._libbpf()
    assert check.answer is Support.NO and "libbpf1" in check.advice


GOOD = replace(
    Interface.read("lo"),
    name="eth9",
    driver="mlx5_core",
    mtu=1500,
    channels=Channels(4, 0, 0, 8, 0, 0),
    capabilities=Capabilities(native_xdp=Support.YES, zero_copy=Support.YES, multi_buffer=Support.YES),
    offloads={"rx-vlan-hw-parse": False},
)


def device(**changes):
    return by_name(doctor._device(replace(GOOD, **changes)))


def test_a_device_with_everything():
    checks = device()
    assert {check.answer for check in checks.values()} == {Support.YES}
    assert checks["channels"].found == "4 of 8 combined, 0 of 0 rx, 0 of 0 tx"


@pytest.mark.parametrize(
    ("changes", "name", "answer", "words"),
    [
        ({"up": False}, "up", Support.NO, "ip link set eth9 up"),
        ({"carrier": False}, "carrier", Support.NO, "cable"),
        ({"driver": ""}, "driver", Support.NO, ""),
        ({"channels": None}, "channels", Support.UNKNOWN, ""),
        ({"capabilities": Capabilities()}, "native XDP", Support.UNKNOWN, "try it"),
        ({"capabilities": Capabilities(zero_copy=Support.NO)}, "zero-copy", Support.NO, "copy mode"),
        ({"capabilities": Capabilities(native_xdp=Support.NO)}, "native XDP", Support.NO, "generic mode"),
        ({"mtu": 9000, "capabilities": Capabilities(multi_buffer=Support.NO)}, "MTU", Support.NO, "several buffers"),
        ({"mtu": 9000}, "MTU", Support.YES, "several buffers"),
        ({"offloads": {"rx-vlan-hw-parse": True}}, "VLAN tags", Support.YES, "ethtool -K eth9 rxvlan off"),
        ({"offloads": {}}, "VLAN tags", Support.UNKNOWN, ""),
        ({"program": AttachedProgram("native", 77)}, "room for XDP", Support.NO, "ip link set eth9 xdp off"),
        ({"queues": GOOD.queues * 2}, "queue CPUs", Support.YES, "share a CPU"),
    ],
)  # fmt: skip
def test_a_device_that_lacks_something(changes, name, answer, words):
    check = device(**changes)[name]
    assert check.answer is answer and words in check.advice


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_a_veth_end_in_a_lab():
    with two_hosts(queues=2) as (a, _):
        process = a.popen([*COMMAND, "doctor", a.interface.name, "--json"], stdout=subprocess.PIPE, text=True)
        output, _ = process.communicate(timeout=60)
        checks = {check["name"]: check for check in json.loads(output)["checks"]}
        assert checks["driver"]["found"] == "veth"
        assert checks["queues"]["found"] == "2 to receive, 2 to transmit"
        assert (checks["native XDP"]["answer"], checks["zero-copy"]["answer"]) == ("ok", "missing")
        assert checks["carrier"]["answer"] == "ok"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give it up")
def test_an_ordinary_user_is_told():
    code = """
from fast_socket import doctor
doctor.check_device("lo"), doctor.check_machine()  # what they import may lie where only root can read
import os
os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
checks = {check.name: check.answer.value for check in [*doctor.check_device("lo"), *doctor.check_machine()]}
print(checks["CAP_NET_RAW"], checks["CAP_NET_ADMIN"], checks["AF_XDP"], checks["device"], sep=",")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "no,no,yes,yes\n", done.stderr
