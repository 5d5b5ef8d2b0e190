"""The checker finds every fault planted into a sound datastore, and nothing in the sound one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from calico_libnetwork.model import documents
from calico_libnetwork.model.ipam_check import Report, check
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import NETWORK_RECORDS

NOW = 1_795_480_200_000_000_000  # 2026-11-24T00:30:00Z
BLOCK = "/calico/ipam/v2/assignment/ipv4/block/10.5.0.0-30"
AFFINITY = "/calico/ipam/v2/host/n1/ipv4/block/10.5.0.0-30"
ENDPOINT = ResourceKey("WorkloadEndpoint", "n1-libnetwork-libnetwork-e1", "libnetwork")
Values = dict[str, Any]


def sound() -> Values:
    return {
        BLOCK: {
            "cidr": "10.5.0.0/30",
            "affinity": "host:n1",
            "allocations": [0, 1, 2, None],
            "unallocated": [3],
            "attributes": [
                {"handle_id": "a", "secondary": {"node": "n1"}},
                {"handle_id": "t", "secondary": {"node": "n1"}},
                {"releasedAt": "2026-11-24T00:29:50Z"},
            ],
            "sequenceNumber": NOW,
            "sequenceNumberForAllocation": {"0": NOW - 1, "1": NOW - 2},
        },
        AFFINITY: {"state": "confirmed"},
        "/calico/ipam/v2/handle/a": {"block": {"10.5.0.0/30": 1}},
        "/calico/ipam/v2/handle/t": {"block": {"10.5.0.0/30": 1}},
        **resource("IPPool", "p", {"cidr": "10.5.0.0/24", "blockSize": 30}),
        **resource("IPPool", "off", {"cidr": "10.7.0.0/24", "disabled": True}),
        **resource("Node", "n1", {"ipv4VXLANTunnelAddr": "10.5.0.1"}),
        **resource("WorkloadEndpoint", ENDPOINT.name, {"ipNetworks": ["10.5.0.0/32"]}, namespace="libnetwork"),
    }


def resource(kind: str, name: str, spec: Values, namespace: str = "") -> Values:
    document = documents.new_document(kind, name, spec, uid="u", created="2026-11-24T00:00:00Z", namespace=namespace)
    return {ResourceKey(kind, name, namespace).path: document}


def report(values: Values) -> Report:
    return check({key: json.dumps(value).encode() for key, value in values.items()}, now=NOW)


def test_an_address_kept_out_of_use_by_a_network_is_in_use() -> None:
    values = sound()
    del values[ENDPOINT.path]
    assert [finding.kind for finding in report(values).problems] == ["leaked"]
    values[NETWORK_RECORDS + "0123456789ab"] = {"id": "0123456789ab", "auxiliaryAddresses": ["10.5.0.0"]}
    assert report(values).problems == []


def test_nothing_is_found_in_a_sound_datastore() -> None:
    found = report(sound())
    assert (found.problems, found.remarks, found.assigned, found.in_use) == ([], [], 2, 2)


def _block(**changes: Any) -> Callable[[Values], None]:
    def plant(values: Values) -> None:
        values[BLOCK].update(changes)

    return plant


def _set(path: str, value: Any) -> Callable[[Values], None]:
    def plant(values: Values) -> None:
        values[path] = value

    return plant


def _add(extra: Values) -> Callable[[Values], None]:
    return lambda values: values.update(extra)


OTHER = ResourceKey("WorkloadEndpoint", "n1-libnetwork-libnetwork-e2", "libnetwork")


def _endpoint(*networks: str) -> Callable[[Values], None]:
    return _add(resource("WorkloadEndpoint", OTHER.name, {"ipNetworks": list(networks)}, namespace="libnetwork"))


@pytest.mark.parametrize(
    ("plant", "kind", "part"),
    [
        (_set(BLOCK, "x"), "unreadable", "not readable"),
        (_block(cidr="10.5.0.4/30"), "malformed", "says that it is"),
        (_block(allocations=[0, 1, 2]), "malformed", "lists 3 addresses instead of 4"),
        (_block(allocations=[0, 1, 7, None]), "malformed", "an attribute that does not exist"),
        (_block(allocations=[0, 0, 2, None]), "malformed", "keeps attribute 1"),
        (_block(unallocated=[3, 9]), "malformed", "outside of itself"),
        (_block(unallocated=[3, 3]), "malformed", "ordinal 3 2 times"),
        (_block(unallocated=[3, 1]), "malformed", "ordinal 1 2 times"),
        (_block(unallocated=[]), "malformed", "neither as free nor as taken"),
        (
            _block(attributes=[{"handle_id": "a"}, {"handle_id": "t"}, {"releasedAt": "2026-11-24T00:31:00Z"}]),
            "malformed",
            "in the future",
        ),
        (_set(BLOCK.replace("0-30", "0-29"), {"cidr": "10.5.0.0/29"}), "overlap", "overlap"),
        (_set(ENDPOINT.path, {}), "leaked", r"10\.5\.0\.0 is assigned \(handle a, node n1\)"),
        (_endpoint("10.5.0.0/32"), "shared", "is used by"),
        (_endpoint("10.5.0.9/32"), "unassigned", r"10\.5\.0\.9 of .*e2 is not assigned"),
        (_endpoint("10.5.0.2/32"), "unassigned", r"10\.5\.0\.2 of"),
        (_endpoint("10.7.0.9/32"), "outside", "in no active pool"),
        (_set("/calico/ipam/v2/handle/z", {"block": {"10.5.0.0/30": 1}}), "handle", "handle z has no address"),
        (_set("/calico/ipam/v2/handle/a", {"block": 1}), "unreadable", "handle"),
        (_add(resource("IPPool", "q", {"cidr": "ten"})), "unreadable", "IPPool"),
    ],
)
def test_planted_fault_is_a_problem(plant: Callable[[Values], None], kind: str, part: str) -> None:
    values = sound()
    plant(values)
    problems = report(values).problems
    assert kind in [problem.kind for problem in problems]
    assert any(re.search(part, problem.sentence) for problem in problems), problems


@pytest.mark.parametrize(
    ("plant", "part"),
    [
        (_set("/calico/ipam/v2/handle/a", {"block": {"10.5.0.0/30": 3}}), "counts"),
        (lambda values: values.pop("/calico/ipam/v2/handle/a"), "does not exist"),
        (_set(AFFINITY.replace("n1", "n2"), {"state": "pending"}), "node n2 claims block"),
        (lambda values: values.pop(AFFINITY), "which has no affinity for it"),
        (_set(BLOCK.replace("0-30", "4-30"), {"cidr": "10.5.0.4/30", "allocations": [None] * 4,
              "unallocated": [0, 1, 2, 3]}), "no host and no address"),
    ],
)  # fmt: skip
def test_what_an_operation_half_done_leaves_is_a_remark(plant: Callable[[Values], Any], part: str) -> None:
    values = sound()
    plant(values)
    found = report(values)
    assert not found.problems
    assert [part for remark in found.remarks if part in remark.sentence] == [part]


def test_leaked_address_comes_with_what_guards_its_release() -> None:
    values = sound()
    del values[ENDPOINT.path]
    assert report(values).leaked == [(ip_address("10.5.0.0"), "a", NOW - 1)]


def test_unreadable_endpoints_and_nodes_are_passed_over() -> None:
    values = sound() | resource("Node", "n2", {"bgp": None})
    raw = {key: json.dumps(value).encode() for key, value in values.items()}
    raw[OTHER.path] = b"{"
    raw[ResourceKey("Node", "n3").path] = b'{"spec": 1}'
    assert check(raw, now=NOW).problems == []
