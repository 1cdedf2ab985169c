# Ethernet, VLAN, IPv4, IPv6 and UDP headers on the wire: reading them from hostile bytes, and writing them.
#
# Everything here is memory to memory, inline and without Python: the sockets' loops are made of it. Sources: RFC 791
# and 8200 (IP), RFC 768 (UDP), IEEE 802.3, 802.1Q and 802.1ad, RFC 1071 and 1624 (checksums).

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fast_socket.core.addresses cimport htons, ntohs

cdef extern from *:
    """
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define FAST_SOCKET_BE64(value) __builtin_bswap64(value)
    #else
    #define FAST_SOCKET_BE64(value) (value)
    #endif
    """
    uint64_t be64 "FAST_SOCKET_BE64"(uint64_t value) noexcept nogil

cdef enum:
    ETHERNET = 14
    VLAN_TAG = 4
    IPV4 = 20
    IPV6 = 40
    UDP = 8
    MOST_HEADER = 80            # a prepared header is at most 14 + 2 * 4 + 40 + 8 = 70 bytes; copied in whole words
    SHORT_HEADER = 48           # IPv4 with at most one tag: 14 + 4 + 20 + 8 = 46
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_8021Q = 0x8100
    ETHERTYPE_8021AD = 0x88A8
    PROTOCOL_UDP = 17
    MOST_EXTENSIONS = 8         # IPv6 extension headers that are walked; a packet with more is malformed
    # ChecksumStatus
    CHECKSUM_VERIFIED = 1
    CHECKSUM_PARTIAL = 2
    CHECKSUM_BAD = 3
    CHECKSUM_ABSENT = 4


cdef enum Verdict:
    ACCEPTED = 0
    NOT_IP                      # another ethertype, or a family that the socket has not
    MALFORMED                   # shorter than its headers say, or they contradict each other
    FRAGMENT
    OTHER_PROTOCOL
    OTHER_ADDRESS
    OTHER_PORT
    VERDICTS


cdef struct Parsed:
    uint32_t ip                 # offsets from the frame's first byte
    uint32_t transport
    uint32_t payload
    uint32_t end                # where the IP datagram ends: behind it there may be Ethernet padding
    uint32_t protocol
    uint16_t vlan               # the outer tag, 0 for none
    bint v6


cdef struct Header:
    # A header ready to be copied in front of a payload. `bytes` is right-aligned: it ends where the payload begins.
    uint8_t bytes[MOST_HEADER]
    uint32_t size               # of what is to leave
    uint32_t l2                 # of the link layer's part
    uint32_t mtu                # the largest IP datagram
    uint32_t ip_sum             # IPv4: the halfwords that stay, added up: all but the length and the checksum itself
    uint32_t pseudo_sum         # of the UDP checksum: addresses, protocol and the ports in the header
    bint v6


cdef inline uint16_t load16(const uint8_t *at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value


cdef inline uint16_t be16(const uint8_t *at) noexcept nogil:
    return ntohs(load16(at))


cdef inline void store16(uint8_t *at, uint16_t value) noexcept nogil:
    memcpy(at, &value, 2)


cdef inline uint64_t add_words(const uint8_t *data, size_t length, uint64_t total) noexcept nogil:
    """Add the 16-bit words of `data` in the machine's own order, which RFC 1071 allows; an odd byte is padded. Words of
    four bytes are as good, and 64 bits hold the sum of any datagram's without a carry."""
    cdef uint64_t word, upper = total >> 32, lower = total & <uint64_t> 0xFFFFFFFF
    cdef uint16_t half
    while length >= 8:
        memcpy(&word, data, 8)
        upper += word >> 32
        lower += word & <uint64_t> 0xFFFFFFFF
        data += 8
        length -= 8
    total = upper + lower
    if length == 0:
        return total
    while length >= 2:
        memcpy(&half, data, 2)
        total += half
        data += 2
        length -= 2
    if length:
        half = 0
        memcpy(&half, data, 1)
        total += half
    return total


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """A sum as the 16-bit ones' complement sum, not yet inverted."""
    cdef uint32_t half
    total += total >> 32 | total << 32          # both halves hold the sum, the upper one with the carry of the lower
    half = <uint32_t> (total >> 32)
    half += half >> 16 | half << 16
    return <uint16_t> (half >> 16)


cdef inline uint64_t pseudo_sum(const uint8_t *ip, bint v6, uint32_t protocol) noexcept nogil:
    """Of the addresses and the protocol; the length is the caller's to add."""
    if v6:
        return add_words(ip + 8, 32, htons(<uint16_t> protocol))
    return add_words(ip + 12, 8, htons(<uint16_t> protocol))


cdef inline Verdict parse_ip(const uint8_t *frame, uint32_t length, uint32_t whole, Parsed *parsed, const bint v4,
                             const bint v6) noexcept nogil:
    """Ethernet, tags and the IP header of one frame of `whole` bytes, of which `length` are here: headers must be among
    those. Accepts the families of `v4` and `v6` only."""
    cdef uint32_t at = ETHERNET, total, header, kind, walked
    cdef uint16_t ethertype
    if length < ETHERNET + IPV4:
        return MALFORMED if length < ETHERNET else NOT_IP if be16(frame + 12) not in (
            ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_8021Q, ETHERTYPE_8021AD) else MALFORMED
    ethertype = be16(frame + 12)
    parsed.vlan = 0
    if ethertype == ETHERTYPE_8021AD or ethertype == ETHERTYPE_8021Q:
        parsed.vlan = be16(frame + 14)
        ethertype = be16(frame + 16)
        at += VLAN_TAG
        if ethertype == ETHERTYPE_8021Q or ethertype == ETHERTYPE_8021AD:
            ethertype = be16(frame + 20)
            at += VLAN_TAG
    parsed.ip = at
    if v4 and ethertype == ETHERTYPE_IPV4:
        if length < at + IPV4 or frame[at] >> 4 != 4:
            return MALFORMED
        header = (frame[at] & 15) * 4
        total = be16(frame + at + 2)
        if header < IPV4 or total < header or at + total > whole or at + header > length:
            return MALFORMED
        if be16(frame + at + 6) & 0x3FFF:       # more fragments, or an offset
            return FRAGMENT
        parsed.v6 = False
        parsed.protocol = frame[at + 9]
        parsed.transport = at + header
        parsed.end = at + total
        return ACCEPTED
    if v6 and ethertype == ETHERTYPE_IPV6:
        if length < at + IPV6 or frame[at] >> 4 != 6:
            return MALFORMED
        parsed.v6 = True
        parsed.end = at + IPV6 + be16(frame + at + 4)
        if parsed.end > whole:
            return MALFORMED
        kind = frame[at + 6]
        at += IPV6
        walked = 0
        while kind in (0, 43, 60):              # hop-by-hop options, routing, destination options
            if at + 8 > parsed.end or at + 8 > length or walked == MOST_EXTENSIONS:
                return MALFORMED
            kind = frame[at]
            at += 8 + <uint32_t> frame[at + 1] * 8
            walked += 1
        if kind == 44:
            return FRAGMENT
        if at > parsed.end or at > length:
            return MALFORMED
        parsed.protocol = kind
        parsed.transport = at
        return ACCEPTED
    return NOT_IP


cdef inline Verdict parse_udp(const uint8_t *frame, uint32_t length, uint32_t whole, Parsed *parsed, const bint v4,
                              const bint v6) noexcept nogil:
    cdef Verdict verdict = parse_ip(frame, length, whole, parsed, v4, v6)
    cdef uint32_t size
    if verdict != ACCEPTED:
        return verdict
    if parsed.protocol != PROTOCOL_UDP:
        return OTHER_PROTOCOL
    if parsed.transport + UDP > parsed.end or parsed.transport + UDP > length:
        return MALFORMED
    size = be16(frame + parsed.transport + 4)
    if size < UDP or parsed.transport + size > parsed.end:
        return MALFORMED
    parsed.payload = parsed.transport + UDP
    parsed.end = parsed.transport + size
    return ACCEPTED


cdef inline uint32_t plain_udp_v4(const uint8_t *frame, uint32_t length) noexcept nogil:
    """The shape of nearly all datagrams, told with few instructions: untagged, IPv4 without options, no fragment,
    UDP, lengths that agree. Returns the UDP length, 0 for any other shape: `parse_udp` finds out which."""
    cdef uint64_t start, rest
    cdef uint32_t total, size
    if length < ETHERNET + IPV4 + UDP:
        return 0
    memcpy(&start, frame + 8, 8)            # of it: ethertype, version and header length
    memcpy(&rest, frame + 16, 8)            # total length, identification, flags and fragment offset, TTL, protocol
    rest = be64(rest)
    if ((start ^ be64(0x08004500)) & be64(<uint64_t> 0xFFFFFF00)
            or (rest & <uint64_t> 0x3FFF00FF) != PROTOCOL_UDP):
        return 0
    total, size = <uint32_t> (rest >> 48), be16(frame + 38)
    if size < UDP or IPV4 + size > total or ETHERNET + total > length:
        return 0
    return size


cdef inline uint8_t udp_checksum_status(const uint8_t *frame, const Parsed *parsed) noexcept nogil:
    """A `ChecksumStatus`. A sum over the pseudo-header alone is what a sender leaves that has the NIC do the rest."""
    cdef const uint8_t *udp = frame + parsed.transport
    cdef uint32_t size = parsed.end - parsed.transport
    cdef uint64_t pseudo = pseudo_sum(frame + parsed.ip, parsed.v6, PROTOCOL_UDP) + htons(<uint16_t> size)
    cdef uint16_t found = load16(udp + 6)
    if found == 0:
        return CHECKSUM_BAD if parsed.v6 else CHECKSUM_ABSENT
    if fold(add_words(udp, size, pseudo)) == 0xFFFF:
        return CHECKSUM_VERIFIED
    return CHECKSUM_PARTIAL if found == fold(pseudo) else CHECKSUM_BAD


cdef inline void finish_sums(Header *header) noexcept nogil:
    """Work out the sums of a header whose fields are set and whose length and checksum fields are zero."""
    cdef const uint8_t *ip = header.bytes + MOST_HEADER - UDP - (IPV6 if header.v6 else IPV4)
    cdef const uint8_t *udp = header.bytes + MOST_HEADER - UDP
    header.ip_sum = 0 if header.v6 else <uint32_t> add_words(ip, IPV4, 0)
    header.pseudo_sum = fold(add_words(udp, 4, pseudo_sum(ip, header.v6, PROTOCOL_UDP)))


cdef inline uint16_t udp_checksum(const uint8_t *payload, uint32_t length, uint64_t pseudo) noexcept nogil:
    """`pseudo` is without the length, which counts twice: in the pseudo-header and in the UDP header."""
    cdef uint16_t size = htons(<uint16_t> (UDP + length))
    cdef uint16_t found = ~fold(add_words(payload, length, pseudo + size + size))
    return found if found else 0xFFFF           # RFC 768: zero means that there is none


cdef inline void write_v4(uint8_t *payload, uint32_t length, const Header *header, uint16_t destination_port,
                          const bint checksum) noexcept nogil:
    """Put a prepared IPv4 header in front of a payload. `destination_port` is in network byte order; 0: the header has
    it."""
    cdef uint16_t total = htons(<uint16_t> (IPV4 + UDP + length))
    memcpy(payload - SHORT_HEADER, header.bytes + MOST_HEADER - SHORT_HEADER, SHORT_HEADER)
    store16(payload - UDP - IPV4 + 2, total)
    store16(payload - UDP - IPV4 + 10, ~fold(<uint64_t> header.ip_sum + total))
    store16(payload - UDP + 4, htons(<uint16_t> (UDP + length)))
    if destination_port:
        store16(payload - UDP + 2, destination_port)
    if checksum:
        store16(payload - 2, udp_checksum(payload, length, <uint64_t> header.pseudo_sum + destination_port))


cdef inline void write_v6(uint8_t *payload, uint32_t length, const Header *header,
                          uint16_t destination_port) noexcept nogil:
    """As `write_v4`; UDP over IPv6 always has a checksum."""
    memcpy(payload - MOST_HEADER, header.bytes, MOST_HEADER)
    store16(payload - UDP - IPV6 + 4, htons(<uint16_t> (UDP + length)))
    store16(payload - UDP + 4, htons(<uint16_t> (UDP + length)))
    if destination_port:
        store16(payload - UDP + 2, destination_port)
    store16(payload - 2, udp_checksum(payload, length, <uint64_t> header.pseudo_sum + destination_port))
