"""Memory where it was asked for: huge pages and NUMA nodes, and what the kernel made of it."""

import pytest

import fast_socket as fs

LAYOUT = fs.BufferLayout(payload_capacity=2048)
FRAMES = 2048  # 4 MiB


def pool_of(**options):
    return fs.FramePool(rx_frames=FRAMES, tx_frames=0, rx_layout=LAYOUT, tx_layout=LAYOUT, **options)


def touch(pool):
    memory = memoryview(pool.memory)
    for at in range(0, len(memory), 4096):
        memory[at] = 1


def test_memory_is_nowhere_until_it_is_used():
    pool = pool_of()
    before = pool.memory.placement()
    touch(pool)
    after = pool.memory.placement()
    if after.resident is None:
        pytest.skip("this kernel does not say where pages are (CONFIG_NUMA)")
    assert before.resident < pool.memory.size
    assert after.resident == sum(after.nodes.values()) == pool.memory.size


def test_memory_of_a_node():
    node = fs.cpu_numa_node(fs.available_cpus()[0])
    try:
        pool = pool_of(numa_node=max(int(node), 0))
    except fs.CapabilityError as error:
        pytest.skip(str(error))
    touch(pool)
    assert pool.memory.placement().nodes == {max(int(node), 0): pool.memory.size}


@pytest.mark.parametrize("node", [-1, 1023, 1024, 1 << 70, True, "0", 0.0])
def test_a_node_that_is_not_there(node):
    with pytest.raises((fs.ConfigError, fs.CapabilityError), match="numa_node"):
        pool_of(numa_node=node)


def test_huge_pages_are_counted():
    plain, huge = pool_of(), pool_of(huge_pages=True)
    touch(plain)
    touch(huge)
    placement = huge.memory.placement()
    assert placement.huge % (2 << 20) == 0
    assert 0 <= placement.huge <= huge.memory.size
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as enabled:
        if "[never]" in enabled.read():
            assert placement.huge == 0
