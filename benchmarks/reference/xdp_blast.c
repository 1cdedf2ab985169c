/* SPDX-License-Identifier: Apache-2.0
 *
 * The sending limit of AF_XDP: one TX socket, one thread, frames that were built before the start.
 *
 * Every chunk holds the same frame and every entry of TX points at a chunk of its own, both written once: a turn of the loop
 * moves ring indices and wakes the kernel, and no program that writes descriptors or frames can be faster.
 *
 * `sent` is what the device took: completions, without those of packets that it dropped (`dropped`). `unfinished` is what was
 * not completed FLUSH_MS after the last wake-up.
 */
#include "xdp_common.h"

enum { FLUSH_MS = 200 };

struct blaster {
    struct xdp_port port;
    int64_t submitted, completed;
};

static void prepare(struct blaster *blaster, const struct xdp_flow *flow)
{
    struct xdp_port *port = &blaster->port;
    unsigned char frame[XDP_MAX_FRAME];
    uint32_t length = xdp_build_frame(flow, frame);
    for (uint32_t i = 0; i < port->tx.size; i++) {
        uint64_t address = (uint64_t)i * XDP_CHUNK;
        memcpy(xdp_chunk(port, address), frame, length);
        *xsk_ring_prod__tx_desc(&port->tx, i) = (struct xdp_desc){.addr = address, .len = length};
    }
}

/* One turn. As many chunks as TX has entries: what is not completed cannot be sent again. */
static int turn(struct blaster *blaster, int64_t batch, int64_t limit)
{
    struct xdp_port *port = &blaster->port;
    blaster->completed += xdp_drop_completions(port);
    int64_t idle = (int64_t)port->chunks - (blaster->submitted - blaster->completed);
    int64_t count = limit - blaster->submitted;
    count = count < batch ? count : batch;
    count = count < idle ? count : idle;
    /* Not more than a batch ahead of the kernel: the frames it reads next are still in the cache. */
    uint32_t index = 0;
    if (count > 0 && (int64_t)xdp_pending(port) < batch && xsk_ring_prod__reserve(&port->tx, (uint32_t)count, &index)) {
        xsk_ring_prod__submit(&port->tx, (uint32_t)count);
        blaster->submitted += count;
    }
    return xdp_kick(port);
}

int main(int argc, char **argv)
{
    struct xdp_settings settings = {XDP_DEFAULTS};
    struct xdp_flow flow = {.payload_length = 64};
    int64_t budget = 0;
    const struct ref_option options[] = {
        XDP_OPTIONS_OF(&settings),
        XDP_FLOW_OPTIONS_OF(&flow),
        {"--tx-budget", REF_NUMBER, &budget, "descriptors a wake-up takes in copy mode (the kernel's default, 32)", 32,
         XDP_MAX_RING, NULL},
        REF_OPTION_COUNT(&settings.bounds.count, "stop after this many packets"),
    };
    ref_tool = "c-xdp-blast";
    ref_parse(argc, argv, "send prepared frames through AF_XDP as fast as the kernel takes them", options,
              REF_COUNT_OF(options));
    xdp_check_settings(&settings);
    ref_pin(settings.cpu);
    ref_catch_signals();

    struct blaster blaster = {0};
    struct xdp_port *port = &blaster.port;
    xdp_open(port, &settings, XDP_SENDS, 0);
    uint32_t granted = (uint32_t)budget;
    if (budget && setsockopt(port->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &granted, sizeof granted))
        ref_fail(1, "--tx-budget: %s (needs Linux 6.17, and at most --ring-size)", strerror(errno));
    prepare(&blaster, &flow);

    int64_t limit = ref_count_limit(&settings.bounds);
    int fatal = 0;
    struct xdp_usage before = xdp_usage_now();
    int64_t start = ref_now(), deadline = ref_deadline(&settings.bounds, start), now = start;
    while (!ref_stop && !fatal && blaster.submitted < limit && now < deadline) {
        fatal = turn(&blaster, settings.batch, limit);
        now = ref_now();
    }
    /* What is in TX is sent before the end, so that the sum holds. */
    for (int64_t until = now + FLUSH_MS * 1000000LL, at = now; !fatal && blaster.completed < blaster.submitted && at < until;) {
        fatal = turn(&blaster, settings.batch, blaster.submitted);
        at = ref_now();
        if (blaster.completed == blaster.submitted)
            now = at;
    }
    struct xdp_usage after = xdp_usage_now();
    double seconds = (double)(now - start) / 1e9;
    int64_t sent = blaster.completed - port->dropped;

    if (fatal)
        fprintf(stderr, "%s: %s\n", ref_tool, strerror(fatal));
    printf("{\"tool\": \"%s\", \"mode\": \"%s\", \"sent\": %lld, \"seconds\": %.6f, \"pps\": %.1f, \"dropped\": %lld, "
           "\"unfinished\": %lld, \"payload_len\": %lld, ",
           ref_tool, xdp_mode_names[settings.mode], (long long)sent, seconds, ref_rate(sent, seconds),
           (long long)port->dropped, (long long)(blaster.submitted - blaster.completed), (long long)flow.payload_length);
    xdp_print_transmit(port);
    xdp_print_rest(&settings, port, before, after);
    xdp_close(port);
    return fatal ? 1 : 0;
}
