/* SPDX-License-Identifier: Apache-2.0
 *
 * Valgrind's client requests as functions, so that the workload can say where a phase begins and ends.
 */
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
