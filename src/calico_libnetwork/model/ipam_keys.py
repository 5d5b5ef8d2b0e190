"""Where Calico's IPAM objects live in the datastore; they are bare JSON, not v3 resources.

A CIDR stands in a key as its network address and length joined by a dash, ``10.65.77.64-26``. Node names and handles
go in verbatim, so a handle has no slash.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Version = Literal[4, 6]

IPAM_PREFIX = "/calico/ipam/v2/"
BLOCKS_PREFIX = f"{IPAM_PREFIX}assignment/"
HANDLES_PREFIX = f"{IPAM_PREFIX}handle/"
AFFINITIES_PREFIX = f"{IPAM_PREFIX}host/"
CONFIG_KEY = f"{IPAM_PREFIX}config"


def block_key(cidr: Network | str) -> str:
    """Text, where it is at hand, spares the formatting."""
    text = str(cidr)
    return f"{BLOCKS_PREFIX}{'ipv6' if ':' in text else 'ipv4'}/block/{text.replace('/', '-')}"


def block_key_at(address: Address, length: int) -> str:
    """The key of the block with a prefix of ``length`` that would hold ``address``."""
    host = address.max_prefixlen - length
    first = type(address)(int(address) >> host << host)
    return f"{BLOCKS_PREFIX}ipv{address.version}/block/{first}-{length}"


def blocks_prefix(version: Version) -> str:
    return f"{BLOCKS_PREFIX}ipv{version}/block/"


def affinity_key(node: str, cidr: Network | str) -> str:
    text = str(cidr)
    return f"{AFFINITIES_PREFIX}{node}/{'ipv6' if ':' in text else 'ipv4'}/block/{text.replace('/', '-')}"


def affinities_prefix(node: str, version: Version) -> str:
    return f"{AFFINITIES_PREFIX}{node}/ipv{version}/block/"


def handle_key(handle: str) -> str:
    return f"{HANDLES_PREFIX}{handle}"


@lru_cache(maxsize=1 << 16)
def parse_block_key(key: str) -> Network | None:
    """The CIDR of a block's key; None for any other key."""
    family, _, segment = key.removeprefix(BLOCKS_PREFIX).partition("/block/")
    if not key.startswith(BLOCKS_PREFIX) or family not in ("ipv4", "ipv6"):
        return None
    return _parse_segment(segment)


def parse_affinity_key(key: str) -> tuple[str, Network] | None:
    """Node and CIDR of an affinity's key; None for any other key."""
    if not key.startswith(AFFINITIES_PREFIX):
        return None
    node, *rest = key.removeprefix(AFFINITIES_PREFIX).split("/")
    if len(rest) != 3 or rest[0] not in ("ipv4", "ipv6") or rest[1] != "block":
        return None
    network = _parse_segment(rest[2])
    return None if network is None else (node, network)


def parse_handle_key(key: str) -> str | None:
    return key.removeprefix(HANDLES_PREFIX) if key.startswith(HANDLES_PREFIX) else None


def _parse_segment(segment: str) -> Network | None:
    address, _, length = segment.rpartition("-")
    try:
        return IPv6Network(f"{address}/{length}") if ":" in address else IPv4Network(f"{address}/{length}")
    except ValueError:
        return None
