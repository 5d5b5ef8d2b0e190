"""What this host's Node resource should hold: its addresses for other hosts, and that our agent routes here. Pure.

An address that a user or calico/node has written is kept. Those that this agent found by itself are listed in an
annotation, and follow the host's.
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from calico_libnetwork.model.documents import Document, new_document
from calico_libnetwork.routing.cluster import (
    FAMILIES,
    ROUTES_ANNOTATION,
    Family,
    Finding,
    IPInterface,
    Member,
)

DETECTED_ANNOTATION = "calico-libnetwork/autodetected"
_FIELDS: Mapping[Family, str] = {4: "ipv4Address", 6: "ipv6Address"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWishes:
    """``settings``: ``IP`` and ``IP6``, "" for autodetection and "none" for no address of the family.

    ``detected``: what autodetection found. ``held``: the subnets of the host's own addresses, which give a setting
    without a prefix length its length. ``tunnels``: tunnel addresses by field of the Node, None to remove one.
    """

    name: str
    settings: Mapping[Family, str]
    detected: Mapping[Family, IPInterface]
    held: tuple[IPInterface, ...] = ()
    routes: str = ""
    tunnels: Mapping[str, str | None] = field(default_factory=dict)


def new_node(wishes: NodeWishes, *, uid: str, created: str) -> Document:
    return desired_node(new_document("Node", wishes.name, {}, uid=uid, created=created), wishes) | {"status": {}}


def desired_node(stored: Document, wishes: NodeWishes) -> Document:
    """``stored`` with our fields; equal to it when nothing is to be written."""
    node = copy.deepcopy(stored)
    spec = _section(node, "spec")
    bgp = _section(spec, "bgp")
    annotations = _section(node["metadata"], "annotations")
    detected_before = annotations.get(DETECTED_ANNOTATION, "").split(",")
    detected = []
    for family in FAMILIES:
        stored_address = bgp.get(_FIELDS[family], "")
        setting = wishes.settings.get(family, "")
        if setting == "none":
            address = ""
        elif setting:
            address = str(_with_length(setting, wishes.held))
        elif stored_address and stored_address not in detected_before:
            address = stored_address
        else:
            # an interface that is down for a moment must not take the node away from the others
            address = str(wishes.detected.get(family, stored_address))
            detected.append(address)
        _assign(bgp, _FIELDS[family], address)
    _assign(annotations, DETECTED_ANNOTATION, ",".join(filter(None, detected)))
    _assign(annotations, ROUTES_ANNOTATION, wishes.routes)
    for name, value in wishes.tunnels.items():
        _assign(bgp if name == "ipv4IPIPTunnelAddr" else spec, name, value or "")
    return _without_empty(node, spec, bgp, annotations)


def conflicts(own: Member, others: Mapping[str, Member]) -> list[Finding]:
    """Addresses that another Node claims as well."""
    return [
        Finding(
            "error",
            f"Node({own.name})",
            f"its address {address} is also that of Node({other.name}); set IP{'' if family == 4 else '6'}"
            " on one of the two hosts, or delete the Node that is gone",
        )
        for other in sorted(others.values(), key=lambda member: member.name)
        for family in FAMILIES
        if (address := own.address(family)) is not None and other.address(family) == address
    ]


def missing(own: Member) -> list[Finding]:
    """Without any address other hosts cannot reach this one's workloads."""
    if own.interfaces:
        return []
    text = "no interface has a usable address; set IP or IP6 to the one that other hosts are to use"
    return [Finding("error", f"Node({own.name})", text)]


def _with_length(setting: str, held: tuple[IPInterface, ...]) -> IPInterface:
    interface = ipaddress.ip_interface(setting)
    if "/" in setting:
        return interface
    return next((candidate for candidate in held if candidate.ip == interface.ip), interface)


def _section(parent: Document, name: str) -> Document:
    """The sub-document, made or put in the place of a null where there is none."""
    section: Document = parent.get(name) or {}
    parent[name] = section
    return section


def _assign(document: Document, name: str, value: str) -> None:
    if value:
        document[name] = value
    else:
        document.pop(name, None)


def _without_empty(node: Document, spec: Document, bgp: Document, annotations: Document) -> Document:
    """Calico refuses an empty ``bgp``; an empty map of annotations is never written."""
    if not bgp:
        del spec["bgp"]
    if annotations:
        node["metadata"]["annotations"] = dict(sorted(annotations.items()))
    else:
        del node["metadata"]["annotations"]
    return node
