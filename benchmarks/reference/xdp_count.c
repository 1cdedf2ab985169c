/* SPDX-License-Identifier: Apache-2.0
 *
 * The receiving limit of AF_XDP: one RX socket, one thread. Chunks go straight from RX back to FILL; of each packet the headers
 * are read and nothing is written.
 *
 * libxdp's default program gives the socket everything that arrives on its queue, ARP too: the sender has to know the MAC
 * address. With --bind only datagrams to that address are `received`, all else is `other`.
 *
 * `rx_dropped` (no chunk in FILL) and `ring_full` (RX full) are the kernel's and disjoint: together they are what reached the
 * socket and is lost.
 */
#include "xdp_common.h"

struct counter {
    struct xdp_port port;
    const struct sockaddr_in *local; /* NULL: everything counts */
    int64_t received, other;
};

/* Takes up to `most` packets; returns how many. */
static uint32_t burst(struct counter *counter, int64_t most)
{
    struct xdp_port *port = &counter->port;
    uint32_t from = 0, to = 0, count = xsk_ring_cons__peek(&port->rx, (uint32_t)most, &from);
    if (!count)
        return 0;
    xsk_ring_prod__reserve(&port->fill, count, &to);
    for (uint32_t i = 0; i < count; i++) {
        const struct xdp_desc *descriptor = xsk_ring_cons__rx_desc(&port->rx, from + i);
        bool match = !counter->local || xdp_is_to(xdp_chunk(port, descriptor->addr), descriptor->len, counter->local);
        counter->received += match;
        counter->other += !match;
        /* The address of the data in it, behind the headroom: the kernel takes any address within a chunk. */
        *xsk_ring_prod__fill_addr(&port->fill, to + i) = descriptor->addr;
    }
    xsk_ring_prod__submit(&port->fill, count);
    xsk_ring_cons__release(&port->rx, count);
    return count;
}

int main(int argc, char **argv)
{
    struct xdp_settings settings = {XDP_DEFAULTS};
    int64_t idle_ms = 0;
    struct ref_address local = {0};
    const struct ref_option options[] = {
        XDP_OPTIONS_OF(&settings),
        XDP_OPTION_WAIT(&settings),
        {"--bind", REF_ADDRESS, &local, "count datagrams to this address, IPv4, with port 0 to any port (everything)", 0, 0,
         NULL},
        REF_OPTION_COUNT(&settings.bounds.count, "stop after this many packets received"),
        {"--idle-ms", REF_NUMBER, &idle_ms, "stop this long after the last packet, once there was one", 1, 86400000, NULL},
    };
    ref_tool = "c-xdp-count";
    ref_parse(argc, argv, "receive packets through AF_XDP and count them", options, REF_COUNT_OF(options));
    xdp_check_settings(&settings);
    ref_pin(settings.cpu);
    ref_catch_signals();

    struct counter counter = {.local = local.length ? xdp_ipv4("--bind", &local) : NULL};
    struct xdp_port *port = &counter.port;
    xdp_open(port, &settings, XDP_RECEIVES, 0);
    ref_say_ready();

    int64_t limit = ref_count_limit(&settings.bounds), idle = idle_ms ? idle_ms * 1000000 : INT64_MAX;
    int64_t now = ref_now(), deadline = ref_deadline(&settings.bounds, now), first = 0, last = 0, wake_ups = 0;
    unsigned spins = 0;
    struct xdp_usage before = xdp_usage_now();
    while (!ref_stop && counter.received < limit && now < deadline) {
        int64_t quiet_at = last && idle < INT64_MAX - last ? last + idle : INT64_MAX;
        if (now >= quiet_at)
            break;
        int64_t left = limit - counter.received, had = counter.received;
        if (burst(&counter, left < settings.batch ? left : settings.batch)) {
            if (counter.received != had) {
                last = now = ref_now();
                first = first ? first : now;
            }
        } else if (settings.wait == XDP_WAIT_POLL) {
            now = ref_now();
            wake_ups += ref_wait_readable(port->fd, now, deadline < quiet_at ? deadline : quiet_at);
            now = ref_now();
        } else if (++spins % XDP_SPINS_PER_CLOCK == 0) {
            xdp_wake_receive(port);
            now = ref_now();
        }
    }
    struct xdp_usage after = xdp_usage_now();
    double seconds = (double)(last - first) / 1e9;

    printf("{\"tool\": \"%s\", \"mode\": \"%s\", \"wait\": \"%s\", \"received\": %lld, \"other\": %lld, \"seconds\": %.6f, "
           "\"pps\": %.1f, \"wake_ups\": %lld, ",
           ref_tool, xdp_mode_names[settings.mode], xdp_wait_names[settings.wait], (long long)counter.received,
           (long long)counter.other, seconds, ref_rate(counter.received, seconds), (long long)wake_ups);
    xdp_print_receive(port);
    xdp_print_rest(&settings, port, before, after);
    xdp_close(port);
    return 0;
}
