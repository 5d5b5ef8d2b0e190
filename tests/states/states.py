"""Named contents of the datastore, between which everything must be able to move.

What each of them means for packets is what the oracle says; what it must leave in the kernel is what a process that
starts with it writes.
"""

from __future__ import annotations

from typing import Any

from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model.kinds import ResourceKey
from tests.policy_oracle import Document
from tests.policy_worlds import document, workload

# a broken resource is one that is in the datastore and unreadable
State = dict[ResourceKey, Document | Unreadable]


def _network(name: str) -> tuple[ResourceKey, Document]:
    label = f"network.projectcalico.org/{name}"
    ingress = [{"action": "Allow", "source": {"selector": f"has({label})"}}]
    return document(
        "Profile", name, {"labelsToApply": {label: ""}, "ingress": ingress, "egress": [{"action": "Allow"}]}
    )


def _policy(name: str, **spec: Any) -> tuple[ResourceKey, Document]:
    return document("GlobalNetworkPolicy", name, spec)


def _state(*items: tuple[ResourceKey, Document]) -> State:
    return dict(items)


_RED, _BLUE = _network("red"), _network("blue")
_TWO_NETWORKS = (
    _RED, _BLUE,
    workload(1, profiles=["red"], labels={"role": "web"}),
    workload(2, profiles=["red"], labels={"role": "db"}),
    workload(3, profiles=["blue"], labels={"role": "web"}),
    workload(4, profiles=["blue"]),
)  # fmt: skip
_TCP_FROM_WEB = {"action": "Allow", "protocol": "TCP", "source": {"selector": "role == 'web'"}}
_ALLOW_UDP = {"action": "Allow", "protocol": "UDP"}
_DENY_WEB = {"action": "Deny", "source": {"selector": "role == 'web'"}}
_PASS_TCP = {"action": "Pass", "protocol": "TCP"}
_QUARANTINE = _policy("quarantine", order=-10, selector="role == 'web'", types=["Ingress", "Egress"])
_OPEN = {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}
_FROM_OFFICE = _policy(
    "office", selector="all()", types=["Ingress"], ingress=[{"action": "Allow", "source": {"selector": "has(office)"}}]
)
_NOT_FROM_OFFICE = _policy(
    "office",
    selector="all()",
    types=["Ingress"],
    ingress=[{"action": "Allow", "source": {"notSelector": "has(office)"}}],
)
_BROKEN = ResourceKey("GlobalNetworkPolicy", "broken")


def _office(name: str, *nets: str) -> tuple[ResourceKey, Document]:
    return document("GlobalNetworkSet", name, {"nets": list(nets)}, labels={"office": ""})


STATES: dict[str, State] = {
    "nothing": {},
    "profiles without endpoints": _state(_RED, _BLUE),
    "one endpoint": _state(_RED, workload(1, profiles=["red"])),
    "endpoints without profile": _state(*(workload(number) for number in range(1, 5))),
    "endpoints whose profile is missing": _state(*(workload(number, profiles=["red"]) for number in range(1, 5))),
    "one network": _state(_RED, *(workload(number, profiles=["red"]) for number in range(1, 5))),
    "two networks": _state(*_TWO_NETWORKS),
    "two networks, joined by labels": _state(
        *_TWO_NETWORKS, _policy("join", selector="all()", types=["Ingress"], ingress=[_TCP_FROM_WEB])
    ),
    "quarantine": _state(*_TWO_NETWORKS, _QUARANTINE),
    "quarantine with a way out": _state(
        *_TWO_NETWORKS,
        _QUARANTINE,
        _policy("way-out", order=-20, selector="role == 'web'", types=["Egress"], egress=[_ALLOW_UDP]),
    ),
    "quarantine by a tier that passes most": _state(
        *_TWO_NETWORKS,
        document("Tier", "security", {"order": 10, "defaultAction": "Pass"}),
        _policy("no-web", tier="security", selector="all()", ingress=[_DENY_WEB]),
    ),
    "a tier that passes by rule": _state(
        *_TWO_NETWORKS,
        document("Tier", "security", {"order": 10}),
        _policy("pass-tcp", tier="security", selector="has(role)", ingress=[_PASS_TCP], egress=[{"action": "Pass"}]),
    ),
    "the outside by network sets": _state(
        *_TWO_NETWORKS,
        _office("office", "198.51.100.0/24", "192.0.2.2", "2001:db8:1::/64"),
        _office("wider", "198.51.0.0/16", "192.0.2.0/24"),
        _FROM_OFFICE,
    ),
    "the same network set, narrower": _state(*_TWO_NETWORKS, _office("office", "198.51.100.7"), _FROM_OFFICE),
    "all but a network set": _state(
        *_TWO_NETWORKS, _office("office", "198.51.100.0/24", "10.65.0.0/31", "2001:db8::/48"), _NOT_FROM_OFFICE
    ),
    "everything open": _state(
        *(workload(number, profiles=["projectcalico-default-allow"]) for number in range(1, 5)),
        document("FelixConfiguration", "node.n1", {"defaultEndpointToHostAction": "Return"}),
    ),
    "the host open, another label": _state(
        _RED,
        *(workload(number, profiles=["red"], labels={"role": "db"}) for number in range(1, 5)),
        _policy("db", selector="role == 'db'", **_OPEN),
        document("FelixConfiguration", "default", {"defaultEndpointToHostAction": "Accept"}),
        document("FelixConfiguration", "node.n1", {"nftablesFilterDenyAction": "Reject"}),
    ),
    "a policy nobody can read": {
        **_state(*_TWO_NETWORKS),
        _BROKEN: Unreadable("nonsense", b"", first=False),
    },
}
