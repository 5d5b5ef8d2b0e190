"""Random but valid Calico resources around a few workloads, and random packets between them and the outside."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.policy.explain import Explanation
from calico_libnetwork.policy.flow import Flow as ExplainedFlow
from tests.policy_oracle import Document, Flow

Address = IPv4Address | IPv6Address
World = dict[ResourceKey, Document]

NODE = "n1"
WORKLOADS = 4
HOST: tuple[Address, ...] = (IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"))
OUTSIDE: tuple[Address, ...] = (
    IPv4Address("192.0.2.2"),
    IPv4Address("198.51.100.7"),
    IPv4Address("203.0.113.9"),
    IPv6Address("2001:db8::2"),
    IPv6Address("2001:db8:1::7"),
)
PORTS = (53, 80, 81, 443, 4789, 9000)
_SELECTORS = (
    "all()", "role == 'web'", "role != 'web'", "has(role)", "!has(role)", "role in {'web', 'db'}", "env == 'prod'",
    "role == 'db' && env == 'prod'", "role not in {'db'} || has(net/red)", "has(net/red)", "has(net/blue)",
    "env starts with 'p'", "has(set)", "projectcalico.org/namespace == 'libnetwork'", "has(nothing)", "set == 'wide'",
)  # fmt: skip
_NAMESPACE_SELECTORS = ("all()", "global()", "has(team)")
_NETS = {
    4: ("10.65.0.0/30", "10.65.0.1", "10.65.0.4/32", "198.51.100.0/24", "0.0.0.0/0", "192.0.2.0/25", "203.0.113.9/32"),
    6: ("fd00:65::/126", "fd00:65::1", "2001:db8:1::/64", "::/0", "2001:db8::2/128"),
}
_PROTOCOLS = ("TCP", "UDP", "SCTP", 6, 17, "UDPLite", 200, "ICMP", "ICMPv6", 4)
_NAMED_PORTS = ("http", "dns")


def interface(number: int) -> str:
    return f"cali{number:04x}".ljust(15, "0")


def addresses(number: int) -> tuple[IPv4Address, IPv6Address]:
    return IPv4Address("10.65.0.0") + number, IPv6Address("fd00:65::") + number


def make_world(random: Random) -> World:
    bgp = {"ipv4Address": f"{HOST[0]}/24", "ipv6Address": f"{HOST[1]}/64"}
    world: World = dict([document("Node", NODE, {"bgp": bgp})])
    for maker, most in (
        (_profile, 3), (_tier, 3), (_policy, 6), (_network_set, 3), (_host_endpoint, 2), (_remote, 1), (_options, 1),
    ):  # fmt: skip
        for index in range(random.randint(0, most)):
            key, made = maker(random, index)
            world[key] = made
    for number in range(1, WORKLOADS + 1):
        if random.random() < 0.9:
            key, made = _workload(random, number)
            world[key] = made
    return world


def change(random: Random, world: World) -> World:
    """A neighbouring world: something came, went or is different."""
    other = make_world(random)
    changed = dict(world)
    for key in random.sample(sorted(set(world) | set(other)), k=min(3, len(world | other))):
        changed.pop(key, None)
        if key in other:
            changed[key] = other[key]
    return changed


def make_flows(random: Random, count: int) -> list[Flow]:
    """None of them looks like the answer to another: that would be let through as part of an allowed flow."""
    flows: dict[Flow, None] = {}
    for _ in range(count):
        flow = make_flow(random)
        if Flow(flow.destination, flow.source, flow.protocol, flow.second, flow.first) not in flows:
            flows[flow] = None
    return list(flows)


def make_flow(random: Random) -> Flow:
    version = random.choice((4, 6))
    workloads = [addresses(number)[0 if version == 4 else 1] for number in range(1, WORKLOADS + 1)]
    outside = [address for address in OUTSIDE if address.version == version]
    host = [address for address in HOST if address.version == version]
    source = random.choice(workloads * 2 + outside)
    destination = random.choice(workloads * 2 + outside + host)
    protocol = random.choice((6, 6, 6, 17, 17, 132, 1 if version == 4 else 58, 200, 4))
    if source == destination or (source in outside and destination not in workloads):
        return make_flow(random)
    if destination in host:
        protocol = random.choice((6, 17))
    if protocol == 1:
        return Flow(source, destination, 1, random.choice((8, 13)), random.choice((0, 3)))
    if protocol == 58:
        return Flow(source, destination, 58, random.choice((128, 139)), random.choice((0, 1)))
    if protocol in (6, 17, 132):
        return Flow(source, destination, protocol, random.choice((1024, 5000, *PORTS)), random.choice(PORTS))
    return Flow(source, destination, protocol)


def explained_flow(flow: Flow) -> ExplainedFlow:
    if flow.protocol in (1, 58):
        kind = {"icmp_type": flow.first, "icmp_code": flow.second}
        return ExplainedFlow(flow.source, flow.destination, flow.protocol, **kind)
    return ExplainedFlow(flow.source, flow.destination, flow.protocol, flow.first, flow.second)


def allowed_on(node: str, explanation: Explanation) -> bool:
    """What the node's own kernel has to say; the other end may have a policy elsewhere."""
    judgements = (explanation.egress, explanation.ingress)
    return all(judgement.allowed for judgement in judgements if judgement.node in ("", node))


def document(
    kind: str, name: str, spec: Document, namespace: str = "", **metadata: Any
) -> tuple[ResourceKey, Document]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **metadata}
    value = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}
    return ResourceKey(kind, name, namespace), value


def _labels(random: Random) -> dict[str, str]:
    labels = {}
    if random.random() < 0.7:
        labels["role"] = random.choice(("web", "db", "cache"))
    if random.random() < 0.5:
        labels["env"] = random.choice(("prod", "test"))
    if random.random() < 0.1:
        labels["pcns.team"] = "forged"
    return labels


def workload(
    number: int, *, node: str = NODE, labels: dict[str, str] | None = None, **spec: Any
) -> tuple[ResourceKey, Document]:
    endpoint = f"{number:04x}".ljust(64, "0")
    usual = {
        "orchestrator": "libnetwork",
        "workload": "libnetwork",
        "node": node,
        "endpoint": endpoint,
        "interfaceName": interface(number),
        "ipNetworks": [f"{address}/{address.max_prefixlen}" for address in addresses(number)],
    }
    name = f"{node}-libnetwork-libnetwork-{endpoint}"
    return document("WorkloadEndpoint", name, usual | spec, "libnetwork", labels=labels or {})


def _workload(random: Random, number: int, node: str = NODE) -> tuple[ResourceKey, Document]:
    names = ("red", "blue", "p0", "projectcalico-default-allow", "missing")
    spec: Document = {"profiles": random.choices(names, weights=(4, 3, 3, 6, 1), k=random.choice((0, 1, 1, 1, 2, 2)))}
    if random.random() < 0.3:
        spec["ports"] = _named_ports(random)
    return workload(number, node=node, labels=_labels(random), **spec)


def _remote(random: Random, index: int) -> tuple[ResourceKey, Document]:
    key, remote = _workload(random, 100 + index, node="n2")
    remote["spec"]["ipNetworks"] = ["198.51.100.7/32", "2001:db8:1::7/128"]
    return key, remote


def _named_ports(random: Random) -> list[Document]:
    return [
        {"name": random.choice(_NAMED_PORTS), "protocol": random.choice(("TCP", "UDP")), "port": random.choice(PORTS)}
        for _ in range(random.randint(1, 2))
    ]


def _profile(random: Random, index: int) -> tuple[ResourceKey, Document]:
    name = ("red", "blue", "p0")[index]
    spec: Document = {"labelsToApply": {f"net/{name}": ""}}
    if random.random() < 0.3:
        spec["labelsToApply"] |= random.choice(({"role": "web"}, {"pcns.team": "a"}, {"env": "prod"}))
    if random.random() < 0.5:
        spec |= {"ingress": [{"action": "Allow", "source": {"selector": f"has(net/{name})"}}]}
        spec |= {"egress": [{"action": "Allow"}]}
    else:
        for direction in ("ingress", "egress"):
            spec[direction] = [
                rule for rule in (_rule(random) for _ in range(random.randint(0, 3))) if rule["action"] != "Pass"
            ]
    return document("Profile", name, spec)


def _tier(random: Random, index: int) -> tuple[ResourceKey, Document]:
    spec: Document = {"defaultAction": random.choice(("Deny", "Pass", "Pass"))} if random.random() < 0.8 else {}
    order = random.choice((None, -5, 1, 1, 2.5, 2000000))
    if order is not None:
        spec["order"] = order
    return document("Tier", ("alpha", "beta", "default")[index], spec)


def _policy(random: Random, index: int) -> tuple[ResourceKey, Document]:
    spec: Document = {
        "selector": random.choice(_SELECTORS),
        "tier": random.choice(("default", "alpha", "beta", "gone")),
    }
    if spec["tier"] == "default" and random.random() < 0.5:
        del spec["tier"]
    if random.random() < 0.7:
        spec["order"] = random.choice((-1, 1, 1, 2, 2.5))
    spec["types"] = random.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"], []))
    for direction in ("ingress", "egress"):
        if random.random() < 0.8:
            spec[direction] = [_rule(random) for _ in range(random.randint(0, 4))]
    if random.random() < 0.3:
        return document("NetworkPolicy", f"n{index}", spec, random.choice(("libnetwork", "libnetwork", "other")))
    if random.random() < 0.15:
        spec["namespaceSelector"] = random.choice(("all()", "has(team)"))
    if random.random() < 0.05:
        spec |= {"applyOnForward": True, random.choice(("doNotTrack", "preDNAT")): True}
    return document("GlobalNetworkPolicy", f"g{index}", spec)


def _network_set(random: Random, index: int) -> tuple[ResourceKey, Document]:
    nets = random.sample(_NETS[4] + _NETS[6], k=random.randint(0, 4))
    labels = {"set": random.choice(("wide", "narrow"))} | _labels(random)
    if random.random() < 0.3:
        return document("NetworkSet", f"s{index}", {"nets": nets}, "libnetwork", labels=labels)
    return document("GlobalNetworkSet", f"s{index}", {"nets": nets}, labels=labels)


def _host_endpoint(random: Random, index: int) -> tuple[ResourceKey, Document]:
    expected = [str(address) for address in random.sample(OUTSIDE, k=2)]
    spec: Document = {"node": random.choice((NODE, "n2")), "interfaceName": "eth0", "expectedIPs": expected}
    spec |= {"ports": _named_ports(random), "profiles": random.choice(([], ["red"]))}
    return document("HostEndpoint", f"h{index}", spec, labels=_labels(random))


def _options(random: Random, index: int) -> tuple[ResourceKey, Document]:
    spec: Document = {"defaultEndpointToHostAction": random.choice(("Drop", "Return", "Accept"))}
    if random.random() < 0.3:
        spec |= {"allowVXLANPacketsFromWorkloads": True, "allowIPIPPacketsFromWorkloads": True}
    if random.random() < 0.3:
        spec["nftablesFilterDenyAction"] = "Reject"
    return document("FelixConfiguration", random.choice(("default", f"node.{NODE}", "node.other")), spec)


def _rule(random: Random) -> Document:
    rule: Document = {"action": random.choices(("Allow", "Deny", "Pass", "Log"), weights=(8, 3, 3, 1))[0]}
    if random.random() < 0.2:
        return rule
    version = random.choice((0, 0, 0, 4, 6))
    if version and random.random() < 0.5:
        rule["ipVersion"] = version
    protocol: int | str | None = random.choice((None, None, *_PROTOCOLS))
    if protocol is not None:
        if (protocol == "ICMP" and version == 6) or (protocol == "ICMPv6" and version == 4):
            version = 0
            rule.pop("ipVersion", None)
        if protocol == "ICMP":
            version = 4
        if protocol == "ICMPv6":
            version = 6
        negated = random.random() < 0.15 and protocol not in ("ICMP", "ICMPv6")
        rule["notProtocol" if negated else "protocol"] = protocol
        _add_icmp(random, rule)
    with_ports = rule.get("protocol") in ("TCP", "UDP", "SCTP", 6, 17)
    for side in ("source", "destination"):
        entity = _entity(random, version, with_ports=with_ports, any_protocol="protocol" not in rule)
        if entity:
            rule[side] = entity
    return rule


def _add_icmp(random: Random, rule: Document) -> None:
    if rule.get("protocol") not in ("ICMP", "ICMPv6") or random.random() < 0.4:
        return
    match: Document = {"type": random.choice((8, 13) if rule["protocol"] == "ICMP" else (128, 139))}
    if random.random() < 0.4:
        match["code"] = random.choice((0, 1, 3))
    rule[random.choice(("icmp", "icmp", "notICMP"))] = match


def _entity(random: Random, version: int, *, with_ports: bool, any_protocol: bool) -> Document:
    entity: Document = {}
    nets = _NETS[version] if version else _NETS[4] + _NETS[6]
    if random.random() < 0.15:
        entity["nets"] = random.sample(nets, k=random.randint(1, 3))
    if random.random() < 0.1:
        entity["notNets"] = random.sample(nets, k=random.randint(1, 2))
    if random.random() < 0.35:
        entity["selector"] = random.choice(_SELECTORS)
    if random.random() < 0.1:
        entity["notSelector"] = random.choice(_SELECTORS)
    if random.random() < 0.1:
        entity["namespaceSelector"] = random.choice(_NAMESPACE_SELECTORS)
    numbers: list[int | str] = [80, 53, 443, "80:82", "1:60", "4000:9000", 4789]
    choices = numbers + list(_NAMED_PORTS) if with_ports else list(_NAMED_PORTS) if any_protocol else []
    for field, likelihood in (("ports", 0.4 if with_ports else 0.08), ("notPorts", 0.15 if with_ports else 0.04)):
        if choices and random.random() < likelihood:
            entity[field] = random.sample(choices, k=random.randint(1, min(3, len(choices))))
    return entity
