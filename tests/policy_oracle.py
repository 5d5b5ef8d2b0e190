"""What Calico's rules of evaluation say about one packet, read off the stored documents: slow, direct, obvious.

Nothing of the product's policy code is used but the selector parser, which has Calico's own cases for a test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.selector import parse

Document = dict[str, Any]
Address = IPv4Address | IPv6Address

NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "udplite": 136}
_WITH_PORTS = (6, 17, 132)
_NAMESPACE = "projectcalico.org/namespace"
_NAMESPACE_SELECTORS = {
    "all()": f"has({_NAMESPACE})",
    "global()": f"!has({_NAMESPACE})",
    "has(team)": "has(pcns.team)",
}
ALLOW_EVERYTHING = {"spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}}


@dataclass(frozen=True)
class Flow:
    """``first`` and ``second`` are ports, or type and code."""

    source: Address
    destination: Address
    protocol: int
    first: int = 0
    second: int = 0


class Oracle:
    def __init__(self, documents: Mapping[ResourceKey, Document], *, node: str, host: Iterable[Address]) -> None:
        self.documents = documents
        self.node = node
        self.host = set(host)

    def allows(self, flow: Flow) -> bool:
        """For the first packet of a flow between workloads, the outside and, as destination, the host."""
        source, destination = self.local(flow.source), self.local(flow.destination)
        if source is not None and not self._leaves(source, flow):
            return False
        if flow.destination in self.host:
            return source is None or self._option("defaultEndpointToHostAction", "Drop").lower() != "drop"
        return destination is None or self._passes(destination, flow, "ingress")

    def local(self, address: Address) -> ResourceKey | None:
        """The endpoint of this node that has the address and its interface."""
        for key, document in self._of("WorkloadEndpoint"):
            if document["spec"]["node"] == self.node and address in _addresses(document):
                return key
        return None

    def _leaves(self, endpoint: ResourceKey, flow: Flow) -> bool:
        if flow.protocol == 17 and flow.second == 4789 and not self._option("allowVXLANPacketsFromWorkloads", False):
            return False
        if flow.protocol == 4 and not self._option("allowIPIPPacketsFromWorkloads", False):
            return False
        return self._passes(endpoint, flow, "egress")

    def _passes(self, endpoint: ResourceKey, flow: Flow, direction: str) -> bool:
        for policies, denies in self._tiers(endpoint, direction):
            verdict = self._first_verdict(policies, flow, direction)
            if verdict in ("allow", "deny"):
                return verdict == "allow"
            if verdict is None and denies:
                return False
        for name in self.documents[endpoint]["spec"].get("profiles", []):
            profile = self._profile(name)
            if profile is None:
                return False
            verdict = self._first_verdict([(ResourceKey("Profile", name), profile)], flow, direction)
            if verdict is not None:
                return verdict == "allow"
        return False

    def _tiers(self, endpoint: ResourceKey, direction: str) -> list[tuple[list[tuple[ResourceKey, Document]], bool]]:
        tiers: dict[str, list[tuple[ResourceKey, Document]]] = {}
        for kind in ("GlobalNetworkPolicy", "NetworkPolicy"):
            for key, document in self._of(kind):
                types = [type_.lower() for type_ in document["spec"].get("types", [])]
                if (not types or direction in types) and self._applies(key, document, endpoint):
                    tiers.setdefault(document["spec"].get("tier", "default"), []).append((key, document))
        ordered = []
        for name, policies in tiers.items():
            tier = self.documents.get(ResourceKey("Tier", name))
            if tier is None and name == "default":
                tier = {"spec": {"order": 1000000}}
            order = math.inf if tier is None else tier["spec"].get("order", math.inf)
            policies.sort(key=_policy_order)
            denies = tier is None or tier["spec"].get("defaultAction", "Deny") != "Pass"
            ordered.append(((tier is None, order, name), policies, denies))
        return [(policies, denies) for _, policies, denies in sorted(ordered, key=lambda item: item[0])]

    def _applies(self, key: ResourceKey, document: Document, endpoint: ResourceKey) -> bool:
        spec, labels = document["spec"], self._labels(endpoint)
        if spec.get("doNotTrack") or spec.get("preDNAT"):
            return False
        if key.namespace and labels.get(_NAMESPACE) != key.namespace:
            return False
        namespaces = spec.get("namespaceSelector")
        if namespaces and not parse(_NAMESPACE_SELECTORS[namespaces]).matches(labels):
            return False
        return parse(spec.get("selector", "")).matches(labels)

    def _first_verdict(
        self, policies: Iterable[tuple[ResourceKey, Document]], flow: Flow, direction: str
    ) -> str | None:
        for key, document in policies:
            for rule in document["spec"].get(direction) or []:
                action = rule["action"].lower()
                if action != "log" and self._matches(rule, key.namespace, flow):
                    return str(action)
        return None

    def _matches(self, rule: Document, namespace: str, flow: Flow) -> bool:
        source, destination = rule.get("source", {}), rule.get("destination", {})
        return (
            rule.get("ipVersion", flow.source.version) == flow.source.version
            and _protocol_matches(rule, flow)
            and self._entity_matches(source, namespace, flow.source, flow.protocol, flow.first)
            and self._entity_matches(destination, namespace, flow.destination, flow.protocol, flow.second)
        )

    def _entity_matches(self, entity: Document, namespace: str, address: Address, protocol: int, port: int) -> bool:
        for field, wanted in (("nets", True), ("notNets", False)):
            networks = [ip_network(text, strict=False) for text in entity.get(field, [])]
            of_version = [network for network in networks if network.version == address.version]
            if networks and (not of_version or any(address in network for network in of_version) is not wanted):
                return False
        positive = _positive_selector(entity, namespace)
        if positive is not None and not self._selected(positive, address):
            return False
        if entity.get("notSelector") and self._selected(entity["notSelector"], address):
            return False
        if entity.get("ports") and not self._port_matches(entity["ports"], positive, address, protocol, port):
            return False
        negated = entity.get("notPorts")
        return not negated or not self._port_matches(negated, positive, address, protocol, port)

    def _port_matches(
        self, ports: list[int | str], positive: str | None, address: Address, protocol: int, port: int
    ) -> bool:
        for wanted in ports:
            first, _, last = str(wanted).partition(":")
            if first.isdigit():
                if protocol in _WITH_PORTS and int(first) <= port <= int(last or first):
                    return True
            elif self._named_port(first, positive, address, protocol, port):
                return True
        return False

    def _named_port(self, name: str, positive: str | None, address: Address, protocol: int, port: int) -> bool:
        for key in self._endpoints():
            document = self.documents[key]
            if address not in _addresses(document):
                continue
            if positive is not None and not parse(positive).matches(self._labels(key)):
                continue
            for defined in document["spec"].get("ports", []):
                if (defined["name"], NUMBERS[defined["protocol"].lower()], defined["port"]) == (name, protocol, port):
                    return True
        return False

    def _selected(self, selector: str, address: Address) -> bool:
        matches = parse(selector).matches
        if any(address in _addresses(self.documents[key]) and matches(self._labels(key)) for key in self._endpoints()):
            return True
        for kind in ("GlobalNetworkSet", "NetworkSet"):
            for key, document in self._of(kind):
                networks = map(ip_network, document["spec"].get("nets", []))
                if matches(self._labels(key)) and any(address in network for network in networks):
                    return True
        return False

    def _endpoints(self) -> list[ResourceKey]:
        return [key for kind in ("WorkloadEndpoint", "HostEndpoint") for key, _ in self._of(kind)]

    def _labels(self, key: ResourceKey) -> dict[str, str]:
        document = self.documents[key]
        labels = dict(document["metadata"].get("labels", {}))
        profiles = list(document["spec"].get("profiles", []))
        if key.kind == "WorkloadEndpoint":
            labels = {name: value for name, value in labels.items() if not name.startswith(("pcns.", "pcsa."))}
            labels |= {_NAMESPACE: key.namespace, "projectcalico.org/orchestrator": document["spec"]["orchestrator"]}
        if key.kind == "NetworkSet":
            labels[_NAMESPACE] = key.namespace
            profiles = [f"kns.{key.namespace}"]
        for name in profiles:
            profile = self._profile(name) or {"spec": {}}
            labels = profile["spec"].get("labelsToApply", {}) | labels
        return labels

    def _profile(self, name: str) -> Document | None:
        if name == "projectcalico-default-allow":
            return ALLOW_EVERYTHING
        return self.documents.get(ResourceKey("Profile", name))

    def _of(self, kind: str) -> list[tuple[ResourceKey, Document]]:
        return [(key, document) for key, document in self.documents.items() if key.kind == kind]

    def _option(self, name: str, default: Any) -> Any:
        for configuration in (f"node.{self.node}", "default"):
            document = self.documents.get(ResourceKey("FelixConfiguration", configuration))
            if document is not None and name in document["spec"]:
                return document["spec"][name]
        return default


def _policy_order(item: tuple[ResourceKey, Document]) -> tuple[float, str]:
    key, document = item
    order = document["spec"].get("order")
    return (math.inf if order is None else order, f"{key.name}/{key.namespace}/{key.kind}")


def _addresses(document: Document) -> set[Address]:
    spec = document["spec"]
    return {ip_address(text.partition("/")[0]) for text in spec.get("ipNetworks") or spec.get("expectedIPs") or []}


def _number(protocol: int | str) -> int:
    return protocol if isinstance(protocol, int) else NUMBERS[protocol.lower()]


def _protocol_matches(rule: Document, flow: Flow) -> bool:
    if "protocol" in rule and _number(rule["protocol"]) != flow.protocol:
        return False
    if "notProtocol" in rule and _number(rule["notProtocol"]) == flow.protocol:
        return False
    icmp, not_icmp = rule.get("icmp"), rule.get("notICMP")
    if icmp and not _icmp_matches(icmp, flow):
        return False
    return not not_icmp or not _icmp_matches(not_icmp, flow)


def _icmp_matches(icmp: Document, flow: Flow) -> bool:
    return bool(flow.first == icmp["type"] and icmp.get("code", flow.second) == flow.second)


def _positive_selector(entity: Document, namespace: str) -> str | None:
    parts = []
    if entity.get("namespaceSelector"):
        parts.append(_NAMESPACE_SELECTORS[entity["namespaceSelector"]])
    elif namespace and (entity.get("selector") or entity.get("notSelector")):
        parts.append(f"{_NAMESPACE} == '{namespace}'")
    if entity.get("selector"):
        parts.append(entity["selector"])
    return " && ".join(f"({part})" for part in parts) if parts else None
