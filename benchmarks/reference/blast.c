/* SPDX-License-Identifier: Apache-2.0
 *
 * The sending limit: datagrams to one peer from a connected UDP socket, as fast as the kernel takes them.
 *
 *   send      one send() a datagram
 *   sendmmsg  --batch datagrams a call
 *   gso       --batch messages a call, each of --segments datagrams that the kernel cuts (UDP_SEGMENT)
 *
 * Without --sequence nothing is written between calls and all messages point at one prepared payload: no program that fills
 * its payloads can be faster. With it, each datagram has memory of its own and starts with a big-endian 64-bit number.
 */
#include "common.h"

#include <endian.h>

enum mode { MODE_SEND, MODE_SENDMMSG, MODE_GSO };
static const char *const mode_names[] = {"send", "sendmmsg", "gso", NULL};

struct blaster {
    int fd;
    bool sequence;
    size_t payload_length;
    int64_t batch;    /* messages a call */
    int64_t segments; /* datagrams a message */
    unsigned char *payloads;
    struct iovec *vectors;
    struct mmsghdr *messages;
    int64_t first, filled; /* messages[first..filled) are prepared and not yet taken by the kernel */
    int64_t per_message;   /* datagrams in each of those */
};

/* What one call or burst came to: a prefix that was sent, and the error that ended it, or 0. */
struct outcome {
    int64_t sent;
    int error;
};

static inline void stamp(unsigned char *payload, int64_t number)
{
    uint64_t wire = htobe64((uint64_t)number);
    memcpy(payload, &wire, sizeof wire);
}

static struct outcome burst_by_send(struct blaster *blaster, int64_t sent, int64_t remaining)
{
    int64_t burst = remaining < blaster->batch ? remaining : blaster->batch;
    for (int64_t i = 0; i < burst; i++) {
        if (blaster->sequence)
            stamp(blaster->payloads, sent + i);
        if (send(blaster->fd, blaster->payloads, blaster->payload_length, MSG_DONTWAIT) < 0)
            return (struct outcome){i, errno};
    }
    return (struct outcome){burst, 0};
}

/* Messages of one batch are all alike, so that counting them is one multiplication; what does not fill a message comes last,
 * as one shorter message. */
static void prepare(struct blaster *blaster, int64_t sent, int64_t remaining)
{
    int64_t per_message = remaining < blaster->segments ? remaining : blaster->segments;
    int64_t messages = remaining / per_message;
    blaster->first = 0;
    blaster->filled = messages < blaster->batch ? messages : blaster->batch;
    if (per_message != blaster->per_message) {
        blaster->per_message = per_message;
        for (int64_t i = 0; i < blaster->batch; i++)
            blaster->vectors[i].iov_len = (size_t)per_message * blaster->payload_length;
    }
    if (!blaster->sequence)
        return;
    for (int64_t i = 0; i < blaster->filled; i++)
        for (int64_t s = 0; s < per_message; s++)
            stamp((unsigned char *)blaster->vectors[i].iov_base + (size_t)s * blaster->payload_length, sent++);
}

static struct outcome burst_by_sendmmsg(struct blaster *blaster, int64_t sent, int64_t remaining)
{
    if (blaster->first == blaster->filled)
        prepare(blaster, sent, remaining);
    int done = sendmmsg(blaster->fd, blaster->messages + blaster->first, (unsigned)(blaster->filled - blaster->first),
                        MSG_DONTWAIT);
    if (done < 0)
        return (struct outcome){0, errno};
    blaster->first += done;
    return (struct outcome){done * blaster->per_message, 0};
}

static void build_messages(struct blaster *blaster)
{
    size_t message_length = (size_t)blaster->segments * blaster->payload_length;
    blaster->payloads = ref_alloc(blaster->sequence ? (size_t)blaster->batch : 1, message_length);
    blaster->vectors = ref_alloc((size_t)blaster->batch, sizeof *blaster->vectors);
    blaster->messages = ref_alloc((size_t)blaster->batch, sizeof *blaster->messages);
    for (int64_t i = 0; i < blaster->batch; i++) {
        blaster->vectors[i].iov_base = blaster->payloads + (blaster->sequence ? (size_t)i * message_length : 0);
        blaster->messages[i].msg_hdr.msg_iov = &blaster->vectors[i];
        blaster->messages[i].msg_hdr.msg_iovlen = 1;
    }
}

int main(int argc, char **argv)
{
    int mode = MODE_SENDMMSG;
    bool sequence = false;
    int64_t payload_length = 64, batch = 64, segments = 0, cpu = -1;
    struct ref_bounds bounds = {0};
    struct ref_address remote = {0}, local = {0};
    const struct ref_option options[] = {
        {"--dest", REF_ADDRESS, &remote, "where to send; required", 0, 0, NULL},
        {"--bind", REF_ADDRESS, &local, "where to send from", 0, 0, NULL},
        {"--mode", REF_CHOICE, &mode, "the system call (sendmmsg)", 0, 0, mode_names},
        {"--payload-len", REF_NUMBER, &payload_length, "bytes in each datagram (64)", 1, REF_MAX_PAYLOAD, NULL},
        REF_OPTION_BATCH(&batch, "messages a call; send: calls between two looks at the clock (64)"),
        {"--segments", REF_NUMBER, &segments, "gso: datagrams a message (128 if the kernel takes it, else 64)",
         1, REF_MAX_PAYLOAD, NULL},
        {"--sequence", REF_FLAG, &sequence, "number the datagrams: big-endian 64 bits at offset 0", 0, 0, NULL},
        REF_OPTION_COUNT(&bounds.count, "stop after this many datagrams"),
        REF_OPTION_DURATION(&bounds.duration_ms),
        REF_OPTION_CPU(&cpu),
    };
    ref_tool = "c-blast";
    ref_parse(argc, argv, "send datagrams as fast as the kernel takes them", options, REF_COUNT_OF(options));
    if (sequence && payload_length < 8)
        ref_usage_error("--sequence needs a --payload-len of at least 8, not %lld", (long long)payload_length);
    if (segments && mode != MODE_GSO)
        ref_usage_error("--segments belongs to --mode gso");
    if (segments * payload_length > REF_MAX_PAYLOAD)
        ref_usage_error("--segments: %lld datagrams of %lld bytes exceed a message's %d bytes", (long long)segments,
                        (long long)payload_length, REF_MAX_PAYLOAD);
    ref_pin(cpu);
    ref_catch_signals();

    struct blaster blaster = {
        .fd = ref_connected_socket(&remote, &local),
        .sequence = sequence,
        .payload_length = (size_t)payload_length,
        .batch = batch,
        .segments = 1,
    };
    bool probing = false; /* the first message tells whether the kernel takes 128 segments: nothing extra is sent */
    if (mode == MODE_GSO) {
        int segment_size = (int)payload_length;
        int64_t fitting = REF_MAX_PAYLOAD / payload_length;
        blaster.segments = segments ? segments : fitting < REF_SEGMENTS_NEW ? fitting : REF_SEGMENTS_NEW;
        probing = !segments && blaster.segments > REF_SEGMENTS_OLD;
        /* A socket option, since all messages are cut alike: a control message would be parsed for each of them. */
        if (setsockopt(blaster.fd, SOL_UDP, UDP_SEGMENT, &segment_size, sizeof segment_size))
            ref_system_error("UDP_SEGMENT");
    }
    build_messages(&blaster);

    int64_t sent = 0, errors = 0, again = 0, limit = ref_count_limit(&bounds);
    int fatal = 0;
    int64_t start = ref_now(), deadline = ref_deadline(&bounds, start), now = start;
    while (!ref_stop && sent < limit && now < deadline) {
        struct outcome outcome = mode == MODE_SEND ? burst_by_send(&blaster, sent, limit - sent)
                                                   : burst_by_sendmmsg(&blaster, sent, limit - sent);
        sent += outcome.sent;
        if (outcome.error == EAGAIN) {
            again++;
        } else if (outcome.error == EINVAL && probing && !sent) {
            probing = false;
            blaster.segments = REF_SEGMENTS_OLD;
            blaster.first = blaster.filled = 0;
        } else if (outcome.error && outcome.error != EINTR) {
            errors++;
            if (!ref_is_transient(outcome.error)) {
                fatal = outcome.error;
                break;
            }
        }
        now = ref_now();
    }
    double seconds = (double)(ref_now() - start) / 1e9;

    if (fatal)
        fprintf(stderr, "%s: %s: %s%s\n", ref_tool, mode_names[mode], strerror(fatal),
                mode == MODE_GSO && fatal == EINVAL ? " (a datagram beyond the MTU, or too many segments)"
                : mode == MODE_GSO && fatal == EIO  ? " (the device cannot compute checksums, which GSO needs)"
                                                    : "");
    printf("{\"tool\": \"%s\", \"mode\": \"%s\", \"sent\": %lld, \"seconds\": %.6f, \"pps\": %.1f, \"errors\": %lld, "
           "\"again\": %lld, \"batch\": %lld, \"segments\": %lld, \"payload_len\": %lld}\n",
           ref_tool, mode_names[mode], (long long)sent, seconds, ref_rate(sent, seconds), (long long)errors,
           (long long)again, (long long)batch, (long long)blaster.segments, (long long)payload_length);
    return fatal ? 1 : 0;
}
