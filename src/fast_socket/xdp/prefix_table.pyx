"""Longest-prefix match in native code: a poptrie.

A trie whose nodes decide six bits at a time, with what the 64 slots of a node say compressed by population counts
(H. Asai, Y. Ohara: Poptrie, SIGCOMM 2015). The first bits, 18 in a large table, are one direct look-up. Of each node
`vector` says which slots go on in a child, and `leafvec` where a run of equal answers begins among the others; children
and answers of a node lie side by side, so that counting the bits below a slot finds either.

Immutable once built: any thread may look up at any time, without a lock. Whole tables are exchanged.

Batches are looked up level by level: each level asks for the memory of the next one before it needs it, so that the
misses of many addresses overlap.
"""

cimport cython
from cpython.buffer cimport PyBUF_CONTIG, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from fast_socket.xdp.ring cimport prefetch

from fast_socket.core.errors import CapabilityError, ConfigError

cdef extern from *:
    """
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define FAST_SOCKET_BE64(value) __builtin_bswap64(value)
    #define FAST_SOCKET_BE32(value) __builtin_bswap32(value)
    #else
    #define FAST_SOCKET_BE64(value) (value)
    #define FAST_SOCKET_BE32(value) (value)
    #endif
    #if defined(__x86_64__)
    #define FAST_SOCKET_COUNTS_BITS() __builtin_cpu_supports("popcnt")
    #else
    #define FAST_SOCKET_COUNTS_BITS() 1
    #endif
    """
    uint64_t be64 "FAST_SOCKET_BE64"(uint64_t value) noexcept nogil
    uint32_t be32 "FAST_SOCKET_BE32"(uint32_t value) noexcept nogil
    int popcount "__builtin_popcountll"(unsigned long long value) noexcept nogil
    int counts_bits "FAST_SOCKET_COUNTS_BITS"() noexcept nogil

cdef enum:
    STRIDE = 6
    # Bits of the direct look-up, and how many prefixes are worth a megabyte for it.
    FEW_BITS = 12
    MANY_BITS = 18
    MANY_PREFIXES = 8192
    SLOTS = 64
    AT_ONCE = 64                # addresses whose look-ups overlap
    GIL_COUNT = 512             # so many take a few microseconds: less than letting the GIL go is worth

cdef uint32_t IS_ANSWER = 0x80000000            # in the direct table: no node, an answer
cdef uint32_t NO_MEMORY = 0xFFFFFFFF
cdef uint32_t NONE = 0x7FFFFFFF                 # the answer where no prefix matches
NO_MATCH = 0x7FFFFFFF


cdef struct Node:
    uint64_t vector             # bit s: slot s goes on in a child
    uint64_t leafvec            # bit s: slot s has an answer that the answer slot before it has not
    uint32_t children           # the first of them
    uint32_t answers


cdef struct Prefix:
    # The address left-aligned in 128 bits.
    uint64_t high
    uint64_t low
    uint32_t answer
    uint32_t length


cdef inline uint32_t bits_of(uint64_t high, uint64_t low, uint32_t offset, uint32_t count) noexcept nogil:
    """`count` bits, at most 18, from bit `offset` on; what lies behind the address is 0."""
    if offset >= 64:
        if offset >= 128:
            return 0
        return <uint32_t> ((low << (offset - 64)) >> (64 - count))
    if offset:
        high = high << offset | low >> (64 - offset)
    return <uint32_t> (high >> (64 - count))


cdef object whole_numbers(object values):
    import numpy
    numbers = numpy.asarray(values)
    return numbers.astype(numpy.int64, casting="same_kind" if numbers.size else "unsafe")   # none: numpy takes floats


@cython.final
@cython.no_gc
cdef class PrefixTable:
    """Prefixes of one family, each with an answer: a number below 2**31 - 1.

    `networks` is uint8[n, 4] or uint8[n, 16], network byte order (or bytes of such rows); `lengths` n prefix lengths;
    `answers` n ints. Bits behind a prefix do not count. Of two equal prefixes the later one holds. Raises
    `ConfigError`; `CapabilityError` on x86 processors before 2008, which cannot count bits.
    """

    def __cinit__(self, networks, lengths, answers, *, bint v6=False):
        import numpy
        cdef uint32_t count
        if not counts_bits():
            raise CapabilityError("a PrefixTable needs a processor with POPCNT")
        self.width = 128 if v6 else 32
        try:
            rows = numpy.frombuffer(networks, numpy.uint8) if isinstance(networks, (bytes, bytearray)) else \
                numpy.ascontiguousarray(networks, numpy.uint8)
            rows = rows.reshape(-1, self.width // 8)
            wide_lengths, wide_answers = whole_numbers(lengths), whole_numbers(answers)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"PrefixTable: {error}; give rows of {self.width // 8} bytes, and ints") from None
        if wide_lengths.shape != (len(rows),) or wide_answers.shape != (len(rows),):
            raise ConfigError(f"PrefixTable: {len(rows)} networks, but lengths of shape {wide_lengths.shape} and "
                              f"answers of shape {wide_answers.shape}: give one for each")
        if len(rows) and not (0 <= wide_lengths.min() and wide_lengths.max() <= self.width):
            raise ConfigError(f"PrefixTable: prefix lengths from {wide_lengths.min()} to {wide_lengths.max()}: give 0 "
                              f"to {self.width}")
        if len(rows) and not (0 <= wide_answers.min() and wide_answers.max() < NONE):
            raise ConfigError(f"PrefixTable: answers from {wide_answers.min()} to {wide_answers.max()}: give 0 to "
                              f"{NONE - 1}")
        count = len(rows)
        self.prefixes = count
        self.first_bits = MANY_BITS if count >= MANY_PREFIXES else FEW_BITS
        self.direct = <uint32_t *> malloc((<size_t> 1 << self.first_bits) * sizeof(uint32_t))
        if self.direct == NULL:
            raise MemoryError("no memory for a PrefixTable")
        self.build(rows, wide_lengths.astype(numpy.uint32), wide_answers.astype(numpy.uint32))

    def __dealloc__(self):
        free(self.direct)
        free(self.nodes)
        free(self.leaves)

    cdef int build(self, object rows, object lengths, object answers) except -1:
        """Sort the prefixes by address and then by length, so that all below a slot lie side by side, the shorter
        first, and write the trie."""
        import numpy
        cdef uint32_t count = self.prefixes, i
        cdef const uint64_t[:] high, low
        cdef const uint32_t[:] length_at, answer_at
        cdef Prefix *sorted_prefixes
        cdef bint failed = False
        padded = numpy.zeros((count, 16), numpy.uint8)
        padded[:, :self.width // 8] = rows
        wide = padded.view(">u8").astype(numpy.uint64)
        clear = 128 - lengths.astype(numpy.int64)
        ones = numpy.uint64(0xFFFFFFFFFFFFFFFF)
        # Shifts by 64 and more are not defined: two steps.
        low_clear = numpy.minimum(clear, 64).astype(numpy.uint64)
        high_clear = numpy.clip(clear - 64, 0, 64).astype(numpy.uint64)
        low_mask = ones << (low_clear // numpy.uint64(2)) << (low_clear - low_clear // numpy.uint64(2))
        high_mask = ones << (high_clear // numpy.uint64(2)) << (high_clear - high_clear // numpy.uint64(2))
        wide[:, 0] &= high_mask
        wide[:, 1] &= low_mask
        order = numpy.lexsort((lengths, wide[:, 1], wide[:, 0]))
        wide, lengths, answers = wide[order], lengths[order], answers[order]
        sorted_prefixes = <Prefix *> malloc((<size_t> count + 1) * sizeof(Prefix))
        if sorted_prefixes == NULL:
            raise MemoryError("no memory to build a PrefixTable")
        high, low = numpy.ascontiguousarray(wide[:, 0]), numpy.ascontiguousarray(wide[:, 1])
        length_at, answer_at = numpy.ascontiguousarray(lengths), numpy.ascontiguousarray(answers)
        for i in range(count):
            sorted_prefixes[i].high, sorted_prefixes[i].low = high[i], low[i]
            sorted_prefixes[i].length, sorted_prefixes[i].answer = length_at[i], answer_at[i]
        with nogil:
            failed = not self.fill_direct(sorted_prefixes, count)
        free(sorted_prefixes)
        if failed:
            raise MemoryError("no memory for a PrefixTable")
        return 0

    cdef bint fill_direct(self, const Prefix *prefixes, uint32_t count) noexcept nogil:
        cdef uint32_t slot, i, first, last, answer, bits = self.first_bits
        for slot in range(<uint32_t> 1 << bits):
            self.direct[slot] = IS_ANSWER | NONE
        # Shorter ones first within their range, and ranges are nested or apart: later writes are longer prefixes.
        for i in range(count):
            if prefixes[i].length <= bits:
                first = <uint32_t> (prefixes[i].high >> (64 - bits))
                last = first + (<uint32_t> 1 << (bits - prefixes[i].length))
                for slot in range(first, last):
                    self.direct[slot] = IS_ANSWER | prefixes[i].answer
        i = 0
        while i < count:
            if prefixes[i].length <= bits:
                i += 1
                continue
            slot = <uint32_t> (prefixes[i].high >> (64 - bits))
            first = i
            while i < count and prefixes[i].high >> (64 - bits) == slot and prefixes[i].length > bits:
                i += 1
            answer = self.direct[slot] & ~IS_ANSWER
            last = self.take_nodes(1)
            if last == NO_MEMORY:
                return False
            if not self.fill_node(last, prefixes + first, i - first, bits, answer):
                return False
            self.direct[slot] = last
        return True

    cdef uint32_t take_nodes(self, uint32_t count) noexcept nogil:
        """Room for so many nodes side by side; NO_MEMORY where there is none."""
        cdef uint32_t first = self.node_count
        cdef Node *grown
        if self.node_count + count > self.node_room:
            self.node_room = max(2 * self.node_room, self.node_count + count + 64)
            grown = <Node *> realloc(self.nodes, self.node_room * sizeof(Node))
            if grown == NULL:
                return NO_MEMORY
            self.nodes = grown
        self.node_count += count
        return first

    cdef uint32_t take_leaves(self, uint32_t count) noexcept nogil:
        cdef uint32_t first = self.leaf_count
        cdef uint32_t *grown
        if self.leaf_count + count > self.leaf_room:
            self.leaf_room = max(2 * self.leaf_room, self.leaf_count + count + 64)
            grown = <uint32_t *> realloc(self.leaves, self.leaf_room * sizeof(uint32_t))
            if grown == NULL:
                return NO_MEMORY
            self.leaves = grown
        self.leaf_count += count
        return first

    cdef bint fill_node(self, uint32_t number, const Prefix *prefixes, uint32_t count, uint32_t depth,
                        uint32_t inherited) noexcept nogil:
        """Write one node and all below it: of `prefixes`, which all have its first `depth` bits and are longer.
        `inherited` is the answer of the longest prefix above it."""
        cdef uint32_t answers[SLOTS]
        cdef uint32_t starts[SLOTS]         # of the prefixes that go on below a slot
        cdef uint32_t counts[SLOTS]
        cdef uint32_t i, slot, first, last, child, children, runs, before = 0, at
        cdef uint64_t vector = 0, leafvec = 0
        for slot in range(SLOTS):
            answers[slot], counts[slot] = inherited, 0
        for i in range(count):
            slot = bits_of(prefixes[i].high, prefixes[i].low, depth, STRIDE)
            if prefixes[i].length > depth + STRIDE:
                if counts[slot] == 0:
                    starts[slot] = i
                counts[slot] += 1
                vector |= <uint64_t> 1 << slot
            else:
                last = slot + (<uint32_t> 1 << (depth + STRIDE - prefixes[i].length))
                for at in range(slot, last):
                    answers[at] = prefixes[i].answer
        runs = 0
        for slot in range(SLOTS):
            if not vector >> slot & 1 and (runs == 0 or answers[slot] != before):
                leafvec |= <uint64_t> 1 << slot
                before = answers[slot]
                runs += 1
        first = self.take_leaves(runs)
        children = self.take_nodes(<uint32_t> popcount(vector))
        if first == NO_MEMORY or children == NO_MEMORY:
            return False
        self.nodes[number].vector, self.nodes[number].leafvec = vector, leafvec
        self.nodes[number].children, self.nodes[number].answers = children, first
        at = first
        for slot in range(SLOTS):
            if leafvec >> slot & 1:
                self.leaves[at] = answers[slot]
                at += 1
        child = children
        for slot in range(SLOTS):
            if vector >> slot & 1:
                if not self.fill_node(child, prefixes + starts[slot], counts[slot], depth + STRIDE, answers[slot]):
                    return False
                child += 1
        return True

    cdef uint32_t find_native(self, uint64_t high, uint64_t low) noexcept nogil:
        """The answer for an address, left-aligned; NONE where no prefix matches."""
        cdef uint32_t entry = self.direct[high >> (64 - self.first_bits)], offset = self.first_bits, slot
        cdef const Node *node
        cdef uint64_t below
        if entry & IS_ANSWER:
            return entry & ~IS_ANSWER
        while True:
            node = &self.nodes[entry]
            slot = bits_of(high, low, offset, STRIDE)
            below = (<uint64_t> 2 << slot) - 1              # this slot and those before it
            if not node.vector >> slot & 1:
                return self.leaves[node.answers + <uint32_t> popcount(node.leafvec & below) - 1]
            entry = node.children + <uint32_t> popcount(node.vector & below) - 1
            offset += STRIDE

    cdef void find_many(self, const uint8_t *addresses, Py_ssize_t step, uint32_t *found,
                        size_t count) noexcept nogil:
        """As `find_native` for each of `count` addresses in network byte order, `step` bytes apart."""
        cdef uint64_t high[AT_ONCE]
        cdef uint64_t low[AT_ONCE]
        cdef uint32_t entries[AT_ONCE]
        cdef uint8_t active[AT_ONCE]
        cdef uint8_t answered[AT_ONCE]
        cdef size_t done = 0
        cdef uint32_t some, i, k, left, kept, slot, offset, word, ends
        cdef uint32_t shift = 64 - self.first_bits
        cdef uint64_t below
        cdef const Node *node
        while done < count:
            some = <uint32_t> min(count - done, <size_t> AT_ONCE)
            for i in range(some):
                if self.width == 32:
                    memcpy(&word, addresses, 4)
                    high[i], low[i] = <uint64_t> be32(word) << 32, 0
                else:
                    memcpy(&high[i], addresses, 8)
                    memcpy(&low[i], addresses + 8, 8)
                    high[i], low[i] = be64(high[i]), be64(low[i])
                addresses += step
                prefetch(&self.direct[high[i] >> shift])
            left = 0
            for i in range(some):
                entries[i] = self.direct[high[i] >> shift]
                if entries[i] & IS_ANSWER:
                    found[done + i] = entries[i] & ~IS_ANSWER
                else:
                    prefetch(&self.nodes[entries[i]])
                    active[left] = <uint8_t> i
                    left += 1
            offset, ends = self.first_bits, 0
            while left:
                kept = 0
                for k in range(left):
                    i = active[k]
                    node = &self.nodes[entries[i]]
                    slot = bits_of(high[i], low[i], offset, STRIDE)
                    below = (<uint64_t> 2 << slot) - 1
                    if node.vector >> slot & 1:
                        entries[i] = node.children + <uint32_t> popcount(node.vector & below) - 1
                        prefetch(&self.nodes[entries[i]])
                        active[kept] = <uint8_t> i
                        kept += 1
                    else:
                        entries[i] = node.answers + <uint32_t> popcount(node.leafvec & below) - 1
                        prefetch(&self.leaves[entries[i]])
                        answered[ends] = <uint8_t> i
                        ends += 1
                left = kept
                offset += STRIDE
            for k in range(ends):
                found[done + answered[k]] = self.leaves[entries[answered[k]]]
            done += some

    def __len__(self):
        return self.prefixes

    @property
    def nbytes(self):
        """Memory in use."""
        return ((<size_t> 1 << self.first_bits) * sizeof(uint32_t) + self.node_count * sizeof(Node)
                + self.leaf_count * sizeof(uint32_t))

    def find(self, address):
        """The answer for one address, 4 or 16 bytes in network byte order; None where no prefix matches. Raises
        `ConfigError` for anything else."""
        cdef const uint8_t[::1] packed
        cdef uint64_t high = 0, low = 0
        cdef uint32_t answer
        try:
            packed = memoryview(address)        # None is no memoryview, but would be an empty view here
        except (TypeError, ValueError, BufferError) as error:
            raise ConfigError(f"find: {error}; give the {self.width // 8} bytes of an address") from None
        if packed.shape[0] != self.width // 8:
            raise ConfigError(f"find: {packed.shape[0]} bytes, this table has addresses of {self.width // 8}")
        if self.width == 32:
            memcpy(&high, &packed[0], 4)
        else:
            memcpy(&high, &packed[0], 8)
            memcpy(&low, &packed[8], 8)
        answer = self.find_native(be64(high), be64(low))
        return None if answer == NONE else answer

    def lookup(self, addresses, out=None):
        """The answers for uint8[n, 4] or uint8[n, 16] addresses in network byte order, as a batch's address columns
        are: uint32[n], `NO_MATCH` where no prefix matches. `out` may be a contiguous array of that kind to write into.
        More than a few hundred are looked up with the GIL released. Raises `ConfigError`."""
        cdef Py_buffer rows, found
        cdef size_t count
        if out is None:
            import numpy
            try:
                out = numpy.empty(len(addresses), numpy.uint32)
            except TypeError as error:
                raise ConfigError(f"lookup: {error}; give addresses as uint8[n, {self.width // 8}]") from None
        try:
            PyObject_GetBuffer(addresses, &rows, PyBUF_STRIDES)
        except (TypeError, BufferError) as error:
            raise ConfigError(f"lookup: {error}; give addresses as uint8[n, {self.width // 8}]") from None
        try:
            try:
                PyObject_GetBuffer(out, &found, PyBUF_CONTIG)
            except (TypeError, ValueError, BufferError) as error:
                raise ConfigError(f"lookup: {error}; give a contiguous uint32[n] that can be written as out") from None
            try:
                if rows.ndim != 2 or rows.itemsize != 1 or rows.shape[1] != self.width // 8 or rows.strides[1] != 1:
                    raise ConfigError(f"lookup: {addresses!r}: give addresses as uint8[n, {self.width // 8}], the "
                                      f"bytes of each side by side")
                if found.itemsize != 4 or found.len != 4 * rows.shape[0]:
                    raise ConfigError(f"lookup: {found.len} bytes of items of {found.itemsize} as out for "
                                      f"{rows.shape[0]} addresses: give uint32[{rows.shape[0]}]")
                count = rows.shape[0]
                if count > GIL_COUNT:
                    with nogil:
                        self.find_many(<const uint8_t *> rows.buf, rows.strides[0], <uint32_t *> found.buf, count)
                else:
                    self.find_many(<const uint8_t *> rows.buf, rows.strides[0], <uint32_t *> found.buf, count)
            finally:
                PyBuffer_Release(&found)
        finally:
            PyBuffer_Release(&rows)
        return out
