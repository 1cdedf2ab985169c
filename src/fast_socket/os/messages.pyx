"""Control messages: reading what the kernel says of a received datagram, writing what is asked for a sent one.

Pure functions over memory, apart from the sockets that use them.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from fast_socket.core.addresses cimport HOST_V6_OFFSET
from fast_socket.core.frames cimport Slots
from fast_socket.os.linux cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, IP_PKTINFO, IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_IPV6,
    IPV6_HOPLIMIT, IPV6_PKTINFO, IPV6_TCLASS, SCM_TIMESTAMPING, SCM_TIMESTAMPNS, SCM_TXTIME, SOL_SOCKET, SOL_UDP,
    UDP_GRO, UDP_SEGMENT, cmsghdr, in6_pktinfo, in_pktinfo, msghdr, timespec,
)

cdef uint8_t *MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]

assert RX_CONTROL_SIZE >= (CMSG_SPACE(sizeof(in6_pktinfo)) + CMSG_SPACE(sizeof(in_pktinfo))
                           + 5 * CMSG_SPACE(sizeof(int)) + CMSG_SPACE(3 * sizeof(timespec)))
assert TX_CONTROL_SIZE >= (CMSG_SPACE(sizeof(in6_pktinfo)) + 2 * CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(int64_t))
                           + CMSG_SPACE(sizeof(uint16_t)))


cdef inline int64_t nanoseconds(const timespec *time) noexcept nogil:
    return <int64_t> time.tv_sec * 1_000_000_000 + time.tv_nsec


cdef bint is_mapped(const uint8_t *host) noexcept nogil:
    cdef int i
    for i in range(12):
        if host[i] != MAPPED[i]:
            return False
    return True


cdef void write_host(Slots *slots, uint32_t slot, uint32_t host) noexcept nogil:
    cdef uint8_t *to = slots.local_hosts + <size_t> slot * slots.host_size
    if slots.v6:
        memcpy(to, MAPPED, 12)
        to += 12
    memcpy(to, &host, 4)


cdef void read_control(msghdr *message, Slots *slots, uint32_t slot) noexcept nogil:
    """Spread one message's control data over the columns that exist. The kernel sends only what was switched on; what
    it does not send stays as the caller preset it."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(message)
    cdef uint8_t *data
    cdef in_pktinfo info
    cdef in6_pktinfo info6
    cdef timespec times[3]
    cdef uint32_t host
    cdef int value
    while control != NULL:
        data = CMSG_DATA(control)
        if control.cmsg_level == SOL_UDP:
            if control.cmsg_type == UDP_GRO and slots.segment_sizes != NULL:
                memcpy(&value, data, sizeof(value))
                if value > 0:
                    slots.segment_sizes[slot] = value
        elif control.cmsg_level == IPPROTO_IP:
            if control.cmsg_type == IP_TOS and slots.ecn != NULL:
                slots.ecn[slot] = data[0] & 3
            elif control.cmsg_type == IP_TTL and slots.ttl != NULL:
                memcpy(&value, data, sizeof(value))
                slots.ttl[slot] = <uint8_t> value
            elif control.cmsg_type == IP_PKTINFO and slots.local_hosts != NULL:
                memcpy(&info, data, sizeof(info))
                # For a directed broadcast the kernel's choice of a reply address, else the address it was sent to.
                host = info.ipi_addr.s_addr
                if host != info.ipi_spec_dst.s_addr and (<uint8_t *> &host)[0] < 224:
                    host = info.ipi_spec_dst.s_addr
                write_host(slots, slot, host)
                slots.interfaces[slot] = info.ipi_ifindex
        elif control.cmsg_level == IPPROTO_IPV6:
            if control.cmsg_type == IPV6_TCLASS and slots.ecn != NULL:
                memcpy(&value, data, sizeof(value))
                slots.ecn[slot] = value & 3
            elif control.cmsg_type == IPV6_HOPLIMIT and slots.ttl != NULL:
                memcpy(&value, data, sizeof(value))
                slots.ttl[slot] = <uint8_t> value
            elif control.cmsg_type == IPV6_PKTINFO and slots.local_hosts != NULL and slots.v6:
                memcpy(&info6, data, sizeof(info6))
                memcpy(slots.local_hosts + <size_t> slot * 16, &info6.ipi6_addr, 16)
                slots.interfaces[slot] = info6.ipi6_ifindex
        elif control.cmsg_level == SOL_SOCKET and slots.times != NULL:
            if control.cmsg_type == SCM_TIMESTAMPNS:
                memcpy(times, data, sizeof(timespec))
                slots.times[slot] = nanoseconds(times)
            elif control.cmsg_type == SCM_TIMESTAMPING:
                # Software first, raw hardware third: Documentation/networking/timestamping.rst, section 2.1.2.
                memcpy(times, data, 3 * sizeof(timespec))
                slots.times[slot] = nanoseconds(&times[2]) or nanoseconds(&times[0])
        control = CMSG_NXTHDR(message, control)


cdef inline uint8_t *start_message(uint8_t *buffer, size_t *used, int level, int type, size_t size) noexcept nogil:
    cdef cmsghdr *control = <cmsghdr *> (buffer + used[0])
    control.cmsg_len = CMSG_LEN(size)
    control.cmsg_level, control.cmsg_type = level, type
    used[0] += CMSG_SPACE(size)
    return CMSG_DATA(control)


cdef size_t write_control(uint8_t *buffer, const TxControl *control, const uint8_t *record, bint v6) noexcept nogil:
    """Write what `control` says for a datagram to the peer in `record`; returns the bytes used. An IPv4-mapped peer of
    an IPv6 socket takes the IPv4 messages: the kernel sends it through its IPv4 path."""
    cdef size_t used = 0
    cdef int value
    cdef in_pktinfo info
    cdef in6_pktinfo info6
    cdef uint8_t nowhere[16]
    cdef const uint8_t *host
    cdef int size
    cdef bint peer_v6 = v6 and not is_mapped(record + HOST_V6_OFFSET)
    if control.ecn != ECN_DEFAULT:
        value = ((control.traffic_class if peer_v6 else control.tos) & 0xFC) | (control.ecn & 3)
        memcpy(start_message(buffer, &used, IPPROTO_IPV6 if peer_v6 else IPPROTO_IP, IPV6_TCLASS if peer_v6 else IP_TOS,
                             sizeof(value)), &value, sizeof(value))
    if control.ttl:
        value = control.ttl
        memcpy(start_message(buffer, &used, IPPROTO_IPV6 if peer_v6 else IPPROTO_IP,
                             IPV6_HOPLIMIT if peer_v6 else IP_TTL, sizeof(value)), &value, sizeof(value))
    if control.source_host != NULL:
        memset(nowhere, 0, 16)
        host, size = control.source_host, 16 if v6 else 4
        if control.interface or not same_bytes(host, nowhere, size):
            if v6 and not peer_v6 and (is_mapped(host) or same_bytes(host, nowhere, 16)):
                host += 12
                size = 4
            if size == 16:
                memcpy(&info6.ipi6_addr, host, 16)
                info6.ipi6_ifindex = control.interface
                memcpy(start_message(buffer, &used, IPPROTO_IPV6, IPV6_PKTINFO, sizeof(info6)), &info6, sizeof(info6))
            else:
                memset(&info, 0, sizeof(info))
                memcpy(&info.ipi_spec_dst, host, 4)
                info.ipi_ifindex = <int> control.interface
                memcpy(start_message(buffer, &used, IPPROTO_IP, IP_PKTINFO, sizeof(info)), &info, sizeof(info))
    if control.departure_time:
        memcpy(start_message(buffer, &used, SOL_SOCKET, SCM_TXTIME, sizeof(int64_t)), &control.departure_time,
               sizeof(int64_t))
    return used


cdef bint same_bytes(const uint8_t *a, const uint8_t *b, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        if a[i] != b[i]:
            return False
    return True


cdef size_t append_segment_size(uint8_t *buffer, size_t used, uint16_t segment_size) noexcept nogil:
    """Ask for segmentation. The kernel wants exactly a u16 (net/ipv4/udp.c, __udp_cmsg_send)."""
    memcpy(start_message(buffer, &used, SOL_UDP, UDP_SEGMENT, sizeof(uint16_t)), &segment_size, sizeof(uint16_t))
    return used
