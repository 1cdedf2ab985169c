// The XDP program: it hands wanted frames to AF_XDP sockets and leaves the rest to the kernel.
//
// Closed by default. Whatever this file does not understand, or was not asked for, is XDP_PASS, so that ARP, neighbour
// discovery and every other protocol of the host go on working. Each frame moves exactly one counter.
//
// Compiled twice (scripts/ebpf.sh): with -DTIMESTAMPS the receive time of the device stands in the eight bytes in front of a redirected
// frame. That needs a kernel function that only device-bound programs may call, and so an object of its own.
//
// Own declarations of the few helpers and wire formats in use: linux/bpf.h is the only header.

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

// How BTF describes a map: a number is the length of an array, a type is what a pointer points to.
#define MAP_NUMBER(name, value) int (*name)[value]
#define MAP_TYPE(name, type) type *name

static void *(*lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;
static long (*load_bytes)(struct xdp_md *ctx, __u32 offset, void *to, __u32 size) = (void *)BPF_FUNC_xdp_load_bytes;
static __u64 (*frame_length)(struct xdp_md *ctx) = (void *)BPF_FUNC_xdp_get_buff_len;

// --- What user space sets ---------------------------------------------------------------------------------------------

// Fixed when the program is loaded: the verifier drops the code that they switch off. Names and order as in program.py.
enum { MODE_PORTS, MODE_ALL_IP };
volatile const struct {
    __u32 mode;
    __u32 want_v4;
    __u32 want_v6;
    __u32 vlan;
    __u32 miss_action;
    __u32 device;           // what a program with timestamps was made for; a note
} config SEC(".rodata") = {MODE_PORTS, 1, 1, 1, XDP_PASS, 0};

// Free to change while frames arrive. Ports and addresses exist in two generations; the one that is not in force is
// written first and `generation` last, so that a frame meets the old filter or the new one and never a mixture.
// `attached` and `device` are notes of user space to whoever takes the program over.
enum { ANY_ADDRESS, ONE_ADDRESS, MANY_ADDRESSES };

struct address {
    __u8 bytes[16];         // IPv4 as ::ffff:a.b.c.d
};

volatile struct {
    __u32 generation;
    __u32 check_addresses[2];
    __u32 attached;
    char device[16];
    __u64 one_address[2][2];    // of ONE_ADDRESS: compared here, which saves the hash
} settings SEC(".data") = {};

#define PORT_WORDS 1024     // 65536 bits
#define MAX_QUEUES 64       // replaced when loaded
#define MAX_ADDRESSES 2048  // two generations of 1024

struct ports {
    __u64 words[PORT_WORDS];
};

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_XSKMAP);
    MAP_NUMBER(max_entries, MAX_QUEUES);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, __u32);
} xsks SEC(".maps");

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
    MAP_NUMBER(max_entries, MAX_ADDRESSES);
    MAP_TYPE(key, struct address);
    MAP_TYPE(value, __u32);  // bit g: belongs to generation g
} addresses SEC(".maps");

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
    MAP_NUMBER(max_entries, 2);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, struct ports);
} ports SEC(".maps");

enum outcome {
    REDIRECTED,
    NOT_IP,
    FRAGMENT,
    OTHER_ADDRESS,
    OTHER_PORT,
    OTHER_PROTOCOL,
    MALFORMED,
    NO_SOCKET,
    OUTCOMES
};

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_NUMBER(max_entries, OUTCOMES);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, __u64);
} counters SEC(".maps");

// --- The wire ---------------------------------------------------------------------------------------------------------

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NET16(x) ((__u16)__builtin_bswap16(x))
#define NET32(x) ((__u32)__builtin_bswap32(x))
#else
#define NET16(x) ((__u16)(x))
#define NET32(x) ((__u32)(x))
#endif

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_VLAN 0x8100       // 802.1Q
#define ETHERTYPE_SERVICE 0x88a8    // 802.1ad, the outer tag of QinQ
#define MAX_TAGS 2

#define PROTOCOL_HOP_BY_HOP 0
#define PROTOCOL_UDP 17
#define PROTOCOL_ROUTING 43
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_DESTINATION 60
#define MAX_EXTENSIONS 8
#define ND_FIRST 133                // router solicitation
#define ND_LAST 137                 // redirect
#define IPV4_FRAGMENT 0x3fff        // more fragments, or an offset

struct ethernet {
    __u8 destination[6], source[6];
    __u16 type;
};

struct tag {
    __u16 control, type;
};

struct ipv4 {
    __u8 version_words, service;
    __u16 length, id, fragment;
    __u8 ttl, protocol;
    __u16 checksum;
    __u32 source, destination;
};

struct ipv6 {
    __u32 version_flow;
    __u16 payload;
    __u8 next, hops;
    __u32 source[4], destination[4];
};

struct extension {
    __u8 next, words;               // words of eight bytes after the first
};

struct udp {
    __u16 source, destination, length, checksum;
};

// True where the header at `pointer` is not all in the first buffer of the frame.
#define BEYOND(pointer) ((void *)((pointer) + 1) > end)

// Reads at a fixed place of the frame directly. Behind options and extensions the place is only known at run time, and
// reading there directly takes CAP_PERFMON beside CAP_BPF (the verifier's guard against Spectre): a helper reads for us.
// False where the frame ends first.
INLINE int read(struct xdp_md *ctx, void *at, __u32 offset, int moved, void *to, __u32 size) {
    if (!moved && at + size <= (void *)(long)ctx->data_end) {
        __builtin_memcpy(to, at, size);
        return 1;
    }
    return !load_bytes(ctx, offset, to, size);
}

INLINE enum outcome classify(struct xdp_md *ctx, __u32 generation) {
    void *end = (void *)(long)ctx->data_end;
    void *at = (void *)(long)ctx->data;
    __u32 offset = 0;                   // of `at`, or beyond it where `moved`
    int moved = 0;
    __u32 left = frame_length(ctx);     // of the whole frame from `at` on, with the buffers that we cannot see
    union {
        struct address bytes;
        __u32 words[4];
        __u64 halves[2];
    } address = {};
    __u32 protocol, payload;            // payload: what the IP header says is behind it

    struct ethernet *ethernet = at;
    if (BEYOND(ethernet))
        return MALFORMED;
    __u16 type = NET16(ethernet->type);
    at += sizeof(*ethernet);
    offset += sizeof(*ethernet);
    left -= sizeof(*ethernet);

#pragma unroll
    for (int tags = 0; tags < MAX_TAGS; tags++) {
        if (type != ETHERTYPE_VLAN && type != ETHERTYPE_SERVICE)
            break;
        struct tag *tag = at;
        if (!config.vlan)
            return NOT_IP;
        if (BEYOND(tag))
            return MALFORMED;
        type = NET16(tag->type);
        at += sizeof(*tag);
        offset += sizeof(*tag);
        left -= sizeof(*tag);
    }

    if (type == ETHERTYPE_IPV4) {
        struct ipv4 *ip = at;
        if (!config.want_v4)
            return OTHER_PROTOCOL;
        if (BEYOND(ip))
            return MALFORMED;
        __u32 header = (ip->version_words & 15) * 4;
        __u32 length = NET16(ip->length);
        if (ip->version_words >> 4 != 4 || header < sizeof(*ip) || length < header || length > left)
            return MALFORMED;
        if (NET16(ip->fragment) & IPV4_FRAGMENT)
            return FRAGMENT;
        address.words[2] = NET32(0xffff);
        address.words[3] = ip->destination;
        protocol = ip->protocol;
        payload = length - header;
        at += sizeof(*ip);
        offset += header;
        moved = header > sizeof(*ip);
    } else if (type == ETHERTYPE_IPV6) {
        struct ipv6 *ip = at;
        if (!config.want_v6)
            return OTHER_PROTOCOL;
        if (BEYOND(ip))
            return MALFORMED;
        payload = NET16(ip->payload);
        if (NET32(ip->version_flow) >> 28 != 6 || payload > left - sizeof(*ip))
            return MALFORMED;
        protocol = ip->next;
        __builtin_memcpy(address.words, ip->destination, sizeof(address));
        at += sizeof(*ip);
        offset += sizeof(*ip);
        for (int count = 0;; count++) {
            if (protocol == PROTOCOL_FRAGMENT)
                return FRAGMENT;
            if (protocol != PROTOCOL_HOP_BY_HOP && protocol != PROTOCOL_ROUTING && protocol != PROTOCOL_DESTINATION)
                break;
            if (count == MAX_EXTENSIONS)
                return OTHER_PROTOCOL;  // who knows what comes after
            struct extension extension;
            if (!read(ctx, at, offset, moved, &extension, sizeof(extension)))
                return MALFORMED;
            __u32 length = (extension.words + 1) * 8;
            if (length > payload)
                return MALFORMED;
            protocol = extension.next;
            payload -= length;
            offset += length;
            moved = 1;
        }
    } else {
        return NOT_IP;
    }

    __u32 check = settings.check_addresses[generation];
    if (check != ANY_ADDRESS) {
        // On the wire ::ffff:a.b.c.d is nobody's address, and must not be taken for the IPv4 one.
        if (type == ETHERTYPE_IPV6 && !address.words[0] && !address.words[1] && address.words[2] == NET32(0xffff))
            return OTHER_ADDRESS;
        if (check == ONE_ADDRESS) {
            if (address.halves[0] != settings.one_address[generation][0]
                || address.halves[1] != settings.one_address[generation][1])
                return OTHER_ADDRESS;
        } else {
            __u32 *generations = lookup(&addresses, &address);
            if (!generations || !(*generations >> generation & 1))
                return OTHER_ADDRESS;
        }
    }

    if (config.mode == MODE_ALL_IP) {
        if (type == ETHERTYPE_IPV6 && protocol == PROTOCOL_ICMPV6) {
            __u8 icmp;
            if (payload < 1 || !read(ctx, at, offset, moved, &icmp, sizeof(icmp)))
                return MALFORMED;
            if (icmp >= ND_FIRST && icmp <= ND_LAST)
                return OTHER_PROTOCOL;
        }
        return REDIRECTED;
    }

    if (protocol != PROTOCOL_UDP)
        return OTHER_PROTOCOL;
    struct udp udp;
    if (!read(ctx, at, offset, moved, &udp, sizeof(udp)))
        return MALFORMED;
    __u32 length = NET16(udp.length);
    if (length < sizeof(udp) || length > payload)      // nor then is there room for it in the packet
        return MALFORMED;
    __u32 port = NET16(udp.destination);
    struct ports *wanted = lookup(&ports, &generation);
    if (!wanted || !(wanted->words[port >> 6] >> (port & 63) & 1))
        return OTHER_PORT;
    return REDIRECTED;
}

// --- Programs ---------------------------------------------------------------------------------------------------------

#ifdef TIMESTAMPS

static long (*adjust_meta)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_meta;
extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) SEC(".ksyms");

// Nanoseconds in front of the frame, 0 where the device has none. False where there is no room for them, or no socket:
// a frame that stays with the kernel must not be stamped. The socket may be gone a moment later all the same.
INLINE int stamp(struct xdp_md *ctx, __u32 queue) {
    __u64 time = 0;
    if (!lookup(&xsks, &queue))
        return 0;
    if (bpf_xdp_metadata_rx_timestamp(ctx, &time))
        time = 0;
    if (adjust_meta(ctx, -(int)sizeof(time)))
        return 0;
    void *meta = (void *)(long)ctx->data_meta;
    if (meta + sizeof(time) > (void *)(long)ctx->data)
        return 0;
    *(__u64 *)meta = time;
    return 1;
}

#else

INLINE int stamp(struct xdp_md *ctx, __u32 queue) {
    return 1;
}

#endif

SEC("xdp.frags")
int redirect(struct xdp_md *ctx) {
    __u32 queue = ctx->rx_queue_index, action = XDP_PASS;
    __u32 outcome = classify(ctx, settings.generation & 1);

    if (outcome == REDIRECTED) {
        action = config.miss_action;
        if (stamp(ctx, queue))
            action = redirect_map(&xsks, queue, config.miss_action);
        if (action != XDP_REDIRECT)
            outcome = NO_SOCKET;
    }

    __u64 *frames = lookup(&counters, &outcome);
    if (frames)
        ++*frames;                      // this CPU's own
    return action;
}

// Kernel functions are for programs that may also be used under the GPL; the plain object calls none.
#ifdef TIMESTAMPS
char program_license[] SEC("license") = "Dual MIT/GPL";
#else
char program_license[] SEC("license") = "Apache-2.0";
#endif
