"""Names and texts of kernel objects: short, legal for nft, the same for the same content."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.selector import Selector
from calico_libnetwork.policy.entity import Network
from calico_libnetwork.policy.rule import Direction

Address = IPv4Address | IPv6Address

_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


def is_interface_name(name: str) -> bool:
    return _INTERFACE.fullmatch(name) is not None and name not in (".", "..")


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def content_name(prefix: str, rules: Iterable[str]) -> str:
    return f"{prefix}_{digest(*rules)}"


@lru_cache(maxsize=65536)
def rule_chain_name(key: ResourceKey, direction: Direction) -> str:
    """By identity, so that a policy's change rewrites one chain; its own name is in it for who reads the table."""
    kind = "profile" if key.kind == "Profile" else "policy"
    readable = re.sub(r"[^A-Za-z0-9]", "_", key.name)[:32]
    way = "in" if direction == "ingress" else "out"
    return f"{kind}_{way}_{readable}_{digest(key.kind, key.namespace, key.name)}"


def address_set(version: int, selector: Selector) -> str:
    return f"s{version}_{digest(selector.canonical)}"


def network_set(version: int, networks: Iterable[str]) -> str:
    """By content: such a set is never changed, see ``members``."""
    return content_name(f"n{version}", networks)


def port_set(version: int, selector: Selector, name: str) -> str:
    return f"np{version}_{digest(selector.canonical, name)}"


def address_text(address: Address) -> str:
    """As nft prints it, also for IPv6 addresses that hold an IPv4 one."""
    return socket.inet_ntop(socket.AF_INET if address.version == 4 else socket.AF_INET6, address.packed)


def network_text(network: Network) -> str:
    text = address_text(network.network_address)
    return text if network.prefixlen == network.max_prefixlen else f"{text}/{network.prefixlen}"


def anonymous(items: Iterable[str]) -> str:
    """One value as itself, several as an anonymous set."""
    values = list(items)
    return values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"
