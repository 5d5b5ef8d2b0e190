"""Which pools serve a request, and which block of a pool comes next."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.errors import InvalidResource, NoPool
from calico_libnetwork.model import pools
from calico_libnetwork.model.ipam_keys import Network
from calico_libnetwork.model.pools import Pool, Spans
from calico_libnetwork.model.resources import IPPool, IPReservation


def pool(cidr: str = "10.5.0.0/26", *, name: str = "p", extra: dict[str, Any] | None = None, **spec: Any) -> Pool:
    document = {"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}}
    document |= {"spec": {"cidr": cidr, **spec}}
    for path, value in (extra or {}).items():
        if path == "status":
            document["status"] = value
        else:
            document["metadata"][path] = value  # type: ignore[index]
    return Pool.read(msgspec.convert(document, IPPool))


def test_absent_fields_of_old_pools_mean_their_defaults() -> None:
    old, six = pool("10.0.0.0/16"), pool("fd00::/48")
    assert (old.block_length, six.block_length) == (26, 122)
    assert (old.enabled, old.automatic, old.selects({})) == (True, True, True)
    assert old.allowed_uses == {"Workload", "Tunnel"}
    assert pool("10.0.0.0/16", allowedUses=[]).allowed_uses == {"Workload", "Tunnel"}


@pytest.mark.parametrize(
    "spec",
    [
        {"cidr": "10.0.0.1/16"},
        {"cidr": "ten"},
        {"cidr": "10.0.0.0/16", "blockSize": 19},
        {"cidr": "10.0.0.0/28", "blockSize": 26},
        {"cidr": "10.0.0.0/16", "nodeSelector": "rack =="},
    ],
)
def test_pool_that_cannot_be_used_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidResource):
        pool(**spec)


@pytest.mark.parametrize(
    ("candidate", "unasked", "asked"),
    [
        (pool(), True, True),
        (pool(disabled=True), False, False),
        (pool(extra={"deletionTimestamp": "2026-11-24T00:29:01Z"}), False, False),
        (pool(extra={"status": {"conditions": [{"type": "Allocatable", "status": "False"}]}}), False, False),
        (pool(extra={"status": {"conditions": [{"type": "Allocatable", "status": "True"}]}}), True, True),
        (pool(extra={"status": {"conditions": None}}), True, True),
        (pool(assignmentMode="Manual"), False, True),
        (pool(nodeSelector="rack == 'r1'"), True, True),
        (pool(nodeSelector="rack == 'r2'"), False, True),
        (pool(namespaceSelector="has(kubernetes.io/metadata.name)"), False, True),
        (pool(allowedUses=["Tunnel"]), False, False),
        (pool(allowedUses=["LoadBalancer"]), False, False),
        (pool("fd5::/120", blockSize=126), False, False),
    ],
)
def test_pool_serves_a_request(candidate: Pool, *, unasked: bool, asked: bool) -> None:
    for requested, served in (((), unasked), ((ip_network("10.5.0.0/26"),), asked)):
        try:
            found = pools.serving([candidate], version=4, requested=requested, labels={"rack": "r1"})
        except NoPool:
            found = ()
        assert found == ((candidate,) if served else ())


def test_requested_network_that_is_no_pool_is_named() -> None:
    with pytest.raises(NoPool, match=r"10\.9\.0\.0/16 is not the CIDR of an enabled IP pool"):
        pools.serving([pool()], version=4, requested=[ip_network("10.9.0.0/16")], labels={})


def test_pool_is_cut_into_blocks() -> None:
    six = pool("fd5::/120", blockSize=126)
    assert (six.block_count, six.block(55)) == (64, ip_network("fd5::dc/126"))
    assert six.block_of(ip_address("fd5::df")) == ip_network("fd5::dc/126")
    assert pools.containing([pool(), six], ip_address("fd5::df")) is six
    assert pools.containing([pool()], ip_address("10.5.0.64")) is None


def test_start_is_fnv1_of_the_node_name() -> None:
    assert pools.start("host-a", 1 << 32) == 1258779341
    assert pools.start("node1", 1 << 32) == 3957252814


def test_walk_begins_at_the_start_and_wraps_around() -> None:
    first = pools.start("host-a", 8)
    small = pool(blockSize=29)
    every = [small.block(number) for number in range(8)]
    others = [ip_network("10.5.0.64/29"), ip_network("fd5::/126")]
    assert pools.walk(small, "host-a", every + others) == every[first:] + every[:first]


def test_all_blocks_are_found_before_the_pool_is_full() -> None:
    small = pool(blockSize=29)
    existing: list[Network] = []
    while (block := pools.free_block(small, "host-a", existing=existing, reserved=())) is not None:
        existing.append(block)
    assert existing == pools.walk(small, "host-a", [small.block(number) for number in range(8)])


def test_block_that_is_wholly_reserved_is_passed_over_and_one_partly_reserved_is_not() -> None:
    small = pool(blockSize=29)
    others = [small.block(number) for number in range(8) if number not in (2, 3)]
    reserved = [ip_network("10.5.0.16/30"), ip_network("10.5.0.20/30"), ip_network("10.5.0.24/30")]
    assert pools.free_block(small, "n", existing=others, reserved=reserved) == small.block(3)


def test_a_reservation_of_more_blocks_than_can_be_counted_is_jumped_over() -> None:
    wide = pool("fd00::/48")
    reserved = [ip_network("fd00::/49"), ip_network("fd00:0:0:8000::/50")]
    block = pools.free_block(wide, "n", existing=(), reserved=reserved)
    assert block == ip_network("fd00:0:0:c000::/122")


def test_blocks_of_another_size_bar_what_they_overlap() -> None:
    small = pool(blockSize=29)
    existing = [ip_network("10.5.0.0/27"), ip_network("10.5.0.40/30"), ip_network("10.5.0.48/28")]
    assert pools.free_block(small, "n", existing=existing, reserved=()) == ip_network("10.5.0.32/29")
    existing.append(ip_network("10.5.0.32/32"))
    assert pools.free_block(small, "n", existing=existing, reserved=()) is None


def test_reservation_with_host_bits_is_read_and_nonsense_is_named() -> None:
    def reservation(cidrs: list[str]) -> IPReservation:
        return msgspec.convert(
            {"kind": "IPReservation", "apiVersion": "v3", "metadata": {"name": "r"}, "spec": {"reservedCIDRs": cidrs}},
            IPReservation,
        )

    assert pools.reserved_networks(reservation(["10.0.0.1/30", "fd00::1"])) == (
        ip_network("10.0.0.0/30"), ip_network("fd00::1/128"),
    )  # fmt: skip
    with pytest.raises(InvalidResource, match=r"IPReservation\(r\)"):
        pools.reserved_networks(reservation(["ten"]))


_networks = st.builds(
    lambda first, length: ip_network((first >> (32 - length) << (32 - length), length)),
    st.integers(0, 255),
    st.integers(24, 32),
)


@given(st.lists(_networks), st.integers(0, 255), st.integers(0, 40))
def test_spans_hold_exactly_their_networks(networks: list[Network], first: int, more: int) -> None:
    members = {int(address) for network in networks for address in network}
    spans = Spans(networks)
    assert bool(spans) == bool(members)
    assert (first in spans) == (first in members)
    end = spans.end_of_cover(first, first + more)
    assert (end is not None) == (set(range(first, first + more + 1)) <= members)
    assert end is None or (end in members and end + 1 not in members)
