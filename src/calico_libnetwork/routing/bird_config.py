"""The text of BIRD's configuration, valid for BIRD 2 and 3; a function of values, with no history. Pure.

The kernel is where the agent and BIRD meet: the agent puts blackholes for its blocks and routes for borrowed
addresses there, protocol 80, and BIRD learns them; so a new block is announced before the configuration names it.
The blocks stand in the configuration too, because BIRD looks at the kernel's routes a second after its start, and a
session that is up by then would begin without them: the peer would drop what it has kept for us. BIRD puts what it
hears into the kernel, but for pools whose remote blocks the agent itself programs (encapsulated ones).

Equal input gives equal text, and BIRD keeps every session whose own statements did not change. Nothing from the
datastore reaches the text unless it was parsed as a number, an address or a checked name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from calico_libnetwork.model.resources import BGPFilter
from calico_libnetwork.routing import bgp_filter
from calico_libnetwork.routing.bgp_settings import Advertisement, BgpSettings
from calico_libnetwork.routing.cluster import FAMILIES, Family, Finding, IPAddress, IPNetwork, RoutedPool
from calico_libnetwork.routing.peers import Session

SCAN_SECONDS = 2
HOLD_SECONDS = 90
# after BIRD's first look at the kernel: BIRD 3 drops routes kept over a restart if sessions are up before it
CONNECT_SECONDS = 2
GRACEFUL_RESTART_SECONDS = 120
RECOVERY_SECONDS = 30
RETOLD_METRIC = 100
_IGNORED_INTERFACES = ("cali*", "docker*", "br-*", "veth*", "vxlan*", "tunl0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BirdInput:
    """``blocks``: this node's. ``ipip_supported``: whether this kernel can decapsulate IPIP."""

    node: str
    addresses: Mapping[Family, IPAddress]
    settings: BgpSettings
    sessions: tuple[Session, ...]
    pools: tuple[RoutedPool, ...]
    blocks: tuple[IPNetwork, ...]
    filters: Mapping[str, BGPFilter]
    ipip_supported: bool = False


def render(values: BirdInput) -> tuple[str, list[Finding]]:
    return _Rendering(values).text()


def router_id(node: str, addresses: Mapping[Family, IPAddress]) -> str:
    """The node's IPv4 address; where it has none, four bytes of a hash of its name."""
    if 4 in addresses:
        return str(addresses[4])
    digest = hashlib.sha256(node.encode()).digest()
    return f"{digest[0] % 223 + 1}.{digest[1]}.{digest[2]}.{digest[3]}"


class _Rendering:
    def __init__(self, values: BirdInput) -> None:
        self._values = values
        self._findings: dict[Finding, None] = {}
        self._filters: dict[str, str] = {}

    def text(self) -> tuple[str, list[Finding]]:
        protocols = [self._session(session) for session in self._values.sessions]
        parts = [
            *self._head(),
            *(self._kernel(family) for family in FAMILIES),
            *self._static(),
            *self._priorities(),
            *(self._filters[name] for name in sorted(self._filters)),
            *protocols,
        ]
        return "\n".join(parts) + "\n", list(self._findings)

    def _head(self) -> Iterator[str]:
        values = self._values
        yield "log stderr all;"
        yield f"router id {router_id(values.node, values.addresses)};"
        yield f"graceful restart wait {RECOVERY_SECONDS};"
        yield "ipv4 table master4; ipv6 table master6;"
        severity = values.settings.log_severity
        if severity == "debug":
            yield "debug protocols all;"
        elif severity in ("", "info"):
            yield "debug protocols { states };"
        yield f"protocol device {{ scan time {SCAN_SECONDS}; }}"
        ignored = ", ".join(f'-"{name}"' for name in (*_IGNORED_INTERFACES, *values.settings.ignored_interfaces))
        yield f'protocol direct {{ ipv4; ipv6; interface {ignored}, "*"; }}'

    def _kernel(self, family: Family) -> str:
        """Own blocks get a preference above BGP's: a stale announcement by another node must not hide them."""
        encapsulated = _set(pool.network for pool in self._pools(family) if pool.encapsulated)
        lines = [
            f"filter cal_kernel_in{family} {{",
            "  if defined(krt_source) && krt_source = 80 then preference = 200;",
            "  accept;",
            "}",
            f"filter cal_kernel_out{family} {{",
            "  if source = RTS_STATIC && dest != RTD_BLACKHOLE then accept;",
            "  if source != RTS_BGP then reject;",
            f"  if net ~ {encapsulated} then reject;" if encapsulated else "",
            "  accept;",
            "}",
            f"protocol kernel kernel{family} {{",
            f"  learn; persist; scan time {SCAN_SECONDS}; graceful restart; merge paths on;",
            f"  ipv{family} {{ import filter cal_kernel_in{family}; export filter cal_kernel_out{family}; }};",
            "}",
        ]
        return "\n".join(line for line in lines if line)

    def _static(self) -> Iterator[str]:
        """Own blocks, and host routes to peers that are reached by a gateway of their own."""
        for family in FAMILIES:
            routes = [
                f"route {session.address}/{32 if family == 4 else 128} via {session.reachable_by};"
                for session in self._values.sessions
                if session.family == family and session.reachable_by is not None
            ]
            routes += [f"route {block} blackhole;" for block in self._values.blocks if _is_block(block, family)]
            if routes:
                yield f"protocol static static{family} {{ ipv{family}; {' '.join(sorted(set(routes)))} }}"

    def _priorities(self) -> Iterator[str]:
        for family in FAMILIES:
            if any(bgp_filter.priority_of(family) in text for text in self._filters.values()):
                yield bgp_filter.priority_function(family, self._values.settings.normal_priority(family))

    def _session(self, session: Session) -> str:
        local = f"local port {port} as" if (port := self._values.settings.port_of(self._values.node)) else "local as"
        neighbor = f"{session.address} port {session.port}" if session.port else f"{session.address}"
        hops = f" {session.ttl_security}" if session.ttl_security else ""
        lines = [
            f"{local} {session.local_as_number};",
            f"neighbor {neighbor} as {session.as_number};",
            f"source address {session.source};" if session.source is not None else "",
            "strict bind on;" if self._values.settings.bind_to_address and session.source is not None else "",
            f"multihop{hops};",
            "ttl security on;" if session.ttl_security else "",
            "passive on;" if session.passive else "",
            f'password "{session.password}";' if session.password else "",
            f"hold time {HOLD_SECONDS};",
            f"keepalive time {session.keepalive_time};" if session.keepalive_time else "",
            "graceful restart on;",
            f"graceful restart time {session.restart_time or GRACEFUL_RESTART_SECONDS};",
            f"connect delay time {CONNECT_SECONDS}; connect retry time 5; error wait time 2,10;",
            f"allow local as {session.allowed_local_as};" if session.allowed_local_as else "",
            f"rr client; rr cluster id {session.reflector_cluster};" if session.reflector_cluster else "",
            self._channel(session),
        ]
        body = "\n".join(f"  {line}" for line in lines if line)
        return f"protocol bgp {session.name} {{\n{body}\n}}"

    def _channel(self, session: Session) -> str:
        imported, exported = self._filter("import", session), self._filter("export", session)
        next_hop = "" if session.next_hop == "auto" else f" next hop {session.next_hop};"
        return (
            f"ipv{session.family} {{ import filter {imported}; export filter {exported};"
            f" gateway recursive; add paths on;{next_hop} }};"
        )

    def _filter(self, direction: bgp_filter.Direction, session: Session) -> str:
        """The name of the filter, shared by sessions of equal needs."""
        lines: list[str] = []
        for name in session.filters:
            resource = self._values.filters.get(name)
            if resource is None:
                text = "does not exist, but a BGPPeer names it; it is taken as empty"
                self._findings[Finding("error", f"BGPFilter({name})", text)] = None
                continue
            more, findings = bgp_filter.statements(resource, direction, session.family, external=session.external)
            lines += more
            self._findings.update(dict.fromkeys(findings))
        lines += ["accept;"] if direction == "import" else self._export(session.family, external=session.external)
        text = "\n".join(f"  {line}" for line in lines)
        kind = "external" if session.external else "internal"
        suffix = f"_{hashlib.sha256(text.encode()).hexdigest()[:12]}" if session.filters else ""
        name = f"cal_{direction}{session.family}_{kind}{suffix}"
        self._filters[name] = f"filter {name} {{\n{text}\n}}"
        return name

    def _export(self, family: Family, *, external: bool) -> list[str]:
        """What peers hear: own blocks, own borrowed addresses, and what other peers said of the pools.

        Inside the cluster an encapsulated pool's routes come from the datastore, so only outsiders hear of them. An
        outsider who hears a route from its own node too prefers that: a router between subnets that sent packets for
        one node to another, which sends them by this router, would send them in a circle.
        """
        hidden = _set(pool.network for pool in self._pools(family) if pool.disable_export)
        shown = _set(
            pool.network for pool in self._pools(family) if not pool.disable_export and self._exported(pool, external)
        )
        if not shown:
            return ["reject;"]
        communities = [
            f"if net ~ {item.network} then {{ {' '.join(_additions(item))} }}"
            for item in self._values.settings.advertisements
            if item.network.version == family
        ]
        return [
            *([f"if net ~ {hidden} then reject;"] if hidden else []),
            f"if !(net ~ {shown}) then reject;",
            *communities,
            *([f"if source = RTS_BGP then bgp_med = {RETOLD_METRIC};"] if external else []),
            "if source = RTS_BGP || (source = RTS_STATIC && dest = RTD_BLACKHOLE) then accept;",
            "if source != RTS_INHERIT || !defined(krt_source) || krt_source != 80 then reject;",
            'if dest = RTD_BLACKHOLE || ifname ~ "cali*" then accept;',
            "reject;",
        ]

    def _exported(self, pool: RoutedPool, external: bool) -> bool:
        if external or not pool.encapsulated:
            return True
        return pool.ipip == "CrossSubnet" or (pool.ipip == "Always" and self._values.ipip_supported)

    def _pools(self, family: Family) -> list[RoutedPool]:
        return [pool for pool in self._values.pools if pool.family == family and pool.workloads]


def _is_block(network: IPNetwork, family: Family) -> bool:
    """A block of one address is its workload's own route."""
    return network.version == family and network.prefixlen < network.max_prefixlen


def _set(networks: Iterable[IPNetwork]) -> str:
    """A prefix set of the networks and all inside them; "" for none, for BIRD knows no empty set."""
    listed = sorted({str(network) for network in networks})
    return f"[ {', '.join(f'{network}+' for network in listed)} ]" if listed else ""


def _additions(advertisement: Advertisement) -> Iterator[str]:
    for community in advertisement.communities:
        attribute = "bgp_community" if len(community) == 2 else "bgp_large_community"
        yield f"{attribute}.add(({', '.join(map(str, community))}));"
