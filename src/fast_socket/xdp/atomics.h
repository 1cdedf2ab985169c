/* Ring indices are shared with the kernel, which pairs its own acquire with our release and the other way round
   (net/xdp/xsk_queue.h): an entry is written before the index that publishes it, and read after the index that shows it. */
#ifndef FAST_SOCKET_XDP_ATOMICS_H
#define FAST_SOCKET_XDP_ATOMICS_H

#include <stdint.h>

static inline uint32_t load_acquire(const uint32_t *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
static inline void store_release(uint32_t *to, uint32_t value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }
static inline uint32_t load_relaxed(const uint32_t *from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }
/* The kernel sets a wake-up flag after it has looked for entries: we publish, and only then look at the flag. */
static inline void full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void prefetch(const void *address) { __builtin_prefetch(address); }

#endif
