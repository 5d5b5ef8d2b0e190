"""Elements of sets and verdict maps as the kernel's own messages. Pure.

An endpoint more or less is a handful of elements, and libnftables reads much of the table back before it writes any.
What is encoded here needs nothing but the element and its set's type: single values and concatenations of them, no
intervals. The rest, and what somebody else put in and we cannot read, is left to nft's text.

Constants carry the kernel's own names and values (linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from calico_libnetwork.dataplane.netlink import CREATE, NFT_SUBSYSTEM, Request, attribute, nested, text
from calico_libnetwork.dataplane.nft_listing import protocol_number
from calico_libnetwork.dataplane.nft_program import Plan, by_set
from calico_libnetwork.dataplane.table import SetSpec, Table

_NEW_ELEMENTS, _DELETE_ELEMENTS = NFT_SUBSYSTEM | 12, NFT_SUBSYSTEM | 14
_FAMILIES = {"inet": 1, "arp": 3}
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEMENT, _KEY, _DATA = 1, 1, 2
_VALUE, _VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_VERDICTS = {"drop": 0, "accept": 1, "continue": -1, "jump": -3, "goto": -4, "return": -5}

_DECLARATION = re.compile(r"type (?P<key>\w+( \. \w+)*)( : verdict)?;")
_LENGTH = struct.Struct("=H")
_ATTRIBUTE_HEADER, _MESSAGE_HEADER, _FAMILY_HEADER = 4, 16, 4
_BEFORE_KEY = 3 * _ATTRIBUTE_HEADER  # of the element, its key, and the key's value
_LIST_BYTES = 60_000  # an attribute's length has 16 bits
_INTERFACE_BYTES = 16


@dataclass(frozen=True, slots=True)
class ElementMessage:
    """Elements that come into one set or leave it, in the request's order; several messages make a transaction.

    ``set_name`` is the set's with its table's, as nft writes it.
    """

    request: Request
    set_name: str
    elements: Sequence[str]

    def describe(self, offset: int) -> str:
        """What a refusal is about, by where in the request the kernel found fault."""
        element = self._element_at(offset - _MESSAGE_HEADER)
        return f"element {element} of set {self.set_name}" if element else f"set {self.set_name}"

    def _element_at(self, offset: int) -> str:
        body, position = self.request.body, _FAMILY_HEADER
        for _ in ("table", "set"):
            position += _attribute_bytes(body, position)
        position += _ATTRIBUTE_HEADER
        for element in self.elements:
            following = position + _attribute_bytes(body, position)
            if position <= offset < following:
                return element
            position = following
        return ""


def split(table: Table, plan: Plan) -> tuple[tuple[ElementMessage, ...], Plan]:
    """The messages of one transaction, and the rest of the plan for one before it.

    Those that leave come first: an element whose verdict changes is deleted and added.
    """
    if not plan.separable:
        return (), plan
    leaving, coming = by_set(dict.fromkeys(plan.gone_elements, "")), by_set(plan.elements)
    specs = {**table.sets.actual, **plan.sets}
    fields = {name: _fields(specs.get(name)) for name in leaving.keys() | coming.keys()}
    try:
        messages = (
            *_messages(_DELETE_ELEMENTS, table, fields, leaving),
            *_messages(_NEW_ELEMENTS, table, fields, coming),
        )
    except (OSError, OverflowError, ValueError):
        return (), plan
    gone = frozenset(element for element in plan.gone_elements if fields[element[0]] is None)
    others = {element: verdict for element, verdict in plan.elements.items() if fields[element[0]] is None}
    return messages, replace(plan, elements=others, gone_elements=gone)


def _messages(
    kind: int, table: Table, fields: Mapping[str, Sequence[Field] | None], elements: Mapping[str, Mapping[str, str]]
) -> Iterator[ElementMessage]:
    flags = CREATE if kind == _NEW_ELEMENTS else 0
    for name, members in elements.items():
        encoders = fields[name]
        if encoders is None:
            continue
        head = (
            struct.pack("=BBH", _FAMILIES[table.family], 0, 0) + text(_LIST_TABLE, table.name) + text(_LIST_SET, name)
        )
        for texts, payload in _lists(encoders, members):
            request = Request(kind, head + nested(_LIST_ELEMENTS, payload), flags)
            yield ElementMessage(request, f"{table.family} {table.name} {name}", texts)


def _lists(fields: Sequence[Field], members: Mapping[str, str]) -> Iterator[tuple[Sequence[str], bytes]]:
    """The elements, encoded, in portions that fit into one attribute each."""
    texts = list(members)
    keys = [_key(fields, text) for text in texts]
    frames = {verdict: _frame(len(keys[0]), verdict) for verdict in set(members.values())}
    encoded = [
        before + key + after
        for key, (before, after) in zip(keys, map(frames.__getitem__, members.values()), strict=True)
    ]
    portion = _LIST_BYTES // max(map(len, encoded))
    for start in range(0, len(texts), portion):
        yield texts[start : start + portion], b"".join(encoded[start : start + portion])


def _frame(key_bytes: int, verdict: str) -> tuple[bytes, bytes]:
    """What stands before and behind the key of every element with this verdict."""
    element = nested(_LIST_ELEMENT, nested(_KEY, attribute(_VALUE, bytes(key_bytes))), _data(verdict))
    return element[:_BEFORE_KEY], element[_BEFORE_KEY + key_bytes :]


def _data(verdict: str) -> bytes:
    if not verdict:
        return b""
    verb, _, chain = verdict.partition(" ")
    if verb not in _VERDICTS:
        raise ValueError(verdict)
    code = attribute(_VERDICT_CODE, struct.pack(">i", _VERDICTS[verb]))
    return nested(_DATA, nested(_VERDICT, code, text(_VERDICT_CHAIN, chain) if chain else b""))


def _key(fields: Sequence[Field], element: str) -> bytes:
    if len(fields) == 1:
        return fields[0](element)
    return b"".join([field(part) for field, part in zip(fields, element.split(" . "), strict=True)])


def _interface(value: str) -> bytes:
    name = value.strip('"').encode()
    if not 0 < len(name) < _INTERFACE_BYTES or b"*" in name or b"\\" in name:
        raise ValueError(value)
    return name.ljust(_INTERFACE_BYTES, b"\0")


def _ipv4_address(value: str) -> bytes:
    return socket.inet_pton(socket.AF_INET, value)


def _ipv6_address(value: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, value)


def _protocol(value: str) -> bytes:
    return protocol_number(value).to_bytes(1, "big") + bytes(3)


def _port(value: str) -> bytes:
    return int(value).to_bytes(2, "big") + bytes(2)


Field = Callable[[str], bytes]  # each a multiple of four bytes, as concatenations need them
_FIELDS: dict[str, Field] = {
    "ifname": _interface,
    "ipv4_addr": _ipv4_address,
    "ipv6_addr": _ipv6_address,
    "inet_proto": _protocol,
    "inet_service": _port,
}


def _fields(spec: SetSpec | None) -> tuple[Field, ...] | None:
    """None for types that are not encoded here; alone, a value shorter than four bytes would not be padded."""
    found = _DECLARATION.fullmatch(spec.declaration) if spec else None
    names = found["key"].split(" . ") if found else []
    if not names or not _FIELDS.keys() >= set(names) or names in (["inet_proto"], ["inet_service"]):
        return None
    return tuple(_FIELDS[name] for name in names)


def _attribute_bytes(body: bytes, position: int) -> int:
    return int(_LENGTH.unpack_from(body, position)[0]) + 3 & ~3
