/* SPDX-License-Identifier: Apache-2.0
 *
 * The reflecting limit of AF_XDP: a datagram to --bind goes back in the chunk that it came in, with its addresses and ports
 * swapped, and its chunk from COMPLETION to FILL. Swapping leaves both checksums right: they are sums.
 *
 * A kernel socket over veth leaves its UDP checksum to a device that is not there; such a packet comes back with a checksum that
 * is still to be computed, and the kernel drops it. The ping has to compute its own, as xdp_ping does, or to switch the
 * device's `tx` offload off.
 */
#include "xdp_common.h"

struct reflector {
    struct xdp_port port;
    const struct sockaddr_in *local;
    int64_t reflected, other;
};

static inline void swap_ends(struct xdp_headers *headers)
{
    uint8_t mac[ETH_ALEN];
    memcpy(mac, headers->ethernet.ether_shost, ETH_ALEN);
    memcpy(headers->ethernet.ether_shost, headers->ethernet.ether_dhost, ETH_ALEN);
    memcpy(headers->ethernet.ether_dhost, mac, ETH_ALEN);
    uint32_t address = headers->ip.saddr;
    headers->ip.saddr = headers->ip.daddr;
    headers->ip.daddr = address;
    uint16_t udp_port = headers->udp.source;
    headers->udp.source = headers->udp.dest;
    headers->udp.dest = udp_port;
}

/* Takes up to `most` packets; returns how many. Neither TX nor FILL can be short of room: TX is reserved first. */
static uint32_t reflect(struct reflector *reflector, int64_t most)
{
    struct xdp_port *port = &reflector->port;
    uint32_t room = xsk_prod_nb_free(&port->tx, (uint32_t)most), from = 0;
    uint32_t count = xsk_ring_cons__peek(&port->rx, room < most ? room : (uint32_t)most, &from);
    uint32_t answers = 0, others = 0, to = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct xdp_desc *descriptor = xsk_ring_cons__rx_desc(&port->rx, from + i);
        struct xdp_headers *headers = xdp_chunk(port, descriptor->addr);
        if (xdp_is_to(headers, descriptor->len, reflector->local)) {
            swap_ends(headers);
            xsk_ring_prod__reserve(&port->tx, 1, &to);
            *xsk_ring_prod__tx_desc(&port->tx, to) = (struct xdp_desc){.addr = descriptor->addr, .len = descriptor->len};
            answers++;
        } else {
            xsk_ring_prod__reserve(&port->fill, 1, &to);
            *xsk_ring_prod__fill_addr(&port->fill, to) = descriptor->addr;
            others++;
        }
    }
    if (answers)
        xsk_ring_prod__submit(&port->tx, answers);
    if (others)
        xsk_ring_prod__submit(&port->fill, others);
    if (count)
        xsk_ring_cons__release(&port->rx, count);
    reflector->reflected += answers;
    reflector->other += others;
    return count;
}

int main(int argc, char **argv)
{
    struct xdp_settings settings = {XDP_DEFAULTS};
    struct ref_address local = {0};
    const struct ref_option options[] = {
        XDP_OPTIONS_OF(&settings),
        XDP_OPTION_WAIT(&settings),
        {"--bind", REF_ADDRESS, &local, "answer datagrams to this address, IPv4, with port 0 to any port; required", 0, 0,
         NULL},
        REF_OPTION_COUNT(&settings.bounds.count, "stop after this many answers"),
    };
    ref_tool = "c-xdp-pong";
    ref_parse(argc, argv, "send every datagram back through AF_XDP", options, REF_COUNT_OF(options));
    xdp_check_settings(&settings);
    ref_pin(settings.cpu);
    ref_catch_signals();

    struct reflector reflector = {.local = xdp_ipv4("--bind", &local)};
    struct xdp_port *port = &reflector.port;
    xdp_open(port, &settings, XDP_RECEIVES | XDP_SENDS, 0);
    ref_say_ready();

    int64_t limit = ref_count_limit(&settings.bounds);
    int64_t now = ref_now(), deadline = ref_deadline(&settings.bounds, now), first = 0, last = 0;
    unsigned spins = 0;
    int fatal = 0;
    struct xdp_usage before = xdp_usage_now();
    /* Also at the end nothing stays in TX. */
    while (!fatal && now < deadline && ((!ref_stop && reflector.reflected < limit) || xdp_pending(port))) {
        int64_t left = ref_stop ? 0 : limit - reflector.reflected;
        uint32_t received = reflect(&reflector, left < settings.batch ? left : settings.batch);
        uint32_t pending = xdp_pending(port);
        if (pending)
            fatal = xdp_kick(port);
        xdp_recycle_completions(port);
        if (received) {
            /* The answer is on its way: the clock is read where it delays nobody. */
            last = now = ref_now();
            first = first ? first : now;
        } else if (settings.wait == XDP_WAIT_POLL && !pending) {
            now = ref_now();
            ref_wait_readable(port->fd, now, deadline);
        } else if (++spins % XDP_SPINS_PER_CLOCK == 0) {
            xdp_wake_receive(port);
            now = ref_now();
        }
    }
    struct xdp_usage after = xdp_usage_now();
    double seconds = (double)(last - first) / 1e9;

    if (fatal)
        fprintf(stderr, "%s: %s\n", ref_tool, strerror(fatal));
    printf("{\"tool\": \"%s\", \"mode\": \"%s\", \"wait\": \"%s\", \"received\": %lld, \"sent\": %lld, \"dropped\": %lld, "
           "\"other\": %lld, \"seconds\": %.6f, \"pps\": %.1f, ",
           ref_tool, xdp_mode_names[settings.mode], xdp_wait_names[settings.wait], (long long)reflector.reflected,
           (long long)(reflector.reflected - port->dropped - xdp_pending(port)), (long long)port->dropped,
           (long long)reflector.other, seconds, ref_rate(reflector.reflected, seconds));
    xdp_print_receive(port);
    xdp_print_transmit(port);
    xdp_print_rest(&settings, port, before, after);
    xdp_close(port);
    return fatal ? 1 : 0;
}
