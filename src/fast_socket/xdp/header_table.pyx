"""Destinations resolved once: from an address to the Ethernet, IP and UDP header that goes in front of its payload.

Routers are Python and are asked once per destination and generation; what they answer is kept here as a header ready to
be copied. The table is emptied when the router's generation changes, and when it is full: it is a cache, its size a
bound on what a peer with many addresses can make us keep.
"""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fast_socket.core.addresses cimport htons
from fast_socket.xdp.headers cimport (
    ETHERTYPE_8021Q, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6, MOST_HEADER, PROTOCOL_UDP, UDP, VLAN_TAG,
    finish_sums, store16,
)

import errno
from ipaddress import ip_address

from fast_socket.core.errors import ConfigError, Error
from fast_socket.core.routes import Unresolved
from fast_socket.xdp.egress import Egress

cdef enum:
    MOST_DESTINATIONS = 1 << 16


class UnresolvedError(Error):
    """There is no way to a destination, now: `reason` is an `Unresolved`, `destination` the address."""

    def __init__(self, destination, reason):
        super().__init__(f"cannot resolve {destination}: {reason.text}", errno.EHOSTUNREACH)
        self.destination, self.reason = destination, reason

    def __reduce__(self):
        return type(self), (self.destination, self.reason)


@cython.final
@cython.no_gc_clear
cdef class HeaderTable:
    """The resolved destinations of one socket. GIL held, but for `find`."""

    def __cinit__(self, router, *, int interface, source_v4, source_v6, uint16_t source_port, uint8_t tos, uint8_t ttl,
                  bint dont_fragment, bint link_only):
        cdef Header *header
        cdef uint8_t *ip
        self.router, self.interface = router, interface
        self.source_v4, self.source_v6, self.link_only = source_v4, source_v6, link_only
        self.mask = 2 * MOST_DESTINATIONS - 1
        self.headers = <Header *> calloc(MOST_DESTINATIONS, sizeof(Header))
        self.keys = <Key *> calloc(MOST_DESTINATIONS, sizeof(Key))
        self.index = <uint32_t *> calloc(2 * MOST_DESTINATIONS, sizeof(uint32_t))
        if self.headers == NULL or self.keys == NULL or self.index == NULL:
            raise MemoryError("cannot keep resolved destinations")
        memset(&self.pattern_v4, 0, sizeof(Header))
        memset(&self.pattern_v6, 0, sizeof(Header))
        header = &self.pattern_v4
        ip = header.bytes + MOST_HEADER - UDP - IPV4
        ip[0], ip[1], ip[8], ip[9] = 0x45, tos, ttl, PROTOCOL_UDP
        ip[6] = 0x40 if dont_fragment else 0
        store16(ip + IPV4, htons(source_port))
        header = &self.pattern_v6
        header.v6 = True
        ip = header.bytes + MOST_HEADER - UDP - IPV6
        ip[0], ip[1], ip[6], ip[7] = 0x60 | tos >> 4, <uint8_t> (tos << 4), PROTOCOL_UDP, ttl
        store16(ip + IPV6, htons(source_port))

    def __dealloc__(self):
        free(self.headers)
        free(self.keys)
        free(self.index)

    cdef bint is_current(self) except -1:
        """Whether what is here still holds; otherwise it is forgotten."""
        generation = self.router.generation
        if self.generation is not None and (generation is self.router_generation
                                            or generation == self.router_generation):
            return True
        self.forget()
        self.router_generation = generation
        self.generation = object()      # of this table: also new where it was told to forget
        return False

    cdef void forget(self) noexcept:
        """At once, whatever there was: a change of routes must not stop the packets."""
        if self.forgotten > <uint32_t> 0xFFFFFFFF - 2 * MOST_DESTINATIONS:
            memset(self.index, 0, <size_t> (self.mask + 1) * sizeof(uint32_t))
            self.forgotten = 0
        else:
            self.forgotten += self.count
        self.count = 0

    cdef int insert(self, Key key) except -1:
        """Resolve a destination and keep the header. Raises `UnresolvedError`, and whatever the router raises."""
        cdef Header header
        cdef uint8_t host[16]
        cdef uint32_t at
        memcpy(host, &key, 16)
        destination = ip_address((<char *> host)[:16])
        destination = destination.ipv4_mapped or destination
        generation = self.generation
        self.resolve(destination, &header, None)
        if self.generation is not generation:
            return 0                    # the routes have changed meanwhile: it is asked for again
        if self.count == MOST_DESTINATIONS:
            self.forget()
        at = place_of(self, key)
        while self.index[at] > self.forgotten:
            at = (at + 1) & self.mask
        self.headers[self.count], self.keys[self.count] = header, key
        self.count += 1
        self.index[at] = self.forgotten + self.count
        return 0

    cdef int resolve(self, object destination, Header *header, object source) except -1:
        """Ask the router, and write the header: without ports but for the socket's own. `source` overrides."""
        cdef uint8_t *ip
        cdef uint8_t *link
        cdef bint v6 = destination.version == 6
        cdef uint16_t ethertype = ETHERTYPE_IPV6 if v6 else ETHERTYPE_IPV4
        cdef uint32_t host = 16 if v6 else 4
        egress = self.router.resolve(destination)
        if isinstance(egress, Unresolved):
            raise UnresolvedError(destination, egress)
        if type(egress) is not Egress:          # which checks its fields
            raise ConfigError(f"the router's resolve({destination}) returned {egress!r}: it must return an Egress "
                              f"or an Unresolved")
        if egress.interface != self.interface:
            raise UnresolvedError(destination, Unresolved.OTHER_INTERFACE)
        if source is None:
            source = self.source_v6 if v6 else self.source_v4
        if source is None and egress.source is not None:
            source = egress.source.packed
        if source is None and not self.link_only:
            raise Error(f"no source address for {destination}: bind to one, or have the router choose",
                        errno.EADDRNOTAVAIL)
        header[0] = self.pattern_v6 if v6 else self.pattern_v4
        header.mtu = min(<uint32_t> egress.mtu, 65_535)
        ip = header.bytes + MOST_HEADER
        if not self.link_only:
            ip -= UDP + (IPV6 if v6 else IPV4)
            packed = destination.packed
            if len(source) != len(packed):
                raise ConfigError(f"the source address for {destination} is of the other family")
            memcpy(ip + (8 if v6 else 12), <const char *> source, host)
            memcpy(ip + (8 if v6 else 12) + host, <const char *> packed, host)
        link = ip
        link -= 2
        store16(link, htons(ethertype))
        if egress.vlan is not None:
            link -= VLAN_TAG
            store16(link, htons(ETHERTYPE_8021Q))
            store16(link + 2, htons(<uint16_t> egress.vlan))
        link -= 12
        memcpy(link, <const char *> egress.destination_mac, 6)
        memcpy(link + 6, <const char *> egress.source_mac, 6)
        header.size = <uint32_t> (header.bytes + MOST_HEADER - link)
        header.l2 = <uint32_t> (ip - link)
        if not self.link_only:
            finish_sums(header)
        return 0
