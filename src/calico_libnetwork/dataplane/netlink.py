"""Netlink on the wire: messages, attributes, batched requests and dumps over one socket.

The kernel handles a request inside ``send``, so every call here blocks for as long as the kernel works; ``Kernel``
therefore runs them in a thread of its own. Replies are matched to requests by sequence number: one refused request
does not stop the others of its batch.

One family's messages (``rtnetlink``, ``conntrack``) are built on top of this module and never touch a socket.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from calico_libnetwork.errors import KernelRefused

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
NESTED = 0x8000

ROUTE_PROTOCOL, NETFILTER_PROTOCOL = 0, 12
NFT_SUBSYSTEM = 10 << 8
"""Of netfilter's messages, those of nftables."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR, _DONE = 2, 3
_BATCH_BEGIN, _BATCH_END = 16, 17
_FLAG_DUMP_INTERRUPTED, _FLAG_CAPPED, _FLAG_EXTENDED_ACK = 0x10, 0x100, 0x200
_SOL_NETLINK, _CAP_ACK, _EXTENDED_ACK, _STRICT_CHECK = 270, 10, 11, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 32, 33, 26
_EXTENDED_ACK_TEXT, _EXTENDED_ACK_OFFSET = 1, 2
_ATTRIBUTE_KIND = 0x3FFF  # without the flags "nested" and "network byte order"
_BATCH_REQUESTS, _BATCH_BYTES = 128, 65536
_RECEIVE_BYTES = 32768  # what the kernel fills at most in one datagram
_SEND_OVERHEAD = 32  # of the send buffer, which must hold a datagram as a whole
_DUMP_ATTEMPTS = 3


def attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attributes(payload: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attribute kind to its payload; of a repeated kind the last."""
    found = {}
    end = len(payload)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4:
            break
        found[kind & _ATTRIBUTE_KIND] = payload[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


@dataclass(frozen=True, slots=True)
class Request:
    """``kind`` is the message type; ``flags`` come on top of "request" and "acknowledge"."""

    kind: int
    body: bytes
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """``port`` is the sender's of the change that a notification reports, 0 for the kernel itself."""

    kind: int
    body: bytes
    port: int


@dataclass(slots=True)
class Answer:
    messages: list[Message] = field(default_factory=list)
    error: KernelRefused | None = None

    def one(self) -> Message:
        """The only message asked for; raises what the kernel said instead."""
        if self.error is not None:
            raise self.error
        if not self.messages:
            raise KernelRefused("the kernel acknowledged a question without answering it", errno.ENODATA)
        return self.messages[0]


class Socket:
    """A netlink socket for requests; not safe to share between threads."""

    def __init__(self, protocol: int) -> None:
        self._socket = _open(protocol, receive_bytes=1 << 20)
        self._sequence = 0
        self.port: int = self._socket.getsockname()[0]

    def close(self) -> None:
        self._socket.close()

    def exchange(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order; never raises for what a single request met."""
        answers: list[Answer] = []
        for batch in _batches(requests):
            answers.extend(self._exchange_batch(batch))
        return answers

    def ask(self, request: Request) -> Message:
        return self.exchange([request])[0].one()

    def do(self, *requests: Request) -> None:
        """All requests are sent; the first refusal is raised."""
        for answer in self.exchange(requests):
            if answer.error is not None:
                raise answer.error

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Of a table that keeps changing, what several listings told, one after the other.

        Each message was true when it was made, so the latest of one thing counts. What a listing lacks may have been
        passed over for what changed before it; that happens hardly to the same thing in all of them.
        """
        told: list[Message] = []
        for _ in range(_DUMP_ATTEMPTS):
            messages, whole = self._dump_once(kind, body)
            if whole:
                return messages
            told += messages
        return told

    def transact(self, requests: Sequence[Request]) -> dict[int, KernelRefused]:
        """Of netfilter: all of the requests, or none and why, by the position of those refused.

        Raises what was refused of the transaction as a whole. Only the last request asks for an acknowledgement; the
        kernel has said everything by the time it has taken the datagram.
        """
        begin, last = self._sequence + 1, self._sequence + 1 + len(requests)
        self._sequence = last + 1
        frame = bytes(2) + (requests[0].kind >> 8).to_bytes(2, "big")
        datagram = [_message(_BATCH_BEGIN, frame, REQUEST, begin)]
        for sequence, request in enumerate(requests, begin + 1):
            flags = request.flags | REQUEST | (ACK if sequence == last else 0)
            datagram.append(_message(request.kind, request.body, flags, sequence))
        datagram.append(_message(_BATCH_END, frame, REQUEST, last + 1))
        self._send_whole(b"".join(datagram))
        answers = {sequence: refusal for sequence, refusal in self._answers() if begin <= sequence <= last}
        refusals = {sequence - begin - 1: refusal for sequence, refusal in answers.items() if refusal is not None}
        if -1 in refusals:
            raise refusals[-1]
        if not refusals and last not in answers:
            raise KernelRefused("the kernel did not say whether it took a transaction", errno.ENOBUFS)
        return refusals

    def _send_whole(self, datagram: bytes) -> None:
        if len(datagram) > self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _SEND_OVERHEAD:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(datagram))
        self._socket.send(datagram)

    def _answers(self) -> Iterator[tuple[int, KernelRefused | None]]:
        """What waits to be read: the sequence number of each request answered, and the refusal if it was one."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            for kind, flags, sequence, _port, body in parse(data):
                if kind == _ERROR:
                    yield sequence, _refusal(body, flags)

    def _exchange_batch(self, requests: Sequence[Request]) -> list[Answer]:
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(
            b"".join(
                _message(request.kind, request.body, request.flags | REQUEST | ACK, first + position)
                for position, request in enumerate(requests)
            )
        )
        answers = [Answer() for _ in requests]
        outstanding = len(requests)
        while outstanding:
            for kind, flags, sequence, port, body in parse(self._socket.recv(_RECEIVE_BYTES)):
                position = sequence - first
                if not 0 <= position < len(answers):
                    continue
                if kind == _ERROR:
                    answers[position].error = _refusal(body, flags)
                    outstanding -= 1
                else:
                    answers[position].messages.append(Message(kind, body, port))
        return answers

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[Message], bool]:
        """With whether the listing is whole; it may have gaps if the table changed meanwhile."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(16 + len(body), kind, REQUEST | DUMP, self._sequence, 0) + body)
        messages: list[Message] = []
        interrupted = False
        while True:
            for message_kind, flags, sequence, port, message in parse(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                interrupted |= bool(flags & _FLAG_DUMP_INTERRUPTED)
                if message_kind in (_ERROR, _DONE):
                    error = _refusal(message, flags, ends_dump=message_kind == _DONE)
                    if error is not None:
                        raise error
                    return messages, not interrupted
                messages.append(Message(message_kind, message, port))


class Subscription:
    """A non-blocking socket for notifications of the given multicast groups."""

    def __init__(self, protocol: int, groups: Sequence[int], *, receive_bytes: int = 8 << 20) -> None:
        self._socket = _open(protocol, receive_bytes=receive_bytes)
        self._socket.setblocking(False)
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, 1, group)  # NETLINK_ADD_MEMBERSHIP

    def ignore(self, kinds: range, port: int) -> None:
        """Lets the kernel keep back what ``port`` itself changed, for these kinds of messages."""
        program = _filter(kinds, port)
        code = ctypes.create_string_buffer(program, len(program))
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code))
        )

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self, datagrams: int = 256) -> tuple[list[Message], bool]:
        """What has come, and whether the kernel dropped notifications since the last call."""
        messages: list[Message] = []
        lost = False
        for _ in range(datagrams):
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            messages.extend(Message(kind, body, port) for kind, _flags, _sequence, port, body in parse(data))
        return messages, lost


def _message(kind: int, body: bytes, flags: int, sequence: int) -> bytes:
    return _HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body + b"\0" * (-len(body) % 4)


def parse(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Kind, flags, sequence number, port and body of each message in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < 16:
            break
        yield kind, flags, sequence, port, data[offset + 16 : offset + length]
        offset += length + 3 & ~3


def _open(protocol: int, *, receive_bytes: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    opened.bind((0, 0))
    opened.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
    opened.setsockopt(_SOL_NETLINK, _EXTENDED_ACK, 1)
    if protocol == ROUTE_PROTOCOL:
        opened.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
    return opened


def _filter(kinds: range, port: int) -> bytes:
    """Classic BPF over the message's header; it reads numbers in network order, netlink writes them in the host's."""
    load_half, load, if_greater_equal, if_greater, if_equal, give = 0x28, 0x20, 0x35, 0x25, 0x15, 0x06
    kind_offset, port_offset, everything, nothing = 4, 12, 0xFFFFFFFF, 0
    instructions = (
        (load_half, 0, 0, kind_offset),
        (if_greater_equal, 0, 3, socket.htons(kinds.start)),
        (if_greater, 2, 0, socket.htons(kinds.stop - 1)),
        (load, 0, 0, port_offset),
        (if_equal, 1, 0, socket.htonl(port)),
        (give, 0, 0, everything),
        (give, 0, 0, nothing),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _batches(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    start = size = 0
    for position, request in enumerate(requests):
        size += 16 + len(request.body)
        if position - start == _BATCH_REQUESTS or size > _BATCH_BYTES:
            yield requests[start:position]
            start, size = position, 16 + len(request.body)
    if start < len(requests):
        yield requests[start:]


def _refusal(body: bytes, flags: int, *, ends_dump: bool = False) -> KernelRefused | None:
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    message, offset = os.strerror(-code), 0
    if flags & _FLAG_EXTENDED_ACK:
        explained = attributes(body, _extended_ack_offset(body, flags, ends_dump))
        if _EXTENDED_ACK_TEXT in explained:
            message = f"{message}: {explained[_EXTENDED_ACK_TEXT].rstrip(bytes(1)).decode(errors='replace')}"
        offset = int.from_bytes(explained.get(_EXTENDED_ACK_OFFSET, b""), sys.byteorder)
    return KernelRefused(message, -code, offset=offset)


def _extended_ack_offset(body: bytes, flags: int, ends_dump: bool) -> int:
    """Behind the error code comes the refused request's header and, unless capped, its body; not so after a dump."""
    if ends_dump:
        return 4
    if flags & _FLAG_CAPPED:
        return 20
    (length,) = struct.unpack_from("=I", body, 4)
    return 4 + (int(length) + 3 & ~3)
