/* SPDX-License-Identifier: Apache-2.0
 *
 * The receiving limit: takes datagrams from a bound UDP socket with their source addresses, as a server would, and counts them.
 *
 *   recv      one recvfrom() a datagram
 *   recvmmsg  --batch datagrams a call
 *   gro       --batch buffers of 64 KiB a call, each a run of datagrams that the kernel left joined (UDP_GRO)
 *
 * It polls when the socket is empty, then receives without waiting until it is empty again.
 *
 * `dropped` is the kernel's own count (SO_MEMINFO). The kernel counts a joined run that does not fit as one drop, however many
 * datagrams it holds, so in a flood of GSO traffic `received + dropped` falls short of what was sent.
 */
#include "common.h"

enum mode { MODE_RECV, MODE_RECVMMSG, MODE_GRO };
static const char *const mode_names[] = {"recv", "recvmmsg", "gro", NULL};

/* Room for any datagram of an Ethernet link; `truncated` tells of larger ones. A joined run needs 64 KiB. */
enum { BUFFER_LENGTH = 2048, GRO_BUFFER_LENGTH = 65536 };

struct counter {
    int fd;
    int mode;
    int64_t batch;
    size_t buffer_length;
    unsigned char *buffers;
    struct iovec *vectors;
    struct mmsghdr *messages;
    struct sockaddr_storage *sources;
    unsigned char (*controls)[CMSG_SPACE(sizeof(int))];
    int64_t received, truncated, calls;
};

static void build_messages(struct counter *counter)
{
    size_t batch = (size_t)counter->batch;
    counter->buffers = ref_alloc(batch, counter->buffer_length);
    counter->vectors = ref_alloc(batch, sizeof *counter->vectors);
    counter->messages = ref_alloc(batch, sizeof *counter->messages);
    counter->sources = ref_alloc(batch, sizeof *counter->sources);
    counter->controls = ref_alloc(batch, sizeof *counter->controls);
    for (size_t i = 0; i < batch; i++) {
        struct msghdr *header = &counter->messages[i].msg_hdr;
        counter->vectors[i].iov_base = counter->buffers + i * counter->buffer_length;
        counter->vectors[i].iov_len = counter->buffer_length;
        header->msg_iov = &counter->vectors[i];
        header->msg_iovlen = 1;
        header->msg_name = &counter->sources[i];
        header->msg_namelen = sizeof counter->sources[i];
        if (counter->mode == MODE_GRO) {
            header->msg_control = counter->controls[i];
            header->msg_controllen = sizeof counter->controls[i];
        }
    }
}

/* How many datagrams a received message holds: one, unless the kernel says how long each of a run is. */
static inline int64_t datagrams_in(struct mmsghdr *message)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(&message->msg_hdr);
    int stride;
    if (!control || control->cmsg_level != SOL_UDP || control->cmsg_type != UDP_GRO)
        return 1;
    memcpy(&stride, CMSG_DATA(control), sizeof stride);
    return stride > 0 ? ((int64_t)message->msg_len + stride - 1) / stride : 1;
}

/* Each of these receives up to `most` datagrams, or a batch, without waiting; false once the socket is empty. */

static bool burst_by_recv(struct counter *counter, int64_t most)
{
    int64_t burst = most < counter->batch ? most : counter->batch;
    for (int64_t i = 0; i < burst; i++) {
        socklen_t source_length = sizeof *counter->sources;
        ssize_t length = recvfrom(counter->fd, counter->buffers, counter->buffer_length, MSG_DONTWAIT | MSG_TRUNC,
                                  (struct sockaddr *)counter->sources, &source_length);
        counter->calls++;
        if (length < 0)
            return false;
        counter->received++;
        counter->truncated += (size_t)length > counter->buffer_length;
    }
    return true;
}

static bool burst_by_recvmmsg(struct counter *counter, int64_t most)
{
    bool joined = counter->mode == MODE_GRO;
    int64_t burst = most < counter->batch ? most : counter->batch;
    int done = recvmmsg(counter->fd, counter->messages, (unsigned)burst, MSG_DONTWAIT, NULL);
    counter->calls++;
    if (done < 0)
        return false;
    for (int i = 0; i < done; i++) {
        struct msghdr *header = &counter->messages[i].msg_hdr;
        counter->received += joined ? datagrams_in(&counter->messages[i]) : 1;
        counter->truncated += (header->msg_flags & MSG_TRUNC) != 0;
        /* The kernel wrote how much it used of each; the next call needs to know how much there is. */
        header->msg_namelen = sizeof *counter->sources;
        if (joined)
            header->msg_controllen = sizeof *counter->controls;
    }
    return true;
}

/* Asks past the system's limit if privileged, else up to it; the answer is what the kernel made of it. */
static int set_receive_buffer(int fd, int64_t wanted)
{
    int size = (int)wanted;
    socklen_t length = sizeof size;
    if (wanted && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) &&
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size))
        ref_system_error("SO_RCVBUF");
    if (getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, &length))
        ref_system_error("SO_RCVBUF");
    return size;
}

static int64_t kernel_drops(int fd)
{
    uint32_t information[REF_MEMINFO_VARS] = {0};
    socklen_t length = sizeof information;
    if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, information, &length))
        ref_system_error("SO_MEMINFO");
    return information[REF_MEMINFO_DROPS];
}

int main(int argc, char **argv)
{
    int mode = MODE_RECVMMSG;
    int64_t batch = 64, idle_ms = 0, cpu = -1, rcvbuf = 0;
    struct ref_bounds bounds = {0};
    struct ref_address local = {0};
    const struct ref_option options[] = {
        {"--bind", REF_ADDRESS, &local, "where to receive; required", 0, 0, NULL},
        {"--mode", REF_CHOICE, &mode, "the system call (recvmmsg)", 0, 0, mode_names},
        REF_OPTION_BATCH(&batch, "messages a call; recv: calls between two looks at the clock (64)"),
        REF_OPTION_COUNT(&bounds.count, "stop after this many datagrams (gro: at the end of the run that reaches it)"),
        REF_OPTION_DURATION(&bounds.duration_ms),
        {"--idle-ms", REF_NUMBER, &idle_ms, "stop this long after the last datagram, once there was one", 1, 86400000, NULL},
        {"--rcvbuf", REF_NUMBER, &rcvbuf, "receive buffer in bytes (the system's default)", 1, INT32_MAX / 2, NULL},
        REF_OPTION_CPU(&cpu),
    };
    ref_tool = "c-count";
    ref_parse(argc, argv, "receive datagrams and count them", options, REF_COUNT_OF(options));
    if (!local.length)
        ref_usage_error("--bind is required");
    ref_pin(cpu);
    ref_catch_signals();

    struct counter counter = {
        .fd = ref_udp_socket(local.storage.ss_family),
        .mode = mode,
        .batch = batch,
        .buffer_length = mode == MODE_GRO ? GRO_BUFFER_LENGTH : BUFFER_LENGTH,
    };
    int granted = set_receive_buffer(counter.fd, rcvbuf);
    int on = 1;
    if (mode == MODE_GRO && setsockopt(counter.fd, SOL_UDP, UDP_GRO, &on, sizeof on))
        ref_system_error("UDP_GRO");
    build_messages(&counter);
    ref_bind(counter.fd, &local);
    ref_say_ready();

    int64_t limit = ref_count_limit(&bounds), idle = idle_ms ? idle_ms * 1000000 : INT64_MAX;
    int64_t now = ref_now(), deadline = ref_deadline(&bounds, now), first = 0, last = 0;
    int fatal = 0;
    while (!ref_stop && !fatal && counter.received < limit && now < deadline) {
        int64_t quiet_at = counter.received && idle < INT64_MAX - last ? last + idle : INT64_MAX;
        if (now >= quiet_at)
            break;
        bool readable = ref_wait_readable(counter.fd, now, deadline < quiet_at ? deadline : quiet_at);
        now = ref_now();
        if (!readable)
            continue;
        if (!counter.received)
            first = now;
        for (bool more = true; more && !ref_stop && counter.received < limit && now < deadline;) {
            int64_t before = counter.received;
            errno = 0;
            more = mode == MODE_RECV ? burst_by_recv(&counter, limit - counter.received)
                                     : burst_by_recvmmsg(&counter, limit - counter.received);
            if (!more && errno != EAGAIN && !ref_is_transient(errno))
                fatal = errno;
            if (counter.received != before)
                last = now = ref_now();
        }
    }

    if (fatal)
        fprintf(stderr, "%s: %s: %s\n", ref_tool, mode_names[mode], strerror(fatal));
    double seconds = counter.received ? (double)(last - first) / 1e9 : 0.0;
    printf("{\"tool\": \"%s\", \"mode\": \"%s\", \"received\": %lld, \"dropped\": %lld, \"seconds\": %.6f, \"pps\": %.1f, "
           "\"calls\": %lld, \"truncated\": %lld, \"rcvbuf\": %d, \"batch\": %lld}\n",
           ref_tool, mode_names[mode], (long long)counter.received, (long long)kernel_drops(counter.fd), seconds,
           ref_rate(counter.received, seconds), (long long)counter.calls, (long long)counter.truncated, granted,
           (long long)batch);
    return fatal ? 1 : 0;
}
