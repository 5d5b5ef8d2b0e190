"""What this host says of its routing in ``/status``: who carries routes and why, its peers, its ways to other hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calico_libnetwork.dataplane.routes import Route
from calico_libnetwork.dataplane.rtnetlink import IPNetwork
from calico_libnetwork.errors import DataplaneError
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.bird_control import Protocol
from calico_libnetwork.routing.peers import Session
from calico_libnetwork.routing.router import Routing

_KINDS = {"Mesh": "node-to-node mesh", "Global": "global", "Node": "node specific"}


async def describe(routing: Routing, bird: Bird) -> dict[str, Any]:
    """BIRD is asked, which takes milliseconds, or seconds if it hangs."""
    problem, version, protocols = bird.problem, "", {}
    if routing.bird is not None:
        try:
            status = await bird.status()
        except DataplaneError as error:
            status, problem = None, str(error)
        if status is not None:
            version = status.version
            protocols = {session.name: session for session in status.sessions}
    return {
        "mode": routing.decision.mode,
        "reason": routing.decision.reason,
        "bird": {"version": version, "restarts": bird.restarts, "problem": problem},
        "peers": [_peer(session, protocols.get(session.name)) for session in routing.sessions],
        "routes": ways(routing.routes),
    }


def _peer(session: Session, seen: Protocol | None) -> dict[str, Any]:
    known = {
        "address": str(session.address),
        "ipVersion": session.family,
        "asNumber": session.as_number,
        "type": _KINDS.get(session.name.partition("_")[0], ""),
    }
    if seen is None:
        return known | {"state": "down", "since": "", "info": "BIRD does not have it", "imported": 0, "exported": 0}
    counts = {"imported": seen.imported or 0, "exported": seen.exported or 0}
    return known | {"state": seen.state, "since": seen.since, "info": seen.info.strip()} | counts


def ways(routes: Mapping[IPNetwork, Route]) -> list[dict[str, Any]]:
    """The routes that lead to other hosts, or nowhere, by gateway and interface."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for destination, route in sorted(routes.items(), key=lambda item: (item[0].version, int(item[0].network_address))):
        gateway = "" if route.gateway is None else str(route.gateway)
        found.setdefault((gateway, route.interface, route.kind), []).append(str(destination))
    return [
        {"gateway": gateway, "interface": interface, "kind": kind, "destinations": destinations}
        for (gateway, interface, kind), destinations in found.items()
    ]
