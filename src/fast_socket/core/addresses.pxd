from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)

# Address records are socket addresses as the kernel lays them out (struct sockaddr_in, struct sockaddr_in6), so that a
# system call reads and writes a column of them without a copy. Ports and addresses are in network byte order.
cdef enum:
    RECORD_V4 = 16
    RECORD_V6 = 28
    STRIDE_V4 = 16       # distance of two records in a column
    STRIDE_V6 = 32
    PORT_OFFSET = 2
    HOST_V4_OFFSET = 4
    HOST_V6_OFFSET = 8
    SCOPE_OFFSET = 24

cdef int write_record(uint8_t *record, bint v6, object address, str what) except -1
cdef int write_host(uint8_t *host, bint v6, object address, str what) except -1
cdef tuple read_record(const uint8_t *record)
cdef str read_host(const uint8_t *host, bint v6)
