"""Who carries routes between hosts: BIRD, or the agents themselves, or somebody else. Pure.

The agents suffice as long as every node runs one and all share a subnet. BIRD is needed once somebody listens to
BGP only: a calico/node, a BGPPeer, a router between subnets. Pools that are encapsulated everywhere need neither.

The answer depends on shared data alone, never on what other agents have answered: two that wait for each other to
stop would never stop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from calico_libnetwork.routing.cluster import FAMILIES, Finding, Member, RoutedPool

Setting = Literal["auto", "direct", "bird", "none"]
Mode = Literal["direct", "bird", "none"]


@dataclass(frozen=True, slots=True)
class Decision:
    """``reason`` completes "routes are carried by … because"."""

    mode: Mode
    reason: str
    findings: tuple[Finding, ...] = ()


def decide(
    setting: Setting,
    *,
    bird_installed: bool,
    own: Member | None,
    others: Mapping[str, Member],
    pools: Collection[RoutedPool],
    peers: Collection[str],
    mesh: bool,
) -> Decision:
    """``peers``: names of the BGPPeers with this node on one side, or of all of them while the mesh is on."""
    if setting in ("direct", "none"):
        return Decision(setting, f"the setting routes is {setting}")
    reason = "the setting routes is bird"
    if setting == "auto":
        reason = _need(own, others, pools, peers, mesh=mesh)
        if not reason:
            return Decision("direct", _no_need(pools, mesh=mesh))
    if bird_installed:
        return Decision("bird", reason)
    text = f"BIRD is needed, for {reason}, and is not installed; install the package bird2"
    return Decision("direct", "BIRD is not installed", (Finding("error", "BIRD", text),))


def _no_need(pools: Collection[RoutedPool], *, mesh: bool) -> str:
    if pools and all(pool.vxlan != "Never" for pool in pools):
        return "every pool is encapsulated by VXLAN"
    if not mesh:
        return "the node-to-node mesh is off and no BGPPeer exists"
    return "all nodes run this agent and share a subnet"


def _need(
    own: Member | None,
    others: Mapping[str, Member],
    pools: Collection[RoutedPool],
    peers: Collection[str],
    *,
    mesh: bool,
) -> str:
    if peers:
        return f"BGPPeer({min(peers)}) exists"
    if own is None or not mesh or all(pool.vxlan != "Never" for pool in pools):
        return ""
    reachable = [other for _, other in sorted(others.items()) if set(other.interfaces) & set(own.interfaces)]
    for other in reachable:
        if not other.routes:
            return f"Node({other.name}) is run by calico/node, which learns routes by BGP"
    for other in reachable:
        if any(
            family in other.interfaces and not own.on_link(other, family)
            for family in FAMILIES
            if family in own.interfaces
        ):
            return f"Node({other.name}) is on another subnet"
    return ""
