/* SPDX-License-Identifier: Apache-2.0
 *
 * The latency limit of AF_XDP: one datagram outstanding, sent and received on one socket.
 *
 * A ping carries its number, so that the late answer to a lost one is not taken for the next one's. Number and UDP checksum are
 * written before the clock is read.
 */
#include "xdp_common.h"

/* More than one: a lost ping's chunk may be a long time with the kernel. */
enum { SPARE = 64 };

struct pinger {
    struct xdp_port port;
    const struct xdp_settings *settings;
    const struct sockaddr_in *source;
    uint32_t frame_length;
    uint64_t spare[SPARE]; /* chunks with a frame in them, none of them the kernel's */
    size_t spares;
    int64_t other;
};

static void prepare(struct pinger *pinger, const struct xdp_flow *flow)
{
    for (; pinger->spares < SPARE; pinger->spares++) {
        uint64_t address = (uint64_t)(pinger->port.chunks + pinger->spares) * XDP_CHUNK;
        pinger->frame_length = xdp_build_frame(flow, xdp_chunk(&pinger->port, address));
        pinger->spare[pinger->spares] = address;
    }
}

static void reap(struct pinger *pinger)
{
    struct xdp_port *port = &pinger->port;
    uint32_t index = 0, count = xsk_ring_cons__peek(&port->completion, SPARE, &index);
    for (uint32_t i = 0; i < count; i++)
        pinger->spare[pinger->spares++] = *xsk_ring_cons__comp_addr(&port->completion, index + i);
    if (count)
        xsk_ring_cons__release(&port->completion, count);
}

/* Whether the answer to `number` is among what has arrived. */
static bool find_answer(struct pinger *pinger, int64_t number)
{
    struct xdp_port *port = &pinger->port;
    uint32_t from = 0, to = 0, count = xsk_ring_cons__peek(&port->rx, (uint32_t)pinger->settings->batch, &from);
    if (!count)
        return false;
    bool found = false;
    xsk_ring_prod__reserve(&port->fill, count, &to);
    for (uint32_t i = 0; i < count; i++) {
        const struct xdp_desc *descriptor = xsk_ring_cons__rx_desc(&port->rx, from + i);
        const unsigned char *frame = xdp_chunk(port, descriptor->addr);
        bool match = xdp_is_to(frame, descriptor->len, pinger->source) && descriptor->len >= pinger->frame_length &&
                     !memcmp(frame + XDP_HEADERS, &number, sizeof number);
        found |= match;
        pinger->other += !match;
        *xsk_ring_prod__fill_addr(&port->fill, to + i) = descriptor->addr;
    }
    xsk_ring_prod__submit(&port->fill, count);
    xsk_ring_cons__release(&port->rx, count);
    return found;
}

/* True when the answer to `number` is there; false on time-out or a signal, or with an errno when the kernel said no. */
static bool await_answer(struct pinger *pinger, int64_t number, int64_t before, int64_t until)
{
    struct xdp_port *port = &pinger->port;
    bool pending = true;
    int64_t now = before;
    unsigned spins = 0;
    errno = 0;
    while (!ref_stop) {
        if (pending && (pending = xdp_pending(port))) {
            int error = xdp_kick(port);
            if (error) {
                errno = error;
                return false;
            }
        }
        if (find_answer(pinger, number))
            return true;
        if (pinger->settings->wait == XDP_WAIT_POLL && !(pending && (pending = xdp_pending(port)))) {
            if (now >= until)
                break;
            ref_wait_readable(port->fd, now, until);
            /* The first wait starts before the send; an answer, which most waits end with, needs no clock. */
            if (find_answer(pinger, number))
                return true;
            now = ref_now();
        } else if (++spins % XDP_SPINS_PER_CLOCK == 0) {
            xdp_wake_receive(port);
            if (ref_now() >= until)
                break;
        }
    }
    errno = 0;
    return false;
}

int main(int argc, char **argv)
{
    struct xdp_settings settings = {XDP_DEFAULTS};
    struct xdp_flow flow = {.payload_length = 64};
    int64_t timeout_ms = 200;
    const struct ref_option options[] = {
        XDP_OPTIONS_OF(&settings),
        XDP_OPTION_WAIT(&settings),
        XDP_FLOW_OPTIONS_OF(&flow),
        {"--timeout-ms", REF_NUMBER, &timeout_ms, "give an answer up after this time (200)", 1, 60000, NULL},
        REF_OPTION_COUNT(&settings.bounds.count, "stop after this many pings"),
    };
    ref_tool = "c-xdp-ping";
    ref_parse(argc, argv, "measure round trips of single datagrams through AF_XDP", options, REF_COUNT_OF(options));
    xdp_check_settings(&settings);
    ref_pin(settings.cpu);
    ref_catch_signals();

    struct pinger pinger = {.settings = &settings, .source = xdp_ipv4("--source", &flow.source)};
    struct xdp_port *port = &pinger.port;
    xdp_open(port, &settings, XDP_RECEIVES | XDP_SENDS, SPARE);
    prepare(&pinger, &flow);

    struct ref_samples samples = {0};
    int64_t limit = ref_count_limit(&settings.bounds), number = 0, lost = 0;
    int fatal = 0;
    struct xdp_usage usage_before = xdp_usage_now();
    int64_t start = ref_now(), deadline = ref_deadline(&settings.bounds, start), now = start;
    while (!ref_stop && !fatal && number < limit && now < deadline) {
        reap(&pinger);
        if (!pinger.spares) { /* all chunks are with packets that nobody frees; time brings one back, or the end */
            usleep(1000);
            now = ref_now();
            continue;
        }
        uint64_t address = pinger.spare[--pinger.spares];
        struct xdp_headers *headers = xdp_chunk(port, address);
        memcpy(headers + 1, &number, sizeof number);
        xdp_fill_udp_checksum(headers);

        uint32_t index = 0;
        int64_t before = ref_now();
        xsk_ring_prod__reserve(&port->tx, 1, &index);
        *xsk_ring_prod__tx_desc(&port->tx, index) = (struct xdp_desc){.addr = address, .len = pinger.frame_length};
        xsk_ring_prod__submit(&port->tx, 1);
        bool answered = await_answer(&pinger, number, before, before + timeout_ms * 1000000);
        now = ref_now();
        number++;
        if (answered) {
            ref_keep_sample(&samples, now - before);
        } else if (!ref_stop) {
            lost++;
            fatal = errno;
        }
    }
    struct xdp_usage usage_after = xdp_usage_now();
    double seconds = (double)(now - start) / 1e9;

    if (fatal)
        fprintf(stderr, "%s: %s\n", ref_tool, strerror(fatal));
    printf("{\"tool\": \"%s\", \"mode\": \"%s\", \"wait\": \"%s\", \"count\": %zu, \"lost\": %lld, \"dropped\": %lld, "
           "\"other\": %lld, \"seconds\": %.6f, \"payload_len\": %lld, ",
           ref_tool, xdp_mode_names[settings.mode], xdp_wait_names[settings.wait], samples.count, (long long)lost,
           (long long)port->dropped, (long long)pinger.other, seconds, (long long)flow.payload_length);
    ref_print_samples(&samples);
    printf(", ");
    xdp_print_receive(port);
    xdp_print_transmit(port);
    xdp_print_rest(&settings, port, usage_before, usage_after);
    xdp_close(port);
    return fatal ? 1 : 0;
}
