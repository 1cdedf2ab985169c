/* SPDX-License-Identifier: Apache-2.0
 *
 * What the AF_XDP loops share, over libxdp's rings: one socket with a UMEM of its own, frames of Ethernet, IPv4 and UDP, the
 * wake-up, and the numbers of the report.
 *
 * Chunks are never lost: each is in exactly one place, of FILL, RX, TX, COMPLETION, the kernel, or the program's hand. The rings
 * that take chunks back (FILL, COMPLETION) have room for every chunk, so that giving one back cannot fail.
 *
 * Of the kernel's side (net/xdp/xsk.c) the loops have to know:
 *
 *   - In copy mode a sendto() takes 32 descriptors and then says EAGAIN (TX_BATCH_SIZE; XDP_MAX_TX_SKB_BUDGET changes it
 *     since 6.17). EAGAIN also says that the socket's send buffer is full of packets in flight.
 *   - EBUSY is a packet that the device dropped. Its descriptor is consumed, and its chunk is completed.
 *   - A chunk of copy mode is completed when its packet is freed, which over veth is when the other end has taken it.
 *   - A full COMPLETION ring makes sendto() do nothing and report success.
 */
#ifndef FAST_SOCKET_REFERENCE_XDP_COMMON_H
#define FAST_SOCKET_REFERENCE_XDP_COMMON_H

#include "common.h"

#include <linux/if_link.h>
#include <net/if.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <xdp/libxdp.h>
#include <xdp/xsk.h>

/* Linux include/uapi/linux/if_xdp.h (6.17), newer than the headers of most systems. */
#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9
#endif

enum { XDP_CHUNK = 2048, XDP_MAX_FRAME = 1514, XDP_MAX_RING = 1 << 15 };
/* Unbinding is asynchronous: a queue is busy for a while after its socket has closed. */
enum { XDP_BIND_TRIES = 20, XDP_BIND_PAUSE_US = 10000 };
/* Looking into an empty ring takes a few nanoseconds, so a spinning loop looks at the clock every microsecond or so. */
enum { XDP_SPINS_PER_CLOCK = 256 };

enum xdp_mode { XDP_NATIVE, XDP_GENERIC };
enum xdp_wait { XDP_WAIT_POLL, XDP_WAIT_SPIN };
static const char *const xdp_mode_names[] = {"native", "generic", NULL};
static const char *const xdp_wait_names[] = {"poll", "spin", NULL};

/* ---- options ---- */

struct xdp_settings {
    const char *interface;
    int mode, wait;
    bool zerocopy;
    int64_t queue, ring_size, batch, cpu;
    struct ref_bounds bounds;
};

#define XDP_DEFAULTS .ring_size = 2048, .batch = 64, .cpu = -1

#define XDP_OPTIONS_OF(settings) \
    {"--iface", REF_TEXT, &(settings)->interface, "the device; required", 0, 0, NULL}, \
    {"--queue", REF_NUMBER, &(settings)->queue, "its queue (0)", 0, 4095, NULL}, \
    {"--mode", REF_CHOICE, &(settings)->mode, "where the XDP program runs: in the driver, or on skbs (native)", 0, 0, \
     xdp_mode_names}, \
    {"--zerocopy", REF_FLAG, &(settings)->zerocopy, "bind for zero-copy, which fails where the driver has none; else copy", \
     0, 0, NULL}, \
    {"--ring-size", REF_NUMBER, &(settings)->ring_size, "entries of RX and TX, a power of two (2048)", 64, XDP_MAX_RING, \
     NULL}, \
    REF_OPTION_BATCH(&(settings)->batch, "descriptors a turn (64)"), \
    REF_OPTION_DURATION(&(settings)->bounds.duration_ms), \
    REF_OPTION_CPU(&(settings)->cpu)

#define XDP_OPTION_WAIT(settings) \
    {"--wait", REF_CHOICE, &(settings)->wait, "for packets: sleep in poll(), or look into the ring (poll)", 0, 0, \
     xdp_wait_names}

static inline void xdp_check_settings(const struct xdp_settings *settings)
{
    if (!settings->interface)
        ref_usage_error("--iface is required");
    if (settings->ring_size & (settings->ring_size - 1))
        ref_usage_error("--ring-size: %lld is no power of two", (long long)settings->ring_size);
    if (settings->batch > settings->ring_size)
        ref_usage_error("--batch: %lld is more than --ring-size, %lld", (long long)settings->batch,
                        (long long)settings->ring_size);
    if (!if_nametoindex(settings->interface))
        ref_fail(1, "--iface: no device '%s' here", settings->interface);
}

/* ---- frames ---- */

struct xdp_headers {
    struct ether_header ethernet;
    struct iphdr ip;
    struct udphdr udp;
} __attribute__((packed));

enum { XDP_HEADERS = sizeof(struct xdp_headers), XDP_MAX_PAYLOAD = XDP_MAX_FRAME - XDP_HEADERS };

struct xdp_flow {
    uint8_t source_mac[ETH_ALEN], destination_mac[ETH_ALEN];
    struct ref_address source, destination;
    int64_t payload_length;
};

#define XDP_FLOW_OPTIONS_OF(flow) \
    {"--source-mac", REF_MAC, (flow)->source_mac, "of the frames; required", 0, 0, NULL}, \
    {"--dest-mac", REF_MAC, (flow)->destination_mac, "of the frames; required", 0, 0, NULL}, \
    {"--source", REF_ADDRESS, &(flow)->source, "of the datagrams, IPv4; required", 0, 0, NULL}, \
    {"--dest", REF_ADDRESS, &(flow)->destination, "of the datagrams, IPv4; required", 0, 0, NULL}, \
    {"--payload-len", REF_NUMBER, &(flow)->payload_length, "bytes in each datagram (64)", 8, XDP_MAX_PAYLOAD, NULL}

static inline const struct sockaddr_in *xdp_ipv4(const char *option, const struct ref_address *address)
{
    if (!address->length)
        ref_usage_error("%s is required", option);
    if (address->storage.ss_family != AF_INET)
        ref_usage_error("%s: only IPv4 here", option);
    return (const struct sockaddr_in *)&address->storage;
}

/* One's complement sum (RFC 1071) of bytes that begin at an even offset. */
static inline uint32_t xdp_sum(const void *bytes, size_t length, uint32_t sum)
{
    const uint8_t *at = bytes;
    for (; length > 1; at += 2, length -= 2)
        sum += (uint32_t)at[0] << 8 | at[1];
    return length ? sum + ((uint32_t)at[0] << 8) : sum;
}

static inline uint16_t xdp_fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum += sum >> 16;
    return htons((uint16_t)~sum);
}

static inline void xdp_fill_udp_checksum(struct xdp_headers *headers)
{
    size_t length = ntohs(headers->udp.len);
    headers->udp.check = 0;
    /* The pseudo header: addresses, protocol, length. */
    uint32_t sum = xdp_sum(&headers->ip.saddr, 8, IPPROTO_UDP + (uint32_t)length);
    uint16_t check = xdp_fold(xdp_sum(&headers->udp, length, sum));
    headers->udp.check = check ? check : 0xffff;
}

/* The payload is zeros. Returns the frame's length. */
static inline uint32_t xdp_build_frame(const struct xdp_flow *flow, void *frame)
{
    static const uint8_t no_mac[ETH_ALEN];
    const struct sockaddr_in *source = xdp_ipv4("--source", &flow->source);
    const struct sockaddr_in *destination = xdp_ipv4("--dest", &flow->destination);
    struct xdp_headers *headers = frame;
    uint32_t length = (uint32_t)XDP_HEADERS + (uint32_t)flow->payload_length;

    if (!memcmp(flow->source_mac, no_mac, ETH_ALEN) || !memcmp(flow->destination_mac, no_mac, ETH_ALEN))
        ref_usage_error("--source-mac and --dest-mac are required");
    memset(frame, 0, length);
    memcpy(headers->ethernet.ether_shost, flow->source_mac, ETH_ALEN);
    memcpy(headers->ethernet.ether_dhost, flow->destination_mac, ETH_ALEN);
    headers->ethernet.ether_type = htons(ETHERTYPE_IP);
    headers->ip.version = 4;
    headers->ip.ihl = sizeof headers->ip / 4;
    headers->ip.tot_len = htons((uint16_t)(length - sizeof headers->ethernet));
    headers->ip.frag_off = htons(IP_DF);
    headers->ip.ttl = 64;
    headers->ip.protocol = IPPROTO_UDP;
    headers->ip.saddr = source->sin_addr.s_addr;
    headers->ip.daddr = destination->sin_addr.s_addr;
    headers->ip.check = xdp_fold(xdp_sum(&headers->ip, sizeof headers->ip, 0));
    headers->udp.source = source->sin_port;
    headers->udp.dest = destination->sin_port;
    headers->udp.len = htons((uint16_t)(sizeof headers->udp + (size_t)flow->payload_length));
    xdp_fill_udp_checksum(headers);
    return length;
}

/* Whether a frame is an IPv4 datagram, whole and without IP options, to this address and port; port 0 is any. */
static inline bool xdp_is_to(const void *frame, uint32_t length, const struct sockaddr_in *local)
{
    const struct xdp_headers *headers = frame;
    return length >= XDP_HEADERS && headers->ethernet.ether_type == htons(ETHERTYPE_IP) && headers->ip.version == 4 &&
           headers->ip.ihl == 5 && headers->ip.protocol == IPPROTO_UDP && !(headers->ip.frag_off & htons(0x3fff)) &&
           headers->ip.daddr == local->sin_addr.s_addr && (!local->sin_port || headers->udp.dest == local->sin_port);
}

/* ---- the socket ---- */

enum xdp_directions { XDP_RECEIVES = 1, XDP_SENDS = 2 };

struct xdp_port {
    struct xsk_umem *umem;
    struct xsk_socket *socket;
    struct xsk_ring_prod fill, tx;
    struct xsk_ring_cons completion, rx;
    unsigned char *area;
    uint32_t chunks; /* in the rings' keep; those that xdp_open was asked to spare come after them */
    int fd;
    bool zerocopy;                             /* what the kernel made of it */
    int64_t kicks, again, dropped, no_buffers; /* wake-ups of TX, and what they returned */
};

/* libxdp and libbpf warn of much that does not matter here: only the last words before a failure are of use. */
static char xdp_last_words[256];

static inline int xdp_on_libxdp_words(enum libxdp_print_level level, const char *format, va_list arguments)
{
    return level == LIBXDP_WARN ? vsnprintf(xdp_last_words, sizeof xdp_last_words, format, arguments) : 0;
}

static inline int xdp_on_libbpf_words(enum libbpf_print_level level, const char *format, va_list arguments)
{
    return level == LIBBPF_WARN ? vsnprintf(xdp_last_words, sizeof xdp_last_words, format, arguments) : 0;
}

static inline void *xdp_chunk(const struct xdp_port *port, uint64_t address)
{
    return port->area + address;
}

/* `spare`: chunks that a receiver has beside those in FILL. */
static inline void xdp_open(struct xdp_port *port, const struct xdp_settings *settings, int directions, uint32_t spare)
{
    /* With a receiver, chunks to fill RX and as many again: a slow program sees its RX full, not its FILL empty. */
    uint32_t ring_size = (uint32_t)settings->ring_size;
    port->chunks = directions & XDP_RECEIVES ? 2 * ring_size : ring_size;
    size_t length = ((size_t)port->chunks + spare) * XDP_CHUNK;
    port->area = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (port->area == MAP_FAILED)
        ref_system_error("memory for the chunks");

    struct xsk_umem_config umem_config = {
        .fill_size = port->chunks, .comp_size = port->chunks, .frame_size = XDP_CHUNK};
    int error = -xsk_umem__create(&port->umem, port->area, length, &port->fill, &port->completion, &umem_config);
    if (error)
        ref_fail(1, "UMEM: %s", strerror(error));
    if (directions & XDP_RECEIVES) {
        /* Before the bind: some drivers never look again at a FILL ring that was empty then. */
        uint32_t index = 0;
        xsk_ring_prod__reserve(&port->fill, port->chunks, &index);
        for (uint32_t i = 0; i < port->chunks; i++)
            *xsk_ring_prod__fill_addr(&port->fill, index + i) = (uint64_t)i * XDP_CHUNK;
        xsk_ring_prod__submit(&port->fill, port->chunks);
    }

    libxdp_set_print(xdp_on_libxdp_words);
    libbpf_set_print(xdp_on_libbpf_words);
    /* One program alone: the dispatcher that lets several share a device costs each packet a jump, and needs a bpffs. */
    setenv("LIBXDP_SKIP_DISPATCHER", "1", 1);
    struct xsk_socket_config config = {
        .rx_size = ring_size,
        .tx_size = ring_size,
        .libxdp_flags = directions & XDP_RECEIVES ? 0 : XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
        .xdp_flags = settings->mode == XDP_GENERIC ? XDP_FLAGS_SKB_MODE : XDP_FLAGS_DRV_MODE,
        .bind_flags = (uint16_t)(XDP_USE_NEED_WAKEUP | (settings->zerocopy ? XDP_ZEROCOPY : XDP_COPY)),
    };
    for (int tries = 0; tries < XDP_BIND_TRIES; tries++) {
        error = -xsk_socket__create(&port->socket, settings->interface, (uint32_t)settings->queue, port->umem,
                                    directions & XDP_RECEIVES ? &port->rx : NULL, directions & XDP_SENDS ? &port->tx : NULL,
                                    &config);
        if (error != EBUSY)
            break;
        usleep(XDP_BIND_PAUSE_US);
    }
    if (error) {
        xdp_last_words[strcspn(xdp_last_words, "\n")] = '\0';
        ref_fail(1, "AF_XDP socket on %s, queue %lld, %s, %s: %s%s%s", settings->interface, (long long)settings->queue,
                 xdp_mode_names[settings->mode], settings->zerocopy ? "zero-copy" : "copy", strerror(error),
                 *xdp_last_words ? "; " : "", xdp_last_words);
    }
    port->fd = xsk_socket__fd(port->socket);

    struct xdp_options options = {0};
    socklen_t options_length = sizeof options;
    if (getsockopt(port->fd, SOL_XDP, XDP_OPTIONS, &options, &options_length))
        ref_system_error("XDP_OPTIONS");
    port->zerocopy = options.flags & XDP_OPTIONS_ZEROCOPY;
}

static inline struct xdp_statistics xdp_statistics_of(const struct xdp_port *port)
{
    struct xdp_statistics statistics = {0};
    socklen_t length = sizeof statistics;
    if (getsockopt(port->fd, SOL_XDP, XDP_STATISTICS, &statistics, &length))
        ref_system_error("XDP_STATISTICS");
    return statistics;
}

/* Takes the XDP program off the device too. */
static inline void xdp_close(struct xdp_port *port)
{
    xsk_socket__delete(port->socket);
    xsk_umem__delete(port->umem);
}

/* ---- rings ---- */

/* Descriptors that the kernel has not taken from TX yet. */
static inline uint32_t xdp_pending(struct xdp_port *port)
{
    return port->tx.size - xsk_prod_nb_free(&port->tx, port->tx.size);
}

/* Has the kernel look at TX. Returns 0, or the errno of a failure that is no matter of trying again. */
static inline int xdp_kick(struct xdp_port *port)
{
    if (!xsk_ring_prod__needs_wakeup(&port->tx))
        return 0;
    port->kicks++;
    if (sendto(port->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0)
        return 0;
    if (errno == EAGAIN)
        port->again++;
    else if (errno == EBUSY)
        port->dropped++;
    else if (errno == ENOBUFS)
        port->no_buffers++;
    else if (errno != EINTR)
        return errno;
    return 0;
}

/* Drivers that work by themselves want a word when FILL has run dry. */
static inline void xdp_wake_receive(struct xdp_port *port)
{
    if (xsk_ring_prod__needs_wakeup(&port->fill))
        recvfrom(port->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

/* Counts what COMPLETION holds and forgets it: for a sender whose chunks are all alike. */
static inline uint32_t xdp_drop_completions(struct xdp_port *port)
{
    uint32_t index = 0, count = xsk_ring_cons__peek(&port->completion, port->chunks, &index);
    if (count)
        xsk_ring_cons__release(&port->completion, count);
    return count;
}

/* Moves what COMPLETION holds to FILL, which has room for every chunk. */
static inline uint32_t xdp_recycle_completions(struct xdp_port *port)
{
    uint32_t from = 0, to = 0, count = xsk_ring_cons__peek(&port->completion, port->chunks, &from);
    if (!count)
        return 0;
    xsk_ring_prod__reserve(&port->fill, count, &to);
    for (uint32_t i = 0; i < count; i++)
        *xsk_ring_prod__fill_addr(&port->fill, to + i) = *xsk_ring_cons__comp_addr(&port->completion, from + i);
    xsk_ring_prod__submit(&port->fill, count);
    xsk_ring_cons__release(&port->completion, count);
    return count;
}

/* ---- reports ---- */

struct xdp_usage {
    double user, system;
};

/* Of the calling process. Soft interrupts that its system calls raise are in it: over veth, the other end's receiving. */
static inline struct xdp_usage xdp_usage_now(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (struct xdp_usage){(double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec / 1e6,
                              (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec / 1e6};
}

/* Members that every report ends with. */
static inline void xdp_print_rest(const struct xdp_settings *settings, const struct xdp_port *port, struct xdp_usage before,
                                  struct xdp_usage after)
{
    double user = after.user - before.user, system = after.system - before.system;
    printf("\"zerocopy\": %s, \"queue\": %lld, \"batch\": %lld, \"ring_size\": %lld, \"user_seconds\": %.6f, "
           "\"system_seconds\": %.6f, \"cpu_seconds\": %.6f}\n",
           port->zerocopy ? "true" : "false", (long long)settings->queue, (long long)settings->batch,
           (long long)settings->ring_size, user, system, user + system);
}

static inline void xdp_print_receive(const struct xdp_port *port)
{
    struct xdp_statistics statistics = xdp_statistics_of(port);
    printf("\"rx_dropped\": %llu, \"ring_full\": %llu, \"fill_empty\": %llu, ", (unsigned long long)statistics.rx_dropped,
           (unsigned long long)statistics.rx_ring_full, (unsigned long long)statistics.rx_fill_ring_empty_descs);
}

static inline void xdp_print_transmit(const struct xdp_port *port)
{
    struct xdp_statistics statistics = xdp_statistics_of(port);
    printf("\"kicks\": %lld, \"again\": %lld, \"no_buffers\": %lld, \"tx_invalid\": %llu, ", (long long)port->kicks,
           (long long)port->again, (long long)port->no_buffers, (unsigned long long)statistics.tx_invalid_descs);
}

#endif
