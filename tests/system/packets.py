"""Packets built by hand, each with a number by which its arrival is recognised."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

TCP, UDP, ICMP, ICMPV6, SCTP, UDPLITE = 6, 17, 1, 58, 132, 136
_MARKER = b"calico probe"


@dataclass(frozen=True, slots=True)
class Packet:
    """``source_port`` and ``destination_port`` are type and code for the two ICMPs, and nothing for other protocols."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0

    @property
    def reversed(self) -> Packet:
        return Packet(self.destination, self.source, self.protocol, self.destination_port, self.source_port)


def encode(packet: Packet, number: int) -> bytes:
    """From the IP header on."""
    payload = _MARKER + struct.pack("!I", number)
    body = _transport(packet, payload)
    if packet.source.version == 4:
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), number & 0xFFFF, 0, 64, packet.protocol, 0,
            packet.source.packed, packet.destination.packed,
        )  # fmt: skip
        return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body
    header = struct.pack("!IHBB", 6 << 28, len(body), packet.protocol, 64)
    return header + packet.source.packed + packet.destination.packed + body


def number_of(data: bytes) -> int | None:
    """The number a received packet carries, wherever in it."""
    place = data.find(_MARKER)
    if place < 0 or len(data) < place + len(_MARKER) + 4:
        return None
    start = place + len(_MARKER)
    return int.from_bytes(data[start : start + 4])


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _transport(packet: Packet, payload: bytes) -> bytes:
    first, second, protocol = packet.source_port, packet.destination_port, packet.protocol
    if protocol == TCP:
        segment = struct.pack("!HHIIBBHHH", first, second, 1, 0, 5 << 4, 0x02, 65535, 0, 0) + payload
        return _with_checksum(packet, segment, 16)
    if protocol == UDP:
        return _with_checksum(packet, struct.pack("!HHHH", first, second, 8 + len(payload), 0) + payload, 6)
    if protocol == UDPLITE:
        return _with_checksum(packet, struct.pack("!HHHH", first, second, 0, 0) + payload, 6)
    if protocol in (ICMP, ICMPV6):
        message = struct.pack("!BBHHH", first, second, 0, 7, 7) + payload
        return _with_checksum(packet, message, 2, pseudo=protocol == ICMPV6)
    if protocol == SCTP:
        return _init_chunk(first, second, payload)
    return payload


def _with_checksum(packet: Packet, segment: bytes, place: int, *, pseudo: bool = True) -> bytes:
    prefix = b""
    if pseudo:
        prefix = packet.source.packed + packet.destination.packed
        prefix += struct.pack("!II", len(segment), packet.protocol)
    value = checksum(prefix + segment) or 0xFFFF
    return segment[:place] + struct.pack("!H", value) + segment[place + 2 :]


def _init_chunk(first: int, second: int, payload: bytes) -> bytes:
    """SCTP's first packet, alone in it as it must be; the payload rides in an unknown parameter."""
    parameter = struct.pack("!HH", 0x8008, 4 + len(payload)) + payload
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20 + len(parameter), 1, 65535, 1, 1, 1) + parameter
    packet = struct.pack("!HHII", first, second, 0, 0) + chunk
    return packet[:8] + struct.pack("<I", _crc32c(packet)) + packet[12:]


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
