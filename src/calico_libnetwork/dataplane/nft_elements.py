"""Elements of sets and maps as the kernel's own messages. Pure.

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

_DECLARATION = re.compile(r"type (?P<key>\w+( \. \w+)*)( : (?P<value>\w+( \. \w+)*))?;")
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
    kind: int, table: Table, fields: Mapping[str, _Fields | None], elements: Mapping[str, Mapping[str, str]]
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


def _lists(fields: _Fields, members: Mapping[str, str]) -> Iterator[tuple[Sequence[str], bytes]]:
    """The elements, encoded, in portions that fit into one attribute each."""
    texts = list(members)
    keys = [_values(fields.key, text) for text in texts]
    frames = {value: _frame(len(keys[0]), _data(fields.value, value)) for value in set(members.values())}
    encoded = [
        before + key + after
        for key, (before, after) in zip(keys, map(frames.__getitem__, members.values()), strict=True)
    ]
    portion = _LIST_BYTES // max(map(len, encoded))
    for start in range(0, len(texts), portion):
        yield texts[start : start + portion], b"".join(encoded[start : start + portion])


def _frame(key_bytes: int, data: bytes) -> tuple[bytes, bytes]:
    """What stands before and behind the key of every element with this data."""
    element = nested(_LIST_ELEMENT, nested(_KEY, attribute(_VALUE, bytes(key_bytes))), data)
    return element[:_BEFORE_KEY], element[_BEFORE_KEY + key_bytes :]


def _data(fields: Sequence[Field], value: str) -> bytes:
    if not value:
        return b""
    return nested(_DATA, attribute(_VALUE, _values(fields, value))) if fields else _verdict(value)


def _verdict(verdict: str) -> bytes:
    verb, _, chain = verdict.partition(" ")
    if verb not in _VERDICTS:
        raise ValueError(verdict)
    code = attribute(_VERDICT_CODE, struct.pack(">i", _VERDICTS[verb]))
    return nested(_DATA, nested(_VERDICT, code, text(_VERDICT_CHAIN, chain) if chain else b""))


def _values(fields: Sequence[Field], text: str) -> bytes:
    if len(fields) == 1:
        return fields[0](text)
    return b"".join([field(part) for field, part in zip(fields, text.split(" . "), strict=True)])


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


@dataclass(frozen=True, slots=True)
class _Fields:
    """``value`` is empty for sets and verdict maps."""

    key: tuple[Field, ...]
    value: tuple[Field, ...]


def _fields(spec: SetSpec | None) -> _Fields | None:
    """None for types that are not encoded here; alone, a value shorter than four bytes would not be padded."""
    found = _DECLARATION.fullmatch(spec.declaration) if spec else None
    if found is None:
        return None
    key, value = found["key"].split(" . "), (found["value"] or "verdict").split(" . ")
    if value == ["verdict"]:
        value = []
    if not _FIELDS.keys() >= {*key, *value} or any(
        names in (["inet_proto"], ["inet_service"]) for names in (key, value)
    ):
        return None
    return _Fields(tuple(_FIELDS[name] for name in key), tuple(_FIELDS[name] for name in value))


def _attribute_bytes(body: bytes, position: int) -> int:
    return int(_LENGTH.unpack_from(body, position)[0]) + 3 & ~3
