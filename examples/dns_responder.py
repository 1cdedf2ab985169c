"""DNS: address queries answered in place, in the frame that they came in, by a handler that numba compiles.

    python examples/dns_responder.py --device eth0 --target 192.0.2.10:53 --record www.example.com=192.0.2.80

The handler runs within the native receive loop, with the GIL released: it checks the question, looks the name up in a
hash table, writes the answer behind the question and has the packet reflected. It never trusts a length that it reads:
an index outside of the frame drops the query, and is counted. With ``--handler python`` the same is done as one would
write it in Python, packet by packet. Names of another type than A get an empty answer, unknown ones NXDOMAIN.
"""

import sys
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

import fast_socket as fs
from examples import _cli
from examples.pong_server import drain

BATCH = 64
HEADER = 12  # RFC 1035, 4.1.1
MAX_NAME = 255
ANSWER = bytes.fromhex("c00c 0001 0001 0000003c 0004")  # the question's name, A, IN, one minute, four bytes
NXDOMAIN = 3
FNV_START, FNV_PRIME = 0x811C9DC5, 0x01000193  # FNV-1a, 32 bits: RFC 9923

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

#: A place of the hash table; one that is free has length 0. Names as in a question, in lower case.
ROW = np.dtype([("length", "u4"), ("name", "u1", (MAX_NAME,)), ("address", "u1", (4,))], align=True)


class Handler(StrEnum):
    COMPILED = "compiled"
    PYTHON = "python"


def wire_name(name: str) -> bytes:
    """Labels with their lengths in front, and the root's."""
    labels = [label.encode("idna") for label in name.rstrip(".").lower().split(".")]
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if not all(0 < len(label) < 64 for label in labels) or len(wire) > MAX_NAME:
        raise fs.ConfigError(f"{name!r} is no domain name: give labels of 1 to 63 bytes, {MAX_NAME} in all")
    return wire


def hash_table(records: Mapping[bytes, bytes]) -> Any:
    """ROW[n], n a power of two and half of them free: linear probing from the hash of the name."""
    table = np.zeros(1 << (2 * len(records)).bit_length(), ROW)
    for name, address in records.items():
        at = FNV_START
        for byte in name[:-1]:
            at = ((at ^ byte) * FNV_PRIME) & 0xFFFFFFFF
        while table[at & (len(table) - 1)]["length"]:
            at += 1
        row = table[at & (len(table) - 1)]
        row["length"], row["address"] = len(name), np.frombuffer(address, np.uint8)
        row["name"][: len(name)] = np.frombuffer(name, np.uint8)
    return table


def compiled(records: Mapping[bytes, bytes]) -> Any:
    from fast_socket.numba import DROP, REFLECT, packet_handler

    table = hash_table(records)
    template = np.frombuffer(ANSWER, np.uint8)

    @packet_handler(state=table)
    def answer(packet: Any, data: Any, source: Any, table: Any) -> int:
        end = packet.length
        # A query of one question: no answer (QR), opcode 0.
        if end < HEADER + 5 or data[2] & 0xF8 or data[4] or data[5] != 1:
            return DROP
        at, found = HEADER, FNV_START
        while data[at]:
            behind = at + 1 + data[at]
            if data[at] > 63 or behind >= end:
                return DROP
            while at < behind:
                byte = data[at]
                if 65 <= byte <= 90:
                    byte |= 0x20
                found = ((found ^ byte) * FNV_PRIME) & 0xFFFFFFFF
                at += 1
        length, question = at + 1 - HEADER, at + 5
        if question > end or length > MAX_NAME:
            return DROP

        data[2] = 0x84 | (data[2] & 1)  # an answer, authoritative; recursion desired as it came
        data[3:5] = 0
        data[6:HEADER] = 0  # no records behind the question, EDNS neither
        packet.length = question
        while True:
            row = table[found & (len(table) - 1)]
            if row.length == 0:
                data[3] = NXDOMAIN
                return REFLECT
            if row.length == length:
                same = True
                for i in range(length):
                    byte = data[HEADER + i]
                    if 65 <= byte <= 90:
                        byte |= 0x20
                    if byte != row.name[i]:
                        same = False
                        break
                if same:
                    break
            found += 1
        if data[at + 1] == 0 and data[at + 2] == 1 and data[at + 3] == 0 and data[at + 4] == 1:  # A, IN
            data[7] = 1
            data[question : question + len(template)] = template
            data[question + len(template) : question + len(template) + 4] = row.address
            packet.length = question + len(template) + 4
        return REFLECT

    return answer


def in_python(records: Mapping[bytes, bytes]) -> Callable[[Any, fs.TxBatch], None]:
    """The same for each packet of a batch, the quickest that plain Python has: slices and a dict."""

    def reply(query: bytes) -> bytes | None:
        if len(query) < HEADER + 5 or query[2] & 0xF8 or query[4:6] != b"\0\1":
            return None
        at = HEADER
        while at < len(query) and query[at]:
            if query[at] > 63:
                return None
            at += query[at] + 1
        end = at + 1
        if end + 4 > len(query) or end - HEADER > MAX_NAME:
            return None
        flags = bytes([0x84 | query[2] & 1])
        address = records.get(query[HEADER:end].lower())
        question = query[HEADER : end + 4]
        if address is None:
            return query[:2] + flags + b"\3\0\1\0\0\0\0\0\0" + question
        if question[-4:] != b"\0\1\0\1":
            return query[:2] + flags + b"\0\0\1\0\0\0\0\0\0" + question
        return query[:2] + flags + b"\0\0\1\0\1\0\0\0\0" + question + ANSWER + address

    def answer(rx: Any, tx: fs.TxBatch) -> None:
        for packet in rx:
            answered = reply(bytes(packet))
            if answered:
                tx.append(answered, packet.address)

    return answer


def open_socket(mode: _cli.Mode, device: str, address: tuple[str, int]) -> Any:
    if mode is _cli.Mode.XDP:
        return fs.XdpUdpSocket.open(device, local=address, unresolved="raise")
    return fs.OsUdpSocket.bind(address, recv_buffer=1 << 22)


@app.command(help=__doc__)
def dns_responder(
    device: _cli.Device,
    target: _cli.Target,
    record: Annotated[list[str], typer.Option(metavar="NAME=IPv4", help="A name and its address; may be repeated.")],
    mode: _cli.Backend = _cli.Mode.OS,
    handler: Annotated[Handler, typer.Option(help="Compiled by numba, or plain Python.")] = Handler.COMPILED,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    run = _cli.Run(
        "dns_responder", count=count, duration_ms=duration_ms, default_ms=None, as_json=as_json, progress=progress
    )
    records = {}
    for each in record:
        name, _, host = each.partition("=")
        try:
            records[wire_name(name)] = IPv4Address(host).packed
        except ValueError:
            raise fs.ConfigError(f"--record {each!r}: give NAME=IPv4, as in www.example.com=192.0.2.80") from None
    received = answered = errors = 0
    first = last = 0.0
    with open_socket(mode, device, _cli.local_address(device, target)) as sock:
        rx, tx = sock.recv_batch(BATCH), sock.tx_batch(BATCH)
        answer = compiled(records) if handler is Handler.COMPILED else in_python(records)
        run.ready()
        with run.live(received=lambda: received, answered=lambda: answered):
            while run.going() and received < run.count:
                if not sock.driver.wait(_cli.WAIT_SLICE):
                    continue
                received += sock.recv(rx)
                if handler is Handler.COMPILED:
                    rx.run(answer, reflect=tx)
                else:
                    answer(rx, tx)
                answers = len(tx)
                lost = drain(sock, tx, run.going)
                answered, errors = answered + answers - lost, errors + lost
                last = time.perf_counter()
                first = first or last
        dropped = sock.stats().kernel_drops
    run.report(
        mode=mode.value,
        handler=handler.value,
        received=received,
        sent=answered,
        dropped=dropped,
        malformed=rx.handler_errors,
        seconds=round(last - first, 6),
        pps=_cli.rate(answered, last - first),
        errors=errors,
    )


if __name__ == "__main__":
    _cli.main(app)
