"""Which queues of a device: what a factory and an aggregate are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fast_socket.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class First:
    """The first `count` queues."""

    count: int


@dataclass(frozen=True, slots=True)
class Queues:
    """These queues."""

    numbers: Sequence[int]


class _All:
    def __repr__(self) -> str:
        return "All"


All: Final = _All()
"""Every queue that can be opened."""

Claim = _All | First | Queues


def queue_numbers(device: Any, which: Claim) -> tuple[int, ...]:
    """The queues of a device that a claim means. Raises `ConfigError`."""
    there = device.queue_count
    if isinstance(which, _All):
        numbers: Sequence[Any] = range(there)
    elif isinstance(which, First):
        numbers = range(which.count) if _is_int(which.count) else (which.count,)
    elif isinstance(which, Queues):
        numbers = tuple(which.numbers)
    else:
        raise ConfigError(f"queues claimed with {which!r}: give All, First(n) or Queues([...])")
    if not numbers:
        raise ConfigError(f"{which!r}: that is no queue; {device.name} has {there}")
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"{which!r}: give each queue once")
    for number in numbers:
        if not _is_int(number) or not 0 <= number < there:
            raise ConfigError(f"{which!r}: {device.name} has {there} queue(s), from 0")
    return tuple(numbers)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
