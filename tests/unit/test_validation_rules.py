"""Rules that look at several fields, and at several pools: each refuses what it is there for, by its path."""

from __future__ import annotations

from typing import Any

import pytest

from calico_libnetwork.model.names import is_label_key, split_workload_endpoint_name
from calico_libnetwork.model.validation import InvalidDocument, pools_in_the_way, validate
from calico_libnetwork.model.validation.formats import format_duration


def problems(kind: str, spec: dict[str, Any], *, name: str = "default") -> list[str]:
    document = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec}
    if kind == "WorkloadEndpoint":
        del document["metadata"]["name"]  # type: ignore[attr-defined]
    try:
        validate(document)
    except InvalidDocument as error:
        return [str(problem) for problem in error.problems]
    return []


POOL = {"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer"]}
ENDPOINT = {"node": "n", "orchestrator": "libnetwork", "endpoint": "e", "interfaceName": "cali1"}
ACCEPT = {"action": "Accept"}


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("GlobalNetworkSet", {"nets": ["10.0.0.1/8", "fd00::1/8", "10.0.0.1"]}, []),
        ("IPReservation", {"reservedCIDRs": ["10.0.0.1/8"]}, []),
        ("IPPool", POOL, []),
        ("IPPool", POOL | {"vxlanMode": "Always"}, ["spec.vxlanMode must be Never in a LoadBalancer pool"]),
        ("IPPool", POOL | {"ipipMode": "Always"}, ["spec.ipipMode must be Never in a LoadBalancer pool"]),
        ("IPPool", POOL | {"disableBGPExport": True}, ["spec.disableBGPExport must be false in a LoadBalancer pool"]),
        ("IPPool", POOL | {"nodeSelector": "has(a)"}, ["spec.nodeSelector must be all() in a LoadBalancer pool"]),
        ("IPPool", {"cidr": "10.0.0.0/27", "disabled": True}, []),
        (
            "IPPool",
            {"cidr": "10.0.0.0/16", "namespaceSelector": "all()"},
            ["spec.namespaceSelector needs allowedUses without Tunnel, for tunnel addresses have no namespace"],
        ),
        ("IPPool", {"cidr": "10.0.0.0/16", "namespaceSelector": "all()", "allowedUses": ["Workload"]}, []),
        ("IPPool", {"cidr": "fe80::/64"}, ["spec.cidr overlaps the link-local addresses fe80::/10"]),
        (
            "WorkloadEndpoint",
            ENDPOINT | {"ipNetworks": ["10.0.0.0/24", "10.1.0.1"]},
            ["spec.ipNetworks[0] must be one address: /32 in IPv4, /128 in IPv6"],
        ),
        (
            "WorkloadEndpoint",
            ENDPOINT | {"ipNetworks": ["10.0.0.1/32"], "ipNATs": [{"internalIP": "10.0.0.2", "externalIP": "fd00::1"}]},
            [
                "spec.ipNATs[0].externalIP must be of internalIP's family",
                "spec.ipNATs[0].internalIP must be one of ipNetworks",
            ],
        ),
        (
            "WorkloadEndpoint",
            ENDPOINT | {"ipNetworks": ["10.0.0.1"], "ipNATs": [{"internalIP": "10.0.0.1", "externalIP": "192.0.2.1"}]},
            [],
        ),
        (
            "WorkloadEndpoint",
            ENDPOINT | {"ports": [{"protocol": "TCP", "port": 80}]},
            ["spec.ports[0].name must be given where hostPort is not"],
        ),
        ("WorkloadEndpoint", ENDPOINT | {"ports": [{"protocol": "TCP", "port": 80, "hostPort": 80}]}, []),
        (
            "BGPConfiguration",
            {"nodeToNodeMeshEnabled": False, "nodeMeshPassword": {}, "nodeMeshMaxRestartTime": "1s"},
            [
                "spec.nodeMeshPassword may not stand where nodeToNodeMeshEnabled is false",
                "spec.nodeMeshMaxRestartTime may not stand where nodeToNodeMeshEnabled is false",
            ],
        ),
        ("BGPPeer", {"localWorkloadSelector": "all()"}, ["spec.asNumber must be given beside localWorkloadSelector"]),
        (
            "BGPPeer",
            {"keepOriginalNextHop": True, "nextHopMode": "Keep"},
            ["spec.keepOriginalNextHop may not be true beside nextHopMode"],
        ),
        ("BGPPeer", {"peerIP": "10.0.0.1:179", "reachableBy": "10.0.0.2"}, []),
        (
            "BGPFilter",
            {"exportV4": [ACCEPT | {"prefixLength": {"min": 5}}]},
            ["spec.exportV4[0].prefixLength needs a cidr beside it"],
        ),
        (
            "BGPFilter",
            {"exportV4": [ACCEPT | {"operations": [{"setPriority": {"value": 5}, "addCommunity": {"value": "1:1"}}]}]},
            ["spec.exportV4[0].operations[0] must have exactly one of addCommunity, prependASPath and setPriority"],
        ),
        ("BGPFilter", {"importV6": [ACCEPT | {"operations": [{"prependASPath": {"prefix": [64512]}}]}]}, []),
        (
            "BGPFilter",
            {"exportV4": [ACCEPT | {"communities": {"values": []}}]},
            ["spec.exportV4[0].communities.values must have 1 item, not 0"],
        ),
        (
            "FelixConfiguration",
            {"routeTableRange": {"min": 1, "max": 2}, "routeTableRanges": [{"min": 1, "max": 70000}]},
            [
                "spec.routeTableRange may not stand beside routeTableRanges",
                "spec.routeTableRanges may name 65535 tables, not 70000",
            ],
        ),
        (
            "FelixConfiguration",
            {"kubeNodePortRanges": ["1:2"] * 8},
            ["spec.kubeNodePortRanges must have from 0 to 7 items, not 8"],
        ),
        (
            "FelixConfiguration",
            {"logDebugFilenameRegex": "("},
            ["spec.logDebugFilenameRegex is no regular expression: missing ), unterminated subpattern at position 0"],
        ),
        ("FelixConfiguration", {"goMaxProcs": -2}, ["spec.goMaxProcs must be a number of at least -1, not -2"]),
        (
            "FelixConfiguration",
            {"reportingInterval": "-1s"},
            ["spec.reportingInterval must be a duration such as 90s or 1m30s, not '-1s'"],
        ),
        (
            "GlobalNetworkPolicy",
            {"preDNAT": True, "applyOnForward": True, "types": ["Egress"], "egress": [{"action": "Allow"}]},
            ["spec.egress may not stand beside preDNAT", "spec.types may not name Egress beside preDNAT"],
        ),
        ("Profile", {"ingress": [None]}, ["spec.ingress[0] must be a mapping, not nothing"]),
    ],
)  # fmt: skip
def test_rules(kind: str, spec: dict[str, Any], expected: list[str]) -> None:
    assert problems(kind, spec) == expected


def pool(cidr: str, size: int) -> dict[str, Any]:
    return {"spec": {"cidr": cidr, "blockSize": size}}


@pytest.mark.parametrize(
    ("new", "stored", "others", "blocks", "expected"),
    [
        (pool("10.0.0.0/16", 26), None, [("six", "fd00::/64"), ("bad", "x"), ("far", "10.1.0.0/16")], [], []),
        (
            pool("10.0.0.0/16", 26), None, [("in", "10.0.1.0/24")], [],
            ["spec.cidr 10.0.0.0/16 overlaps 10.0.1.0/24 of IPPool(in)"],
        ),
        (
            pool("10.0.0.0/16", 26), None, [],
            ["10.0.0.0/28", "10.0.0.16/28", "10.0.1.0/26", "10.9.0.0/28", "fd00::/122"],
            ["spec.blockSize must be 28, for blocks of that size are in use inside 10.0.0.0/16"],
        ),
        (pool("10.0.0.0/16", 26), {"spec": {"cidr": "10.0.0.0/16"}}, [("in", "10.0.1.0/24")], ["10.0.0.0/28"], []),
        (
            pool("fd00::/64", 122), {"spec": {"cidr": "fd01::/64", "blockSize": 120}}, [], [],
            [
                "spec.cidr cannot change, it is fd01::/64: create another pool",
                "spec.blockSize cannot change, it is 120: create another pool",
            ],
        ),
        (pool("x", 26), None, [], [], []),
    ],
)  # fmt: skip
def test_pools_beside_others(
    new: dict[str, Any],
    stored: dict[str, Any] | None,
    others: list[tuple[str, str]],
    blocks: list[str],
    expected: list[str],
) -> None:
    assert list(pools_in_the_way(new, stored, others, blocks)) == expected


def test_what_is_for_all_nodes_alike_is_refused_for_one() -> None:
    assert problems("BGPConfiguration", {"listenPort": 180, "serviceClusterIPs": []}, name="node.a") == []
    assert problems("BGPConfiguration", {"asNumber": 64513}, name="node.a") == [
        "spec.asNumber is for all nodes alike, so BGPConfiguration(default) alone may set it"
    ]
    assert problems("BGPConfiguration", {"asNumber": 64513}) == []


def test_names_that_are_nearly_right() -> None:
    assert split_workload_endpoint_name("a--b-k8s-pod-eth0") == ("a-b", "k8s", "pod", "eth0")
    assert not is_label_key("a b/c")
    assert format_duration(1) == "1ns"
