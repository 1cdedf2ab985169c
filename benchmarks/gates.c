/* SPDX-License-Identifier: Apache-2.0
 *
 * Valgrind's client requests as functions, so that the workload can say where a phase begins and ends.
 */
#include <stdint.h>
#include <valgrind/callgrind.h>

void gates_start(void)
{
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

void gates_stop(void)
{
    CALLGRIND_STOP_INSTRUMENTATION;
}

/* Writes what was counted since the last dump, under this name, and starts from zero. */
void gates_dump(const char *name)
{
    CALLGRIND_DUMP_STATS_AT(name);
}

/* A handler that looks at a byte and keeps the packet. */
struct packet { uint32_t length, room, index, source_length; };

int gates_handler(struct packet *packet, uint8_t *data, uint8_t *source, void *user)
{
    (void)source;
    (void)user;
    return packet->length && data[0] != 0xFF;
}
