"""How full pools and blocks are."""

from __future__ import annotations

import json
from pathlib import Path

from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import documents, ipam_usage
from calico_libnetwork.model.block import Owner
from calico_libnetwork.model.ipam_keys import Network, block_key
from calico_libnetwork.model.ipam_usage import NodeUsage, Usage
from calico_libnetwork.model.kinds import ResourceKey

CALICO = Path(__file__).parents[1] / "data" / "calico"


def network(text: str) -> Network:
    from ipaddress import ip_network

    return ip_network(text)


def resource(kind: str, name: str, spec: dict[str, object]) -> tuple[str, bytes]:
    metadata = {"name": name}
    document = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}
    return ResourceKey(kind, name).path, documents.encode(document)


def block(cidr: str, node: str, owners: dict[int, Owner]) -> tuple[str, bytes]:
    found = blocks.fresh(network(cidr), node=node, now=10**18)
    for ordinal, owner in owners.items():
        found = blocks.assign(found, [ordinal], owner)
    return block_key(cidr), blocks.encode(found)


HERE, THERE = Owner("h1", {"node": "a"}), Owner("h2", {"node": "b"})
VALUES = dict(
    [
        resource("IPPool", "four", {"cidr": "10.0.0.0/24", "blockSize": 28}),
        resource("IPPool", "six", {"cidr": "fd00::/120"}),
        resource("IPPool", "odd", {"cidr": "nonsense"}),
        resource("IPReservation", "r", {"reservedCIDRs": ["10.0.0.0/30", "10.0.0.2/31", "10.0.0.64/26", "fd00::/126"]}),
        block("10.0.0.0/28", "a", {0: HERE, 5: HERE, 6: THERE}),
        block("10.0.0.16/28", "b", {}),
        (block_key("10.0.0.32/28"), b"nonsense"),
        ("/calico/ipam/v2/handle/h1", b"{}"),
    ]
)


def test_pools_and_their_blocks() -> None:
    assert list(ipam_usage.usage(VALUES, with_blocks=True)) == [
        Usage("four", network("10.0.0.0/24"), in_use=3, reserved=4 + 64 - 1),
        Usage("", network("10.0.0.0/28"), in_use=3, reserved=3),
        Usage("", network("10.0.0.16/28"), in_use=0, reserved=0),
        Usage("six", network("fd00::/120"), in_use=0, reserved=4),
    ]
    four, *_ = ipam_usage.usage(VALUES, with_blocks=False)
    assert (four.capacity, four.free) == (256, 256 - 3 - 67)


def test_what_each_node_has_claimed() -> None:
    assert ipam_usage.by_node(VALUES) == [
        NodeUsage("a", "four", (network("10.0.0.0/28"),), in_use=3),
        NodeUsage("b", "four", (network("10.0.0.16/28"),), in_use=0),
    ]
    assert ipam_usage.by_node(VALUES)[0].capacity == 16


def test_borrowed_addresses() -> None:
    (entry,) = ipam_usage.borrowed(VALUES)
    assert (str(entry.address), entry.node, entry.owner) == ("10.0.0.6", "b", "a")


def test_recorded_blocks_are_counted() -> None:
    lines = [json.loads(line) for line in (CALICO / "ipam-1.jsonl").read_text().splitlines()]
    values = dict(resource(each["kind"], each["metadata"]["name"], each["spec"]) for each in lines[0]["setup"])
    for line in lines[1:]:
        values |= {key: value.encode() for key, value in line["changed"].items()}
        for key in line["deleted"]:
            values.pop(key, None)
        for entry in ipam_usage.usage(values, with_blocks=True):
            assert entry.free >= 0
            assert entry.in_use + entry.reserved + entry.free == entry.capacity
