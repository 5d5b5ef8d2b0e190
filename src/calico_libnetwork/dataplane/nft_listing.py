"""What ``nft -j list table`` prints, in the words of ``Table``. Pure.

nft prints an element in its own way: ``10.0.0.1/32`` as an address, a number where a name was written. ``canonical``
brings both sides to one form. Rules are not compared by text, which nft rewrites freely, but by the comment that the
writer gave them: a hash of the text they were made from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from calico_libnetwork.dataplane.table import Chain, SetSpec

_PROTOCOLS = {"icmp": "1", "tcp": "6", "udp": "17", "ipv6-icmp": "58", "icmpv6": "58", "sctp": "132", "udplite": "136"}
_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_HOOK = re.compile(
    r"type (?P<type>\w+) hook (?P<hook>\w+)( device \S+)? priority (?P<base>[a-z]*) *(?P<offset>[-+]? *\d*) *;"
    r"( *policy (?P<policy>\w+) *;)?"
)


def mark(text: str) -> str:
    """The comment by which an object is known to have been made from ``text``."""
    return blake2b(text.encode(), digest_size=9).hexdigest()


@dataclass(slots=True)
class ChainListing:
    """``marks``: the comment of each rule, "" for one without. ``hook``: type, hook, priority, policy."""

    hook: tuple[str, str, int, str] | None
    marks: list[str] = field(default_factory=list)

    def holds(self, chain: Chain) -> bool:
        return self.hook == parse_hook(chain.hook) and self.marks == [mark(rule) for rule in chain.rules]


@dataclass(slots=True)
class TableListing:
    """``sets``: each one's kind and comment. ``elements``: by set, canonical element to verdict or value."""

    chains: dict[str, ChainListing] = field(default_factory=dict)
    sets: dict[str, tuple[Literal["set", "map"], str]] = field(default_factory=dict)
    elements: dict[str, dict[str, str]] = field(default_factory=dict)


def parse_listing(objects: list[dict[str, Any]]) -> TableListing:
    listing = TableListing()
    for entry in objects:
        ((kind, body),) = entry.items()
        if kind == "chain":
            listing.chains[body["name"]] = ChainListing(_hook_of(body))
        elif kind == "rule":
            listing.chains[body["chain"]].marks.append(body.get("comment", ""))
        elif kind in ("set", "map"):
            listing.sets[body["name"]] = "map" if kind == "map" else "set", body.get("comment", "")
            listing.elements[body["name"]] = dict(map(_element, body.get("elem", ())))
    return listing


def set_mark(spec: SetSpec) -> str:
    return mark(f"{spec.kind} {spec.declaration}")


def parse_hook(declaration: str) -> tuple[str, str, int, str] | None:
    """Of ``type filter hook forward priority srcnat + 10; policy accept;``; None for a chain without."""
    if not declaration:
        return None
    found = _HOOK.fullmatch(" ".join(declaration.split()))
    if found is None:
        raise ValueError(f"not a base chain's declaration: {declaration}")
    offset = found["offset"].replace(" ", "")
    priority = _PRIORITIES.get(found["base"], 0) + int(offset or 0)
    return found["type"], found["hook"], priority, found["policy"] or "accept"


def hook_text(hook: tuple[str, str, int, str] | None) -> str:
    """A declaration that ``parse_hook`` reads back."""
    if hook is None:
        return ""
    kind, name, priority, policy = hook
    return f"type {kind} hook {name} priority {priority}; policy {policy};"


def canonical(element: str) -> str:
    return " . ".join(_canonical_part(part.strip().strip('"')) for part in element.split(" . "))


def protocol_number(text: str) -> int:
    return int(_PROTOCOLS.get(text, text))


def _canonical_part(part: str) -> str:
    if part.endswith("/32") and ":" not in part:
        return part[:-3]
    if part.endswith("/128"):
        return part[:-4]
    return _PROTOCOLS.get(part, part)


def _hook_of(chain: dict[str, Any]) -> tuple[str, str, int, str] | None:
    if "hook" not in chain:
        return None
    return chain["type"], chain["hook"], chain["prio"], chain.get("policy", "accept")


def _element(value: Any) -> tuple[str, str]:
    if isinstance(value, list):
        key, verdict = value
        return _text(key), _verdict(verdict)
    return _text(value), ""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _PROTOCOLS.get(value, value)
    if isinstance(value, int):
        return str(value)
    ((kind, body),) = value.items()
    if kind == "concat":
        return " . ".join(map(_text, body))
    if kind == "prefix":
        return f"{body['addr']}/{body['len']}"
    if kind == "range":
        return f"{_text(body[0])}-{_text(body[1])}"
    if kind == "elem":
        return _text(body["val"])
    return str(value)


def _verdict(value: Any) -> str:
    if not isinstance(value, dict) or "concat" in value:
        return _text(value)
    ((kind, body),) = value.items()
    return f"{kind} {body['target']}" if isinstance(body, dict) else str(kind)
