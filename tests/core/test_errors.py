"""The error classes: what code that guards sockets with `except OSError` relies on."""

import errno
import pickle

import pytest

import fast_socket as fs

CLASSES = (fs.ConfigError, fs.CapabilityError, fs.DeviceError, fs.BufferTakenError, fs.SendError)


@pytest.mark.parametrize("kind", CLASSES)
def test_all_are_errors_of_the_package_and_the_system(kind):
    assert issubclass(kind, fs.Error)
    assert issubclass(kind, OSError)


def test_familiar_bases():
    assert issubclass(fs.ConfigError, ValueError)
    assert issubclass(fs.BufferTakenError, BufferError)
    assert not issubclass(fs.SendError, ValueError)


@pytest.mark.parametrize("kind", (fs.Error, *CLASSES))
def test_message_and_errno(kind):
    plain = kind("what happened")
    assert (str(plain), plain.errno) == ("what happened", None)
    told = kind("cannot send", errno.ENOBUFS)
    assert told.errno == errno.ENOBUFS
    assert "cannot send: No buffer space available" in str(told)


def test_accepted():
    assert fs.SendError("x").accepted == 0
    assert fs.SendError("x", errno.EINVAL, accepted=3).accepted == 3


@pytest.mark.parametrize("kind", (fs.Error, *CLASSES))
def test_errors_cross_processes(kind):
    """concurrent.futures and multiprocessing pickle what a worker raises."""
    for error in (kind("what happened"), kind("cannot send", errno.ENOBUFS)):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert (str(again), again.errno) == (str(error), error.errno)
    error = fs.SendError("cannot send", errno.ENOBUFS, accepted=3)
    assert pickle.loads(pickle.dumps(error)).accepted == 3
