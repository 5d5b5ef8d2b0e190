"""Networks that the whole cluster shares, as stored under keys of our own and as Docker shows and takes them. Pure.

Docker gives a network another id on every host. What makes them one is a uid: in the network's record, which any host
may read and create the network from, and in one record per host and Docker id, which says that this network of this
host is that one. The second kind also tells, of a network that Docker no longer has, that it was removed there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from calico_libnetwork.datastore.protocol import KeyValue
from calico_libnetwork.model.documents import UNDECODABLE

NETWORKS = "/calico-libnetwork/v1/cluster-networks/"
HOSTS = "/calico-libnetwork/v1/hosts/"
LABEL = "org.projectcalico.libnetwork.cluster"
"""Docker label of a network that was created from its record; its value is the uid."""

DRIVER = "calico"


class Specification(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """What a user can say of a Calico network but its name. ``subnets``: the CIDRs asked for, none for any pool.

    Addresses kept out of use (``--aux-address``) are not part of it: their own host has assigned them, which keeps
    them out of use everywhere.
    """

    driver: str
    ipam_driver: str
    subnets: tuple[str, ...] = ()
    ipv4: bool = True
    ipv6: bool = False
    attachable: bool = False
    labels: dict[str, str] = {}


class ClusterNetwork(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """``node`` is the one whose user created it."""

    name: str
    uid: str
    node: str
    specification: Specification


class Member(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """One host's network. ``daemon`` is the id of its dockerd, which a new data directory changes."""

    uid: str
    name: str
    daemon: str = ""


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A network of this host's Docker, of whatever driver; ``uid`` as its label has it."""

    id: str
    name: str
    uid: str
    specification: Specification

    @property
    def is_ours(self) -> bool:
        return self.specification.driver.partition(":")[0] == DRIVER

    @property
    def short_id(self) -> str:
        return self.id[:12]


def network_key(name: str) -> str:
    """Docker allows any character in a name."""
    return NETWORKS + quote(name, safe="")


def members_prefix(node: str) -> str:
    return f"{HOSTS}{node}/networks/"


def split_member_key(key: str) -> tuple[str, str] | None:
    """Node and Docker id."""
    node, separator, network_id = key.removeprefix(HOSTS).partition("/networks/")
    return (node, network_id) if separator else None


T = TypeVar("T", ClusterNetwork, Member)
_networks = msgspec.json.Decoder(ClusterNetwork)
_members = msgspec.json.Decoder(Member)


def read_network(key_value: KeyValue) -> ClusterNetwork | None:
    """None for a value nobody can read, which then takes no part."""
    return _read(_networks, key_value)


def read_member(key_value: KeyValue) -> Member | None:
    return _read(_members, key_value)


def _read(decoder: msgspec.json.Decoder[T], key_value: KeyValue) -> T | None:
    try:
        return decoder.decode(key_value.value)
    except UNDECODABLE:
        return None


def encode(record: ClusterNetwork | Member) -> bytes:
    return msgspec.json.encode(record)


def local_network(shown: Mapping[str, Any]) -> LocalNetwork:
    """One entry of ``GET /networks``. Docker before 28 does not say ``EnableIPv4``, which cannot be off there."""
    ipam = shown.get("IPAM") or {}
    labels = dict(shown.get("Labels") or {})
    uid = labels.pop(LABEL, "")
    specification = Specification(
        driver=shown.get("Driver") or "",
        ipam_driver=ipam.get("Driver") or "",
        subnets=tuple(sorted(filter(None, (_asked_subnet(entry) for entry in ipam.get("Config") or ())))),
        ipv4=shown.get("EnableIPv4") is not False,
        ipv6=bool(shown.get("EnableIPv6")),
        attachable=bool(shown.get("Attachable")),
        labels=labels,
    )
    return LocalNetwork(shown["Id"], shown["Name"], uid, specification)


def creation_request(record: ClusterNetwork) -> dict[str, Any]:
    """The body of ``POST /networks/create``."""
    wanted = record.specification
    request = {
        "Name": record.name,
        "CheckDuplicate": True,
        "Driver": wanted.driver,
        "EnableIPv6": wanted.ipv6,
        "Attachable": wanted.attachable,
        "IPAM": {"Driver": wanted.ipam_driver, "Config": [{"Subnet": subnet} for subnet in wanted.subnets]},
        "Labels": {**wanted.labels, LABEL: record.uid},
    }
    return request if wanted.ipv4 else {**request, "EnableIPv4": False}


def difference(one: Specification, other: Specification) -> str:
    """In what two networks of one name cannot be the same, for messages; "" if they can. Labels may differ."""
    fields = {
        "driver": (one.driver, other.driver),
        "IPAM driver": (one.ipam_driver, other.ipam_driver),
        "subnets": (", ".join(one.subnets) or "none", ", ".join(other.subnets) or "none"),
        "IPv4": (one.ipv4, other.ipv4),
        "IPv6": (one.ipv6, other.ipv6),
        "attachable": (one.attachable, other.attachable),
    }
    return "; ".join(f"{name}: {here} here, {there} there" for name, (here, there) in fields.items() if here != there)


def _asked_subnet(entry: Mapping[str, Any]) -> str:
    """Empty for what Docker shows where none was asked for: any address, or the pool it got, with a gateway of zeros.

    Any address without a gateway was asked for, and makes ``--ip`` work up to Docker 28. Docker 29 shows a gateway of
    zeros with every subnet.
    """
    subnet, gateway = entry.get("Subnet") or "", entry.get("Gateway") or ""
    if not subnet or gateway.endswith("/0") or (gateway and ip_network(subnet, strict=False).prefixlen == 0):
        return ""
    return str(subnet)
