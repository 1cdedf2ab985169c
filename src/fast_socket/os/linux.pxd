# What the batch calls and their control messages look like to C, from the system's own headers.
from libc.stddef cimport size_t
from libc.stdint cimport uint16_t, uint32_t


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <netinet/in.h>
    #include <netinet/ip.h>
    #include <time.h>
    #include <linux/net_tstamp.h>
    /* Old glibc lacks these; values from include/uapi/linux/udp.h and asm-generic/socket.h. */
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #ifndef SCM_TXTIME
    #define SCM_TXTIME 61
    #endif
    """


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const void *name, uint32_t name_size)
    ssize_t recvfrom(int fd, void *data, size_t size, int flags, void *name, uint32_t *name_size)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *previous)
    unsigned char *CMSG_DATA(cmsghdr *control)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)
    enum:
        AF_INET
        AF_INET6
        MSG_DONTWAIT
        MSG_ERRQUEUE
        MSG_TRUNC
        SOL_SOCKET
        SCM_TIMESTAMPING
        SCM_TIMESTAMPNS
        SCM_TXTIME


cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    struct in6_addr:
        pass
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    enum:
        IPPROTO_IP
        IPPROTO_IPV6
        IP_TOS
        IP_TTL
        IP_PKTINFO
        IPV6_TCLASS
        IPV6_HOPLIMIT
        IPV6_PKTINFO


cdef extern from *:
    enum:
        SOL_UDP
        UDP_SEGMENT
        UDP_GRO


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
