"""Policy rules (`ip rule`): which tables a packet of this host is looked up in, and in which order.

As fib_rules_lookup() in net/core/fib_rules.c walks them: by priority; a rule that does not match is passed over, and so
is a table without a route for the destination. A snapshot is asked for a destination, a source address where one is
known, and a firewall mark; rules that ask for more (ports, a protocol, a VRF) are made NOPs when they are read.
"""

import os
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from fast_socket.core.routes import IpAddress, Unresolved
from fast_socket.xdp.tables import (
    TABLE_DEFAULT,
    TABLE_LOCAL,
    TABLE_LOCAL_AND_MAIN,
    TABLE_MAIN,
    RuleAction,
    RuleRecord,
)

_LOOPBACK = "lo"  # the input interface of what this host sends: flowi_iif is LOOPBACK_IFINDEX
_REFUSED = {
    RuleAction.BLACKHOLE: Unresolved.BLACKHOLE,
    RuleAction.UNREACHABLE: Unresolved.UNREACHABLE,
    RuleAction.PROHIBIT: Unresolved.PROHIBIT,
}

#: Of a namespace that nobody touched: net/ipv4/fib_rules.c and net/ipv6/fib6_rules.c.
PLAIN_RULES = (
    RuleRecord(4, 0, TABLE_LOCAL),
    RuleRecord(4, 32_766, TABLE_MAIN),
    RuleRecord(4, 32_767, TABLE_DEFAULT),
    RuleRecord(6, 0, TABLE_LOCAL),
    RuleRecord(6, 32_766, TABLE_MAIN),
)


class Asked(NamedTuple):
    """What a rule may look at."""

    source: IpAddress | None = None
    mark: int = 0
    device: str = ""
    """The interface that is wanted; empty where any will do."""


class Step(NamedTuple):
    """A table to look into."""

    table: int
    least: int
    """Routes with shorter prefixes do not count (suppress_prefixlength), unless they refuse."""


class RuleWalk:
    """The rules of one family, in order."""

    def __init__(self, rules: Iterable[RuleRecord], version: int) -> None:
        # sort() keeps the kernel's order of equals.
        self.rules = sorted((rule for rule in rules if rule.version == version), key=lambda rule: rule.priority)
        self.user = os.geteuid()
        # An unknown source is 0.0.0.0 to fib4_rule_match(); fib6_rule_match() takes no `from` for it.
        self._unknown = IPv4Address(0) if version == 4 else None
        # While nobody adds a rule the kernel keeps IPv4's local and main in one trie, so that a longer prefix of main
        # wins over local (fib_trie_unmerge() in net/ipv4/fib_frontend.c); IPv6 looks into local first, always.
        if version == 4 and self.rules == [rule for rule in PLAIN_RULES if rule.version == 4]:
            self.rules = [RuleRecord(4, 0, TABLE_LOCAL_AND_MAIN), RuleRecord(4, 32_767, TABLE_DEFAULT)]

    @property
    def tables(self) -> frozenset[int]:
        """All that it may lead to."""
        return frozenset(rule.table for rule in self.rules if rule.action is RuleAction.TO_TABLE)

    def steps(self, destination: IpAddress, asked: Asked) -> Iterator[Step | Unresolved]:
        """Tables to look into, until one has a route; an `Unresolved` ends the walk."""
        beyond = 0
        for rule in self.rules:
            if rule.priority < beyond or not self._matches(rule, destination, asked):
                continue
            if rule.action is RuleAction.GOTO:
                if self._has(rule.goto):
                    beyond = rule.goto
            elif rule.action is RuleAction.TO_TABLE:
                yield Step(rule.table, rule.suppress + 1)
            elif rule.action in _REFUSED:
                yield _REFUSED[rule.action]
                return

    def steps_of(self, addresses: Any) -> Iterator[tuple[Step, Any]]:
        """The same for a column of addresses, without source and mark: each step with bool[n], which addresses look
        into that table. Whoever asks clears those that found nothing there."""
        import numpy

        pending, beyond = numpy.full(len(addresses), True), numpy.zeros(len(addresses), numpy.int64)
        for rule in self.rules:
            matching = self._fits(rule, Asked())
            if rule.destination is not None:
                mask, network = (numpy.frombuffer(each.packed, numpy.uint8)
                                 for each in (rule.destination.netmask, rule.destination.network_address))  # fmt: skip
                matching = matching & (addresses & mask == network).all(axis=1)
            chosen = pending & (beyond <= rule.priority) & (matching != rule.invert)
            if rule.action is RuleAction.GOTO:
                if self._has(rule.goto):
                    beyond[chosen] = rule.goto
                continue
            if rule.action is RuleAction.TO_TABLE:
                yield Step(rule.table, rule.suppress + 1), chosen
            elif rule.action not in _REFUSED:
                continue
            pending &= ~chosen

    def _has(self, priority: int) -> bool:
        return any(rule.priority == priority for rule in self.rules)

    def _matches(self, rule: RuleRecord, destination: IpAddress, asked: Asked) -> bool:
        there = rule.destination is None or destination in rule.destination
        return (self._fits(rule, asked) and there) != rule.invert

    def _fits(self, rule: RuleRecord, asked: Asked) -> bool:
        """All but the destination."""
        source = self._unknown if asked.source is None or asked.source.is_unspecified else asked.source
        return (
            rule.iif in ("", _LOOPBACK)
            and rule.oif in ("", asked.device)
            and not (rule.mark ^ asked.mark) & rule.mask
            and rule.uids[0] <= self.user <= rule.uids[1]
            and (rule.source is None or (source is not None and source in rule.source))
        )
