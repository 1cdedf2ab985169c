/* SPDX-License-Identifier: Apache-2.0
 *
 * What the reference loops share: command lines, addresses, pinning, clocks, stopping, and the constants that glibc lacks.
 * Everything is `static inline`, so that each tool is one translation unit and the compiler sees the whole of it.
 *
 * Exit status of every tool: 0 done, 1 the system refused something, 2 the command line is wrong.
 */
#ifndef FAST_SOCKET_REFERENCE_COMMON_H
#define FAST_SOCKET_REFERENCE_COMMON_H

#ifndef _GNU_SOURCE
#error "build with -D_GNU_SOURCE (the Makefile does): sendmmsg, recvmmsg and CPU_SET need it"
#endif

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* ---- constants ---- */

/* Linux include/uapi/linux/udp.h, since 4.18 and 5.0; glibc has them since 2.28 and 2.31. */
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
/* Linux include/uapi/asm-generic/socket.h (4.12). */
#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif
/* Linux include/uapi/linux/sock_diag.h: the array that SO_MEMINFO fills, and the element that counts drops. */
enum { REF_MEMINFO_DROPS = 8, REF_MEMINFO_VARS = 9 };
/* Linux include/linux/udp.h, UDP_MAX_SEGMENTS: 64 up to 6.8, 128 since. */
enum { REF_SEGMENTS_NEW = 128, REF_SEGMENTS_OLD = 64 };
/* Linux include/uapi/linux/uio.h, UIO_MAXIOV: sendmmsg and recvmmsg take no more messages than this. */
enum { REF_MAX_BATCH = 1024 };
/* The largest UDP payload of IPv4: 65535 - 20 - 8. IPv6 takes 20 more, which no measurement here needs. */
enum { REF_MAX_PAYLOAD = 65507 };

#define REF_DEFAULT_DURATION_MS 5000
/* A signal that lands between the check of `ref_stop` and poll() is seen this much later, never lost. */
#define REF_POLL_SLICE_MS 100

/* ---- failing ---- */

static const char *ref_tool = "reference";

__attribute__((noreturn, format(printf, 2, 3)))
static inline void ref_fail(int status, const char *format, ...)
{
    va_list arguments;
    fflush(stdout);
    fprintf(stderr, "%s: ", ref_tool);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(status);
}

#define ref_usage_error(...) ref_fail(2, __VA_ARGS__)
#define ref_system_error(what) ref_fail(1, "%s: %s", (what), strerror(errno))

static inline void *ref_alloc(size_t count, size_t size)
{
    void *memory = NULL;
    if (__builtin_mul_overflow(count, size, &size) || posix_memalign(&memory, 4096, size ? size : 1))
        ref_fail(1, "out of memory");
    memset(memory, 0, size); /* touch the pages now, not inside the measured loop */
    return memory;
}

/* ---- time and stopping ---- */

static inline int64_t ref_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static volatile sig_atomic_t ref_stop;

static inline void ref_on_signal(int number)
{
    (void)number;
    ref_stop = 1;
}

/* SIGINT and SIGTERM end the loop, so that the closing report is still printed. */
static inline void ref_catch_signals(void)
{
    struct sigaction action = {.sa_handler = ref_on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* Every run is bounded: by a count, by a time, or, where neither is given, by REF_DEFAULT_DURATION_MS. 0 means not given. */
struct ref_bounds {
    int64_t count;
    int64_t duration_ms;
};

static inline int64_t ref_deadline(const struct ref_bounds *bounds, int64_t start)
{
    int64_t milliseconds = bounds->duration_ms;
    if (!milliseconds && bounds->count)
        return INT64_MAX;
    return start + (milliseconds ? milliseconds : REF_DEFAULT_DURATION_MS) * 1000000;
}

static inline int64_t ref_count_limit(const struct ref_bounds *bounds)
{
    return bounds->count ? bounds->count : INT64_MAX;
}

/* Waits until the socket is readable, `until` has come, or a slice has passed. True if readable. */
static inline bool ref_wait_readable(int fd, int64_t now, int64_t until)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    int64_t left = until > now ? (until - now + 999999) / 1000000 : 0;
    int timeout = left < REF_POLL_SLICE_MS ? (int)left : REF_POLL_SLICE_MS;
    int ready = poll(&entry, 1, timeout);
    if (ready < 0 && errno != EINTR)
        ref_system_error("poll");
    return ready > 0;
}

/* Errors that speak of the path or the peer, not of the call: the next call may well succeed. */
static inline bool ref_is_transient(int error)
{
    return error == ECONNREFUSED || error == EHOSTUNREACH || error == ENETUNREACH || error == ENOBUFS || error == EINTR;
}

/* ---- addresses ---- */

struct ref_address {
    struct sockaddr_storage storage;
    socklen_t length; /* 0: not given */
};

static inline void ref_parse_address(const char *option, const char *text, struct ref_address *address)
{
    static const char accepted[] = "accepted: IPv4:PORT or [IPv6]:PORT, numbers only";
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    const char *colon = strrchr(text, ':');
    char host[128];
    size_t host_length = colon ? (size_t)(colon - text) : 0;
    bool bracketed = host_length > 2 && text[0] == '[' && colon[-1] == ']';
    size_t skip = bracketed ? 1 : 0;

    if (!host_length || host_length >= sizeof host)
        ref_usage_error("%s: '%s' is no address (%s)", option, text, accepted);
    memcpy(host, text + skip, host_length - 2 * skip);
    host[host_length - 2 * skip] = '\0';

    char *port_end = NULL;
    long port = colon[1] >= '0' && colon[1] <= '9' ? strtol(colon + 1, &port_end, 10) : -1;
    if (port < 0 || port > 65535 || *port_end)
        ref_usage_error("%s: '%s' has no port between 0 and 65535 (%s)", option, text, accepted);
    hints.ai_family = bracketed ? AF_INET6 : AF_INET;
    if (getaddrinfo(host, colon + 1, &hints, &found))
        ref_usage_error("%s: '%s' is no address (%s)", option, text, accepted);
    memcpy(&address->storage, found->ai_addr, found->ai_addrlen);
    address->length = found->ai_addrlen;
    freeaddrinfo(found);
}

static inline void ref_parse_mac(const char *option, const char *text, uint8_t mac[6])
{
    char trailing;
    if (sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%c", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5],
               &trailing) != 6)
        ref_usage_error("%s: '%s' is no MAC address (accepted: 02:00:00:00:00:01)", option, text);
}

static inline int ref_udp_socket(int family)
{
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        ref_system_error("socket");
    return fd;
}

static inline void ref_bind(int fd, const struct ref_address *address)
{
    if (bind(fd, (const struct sockaddr *)&address->storage, address->length))
        ref_system_error("bind");
}

/* A connected socket: the route and the destination are looked up once. */
static inline int ref_connected_socket(const struct ref_address *remote, const struct ref_address *local)
{
    if (!remote->length)
        ref_usage_error("--dest is required");
    if (local->length && local->storage.ss_family != remote->storage.ss_family)
        ref_usage_error("--bind and --dest are of different families");
    int fd = ref_udp_socket(remote->storage.ss_family);
    if (local->length)
        ref_bind(fd, local);
    if (connect(fd, (const struct sockaddr *)&remote->storage, remote->length))
        ref_system_error("connect");
    return fd;
}

/* ---- command lines ---- */

enum ref_option_kind { REF_NUMBER, REF_FLAG, REF_CHOICE, REF_ADDRESS, REF_TEXT, REF_MAC };

struct ref_option {
    const char *name; /* with its dashes */
    enum ref_option_kind kind;
    void *value;      /* int64_t, bool, int (an index into choices), struct ref_address, const char *, or six bytes */
    const char *help;
    int64_t least, most;        /* of a number */
    const char *const *choices; /* of a choice; ends with NULL */
};

static inline void ref_print_help(const char *about, const struct ref_option *options, size_t count)
{
    printf("%s: %s\n\noptions:\n", ref_tool, about);
    for (size_t i = 0; i < count; i++) {
        const struct ref_option *option = &options[i];
        printf("  %s", option->name);
        if (option->kind == REF_NUMBER)
            printf(" N");
        else if (option->kind == REF_ADDRESS)
            printf(" IP:PORT");
        else if (option->kind == REF_TEXT)
            printf(" NAME");
        else if (option->kind == REF_MAC)
            printf(" MAC");
        for (int c = 0; option->kind == REF_CHOICE && option->choices[c]; c++)
            printf("%s%s", c ? "|" : " ", option->choices[c]);
        printf("\n      %s\n", option->help);
    }
}

static inline void ref_parse_value(const struct ref_option *option, const char *text)
{
    if (option->kind == REF_ADDRESS) {
        ref_parse_address(option->name, text, option->value);
    } else if (option->kind == REF_TEXT) {
        *(const char **)option->value = text;
    } else if (option->kind == REF_MAC) {
        ref_parse_mac(option->name, text, option->value);
    } else if (option->kind == REF_CHOICE) {
        for (int c = 0; option->choices[c]; c++)
            if (!strcmp(option->choices[c], text)) {
                *(int *)option->value = c;
                return;
            }
        char accepted[128] = "";
        for (int c = 0; option->choices[c]; c++) {
            strncat(accepted, c ? ", " : "", sizeof accepted - strlen(accepted) - 1);
            strncat(accepted, option->choices[c], sizeof accepted - strlen(accepted) - 1);
        }
        ref_usage_error("%s: '%s' is not known (accepted: %s)", option->name, text, accepted);
    } else {
        char *end = NULL;
        errno = 0;
        long long number = strtoll(text, &end, 10);
        if (end == text || *end || errno || number < option->least || number > option->most)
            ref_usage_error("%s: '%s' is not accepted (accepted: a number from %lld to %lld)", option->name, text,
                            (long long)option->least, (long long)option->most);
        *(int64_t *)option->value = number;
    }
}

/* Accepts `--name value` and `--name=value`. */
static inline void ref_parse(int argc, char **argv, const char *about, const struct ref_option *options, size_t count)
{
    for (int a = 1; a < argc; a++) {
        const char *equals = strchr(argv[a], '=');
        size_t length = equals ? (size_t)(equals - argv[a]) : strlen(argv[a]);
        const struct ref_option *option = NULL;
        if (!strcmp(argv[a], "--help") || !strcmp(argv[a], "-h")) {
            ref_print_help(about, options, count);
            exit(0);
        }
        for (size_t i = 0; i < count && !option; i++)
            if (strlen(options[i].name) == length && !strncmp(options[i].name, argv[a], length))
                option = &options[i];
        if (!option)
            ref_usage_error("'%s' is no option of this tool (see --help)", argv[a]);
        if (option->kind == REF_FLAG) {
            if (equals)
                ref_usage_error("%s takes no value", option->name);
            *(bool *)option->value = true;
            continue;
        }
        if (!equals && a + 1 >= argc)
            ref_usage_error("%s needs a value", option->name);
        ref_parse_value(option, equals ? equals + 1 : argv[++a]);
    }
}

/* Options that several tools have, in the same words. */
#define REF_OPTION_COUNT(target, words) {"--count", REF_NUMBER, (target), words, 1, INT64_MAX, NULL}
#define REF_OPTION_DURATION(target) \
    {"--duration-ms", REF_NUMBER, (target), "stop after this time (5000 if neither this nor --count is given)", \
     1, 86400000, NULL}
#define REF_OPTION_BATCH(target, words) {"--batch", REF_NUMBER, (target), words, 1, REF_MAX_BATCH, NULL}
#define REF_OPTION_CPU(target) \
    {"--cpu", REF_NUMBER, (target), "pin the tool to this CPU", 0, CPU_SETSIZE - 1, NULL}
#define REF_COUNT_OF(array) (sizeof(array) / sizeof *(array))

/* Pins the tool; -1 leaves it free. */
static inline void ref_pin(int64_t cpu)
{
    cpu_set_t set;
    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        ref_usage_error("--cpu: CPU %lld cannot be used (%s)", (long long)cpu, strerror(errno));
}

/* ---- reports ---- */

static inline double ref_rate(int64_t events, double seconds)
{
    return seconds > 0 ? (double)events / seconds : 0.0;
}

/* Tells whoever started the tool that datagrams sent from now on are seen. */
static inline void ref_say_ready(void)
{
    puts("ready");
    fflush(stdout);
}

/* ---- round-trip times ---- */

struct ref_samples {
    int64_t *values;
    size_t count, room;
};

static inline void ref_keep_sample(struct ref_samples *samples, int64_t value)
{
    if (samples->count == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 65536;
        samples->values = realloc(samples->values, samples->room * sizeof *samples->values);
        if (!samples->values)
            ref_fail(1, "out of memory");
    }
    samples->values[samples->count++] = value;
}

static inline int ref_compare_samples(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

/* Nearest rank, of sorted samples: the smallest one that at least `percent` of all do not exceed. */
static inline long long ref_percentile(const struct ref_samples *samples, size_t percent)
{
    if (!samples->count)
        return 0;
    size_t rank = (percent * samples->count + 99) / 100;
    return samples->values[rank ? rank - 1 : 0];
}

/* Histograms have eight buckets an octave: this is the least value of a value's bucket. */
static inline int64_t ref_bucket(int64_t value)
{
    int shift = value < 16 ? 0 : 60 - __builtin_clzll((unsigned long long)value);
    return value >> shift << shift;
}

/* The members `rtt_ns` and `rtt_histogram` of a report. */
static inline void ref_print_samples(struct ref_samples *samples)
{
    if (samples->count)
        qsort(samples->values, samples->count, sizeof *samples->values, ref_compare_samples);
    printf("\"rtt_ns\": {\"min\": %lld, \"p50\": %lld, \"p90\": %lld, \"p99\": %lld, \"max\": %lld}",
           ref_percentile(samples, 0), ref_percentile(samples, 50), ref_percentile(samples, 90),
           ref_percentile(samples, 99), ref_percentile(samples, 100));
    printf(", \"rtt_histogram\": [");
    for (size_t from = 0, to; from < samples->count; from = to) {
        int64_t bucket = ref_bucket(samples->values[from]);
        for (to = from; to < samples->count && ref_bucket(samples->values[to]) == bucket; to++)
            ;
        printf("%s[%lld, %zu]", from ? ", " : "", (long long)bucket, to - from);
    }
    putchar(']');
}

#endif
