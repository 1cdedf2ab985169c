"""Identifiers that are all small integers and must never be mixed up: the type checker keeps them apart."""

from typing import NewType

IfIndex = NewType("IfIndex", int)
"""The kernel's interface index, unique within a network namespace; 0 means "any"."""

QueueId = NewType("QueueId", int)
"""A device queue, from 0."""

SocketId = NewType("SocketId", int)
"""A member of an aggregate, from 0."""

NumaNode = NewType("NumaNode", int)
"""A NUMA node as sysfs numbers it; -1 where the kernel does not say."""

RouteId = NewType("RouteId", int)
"""A resolved route within one generation of a `RouteTable`."""
