"""The fixed part of the table: base chains, verdict maps and the sets they need, closed while the maps are empty.

A packet passes policy in steps, each a base chain of its own, so that "accept" in a policy means "on to the next
step" whichever way the packet goes, and one chain per policy serves all of them:

    prerouting   raw         the source address must be reached through the interface the packet came from,
                             or another of the same container
                 dstnat + 10 published ports, after everybody else's: one of Docker's own stays Docker's
    forward      filter - 3  egress policy of the workload it came from
                 filter - 2  ingress policy of the workload it goes to
                 filter - 1  the mark for Docker's FORWARD chain, unless a bridge is involved: those are Docker's
    input        filter - 2  egress policy
                 filter - 1  what a workload may do to its own host
    output       dstnat + 10 published ports, for what the host itself connects to
    postrouting  mangle      marks end here
                 srcnat + 10 masquerading out of pools, after everybody else's

Interfaces with a workload's prefix that no map knows are dropped, whatever their state in connection tracking.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Literal

from calico_libnetwork.dataplane.table import Chain, SetSpec, Table
from calico_libnetwork.policy.settings import Options

FROM_WORKLOAD = "from_wl"
TO_WORKLOAD = "to_wl"
SPOOF4, SPOOF6 = "spoof4", "spoof6"
POOLS4, POOLS6 = "pools4", "pools6"
MASQUERADED4, MASQUERADED6 = "masq4", "masq6"
NODES4, NODES6 = "nodes4", "nodes6"
TUNNEL_SOURCES4, TUNNEL_SOURCES6 = "vxlan4", "vxlan6"
OWN_ADDRESSES = "own"
SIBLINGS = {4: ("sibling4", "from_sibling4"), 6: ("sibling6", "from_sibling6")}
"""By IP version: the addresses of a container's other interfaces, and the policy that what bears one meets."""

PUBLISHED = {4: ("published4", "published4_at"), 6: ("published6", "published6_at")}
"""By IP version: ports of the host at all its addresses, and at one, and where they lead."""
HAIRPIN = {4: "hairpin4", 6: "hairpin6"}

VXLAN_DEVICE = "vxlan.calico"
_VERDICT_MAP = SetSpec("map", "type ifname : verdict;")
_NETWORKS4 = SetSpec("set", "type ipv4_addr; flags interval;")
_NETWORKS6 = SetSpec("set", "type ipv6_addr; flags interval;")
SETS: dict[str, SetSpec] = {
    FROM_WORKLOAD: _VERDICT_MAP,
    TO_WORKLOAD: _VERDICT_MAP,
    SPOOF4: SetSpec("set", "type ifname . ipv4_addr; flags interval;"),
    SPOOF6: SetSpec("set", "type ifname . ipv6_addr; flags interval;"),
    POOLS4: _NETWORKS4,
    POOLS6: _NETWORKS6,
    MASQUERADED4: _NETWORKS4,
    MASQUERADED6: _NETWORKS6,
    NODES4: _NETWORKS4,
    NODES6: _NETWORKS6,
    TUNNEL_SOURCES4: _NETWORKS4,
    TUNNEL_SOURCES6: _NETWORKS6,
    SIBLINGS[4][0]: SetSpec("set", "type ifname . ipv4_addr;"),
    SIBLINGS[6][0]: SetSpec("set", "type ifname . ipv6_addr;"),
    SIBLINGS[4][1]: SetSpec("map", "type ifname . ipv4_addr : verdict;"),
    SIBLINGS[6][1]: SetSpec("map", "type ifname . ipv6_addr : verdict;"),
    PUBLISHED[4][0]: SetSpec("map", "type inet_proto . inet_service : ipv4_addr . inet_service;"),
    PUBLISHED[6][0]: SetSpec("map", "type inet_proto . inet_service : ipv6_addr . inet_service;"),
    PUBLISHED[4][1]: SetSpec("map", "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;"),
    PUBLISHED[6][1]: SetSpec("map", "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;"),
    HAIRPIN[4]: SetSpec("set", "type ipv4_addr . ipv4_addr;"),
    HAIRPIN[6]: SetSpec("set", "type ipv6_addr . ipv6_addr;"),
}

# an IPv6 router hears these from anybody on its link: multicast listeners, solicitations, neighbour discovery
_ROUTER_ICMPV6 = "icmpv6 type { 130, 131, 132, 133, 135, 136 } accept"
# an address of these leads to no container
_PUBLISHED_RULES = (
    "ip daddr 127.0.0.0/8 return",
    "ip6 daddr { ::1, fe80::/10 } return",
    "fib daddr type != local return",
    f"meta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport map @{PUBLISHED[4][1]}",
    f"meta nfproto ipv4 dnat ip to meta l4proto . th dport map @{PUBLISHED[4][0]}",
    f"meta nfproto ipv6 dnat ip6 to ip6 daddr . meta l4proto . th dport map @{PUBLISHED[6][1]}",
    f"meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @{PUBLISHED[6][0]}",
)
_HAIRPIN_RULES = (
    f"ct status dnat ip saddr . ip daddr @{HAIRPIN[4]} snat ip to ct original ip daddr",
    f"ct status dnat ip6 saddr . ip6 daddr @{HAIRPIN[6]} snat ip6 to ct original ip6 daddr",
)
_FOREIGN = "iifname PREFIX fib saddr . mark . iif oif 0"


def want_skeleton(table: Table, arp: Table, options: Options, *, vxlan: bool) -> None:
    for name, spec in SETS.items():
        table.sets.want(name, spec)
    for name, chain_ in _chains(options, vxlan=vxlan).items():
        table.chains.want(name, chain_)
    arp.sets.want(OWN_ADDRESSES, SetSpec("set", "type ifname . ipv4_addr;"))
    rule = f"arp operation reply oifname . arp saddr ip @{OWN_ADDRESSES} drop"
    arp.chains.want("output", Chain((rule,), _filter("output", 0)))


def _chains(options: Options, *, vxlan: bool) -> dict[str, Chain]:
    return {
        "raw_prerouting": Chain(_raw_prerouting(options, vxlan=vxlan), _filter("prerouting", -300)),
        "raw_output": Chain(_raw_output(options, vxlan=vxlan), _filter("output", -300)),
        "published": Chain(_PUBLISHED_RULES),
        "prerouting_nat": Chain(("jump published",), "type nat hook prerouting priority -90; policy accept;"),
        "output_nat": Chain(("jump published",), "type nat hook output priority -90; policy accept;"),
        "forward_egress": Chain(_from_workloads(options), _filter("forward", -3)),
        "forward_ingress": Chain(_to_workloads(options), _filter("forward", -2)),
        "forward_mark": Chain(_mark(options), _filter("forward", -1)),
        "input_egress": Chain(_input_egress(options, vxlan=vxlan), _filter("input", -2)),
        "input_host": Chain(_to_host(options), _filter("input", -1)),
        "postrouting_mark": Chain(_unmark(options), _filter("postrouting", -150)),
        "postrouting_nat": Chain(_masquerade(options), "type nat hook postrouting priority 110; policy accept;"),
    }


def _filter(hook: str, priority: int) -> str:
    return f"type filter hook {hook} priority {priority}; policy accept;"


def _each(options: Options, rule: str) -> Iterable[str]:
    """``rule`` with every workload prefix in place of ``PREFIX``."""
    return (rule.replace("PREFIX", f'"{prefix}*"') for prefix in options.prefixes)


def _raw_prerouting(options: Options, *, vxlan: bool) -> tuple[str, ...]:
    untracked = (f"udp dport {options.vxlan_port} fib daddr type local notrack",) if vxlan else ()
    spoofing = (f"iifname . ip saddr @{SPOOF4} accept", f"iifname . ip6 saddr @{SPOOF6} accept")
    return (
        *untracked,
        *(spoofing if options.allow_spoofing else ()),
        *_each(options, f"meta nfproto ipv4 {_FOREIGN} iifname . ip saddr != @{SIBLINGS[4][0]} drop"),
        *_each(options, f"meta nfproto ipv6 {_FOREIGN} iifname . ip6 saddr != @{SIBLINGS[6][0]} drop"),
    )


def _raw_output(options: Options, *, vxlan: bool) -> tuple[str, ...]:
    return (f"udp dport {options.vxlan_port} fib saddr type local notrack",) if vxlan else ()


def _from_workloads(options: Options) -> tuple[str, ...]:
    """Tunnels of a workload's own making would get round the policy of where they end."""
    forbidden = [] if options.allow_vxlan else [f"udp dport {options.vxlan_port} drop"]
    forbidden += [] if options.allow_ipip else ["meta l4proto 4 drop"]
    return (
        *chain.from_iterable(
            _each(options, f"iifname PREFIX ct state new,untracked {condition}") for condition in forbidden
        ),
        f"iifname . ip saddr vmap @{SIBLINGS[4][1]}",
        f"iifname . ip6 saddr vmap @{SIBLINGS[6][1]}",
        f"iifname vmap @{FROM_WORKLOAD}",
        *_each(options, "iifname PREFIX drop"),
    )


def _to_workloads(options: Options) -> tuple[str, ...]:
    return (f"oifname vmap @{TO_WORKLOAD}", *_each(options, "oifname PREFIX drop"))


def _mark(options: Options) -> tuple[str, ...]:
    stranger = (f'{side} != "{prefix}*"' for side in ("iifname", "oifname") for prefix in options.prefixes)
    return (
        f"{' '.join(stranger)} accept",
        'meta iifkind "bridge" accept',
        'meta oifkind "bridge" accept',
        f"meta mark set meta mark | {options.accept_mark:#010x}",
    )


def _input_egress(options: Options, *, vxlan: bool) -> tuple[str, ...]:
    tunnel = f"udp dport {options.vxlan_port} fib daddr type local"
    guarded = (f"{tunnel} ip saddr != @{TUNNEL_SOURCES4} drop", f"{tunnel} ip6 saddr != @{TUNNEL_SOURCES6} drop")
    return (
        *(guarded if vxlan else ()),
        *_each(options, f"iifname PREFIX {_ROUTER_ICMPV6}"),
        *_from_workloads(options),
    )


def _to_host(options: Options) -> tuple[str, ...]:
    """Never without a rule: an empty chain is one that somebody flushed, and a starting process closes it."""
    if options.endpoint_to_host != "drop":
        return tuple(_each(options, "iifname PREFIX accept"))
    return (
        *_each(options, "iifname PREFIX ct state established,related accept"),
        *_each(options, f"iifname PREFIX {_ROUTER_ICMPV6}"),
        *_each(options, f"iifname PREFIX {options.deny}"),
    )


def _unmark(options: Options) -> tuple[str, ...]:
    ours = options.accept_mark | options.pass_mark
    return (f"meta mark & {ours:#010x} != 0 meta mark set meta mark & {~ours & 0xFFFFFFFF:#010x}",)


def _masquerade(options: Options) -> tuple[str, ...]:
    return (*_masquerade_version(options, 4), *_masquerade_version(options, 6), *_HAIRPIN_RULES)


def _masquerade_version(options: Options, version: Literal[4, 6]) -> Iterable[str]:
    field, pools, masqueraded, nodes = (
        ("ip", POOLS4, MASQUERADED4, NODES4) if version == 4 else ("ip6", POOLS6, MASQUERADED6, NODES6)
    )
    condition = f"{field} saddr @{masqueraded} {field} daddr != @{pools}"
    if options.nat_exclude_nodes:
        condition += f" {field} daddr != @{nodes}"
    if options.nat_interfaces:
        negation = "!= " if options.nat_interfaces.startswith("!") else ""
        condition += f' oifname {negation}"{options.nat_interfaces.removeprefix("!")}"'
    own_address = options.nat_address and (":" in options.nat_address) == (version == 6)
    to_address = f"{field} to {options.nat_address}" if own_address else ""
    verb = "snat" if own_address else "masquerade"
    if options.nat_ports:
        ports = f"{to_address}:{options.nat_ports}" if own_address else f"to :{options.nat_ports}"
        if own_address and version == 6:
            ports = f"ip6 to [{options.nat_address}]:{options.nat_ports}"
        yield f"{condition} meta l4proto {{ 6, 17 }} {verb} {ports} fully-random"
    yield " ".join(part for part in (condition, verb, to_address, "fully-random") if part)
