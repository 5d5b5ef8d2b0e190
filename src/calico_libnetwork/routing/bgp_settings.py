"""What BGPConfiguration ``default`` and ``node.<name>`` say, with Calico's defaults filled in. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calico_libnetwork.model.resources import BGPConfiguration
from calico_libnetwork.routing.cluster import Finding, IPNetwork, parse_as_number

BGP_PORT = 179
DEFAULT_AS_NUMBER = 64512
DEFAULT_PRIORITY = 1024
NODE_PREFIX = "node."

_COMMUNITY = re.compile(r"\d{1,10}:\d{1,10}(:\d{1,10})?")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

Community = tuple[int, ...]  # two numbers, or three for a large community
SecretReference = tuple[str, str]  # name, key


@dataclass(frozen=True, slots=True)
class Advertisement:
    """Communities that own routes inside ``network`` carry."""

    network: IPNetwork
    communities: tuple[Community, ...]


@dataclass(frozen=True, slots=True)
class BgpSettings:
    """Times in whole seconds; a port of 0 is BGP's own, 179."""

    as_number: int = DEFAULT_AS_NUMBER
    mesh: bool = True
    port: int = 0
    node_ports: Mapping[str, int] = field(default_factory=dict)
    log_severity: str = ""
    mesh_password: SecretReference | None = None
    mesh_restart_time: int | None = None
    bind_to_address: bool = False
    ignored_interfaces: tuple[str, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    normal_priorities: Mapping[int, int] = field(default_factory=dict)

    def normal_priority(self, family: int) -> int:
        return self.normal_priorities.get(family, DEFAULT_PRIORITY)

    def port_of(self, node: str) -> int:
        return self.node_ports.get(node, self.port)


def bgp_settings(configurations: Mapping[str, BGPConfiguration], node: str) -> tuple[BgpSettings, list[Finding]]:
    """``configurations`` by resource name; ``node`` is this node's name."""
    findings: list[Finding] = []
    default = configurations.get("default")
    own = configurations.get(NODE_PREFIX + node)
    spec = default.spec if default is not None else None
    nearest = own if own is not None and own.spec.prefix_advertisements else default
    ports = {
        name.removeprefix(NODE_PREFIX): port
        for name, configuration in configurations.items()
        if name.startswith(NODE_PREFIX) and (port := _port(configuration.spec.listen_port))
    }
    return (
        BgpSettings(
            as_number=_as_number(default, findings),
            mesh=spec is None or spec.node_to_node_mesh_enabled is not False,
            port=_port(spec.listen_port) if spec is not None else 0,
            node_ports=ports,
            log_severity=(
                (own.spec.log_severity_screen if own else "") or (spec.log_severity_screen if spec else "")
            ).lower(),
            mesh_password=secret_reference(spec.node_mesh_password) if spec is not None else None,
            mesh_restart_time=seconds(spec.node_mesh_max_restart_time) if spec is not None else None,
            bind_to_address=spec is not None and spec.bind_mode == "NodeIP",
            ignored_interfaces=_ignored(default, findings),
            advertisements=_advertisements(nearest, findings),
            normal_priorities=_normal_priorities(default),
        ),
        findings,
    )


def _normal_priorities(default: BGPConfiguration | None) -> dict[int, int]:
    if default is None:
        return {}
    given = {4: default.spec.ipv4_normal_route_priority, 6: default.spec.ipv6_normal_route_priority}
    return {family: priority for family, priority in given.items() if priority}


def seconds(duration: str | None) -> int | None:
    """Whole seconds of a Go duration such as ``1m30s``; None for none and for what is no duration."""
    if not duration:
        return None
    parts = list(_DURATION_PART.finditer(duration))
    if "".join(part[0] for part in parts) != duration:
        return None
    return round(sum(float(part[1]) * _SECONDS[part[2]] for part in parts))


def secret_reference(password: Mapping[str, Any] | None) -> SecretReference | None:
    """Of ``{"secretKeyRef": {"name": …, "key": …}}``."""
    reference = (password or {}).get("secretKeyRef")
    if not isinstance(reference, dict):
        return None
    return str(reference.get("name", "")), str(reference.get("key", ""))


def parse_community(text: str) -> Community | None:
    """``aa:nn`` of 16-bit numbers, or the large ``aa:nn:mm`` of 32-bit numbers."""
    if _COMMUNITY.fullmatch(text) is None:
        return None
    community = tuple(int(part) for part in text.split(":"))
    limit = 0xFFFF if len(community) == 2 else 0xFFFFFFFF
    return community if max(community) <= limit else None


def _as_number(default: BGPConfiguration | None, findings: list[Finding]) -> int:
    if default is None or default.spec.as_number in (None, 0):
        return DEFAULT_AS_NUMBER
    number = parse_as_number(default.spec.as_number)
    if number is None:
        text = f"spec.asNumber {default.spec.as_number!r} is no AS number; {DEFAULT_AS_NUMBER} is used"
        findings.append(Finding("error", "BGPConfiguration(default)", text))
        return DEFAULT_AS_NUMBER
    return number


def _port(port: int | None) -> int:
    return port if port is not None and 0 < port <= 0xFFFF else 0


def _ignored(default: BGPConfiguration | None, findings: list[Finding]) -> tuple[str, ...]:
    names = (default.spec.ignored_interfaces or ()) if default is not None else ()
    usable = tuple(name for name in names if is_interface_pattern(name))
    findings.extend(
        Finding(
            "warning", "BGPConfiguration(default)", f"ignored interface {name!r} is no interface name; it is left out"
        )
        for name in names
        if name not in usable
    )
    return usable


def is_interface_pattern(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_.:@*?+-]{1,64}", text) is not None


def _advertisements(configuration: BGPConfiguration | None, findings: list[Finding]) -> tuple[Advertisement, ...]:
    if configuration is None:
        return ()
    subject = f"BGPConfiguration({configuration.name})"
    named = {item.get("name", ""): item.get("value", "") for item in configuration.spec.communities or ()}
    found = []
    for item in configuration.spec.prefix_advertisements or ():
        texts = [named.get(text, text) for text in item.get("communities") or ()]
        communities = [parse_community(text) for text in texts]
        try:
            network = ipaddress.ip_network(item.get("cidr", ""), strict=False)
        except ValueError:
            findings.append(Finding("warning", subject, f"prefixAdvertisements has no CIDR in {item.get('cidr')!r}"))
            continue
        findings.extend(
            Finding("warning", subject, f"community {text!r} is neither defined nor a community; it is left out")
            for text, community in zip(texts, communities, strict=True)
            if community is None
        )
        usable = tuple(sorted({community for community in communities if community is not None}))
        if usable:
            found.append(Advertisement(network, usable))
    return tuple(found)
