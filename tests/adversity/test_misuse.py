"""Misuse that must raise and never crash. Each case is a program of its own, so that a crash is a failed test.

Cases named after a regression say what once broke: callbacks of foreign objects (__lt__, __index__, __del__) that use
the batch in the middle of a call of it, columns over nothing, and views that outlive what they show.
"""

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import faulthandler; faulthandler.enable()
import copy, ctypes, gc, os, pickle, sys, threading, warnings
import numpy as np
import fast_socket as fs
from fast_socket.core import batch, frames, memory, packet, polling

warnings.simplefilter("error")

def pair(**options):
    return fs.OsUdpSocket.bind("127.0.0.1:0", **options), fs.OsUdpSocket.bind("127.0.0.1:0", **options)

def deliver(a, b, payloads, rx=None):
    tx = a.tx_batch(64)
    for payload in payloads:
        tx.append(payload, b.local_address)
    a.send(tx)
    rx = b.recv_batch(64) if rx is None else rx
    assert b.recv(rx) == len(payloads)
    return rx

def raises(*kinds):
    class Raises:
        def __enter__(self): return self
        def __exit__(self, kind, value, traceback):
            assert kind is not None and issubclass(kind, kinds), f"{kind} is not one of {kinds}: {value}"
            return True
    return Raises()

def home(*socks):
    gc.collect()
    for pool in {sock.pool for sock in socks}:
        assert (pool.rx_available, pool.tx_available) == (pool.rx_frames, pool.tx_frames), pool
"""


def run(body, **options):
    return subprocess.run([sys.executable, "-c", PRELUDE + textwrap.dedent(body)], capture_output=True, text=True,
                          timeout=100, check=False, **options)  # fmt: skip


CASES = {
    "constructors": """
        for make in (fs.PacketBuffer, fs.FrozenPacket, packet.Packet, fs.OsUdpSocket, fs.OsUdpEndpoint, fs.Datagrams,
                     fs.RecvBatch, fs.TxBatch, fs.OsRecvBatch, fs.OsTxBatch, fs.FramePool, fs.WaitDriver,
                     fs.BusyPollDriver, polling.Driver, polling.Descriptor, batch.Batch, batch.BatchIterator,
                     memory.Region):
            with raises(TypeError):
                made = make()
            with raises(TypeError):
                made = make(None)
            with raises(TypeError):
                made = make(5, 5, 5, 5, 5)
        """,
    "bare objects": """
        # What __new__ lets through must refuse everything, and must not take anything with it when it goes.
        a, b = pair()
        rx, tx = deliver(a, b, [b"x"]), a.tx_batch(2)
        for make in (fs.PacketBuffer, fs.FrozenPacket, packet.Packet, fs.OsUdpSocket, fs.OsUdpEndpoint, fs.Datagrams,
                     fs.WaitDriver, fs.BusyPollDriver, polling.Descriptor, memory.Column, memory.Region,
                     batch.BatchIterator):
            try:
                bare = make.__new__(make)
            except TypeError:
                continue
            repr(bare)
            for name in dir(bare):
                if name in ("__class__", "__init_subclass__", "__subclasshook__", "__new__", "__dir__"):
                    continue
                for arguments in ((), (0,), (rx,), (tx,), (bare, tx), (b"x",), (0, 1)):
                    try:
                        value = getattr(bare, name)
                        if callable(value):
                            value(*arguments)
                    except Exception:
                        pass
            try: memoryview(bare)
            except Exception: pass
            try: tx.append(bare)
            except Exception: pass
            del bare
        gc.collect()
        """,
    "every method of live objects with odd arguments": """
        a, b = pair()
        odd = (None, -1, 2**63, 2**64, 2**200, 1.5, "x", b"", b"x", (), [], object(), np.zeros(3), np.zeros((2, 2)),
               ("127.0.0.1", 1), float("nan"))
        def objects():
            rx, tx = deliver(a, b, [b"abcdef"] * 6), a.tx_batch(4)
            tx.allocate(3)
            return [rx, tx, rx[0], rx[1].take(), rx[2].freeze(), rx.datagrams(), iter(rx), a.pool, a.driver, a,
                    a.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="127.0.0.1:9"))]
        skipped = {"run", "wait", "wait_writable", "__class__", "__init_subclass__", "__subclasshook__", "__new__",
                   "close", "__exit__", "bind", "connect", "from_socket", "fileno", "_ask"}
        for number in range(len(objects())):
            thing = objects()[number]
            for name in dir(thing):
                if name in skipped:
                    continue
                for argument in odd:
                    for arguments in ((), (argument,), (argument, argument)):
                        thing = objects()[number] if thing is None else thing
                        try:
                            value = getattr(thing, name)
                            if callable(value):
                                value(*arguments)
                        except Exception:
                            pass
            thing = None
        home(a, b)
        """,
    "discard with a count that calls back": """
        a, _ = pair()
        tx = a.tx_batch(8)
        class Count(int):
            def __lt__(self, other): tx.discard(); return False
            def __gt__(self, other): return False
            def __index__(self): tx.discard(); return 8
        tx.allocate()
        try: tx.discard(Count(8))
        except fs.Error: pass
        assert len(tx) <= 8 and tx.room <= 8
        for i in range(8):
            try: tx[i]
            except (IndexError, fs.BufferTakenError): pass
        home(a)
        """,
    "addresses that call back": """
        a, b = pair(tx_frames=16, rx_frames=64)
        class Port(int):
            def __ge__(self, other): return self.back() or True
            def __le__(self, other): return self.back() or True
        def drop():
            global tx
            tx = None
            gc.collect()
        def fill():
            while tx is not None and tx.room:
                tx.append(b"zz", ("127.0.0.1", 9))
        def discard():
            if tx is not None: tx.discard()
        def send():
            if tx is not None: a.send(tx)
        for back in (drop, fill, discard, send):
            Port.back = staticmethod(back)
            for use in ("address", "append", "append packet", "set_destinations"):
                rx, tx = deliver(b, a, [b"x"]), a.tx_batch(4)
                tx.append(b"abc", ("127.0.0.1", 9))
                p, owned, own = tx[0], rx[0].take(), tx
                try:
                    if use == "address": own = None; p.address = ("127.0.0.1", Port(5))
                    elif use == "append": own.append(b"x", ("127.0.0.1", Port(5)))
                    elif use == "append packet": own.append(owned, ("127.0.0.1", Port(5)))
                    else: own.set_destinations(("127.0.0.1", Port(5)))
                except fs.Error:
                    pass
                assert own is None or len(own) <= 4
                p = owned = own = tx = rx = None
                home(a, b)
        """,
    "offsets and dtypes that call back": """
        a, b = pair()
        class Index:
            def __init__(self, value): self.value = value
            def __index__(self):
                global tx, rx
                if tx is not None: tx.discard()
                if rx is not None: b.recv(rx)
                tx = rx = None
                gc.collect()
                return self.value
        class DType:
            @property
            def dtype(self):
                Index(0).__index__()
                return np.dtype("u4")
        for use in range(9):
            rx, tx = deliver(a, b, [b"abcdefgh"] * 4), a.tx_batch(4)
            tx.allocate(); tx.fill(b"abcdefgh")
            p, r, t = rx[0], rx, tx
            try:
                [lambda: p.read(Index(0), 4), lambda: p.read(0, Index(4)), lambda: p.u32(Index(0)),
                 lambda: p.trim_prefix(Index(1)), lambda: p.write(Index(0), b"zz"), lambda: r[Index(0)],
                 lambda: t.gather(0, DType()), lambda: t.scatter(Index(0), np.zeros(4, "u4")),
                 lambda: t.allocate(Index(2))][use]()
            except (fs.Error, IndexError, TypeError):
                pass
            p = r = t = tx = rx = None
            home(a, b)
        """,
    "finalizers that call back": """
        a, b = pair()
        tx, rx = a.tx_batch(64), deliver(a, b, [b"x"] * 8)
        class Garbage:
            def __init__(self): self.itself = self
            def __del__(self):
                try: tx.discard(); b.recv(rx)
                except (fs.Error, AttributeError): pass      # at the end both are None
        gc.set_threshold(1)
        for i in range(500):
            Garbage()
            try:
                tx.append(b"%d" % i, ("127.0.0.1", 9)); tx.fill(b"abc"); tx.gather(0, "u1")
                rx.datagrams(); [bytes(p) for p in rx]; rx.lengths; tx.segment_sizes
            except (fs.Error, ValueError): pass
        gc.set_threshold(700)
        tx = rx = None
        home(a, b)
        """,
    "batches of the core have the columns of a socket's": """
        a, b = pair()
        for make in (fs.TxBatch, fs.OsTxBatch):
            for segments in (False, True):
                tx = make(a.pool, 4, v6=False, segment_sizes=segments)
                tx.allocate()
                try: tx.segment_sizes[:] = 0
                except fs.ConfigError: assert not segments
                if make is fs.OsTxBatch:
                    tx.fill(b"x"); tx.set_destinations(b.local_address)
                    try: a.send(tx)
                    except fs.ConfigError: pass
        for metadata in (None, 5, "x"):
            with raises(fs.ConfigError, TypeError):
                fs.RecvBatch(a.pool, 4, v6=False, metadata=metadata)
        """,
    "datagrams cannot be pointed elsewhere": """
        a, b = pair()
        d = deliver(a, b, [b"abc"] * 4).datagrams()
        for column in (d.slots, d.offsets, d.lengths):
            with raises(ValueError):
                column.flags.writeable = True
            with raises(ValueError):
                column[:] = 2**31
            for view in (column.view("u1"), column.base if column.base is not None else column, column[:]):
                try:
                    view.flags.writeable = True
                    view[:] = 255
                except (ValueError, AttributeError, TypeError, BufferError):
                    pass
        for i in range(4):
            try: d[i]; d.source(i)
            except (fs.Error, IndexError): pass
        d.gather(0, "u1")
        """,
    "subclasses in Python": """
        a, b = pair()
        class Rx(fs.RecvBatch):
            def __init__(self, *args, **kwargs): self.cycle = self
        class Tx(fs.TxBatch):
            def __del__(self): self.discard()
        r, t = Rx(a.pool, 4, v6=False), Tx(a.pool, 4, v6=False)
        t.allocate(); t.fill(b"zz"); t.cycle = t
        with raises(TypeError): a.send(t)
        with raises(TypeError): b.recv(r)
        list(t); list(r)
        r = t = None
        home(a)
        for final in (fs.PacketBuffer, fs.FrozenPacket, fs.OsUdpSocket, fs.OsRecvBatch, fs.OsTxBatch, fs.FramePool,
                      fs.Datagrams, fs.WaitDriver, fs.OsUdpEndpoint):
            with raises(TypeError):
                type("Sub", (final,), {})
        class Liar(fs.BufferLayout):
            __slots__ = ()
            payload_offset = property(lambda self: 10**9)
        with raises(fs.ConfigError):
            pool = fs.FramePool(rx_frames=4, tx_frames=4, rx_layout=Liar(), tx_layout=Liar())
            a = fs.OsUdpSocket.bind("127.0.0.1:0", pool=pool)
            a.tx_batch(2).append(b"x" * 100, ("127.0.0.1", 9))
        """,
    "copies and pickles": """
        a, b = pair()
        rx, tx = deliver(a, b, [b"abc"] * 4), a.tx_batch(2)
        for thing in (a, a.pool, a.pool.memory, rx, tx, rx[0], rx[1].take(), rx[2].freeze(), rx.datagrams(), iter(rx),
                      a.driver, a.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="127.0.0.1:9"))):
            for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
                with raises(TypeError):
                    duplicate(thing)
        spec = fs.UdpEndpointSpec(remote="127.0.0.1:9")
        layout = fs.BufferLayout()
        assert pickle.loads(pickle.dumps((spec, layout))) == (spec, layout) == copy.deepcopy((spec, layout))
        """,
    "views of views": """
        a, b = pair()
        rx = deliver(a, b, [bytes(range(64))] * 4)
        view = memoryview(rx[0]).cast("I").cast("B", (8, 8))
        array = np.frombuffer(rx[1], ">u4").reshape(4, 4)[::2, 1:]
        frozen = np.frombuffer(rx[2].freeze(), "u8")
        columns = [rx.lengths[::-1], rx.source_ports.astype("u4"), rx.source_addresses.view("u4"), rx.offsets[1:2]]
        rx.lengths.base.shape; rx.memory[5:9]
        a.close(); b.close()
        rx = a = b = None
        gc.collect()
        assert view.tolist()[0] == list(range(8)) and array.shape == (2, 3) and frozen[0]
        assert columns[0].tolist() == [64] * 4
        with raises(TypeError): view.release; memoryview(frozen.base)[0] = 1
        """,
    "order of leaving": """
        # Whatever goes first at the interpreter's end, and in cycles.
        a, b = pair()
        rx = deliver(a, b, [b"abc"] * 4)
        keep = [rx[0].take(), memoryview(rx[1]), rx.lengths, rx[2].freeze(), a.tx_batch(4), rx.datagrams(), iter(rx)]
        cycle = []
        cycle += [cycle, a, b, rx, keep]
        import builtins
        builtins.kept = cycle
        class Late:
            def __del__(self): keep[0].frame, len(keep[4]), bytes(keep[1])
        sys.late = Late()
        thread = threading.Thread(target=b.driver.wait, daemon=True)
        thread.start()
        """,
    "a cycle closes nobody else's descriptor": """
        # The standard socket inside once closed a number that had been given away.
        a = fs.OsUdpSocket.bind("127.0.0.1:0")
        number, cycle = a.fileno(), []
        cycle += [cycle, a]
        a.close()
        mine = os.open("/dev/null", os.O_RDONLY)
        assert mine == number, "the test needs the same number again"
        del a, cycle
        gc.collect()
        os.fstat(mine)
        cycle = []
        cycle += [cycle, fs.OsUdpSocket.bind("127.0.0.1:0")]
        number = cycle[1].fileno()
        del cycle
        gc.collect()
        with raises(OSError): os.fstat(number)
        """,
    "fork": """
        a, b = pair()
        rx = deliver(a, b, [b"abc"] * 4)
        owned, view = rx[0].take(), memoryview(rx[1])
        child = os.fork()
        if child == 0:
            owned.release(); view.release(); a.close(); b.recv(rx)
            rx = owned = None
            gc.collect()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert bytes(owned) == b"abc" == bytes(view) and not a.closed
        view.release()
        deliver(a, b, [b"after"], rx)
        """,
    "releasing a frame twice": """
        a, b = pair()
        rx = deliver(a, b, [b"abc"] * 4)
        p = rx[0]
        p.release()
        for again in (p.release, p.take, p.freeze):
            with raises(fs.BufferTakenError): again()
        tx = b.tx_batch(2)
        q = rx[1]
        tx.append(q, ("127.0.0.1", 9))
        with raises(fs.BufferTakenError): tx.append(q, ("127.0.0.1", 9))
        with raises(fs.ConfigError): tx.append(tx[0], ("127.0.0.1", 9))
        p = q = rx = tx = None
        home(a, b)
        """,
    "a packet into its own batch": """
        a, b = pair(tx_layout=fs.BufferLayout(headroom=64, tailroom=64))
        tx = a.tx_batch(2)
        tx.append(bytes(range(256)), ("127.0.0.1", 9))
        tx[0].prepend(b"HEAD")
        for use in (lambda: tx.fill(tx[0]), lambda: tx[0].append(tx[0]), lambda: tx[0].prepend(tx[0]),
                    lambda: tx.scatter(0, np.frombuffer(tx[0], "u1")[:1])):
            with raises(BufferError): use()
        tx[0].write(1, tx[0].read(0, 100))
        assert len(tx[0]) == 260
        """,
    "handlers that let go of everything": """
        a, b = pair()
        rx = deliver(a, b, [b"abc"] * 3)
        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
        def handler(data, length, user):
            global rx
            rx = None
            b.close()
            gc.collect()
            return 1
        assert rx.run(ctypes.cast(handler, ctypes.c_void_p).value) == 3
        """,
    "descriptors run out": """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        a, b = pair()
        held = []
        try:
            while True: held.append(os.dup(0))
        except OSError: pass
        with raises(OSError): fs.OsUdpSocket.bind("127.0.0.1:0")
        # A wait that could not be woken by close() must say so, not wait for ever.
        outcome = []
        def wait():
            try: outcome.append(a.driver.wait(30))
            except fs.Error as error: outcome.append(error)
        thread = threading.Thread(target=wait)
        thread.start()
        import time; time.sleep(0.1)
        a.close()
        thread.join(10)
        assert not thread.is_alive(), "close() did not wake the waiting thread"
        assert isinstance(outcome[0], fs.Error), outcome
        """,
    "memory runs out": """
        import resource
        a, b = pair()
        resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
        import socket
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        number = s.fileno()
        huge = {"rx_frames": 1 << 24, "rx_layout": fs.BufferLayout(payload_capacity=1 << 30)}
        with raises(MemoryError, fs.Error): fs.OsUdpSocket.from_socket(s, **huge)
        assert s.fileno() == number, "on an error the socket still owns its descriptor"
        s.close()
        with raises(MemoryError, fs.Error): fs.OsUdpSocket.bind("127.0.0.1:0", **huge)
        deliver(a, b, [b"x"])
        """,
    "the collector runs in the middle of an append": """
        a, b = pair()
        armed = False
        class Fills:
            def __del__(self):
                if armed and tx.room: tx.allocate()
        for threshold in range(1, 30):
            rx = deliver(a, b, [b"x"], b.recv_batch(1))
            got = rx[0]
            tx = b.tx_batch(8)
            tx.allocate(1)
            gc.collect()
            cycle = Fills(); cycle.itself = cycle; del cycle
            gc.set_threshold(threshold, 1, 1); armed = True
            try: tx.append(got)
            except fs.Error: pass
            finally: armed = False; gc.set_threshold(700, 10, 10)
            assert len(tx) <= tx.capacity
            del got
            tx.discard()
            assert b.pool.rx_available <= b.pool.rx_frames
        del rx, tx
        home(a, b)
        """,
    "integers that lie": """
        a, b = pair(tx_frames=4096)
        class Multiplies(int):
            def __rmul__(self, other): return [None]
            __mul__ = __rmul__
        class Zero(int):
            def __int__(self): return 0
            def __index__(self): return 0
            def __le__(self, other): return True
            __ge__ = __lt__ = __gt__ = __le__
        tx = a.tx_batch(Multiplies(4096))
        tx.allocate()
        assert [tx[i].frame for i in range(4096)]
        tx = b.tx_batch(2)
        tx.allocate(2)
        tx.fill(b"x" * 64)
        start = int(tx.offsets[1])
        with raises(fs.ConfigError): tx.scatter(Zero(2**64 - 16), np.frombuffer(b"A" * 32, dtype="V16"))
        assert bytes(tx.memory[start - 16 : start]) == bytes(16)
        with raises(fs.ConfigError): tx.gather(Zero(2**64 - 16), "u1")
        with raises(fs.ConfigError): tx.discard(Zero(2**40))
        with raises(fs.ConfigError): fs.OsUdpSocket.bind(("127.0.0.1", Zero(70000)))
        """,
    "a signal handler raises within a question to the socket": """
        import signal
        class Stop(BaseException): pass
        armed = False
        def handler(*args):
            if armed: raise Stop
        signal.signal(signal.SIGALRM, handler)
        a, b = pair()
        number = a.fileno()
        for delay in range(2, 400):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, delay / 1e7)
                for _ in range(5): a.local_address
            except Stop: pass
            finally: armed = False
            os.fstat(number)
            assert not a.closed
        warnings.simplefilter("ignore")
        """,
    "a forked child closes": """
        import time
        a, b = pair()
        assert not a.driver.wait(0.01)
        child = os.fork()
        if child == 0:
            a.close()
            os._exit(0)
        os.waitpid(child, 0)
        before = time.monotonic()
        assert not a.driver.wait(0.2) and not a.driver.wait(0.05)
        assert time.monotonic() - before > 0.2
        deliver(b, a, [b"still there"])
        """,
    "pointers do not belong on a wire": """
        a, b = pair()
        tx = a.tx_batch(4)
        tx.allocate(2)
        tx.fill(b"x" * 64)
        pointers = np.array([object(), object()])
        for attempt in (lambda: tx.scatter(0, pointers), lambda: tx.fill(pointers.reshape(2, 1)),
                        lambda: tx.scatter(0, np.zeros(2, dtype=[("O", "u1"), ("a", "O")]))):
            with raises(fs.ConfigError): attempt()
        tx.scatter(0, np.zeros(2, dtype=[("O", "u1"), ("a", "u1")]))
        """,
    "memory without end": """
        for size in (2**64 - 1, 2**64 - 2**21, 2**63):
            for huge_pages in (False, True):
                with raises(MemoryError): memory.Region(size, huge_pages=huge_pages)
        """,
}


@pytest.mark.parametrize("name", CASES)
def test_never_crashes(name):
    done = run(CASES[name])
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr[-3000:]}"
    assert "Exception ignored" not in done.stderr, done.stderr[-3000:]
