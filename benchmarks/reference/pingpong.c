/* SPDX-License-Identifier: Apache-2.0
 *
 * The latency limit: one datagram outstanding. `ping` sends it from a connected socket and waits for its return; `pong` sends
 * back whatever arrives to whoever sent it.
 *
 *   --wait  poll: poll(), then receive; spin: receive without waiting until something is there
 *   --api   send: send/recv (pong: recvfrom/sendto); mmsg: sendmmsg/recvmmsg, of one message in ping, of --batch in pong
 *
 * A ping carries its number, so that the late answer to a lost one is not taken for the next one's.
 */
#include "common.h"

enum role { ROLE_PING, ROLE_PONG };
enum wait { WAIT_POLL, WAIT_SPIN };
enum api { API_SEND, API_MMSG };
static const char *const role_names[] = {"ping", "pong", NULL};
static const char *const wait_names[] = {"poll", "spin", NULL};
static const char *const api_names[] = {"send", "mmsg", NULL};

/* An empty receive takes about 0.2 us, so a spinning loop looks at the clock every 10 us or so. */
enum { SPINS_PER_CLOCK = 64, BUFFER_LENGTH = 65536 };

struct settings {
    int role, wait, api;
    int64_t payload_length, batch, timeout_ms, cpu;
    struct ref_bounds bounds;
    struct ref_address remote, local;
};

/* ---- ping ---- */

static inline ssize_t transmit(int fd, int api, struct mmsghdr *message)
{
    struct iovec *vector = message->msg_hdr.msg_iov;
    if (api == API_MMSG)
        return sendmmsg(fd, message, 1, 0) == 1 ? (ssize_t)message->msg_len : -1;
    return send(fd, vector->iov_base, vector->iov_len, 0);
}

static inline ssize_t receive(int fd, int api, struct mmsghdr *message)
{
    struct iovec *vector = message->msg_hdr.msg_iov;
    if (api == API_MMSG)
        return recvmmsg(fd, message, 1, MSG_DONTWAIT, NULL) == 1 ? (ssize_t)message->msg_len : -1;
    return recv(fd, vector->iov_base, vector->iov_len, MSG_DONTWAIT);
}

/* True when the answer to `number` is there; false on time-out, on a signal, or with an errno when the kernel said no. */
static bool await_answer(int fd, const struct settings *settings, struct mmsghdr *message, int64_t number, int64_t until)
{
    const unsigned char *payload = message->msg_hdr.msg_iov->iov_base;
    int64_t now = 0;
    unsigned spins = 0;
    errno = 0;
    while (!ref_stop) {
        if (settings->wait == WAIT_POLL) {
            /* `until` is measured from before the send; the first wait starts there, later ones read the clock. */
            now = now ? ref_now() : until - settings->timeout_ms * 1000000;
            if (now >= until)
                break;
            if (!ref_wait_readable(fd, now, until))
                continue;
        } else if (++spins % SPINS_PER_CLOCK == 0 && ref_now() >= until) {
            break;
        }
        ssize_t length = receive(fd, settings->api, message);
        if (length < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (length == settings->payload_length && !memcmp(payload, &number, sizeof number))
            return true;
    }
    errno = 0;
    return false;
}

static int ping(const struct settings *settings)
{
    int fd = ref_connected_socket(&settings->remote, &settings->local);
    unsigned char *outgoing = ref_alloc(1, BUFFER_LENGTH), *incoming = ref_alloc(1, BUFFER_LENGTH);
    struct iovec out_vector = {outgoing, (size_t)settings->payload_length}, in_vector = {incoming, BUFFER_LENGTH};
    struct mmsghdr out = {.msg_hdr = {.msg_iov = &out_vector, .msg_iovlen = 1}};
    struct mmsghdr in = {.msg_hdr = {.msg_iov = &in_vector, .msg_iovlen = 1}};
    struct ref_samples samples = {0};
    int64_t lost = 0, errors = 0, limit = ref_count_limit(&settings->bounds), number = 0;
    int fatal = 0;

    int64_t start = ref_now(), deadline = ref_deadline(&settings->bounds, start), now = start;
    while (!ref_stop && !fatal && number < limit && now < deadline) {
        memcpy(outgoing, &number, sizeof number);
        int64_t before = ref_now();
        bool answered = transmit(fd, settings->api, &out) >= 0 &&
                        await_answer(fd, settings, &in, number, before + settings->timeout_ms * 1000000);
        now = ref_now();
        number++;
        if (answered) {
            ref_keep_sample(&samples, now - before);
        } else if (!ref_stop) {
            lost++;
            errors += errno != 0;
            if (errno && !ref_is_transient(errno))
                fatal = errno;
        }
    }
    double seconds = (double)(now - start) / 1e9;

    if (fatal)
        fprintf(stderr, "%s: %s\n", ref_tool, strerror(fatal));
    printf("{\"tool\": \"%s\", \"mode\": \"ping\", \"wait\": \"%s\", \"api\": \"%s\", \"count\": %zu, \"lost\": %lld, "
           "\"errors\": %lld, \"seconds\": %.6f, \"payload_len\": %lld, ",
           ref_tool, wait_names[settings->wait], api_names[settings->api], samples.count, (long long)lost,
           (long long)errors, seconds, (long long)settings->payload_length);
    ref_print_samples(&samples);
    puts("}");
    return fatal ? 1 : 0;
}

/* ---- pong ---- */

struct reflector {
    int fd;
    int64_t batch;
    struct mmsghdr *messages;
    int64_t reflected, errors;
};

/* Both return how many datagrams they received, 0 for none, -1 with errno for an error. */

static int64_t reflect_one(struct reflector *reflector)
{
    struct msghdr *header = &reflector->messages->msg_hdr;
    socklen_t source_length = sizeof(struct sockaddr_storage);
    ssize_t length = recvfrom(reflector->fd, header->msg_iov->iov_base, BUFFER_LENGTH, MSG_DONTWAIT, header->msg_name,
                              &source_length);
    if (length < 0)
        return errno == EAGAIN ? 0 : -1;
    if (sendto(reflector->fd, header->msg_iov->iov_base, (size_t)length, 0, header->msg_name, source_length) < 0)
        reflector->errors++;
    else
        reflector->reflected++;
    return 1;
}

static int64_t reflect_batch(struct reflector *reflector, int64_t most)
{
    int64_t burst = most < reflector->batch ? most : reflector->batch;
    int received = recvmmsg(reflector->fd, reflector->messages, (unsigned)burst, MSG_DONTWAIT, NULL);
    if (received < 0)
        return errno == EAGAIN ? 0 : -1;
    for (int i = 0; i < received; i++)
        reflector->messages[i].msg_hdr.msg_iov->iov_len = reflector->messages[i].msg_len;
    for (int sent = 0; sent < received;) {
        int done = sendmmsg(reflector->fd, reflector->messages + sent, (unsigned)(received - sent), 0);
        if (done > 0) {
            reflector->reflected += done;
            sent += done;
        } else if (errno != EINTR) {
            reflector->errors++; /* this one cannot be sent; those behind it may */
            sent++;
        } else if (ref_stop) {
            break;
        }
    }
    for (int i = 0; i < received; i++) {
        reflector->messages[i].msg_hdr.msg_iov->iov_len = BUFFER_LENGTH;
        reflector->messages[i].msg_hdr.msg_namelen = sizeof(struct sockaddr_storage);
    }
    return received;
}

static int pong(const struct settings *settings)
{
    if (!settings->local.length)
        ref_usage_error("--bind is required");
    size_t batch = settings->api == API_MMSG ? (size_t)settings->batch : 1;
    struct reflector reflector = {
        .fd = ref_udp_socket(settings->local.storage.ss_family),
        .batch = (int64_t)batch,
        .messages = ref_alloc(batch, sizeof *reflector.messages),
    };
    struct iovec *vectors = ref_alloc(batch, sizeof *vectors);
    struct sockaddr_storage *sources = ref_alloc(batch, sizeof *sources);
    /* A cache line between buffers, lest their first lines all fall into one cache set. */
    unsigned char *buffers = ref_alloc(batch, BUFFER_LENGTH + 64);
    for (size_t i = 0; i < batch; i++) {
        struct msghdr *header = &reflector.messages[i].msg_hdr;
        vectors[i] = (struct iovec){buffers + i * (BUFFER_LENGTH + 64), BUFFER_LENGTH};
        header->msg_iov = &vectors[i];
        header->msg_iovlen = 1;
        header->msg_name = &sources[i];
        header->msg_namelen = sizeof sources[i];
    }
    ref_bind(reflector.fd, &settings->local);
    ref_say_ready();

    int64_t handled = 0, limit = ref_count_limit(&settings->bounds), turns = 0;
    int64_t start = ref_now(), deadline = ref_deadline(&settings->bounds, start), now = start, first = 0, last = 0;
    int fatal = 0;
    while (!ref_stop && !fatal && handled < limit && now < deadline) {
        int64_t received = settings->api == API_MMSG ? reflect_batch(&reflector, limit - handled) : reflect_one(&reflector);
        if (received > 0) {
            handled += received;
            /* The answer is on its way: the clock is read where it delays nobody. */
            last = now = ref_now();
            first = first ? first : now;
        } else if (received < 0) {
            reflector.errors++;
            if (!ref_is_transient(errno))
                fatal = errno;
        } else if (settings->wait == WAIT_POLL) {
            now = ref_now();
            ref_wait_readable(reflector.fd, now, deadline);
        } else if (++turns % SPINS_PER_CLOCK == 0) {
            now = ref_now();
        }
    }

    if (fatal)
        fprintf(stderr, "%s: %s\n", ref_tool, strerror(fatal));
    double seconds = (double)(last - first) / 1e9;
    printf("{\"tool\": \"%s\", \"mode\": \"pong\", \"wait\": \"%s\", \"api\": \"%s\", \"count\": %lld, \"errors\": %lld, "
           "\"seconds\": %.6f, \"pps\": %.1f}\n",
           ref_tool, wait_names[settings->wait], api_names[settings->api], (long long)reflector.reflected,
           (long long)reflector.errors, seconds, ref_rate(reflector.reflected, seconds));
    return fatal ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct settings settings = {.role = -1, .payload_length = 64, .batch = 64, .timeout_ms = 200, .cpu = -1};
    const struct ref_option options[] = {
        {"--role", REF_CHOICE, &settings.role, "which end to be; required", 0, 0, role_names},
        {"--dest", REF_ADDRESS, &settings.remote, "ping: where the pong is; required", 0, 0, NULL},
        {"--bind", REF_ADDRESS, &settings.local, "pong: where to receive, required; ping: where to send from", 0, 0, NULL},
        {"--wait", REF_CHOICE, &settings.wait, "how to wait (poll)", 0, 0, wait_names},
        {"--api", REF_CHOICE, &settings.api, "the system calls (send)", 0, 0, api_names},
        {"--payload-len", REF_NUMBER, &settings.payload_length, "ping: bytes in each datagram (64)", 8, REF_MAX_PAYLOAD,
         NULL},
        REF_OPTION_BATCH(&settings.batch, "pong with --api mmsg: messages a call (64)"),
        {"--timeout-ms", REF_NUMBER, &settings.timeout_ms, "ping: give an answer up after this time (200)", 1, 60000, NULL},
        REF_OPTION_COUNT(&settings.bounds.count, "stop after this many datagrams"),
        REF_OPTION_DURATION(&settings.bounds.duration_ms),
        REF_OPTION_CPU(&settings.cpu),
    };
    ref_tool = "c-pingpong";
    ref_parse(argc, argv, "bounce single datagrams and measure their round trips", options, REF_COUNT_OF(options));
    if (settings.role < 0)
        ref_usage_error("--role is required (accepted: ping, pong)");
    ref_pin(settings.cpu);
    ref_catch_signals();
    return settings.role == ROLE_PING ? ping(&settings) : pong(&settings);
}
