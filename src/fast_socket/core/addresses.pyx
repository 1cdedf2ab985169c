"""Socket addresses between Python's ("host", port) and the kernel's binary records."""

import ipaddress

from cpython.long cimport PyLong_AsLongAndOverflow
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset, strlen

from fast_socket.core.errors import ConfigError


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *binary)
    const char *inet_ntop(int family, const void *binary, char *text, uint32_t size)

cdef extern from "<net/if.h>" nogil:
    uint32_t if_nametoindex(const char *name)
    char *if_indextoname(uint32_t index, char *name)
    enum:
        IF_NAMESIZE

cdef uint8_t *MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]     # ::ffff:0:0/96, RFC 4291 section 2.5.5.2


Host = str | ipaddress.IPv4Address | ipaddress.IPv6Address
Address = str | tuple[Host, int] | tuple[str, int, int, int]


def parse_address(address, str what="address"):
    """``"192.0.2.1:53"``, ``"[2001:db8::1]:53"``, ``(host, port)`` or ``(ipaddress, port)`` to ``(host, port)``.

    `host` comes back as the text of an IP address, with ``%scope`` if it had one. Names are not resolved. Raises
    `ConfigError` that quotes what was given.
    """
    cdef uint8_t record[STRIDE_V6]
    host, port = _split(address, what)
    write_record(record, _is_v6(host), (host, port), what)
    return host, port


cdef bint _is_v6(str host):
    return ":" in host


cdef tuple _split(object address, str what):
    if isinstance(address, str):
        address = str.__str__(address)
        host, colon, text = address.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host.removeprefix("[").removesuffix("]")
        elif ":" in host:
            colon = ""          # an IPv6 address without brackets: where the port begins is a guess
        if not colon or not (text.isascii() and text.isdigit() and len(text) <= 5):
            raise ConfigError(f"{what} {address!r}: give IP:PORT, [IPv6]:PORT or a tuple (host, port)")
        return host, int(text)
    if isinstance(address, (tuple, list)) and len(address) in (2, 4):
        host, port = address[0], address[1]
        if isinstance(host, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            host = str(host)
        if isinstance(host, str) and isinstance(port, int) and not isinstance(port, bool):
            host, port = str.__str__(host), int.__index__(port)         # exact ones, of which nothing is overridden
            # socket.getsockname() of an IPv6 socket: (host, port, flowinfo, scope_id)
            if len(address) == 4 and address[3] and "%" not in host:
                host = f"{host}%{address[3]}"
            return host, port
    raise ConfigError(f"{what} {address!r}: give IP:PORT, [IPv6]:PORT or a tuple (host, port)")


cdef int write_host(uint8_t *host, bint v6, object address, str what) except -1:
    """Write 4 or 16 bytes. An IPv4 address on an IPv6 socket is written IPv4-mapped."""
    cdef bytes text = str(address).encode(errors="backslashreplace")
    if b"\0" in text:           # inet_pton would stop there
        raise ConfigError(f"{what} {address!r} is not an IP address")
    if v6:
        if inet_pton(AF_INET6, text, host) == 1:
            return 0
        memcpy(host, MAPPED, 12)
        if inet_pton(AF_INET, text, host + 12) == 1:
            return 0
    elif inet_pton(AF_INET, text, host) == 1:
        return 0
    elif inet_pton(AF_INET6, text, host) == 1:
        raise ConfigError(f"{what} {address!r} is IPv6, but the socket is IPv4: bind it to an IPv6 address or [::]")
    raise ConfigError(f"{what} {address!r} is not an IP address; names are not resolved here")


cdef bint write_plain(uint8_t *record, bint v6, object address) except -1:
    """Write an address of the family, without a scope, in the usual form: a tuple of exactly str and int. False is
    anything else, and nothing of the caller's has run."""
    cdef uint16_t family = AF_INET6 if v6 else AF_INET
    cdef uint16_t port_be
    cdef Py_ssize_t size
    cdef const char *text
    cdef int overflow
    cdef long number
    if type(address) is not tuple or len(<tuple> address) != 2:
        return False
    host, port = <tuple> address
    if type(host) is not str or type(port) is not int or not (<str> host).isascii():
        return False
    number = PyLong_AsLongAndOverflow(port, &overflow)
    text = PyUnicode_AsUTF8AndSize(host, &size)
    if overflow or not 0 <= number <= 65535 or <Py_ssize_t> strlen(text) != size:
        return False
    if inet_pton(family, text, record + (HOST_V6_OFFSET if v6 else HOST_V4_OFFSET)) != 1:
        return False
    port_be = htons(<uint16_t> number)
    memcpy(record, &family, 2)
    memcpy(record + PORT_OFFSET, &port_be, 2)
    return True


cdef int write_record(uint8_t *record, bint v6, object address, str what) except -1:
    """Write one address record for a socket of this family. Raises ConfigError and leaves zeros behind."""
    cdef uint16_t family = AF_INET6 if v6 else AF_INET
    cdef uint16_t port_be
    cdef uint32_t scope = 0
    cdef str host, zone
    memset(record, 0, STRIDE_V6 if v6 else STRIDE_V4)
    if write_plain(record, v6, address):
        return 0
    host_text, port = _split(address, what)
    if not 0 <= port <= 65535:
        raise ConfigError(f"{what} {address!r}: port {port} is not in 0..65535")
    host = host_text
    if "%" in host:
        host, _, zone = host.partition("%")
        if zone.isascii() and zone.isdigit() and len(zone) < 10:
            scope = int(zone)
        elif "\0" not in zone:
            scope = if_nametoindex(zone.encode(errors="backslashreplace"))
        if not v6:
            raise ConfigError(f"{what} {address!r}: an IPv4 address has no scope: leave %{zone} out")
        if scope == 0:
            raise ConfigError(f"{what} {address!r}: there is no interface {zone!r} for this address's scope")
    try:
        write_host(record + (HOST_V6_OFFSET if v6 else HOST_V4_OFFSET), v6, host, what)
    except ConfigError:
        memset(record, 0, STRIDE_V6 if v6 else STRIDE_V4)
        raise
    port_be = htons(port)
    memcpy(record, &family, 2)
    memcpy(record + PORT_OFFSET, &port_be, 2)
    if v6:
        memcpy(record + SCOPE_OFFSET, &scope, 4)
    return 0


cdef str read_host(const uint8_t *host, bint v6):
    cdef char text[64]
    cdef int i
    if v6:
        for i in range(12):
            if host[i] != MAPPED[i]:
                inet_ntop(AF_INET6, host, text, 64)
                break
        else:
            inet_ntop(AF_INET, host + 12, text, 64)
    else:
        inet_ntop(AF_INET, host, text, 64)
    return text.decode("ascii")


cdef bint any_set(const uint8_t *bytes, int count):
    cdef int i
    for i in range(count):
        if bytes[i]:
            return True
    return False


cdef tuple read_record(const uint8_t *record):
    """(host, port) of a record; ("", 0) where there is none."""
    cdef uint16_t family, port_be
    cdef uint32_t scope
    cdef char name[IF_NAMESIZE]
    cdef str host
    memcpy(&family, record, 2)
    memcpy(&port_be, record + PORT_OFFSET, 2)
    if family == AF_INET and port_be == 0 and not any_set(record + HOST_V4_OFFSET, 4):
        return "", 0
    if family == AF_INET6 and port_be == 0 and not any_set(record + HOST_V6_OFFSET, 16):
        return "", 0
    if family == AF_INET:
        return read_host(record + HOST_V4_OFFSET, False), ntohs(port_be)
    if family != AF_INET6:
        return "", 0
    host = read_host(record + HOST_V6_OFFSET, True)
    memcpy(&scope, record + SCOPE_OFFSET, 4)
    if scope:
        host = f"{host}%{(<bytes> name).decode() if if_indextoname(scope, name) != NULL else scope}"
    return host, ntohs(port_be)
