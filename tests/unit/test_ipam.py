"""Where addresses come from and go to: pools, blocks of this and other hosts, limits, reservations, old data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.errors import (
    AddressInUse,
    AddressNotInPool,
    BlockLimit,
    InvalidResource,
    IpamError,
    NoFreeAddress,
    NoPool,
    NotFound,
)
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model.block import Block, Owner
from calico_libnetwork.model.ipam_keys import Network, affinity_key, block_key, handle_key
from calico_libnetwork.model.ipam_records import Handle
from tests.unit.ipam_cluster import NOW, SECOND, Cluster, a_cluster

CALICO = Path(__file__).parents[1] / "data" / "calico"
SMALL = ip_network("10.5.0.0/28")  # four blocks of four addresses


@pytest.fixture
async def cluster() -> AsyncGenerator[Cluster, None]:
    async with a_cluster() as made:
        await made.pool(str(SMALL), blockSize=30)
        for name in ("a", "b"):
            await made.node(name, rack="r1")
        yield made


def full(cidr: str, node: str | None) -> Block:
    block = blocks.fresh(ip_network(cidr), node="x", now=NOW - 3600 * SECOND)
    block = blocks.assign(block, range(block.network.num_addresses), Owner("full", {"node": "x"}))
    return block if node == "x" else _of(block, node)


def empty(cidr: str, node: str | None, *, age: int = 3600) -> Block:
    return _of(blocks.fresh(ip_network(cidr), node="x", now=NOW - age * SECOND), node)


def _of(block: Block, node: str | None) -> Block:
    document = json.loads(blocks.encode(block)) | {"affinity": node and f"host:{node}"}
    return blocks.decode(json.dumps(document).encode())


async def put(cluster: Cluster, *existing: Block, affinities: bool = True) -> None:
    for block in existing:
        await cluster.put({block_key(block.network): blocks.encode(block)})
        if block.node and affinities:
            await cluster.put({affinity_key(block.node, block.network): b'{"state":"confirmed","deleted":false}'})


async def test_addresses_come_from_the_nodes_own_block_in_order(cluster: Cluster) -> None:
    a, b = await cluster.host("a"), await cluster.host("b")
    of_a = [await a.auto(f"h{number}") for number in range(4)]
    of_b = await b.auto("other")
    first = ip_network(f"{of_a[0]}/30")
    assert of_a == list(first)
    assert of_b not in first
    assert (await cluster.block(first)).node == "a"
    assert (await cluster.values())[affinity_key("a", first)] == '{"state":"confirmed","deleted":false}'


async def test_freed_address_goes_to_the_end_of_the_queue(cluster: Cluster) -> None:
    a = await cluster.host("a")
    first = await a.auto("one")
    assert await a.ipam.release(first) is True
    assert [int(await a.auto("h")) - int(first) for _ in range(4)] == [1, 2, 3, 0]


async def test_release_of_unassigned_address_is_a_no_op(cluster: Cluster) -> None:
    a = await cluster.host("a")
    address = await a.auto()
    before = await cluster.values()
    for other in (address + 1, ip_address("10.5.0.15"), ip_address("192.0.2.1"), ip_address("fd00::1")):
        assert await a.ipam.release(other) is False
    assert await cluster.values() == before
    assert [await a.ipam.release(address), await a.ipam.release(address)] == [True, False]


async def test_release_may_be_guarded_by_handle_and_sequence_number(cluster: Cluster) -> None:
    a = await cluster.host("a")
    address = await a.auto("mine")
    assignment = a.ipam.assignment(address)
    assert assignment is not None
    with pytest.raises(AddressInUse, match="belongs to mine, not to yours"):
        await a.ipam.release(address, handle="yours")
    with pytest.raises(AddressInUse, match="assigned anew"):
        await a.ipam.release(address, handle="mine", sequence=1)
    assert await a.ipam.release(address, handle="mine", sequence=assignment.sequence)


async def test_handle_counts_its_addresses_and_goes_with_the_last(cluster: Cluster) -> None:
    await cluster.pool("fd5::/120", "six", blockSize=126)
    a = await cluster.host("a")
    addresses = await asyncio.gather(a.auto("h"), a.auto("h"), a.auto("h", 6))
    counts = Handle.decode((await cluster.values())[handle_key("h")].encode()).counts
    assert sorted(counts.values()) == [1, 2]
    await a.ipam.release(addresses[0])
    assert sorted(await a.ipam.release_handle("h"), key=str) == sorted(addresses[1:], key=str)
    assert handle_key("h") not in await cluster.values()
    assert await a.ipam.release_handle("h") == []


async def test_handle_of_more_blocks_than_a_transaction_takes_is_released_entirely(cluster: Cluster) -> None:
    await cluster.config(strict_affinity=True, auto_allocate_blocks=True, maxBlocksPerHost=500)
    await cluster.pool("10.6.0.0/24", "single", blockSize=32)
    a = await cluster.host("a")
    wanted = (ip_network("10.6.0.0/24"),)
    addresses = await asyncio.gather(*(a.auto("many", pools=wanted) for _ in range(200)))
    assert len(set(addresses)) == 200
    assert set(await a.ipam.release_handle("many")) == set(addresses)
    assert a.ipam.assignments() == []
    assert handle_key("many") not in await cluster.values()


async def test_requested_pool_is_used_whatever_its_selector_and_mode(cluster: Cluster) -> None:
    await cluster.pool("10.6.0.0/29", "manual", blockSize=30, assignmentMode="Manual", nodeSelector="rack == 'r9'")
    a = await cluster.host("a")
    assert await a.auto() in SMALL
    wanted = ip_network("10.6.0.0/29")
    assert await a.auto(pools=(wanted,)) in wanted
    with pytest.raises(NoPool, match=r"192\.0\.2\.0/24"):
        await a.auto(pools=(ip_network("192.0.2.0/24"),))


async def test_pools_are_filled_in_name_order(cluster: Cluster) -> None:
    await cluster.pool("10.4.0.0/30", "another", blockSize=30)
    a = await cluster.host("a")
    found = [await a.auto() for _ in range(5)]
    assert [address in ip_network("10.4.0.0/30") for address in found] == [True] * 4 + [False]


@pytest.mark.parametrize(
    "change",
    [
        {"disabled": True},
        {"nodeSelector": "rack == 'r2'"},
        {"assignmentMode": "Manual"},
        {"allowedUses": ["Tunnel"]},
    ],
)
async def test_no_pool_for_this_node_is_said(cluster: Cluster, change: dict[str, Any]) -> None:
    await cluster.pool(str(SMALL), blockSize=30, **change)
    a = await cluster.host("a")
    with pytest.raises(NoPool, match="no enabled IPv4 pool serves this node"):
        await a.auto()


async def test_node_that_is_not_there_yet_is_said(cluster: Cluster) -> None:
    late = await cluster.host("late")
    with pytest.raises(NotFound, match="node late is not in the datastore"):
        await late.auto()
    assert await late.auto(pools=(SMALL,)) in SMALL
    await cluster.node("late")
    assert await late.auto() in SMALL


async def test_reserved_addresses_stay_in_the_queue(cluster: Cluster) -> None:
    await cluster.resource("IPReservation", "r", {"reservedCIDRs": ["10.5.0.0/29", "10.5.0.9/32", "10.5.0.12/30"]})
    a = await cluster.host("a")
    assert [str(await a.auto()) for _ in range(2)] == ["10.5.0.8", "10.5.0.10"]
    assert (await cluster.block(ip_network("10.5.0.8/30"))).unallocated == (1, 3)
    await a.auto()
    with pytest.raises(NoFreeAddress):
        await a.auto()
    await a.assign(ip_address("10.5.0.9"))


async def test_specific_address_claims_its_block(cluster: Cluster) -> None:
    a = await cluster.host("a")
    await a.assign(ip_address("10.5.0.6"), "six")
    block = await cluster.block(ip_network("10.5.0.4/30"))
    assert (block.node, block.allocations, block.unallocated) == ("a", (None, None, 0, None), (0, 1, 3))
    assert block.sequences == {"2": NOW}
    assert block.sequence == NOW + 1


async def test_specific_address_that_cannot_be_had_is_said_why(cluster: Cluster) -> None:
    a, b = await cluster.host("a"), await cluster.host("b")
    with pytest.raises(AddressNotInPool, match=r"10\.9\.0\.1 is in no enabled IP pool"):
        await a.assign(ip_address("10.9.0.1"))
    await a.assign(ip_address("10.5.0.6"), "first")
    await cluster.heard()
    with pytest.raises(AddressInUse, match=r"10\.5\.0\.6 is already assigned to first on a"):
        await b.assign(ip_address("10.5.0.6"))
    await b.assign(ip_address("10.5.0.5"))
    assert (await cluster.block(ip_network("10.5.0.4/30"))).node == "a"
    await cluster.config(strict_affinity=True, auto_allocate_blocks=True)
    with pytest.raises(IpamError, match=r"belongs to block 10\.5\.0\.4/30 of host:a"):
        await b.assign(ip_address("10.5.0.7"))


async def test_address_of_a_disabled_pool_is_refused_and_can_be_released(cluster: Cluster) -> None:
    a = await cluster.host("a")
    address = await a.auto("h")
    await cluster.pool(str(SMALL), blockSize=30, disabled=True)
    with pytest.raises(AddressNotInPool):
        await a.assign(address + 1)
    assert await a.ipam.release(address)


async def test_addresses_of_a_deleted_pool_can_be_released(cluster: Cluster) -> None:
    a = await cluster.host("a")
    address = await a.auto("h")
    await cluster.pool("10.9.0.0/24")
    assert await a.ipam.release(address)
    assert handle_key("h") not in await cluster.values()


async def test_full_pool_of_other_hosts_is_borrowed_from(cluster: Cluster) -> None:
    await put(cluster, full("10.5.0.0/30", "x"), full("10.5.0.4/30", "x"), full("10.5.0.8/30", "x"))
    b = await cluster.host("b")
    await b.assign(ip_address("10.5.0.13"), "of-b")
    a = await cluster.host("a")
    borrowed = await a.auto("of-a")
    assert borrowed == ip_address("10.5.0.12")
    block = await cluster.block(ip_network("10.5.0.12/30"))
    assert (block.node, affinity_key("a", block.network) in await cluster.values()) == ("b", False)
    assert [each.address for each in a.ipam.assignments("a")] == [borrowed]


async def test_strict_affinity_forbids_to_borrow(cluster: Cluster) -> None:
    await cluster.config(strict_affinity=True, auto_allocate_blocks=True)
    await put(cluster, full("10.5.0.0/30", "x"), full("10.5.0.4/30", "x"), full("10.5.0.8/30", "x"))
    await (await cluster.host("b")).assign(ip_address("10.5.0.13"))
    a = await cluster.host("a")
    with pytest.raises(NoFreeAddress, match="strict"):
        await a.auto()


async def test_block_limit_is_kept_without_borrowing(cluster: Cluster) -> None:
    await cluster.config(strict_affinity=True, auto_allocate_blocks=True, maxBlocksPerHost=2)
    a = await cluster.host("a")
    assert len({await a.auto() for _ in range(8)}) == 8
    with pytest.raises(BlockLimit, match="node a has 2 full blocks and may have 2"):
        await a.auto()
    with pytest.raises(BlockLimit):
        await asyncio.gather(*(a.auto() for _ in range(3)))


async def test_a_host_takes_twenty_blocks_where_no_limit_is_set(cluster: Cluster) -> None:
    await cluster.pool("10.6.0.0/24", "single", blockSize=32)
    a = await cluster.host("a")
    wanted = (ip_network("10.6.0.0/24"),)
    await asyncio.gather(*(a.auto(pools=wanted) for _ in range(20)))
    with pytest.raises(BlockLimit):
        await a.auto(pools=wanted)


async def test_new_blocks_may_be_forbidden(cluster: Cluster) -> None:
    await cluster.config(strict_affinity=True)
    a = await cluster.host("a")
    with pytest.raises(NoFreeAddress, match="auto_allocate_blocks is false"):
        await a.auto()


async def test_empty_block_of_another_host_is_reclaimed_when_nothing_is_free(cluster: Cluster) -> None:
    others = [empty("10.5.0.4/30", "x"), full("10.5.0.0/30", "x"), full("10.5.0.8/30", "x"), full("10.5.0.12/30", None)]
    await put(cluster, *others)
    a = await cluster.host("a")
    assert await a.auto() == ip_address("10.5.0.4")
    values = await cluster.values()
    assert affinity_key("x", ip_network("10.5.0.4/30")) not in values
    assert affinity_key("a", ip_network("10.5.0.4/30")) in values
    assert (await cluster.block(ip_network("10.5.0.4/30"))).node == "a"


async def test_empty_block_is_its_hosts_for_a_minute(cluster: Cluster) -> None:
    await cluster.config(strict_affinity=True, auto_allocate_blocks=True)
    await put(cluster, empty("10.5.0.4/30", "x", age=30), full("10.5.0.0/30", "x"), full("10.5.0.8/30", "x"))
    await put(cluster, full("10.5.0.12/30", None))
    a = await cluster.host("a")
    with pytest.raises(NoFreeAddress):
        await a.auto()
    cluster.clock.advance(31)
    assert await a.auto() == ip_address("10.5.0.4")


async def test_affinity_that_another_hosts_block_contradicts_is_dropped(cluster: Cluster) -> None:
    await put(cluster, full("10.5.0.4/30", "b"))
    stale = affinity_key("a", ip_network("10.5.0.4/30"))
    await cluster.put({stale: b'{"state":"confirmed"}'})
    a = await cluster.host("a")
    assert await a.auto() not in ip_network("10.5.0.4/30")
    assert stale not in await cluster.values()


@pytest.mark.parametrize("state", [b'{"state":"pending","deleted":false}', b'{"state":"pendingDeletion"}', b""])
async def test_affinity_in_any_state_ends_confirmed(cluster: Cluster, state: bytes) -> None:
    await put(cluster, empty("10.5.0.4/30", "a"), affinities=False)
    key = affinity_key("a", ip_network("10.5.0.4/30"))
    await cluster.put({key: state})
    a = await cluster.host("a")
    assert await a.auto() == ip_address("10.5.0.4")
    assert (await cluster.values())[key] in ("", '{"state":"confirmed","deleted":false}', '{"state":"confirmed"}')


async def test_affinity_without_its_block_is_completed(cluster: Cluster) -> None:
    await cluster.put({affinity_key("a", ip_network("10.5.0.8/30")): b'{"state":"pending"}'})
    a = await cluster.host("a")
    assert await a.auto() == ip_address("10.5.0.8")


async def test_pending_affinity_of_another_host_does_not_matter(cluster: Cluster) -> None:
    pending = affinity_key("b", ip_network("10.5.0.8/30"))
    await cluster.put({pending: b'{"state":"pending"}'})
    a = await cluster.host("a")
    assert len({await a.auto() for _ in range(16)}) == 16
    assert pending in await cluster.values()


async def test_block_whose_affinity_got_lost_is_found_again(cluster: Cluster) -> None:
    await put(cluster, empty("10.5.0.12/30", "a"), affinities=False)
    a = await cluster.host("a")
    assert await a.auto() == ip_address("10.5.0.12")
    assert affinity_key("a", ip_network("10.5.0.12/30")) in await cluster.values()


async def test_empty_block_is_kept_while_its_pool_selects_the_node(cluster: Cluster) -> None:
    a = await cluster.host("a")
    address = await a.auto()
    await a.ipam.release(address)
    assert (await cluster.block(ip_network(f"{address}/30"))).is_empty


async def test_empty_block_of_a_pool_that_no_longer_selects_the_node_is_given_up(cluster: Cluster) -> None:
    a = await cluster.host("a")
    address, another = await a.auto("h"), await a.auto("h")
    await cluster.pool(str(SMALL), blockSize=30, nodeSelector="rack == 'r2'")
    await a.ipam.release(another)
    assert a.ipam.assignment(address) is not None
    await a.ipam.release(address)
    assert await cluster.values() == {}


async def test_next_assignment_gives_up_blocks_the_node_may_no_longer_have(cluster: Cluster) -> None:
    await put(cluster, empty("10.5.0.4/30", "a"))
    await cluster.pool(str(SMALL), blockSize=30, nodeSelector="rack == 'r2'")
    await cluster.pool("10.9.0.0/24", "z")
    a = await cluster.host("a")
    assert await a.auto() in ip_network("10.9.0.0/24")
    assert not [key for key in await cluster.values() if "10.5.0.4" in key]


async def test_last_address_of_a_block_without_host_deletes_it(cluster: Cluster) -> None:
    a = await cluster.host("a")
    address = await a.auto()
    network = ip_network(f"{address}/30")
    with pytest.raises(IpamError, match="holds addresses"):
        await a.ipam.release_affinity(network)
    assert await a.ipam.release_node("nobody") == []
    orphan = blocks.advanced(blocks.orphaned(await cluster.block(network)))
    await cluster.put({block_key(network): blocks.encode(orphan)})
    assert await a.ipam.release(address)
    assert block_key(network) not in await cluster.values()


async def test_released_affinity_takes_the_empty_block_along(cluster: Cluster) -> None:
    a, b = await cluster.host("a"), await cluster.host("b")
    address = await a.auto()
    network = ip_network(f"{address}/30")
    assert await b.ipam.release_affinity(network) is False
    await a.ipam.release(address)
    assert await a.ipam.release_affinity(network) is True
    assert await cluster.values() == {}
    assert await a.ipam.release_affinity(network) is False


async def test_node_that_is_gone_leaves_nothing_but_what_others_borrowed(cluster: Cluster) -> None:
    a, b = await cluster.host("a"), await cluster.host("b")
    mine = [await a.auto(f"h{number}") for number in range(2)]
    await b.assign(mine[1] + 1, "borrowed")
    await cluster.heard()
    assert await b.ipam.release_node("a") == mine
    assert [each.address for each in b.ipam.assignments()] == [mine[1] + 1]
    block = await cluster.block(ip_network(f"{mine[0]}/30"))
    assert (block.affinity, block.claimed) == (None, None)
    await b.ipam.release_handle("borrowed")
    assert await cluster.values() == {}


async def test_released_address_is_not_given_out_before_its_cooldown_is_over(cluster: Cluster) -> None:
    await cluster.config(strict_affinity=True, auto_allocate_blocks=True, maxBlocksPerHost=1, ipCooldownSeconds=30)
    a = await cluster.host("a")
    first, *_ = [await a.auto(f"h{number}") for number in range(4)]
    assert await a.ipam.release(first) is True
    assert await a.ipam.release(first) is False
    assert handle_key("h0") not in await cluster.values()
    assert a.ipam.assignment(first) is None
    with pytest.raises(BlockLimit):
        await a.auto()
    with pytest.raises(AddressInUse, match="cooldown"):
        await a.assign(first)
    cluster.clock.advance(32)
    assert await a.auto("again") == first


async def test_unreadable_objects_serve_nobody_and_stop_nobody(cluster: Cluster) -> None:
    await cluster.put({block_key(ip_network(f"10.5.0.{first}/30")): b"{" for first in (0, 4, 8)})
    await cluster.put({"/calico/resources/v3/projectcalico.org/ippools/aaa": b'{"spec":{"cidr":"x"}}'})
    await cluster.put({affinity_key("a", ip_network("10.5.0.0/30")): b"{}"})
    a = await cluster.host("a")
    assert {str(await a.auto()) for _ in range(4)} == {"10.5.0.12", "10.5.0.13", "10.5.0.14", "10.5.0.15"}
    with pytest.raises(NoFreeAddress):
        await a.auto()
    with pytest.raises(InvalidResource, match=r"block/10\.5\.0\.0-30"):
        await a.ipam.release(ip_address("10.5.0.1"))
    assert len(a.ipam.assignments()) == 4
    assert a.ipam.assignment(ip_address("10.5.0.1")) is None


async def test_unreadable_configuration_fails_every_request(cluster: Cluster) -> None:
    await cluster.put({"/calico/ipam/v2/config": b"{"})
    a = await cluster.host("a")
    for _ in range(2):
        with pytest.raises(InvalidResource, match="IPAM configuration"):
            await a.auto()


@pytest.mark.parametrize("handle", ["", "a/b"])
async def test_handle_that_cannot_be_a_key_is_refused(cluster: Cluster, handle: str) -> None:
    a = await cluster.host("a")
    with pytest.raises(ValueError, match="handle"):
        await a.auto(handle)


async def test_data_of_the_go_plugin_is_read_kept_and_released() -> None:
    rows = [json.loads(line) for line in (CALICO / "go-plugin.jsonl").read_text().splitlines()]
    step = next(row["step"] for row in rows if row["step"].startswith("containers"))
    values = {row["key"]: row["value"].encode() for row in rows if row["step"] == step and row["value"]}
    async with a_cluster() as cluster:
        await cluster.put(values)
        await cluster.node("h1")
        host = await cluster.host("h1")
        before = {each.address: each for each in host.ipam.assignments("h1")}
        assert {(each.handle, each.node) for each in before.values()} == {(None, "h1")}
        assert ip_address("192.168.130.7") in before
        block = before[ip_address("192.168.130.7")].block
        added = await host.auto("new", pools=_pool_of(values, block))
        assert json.loads((await cluster.values())[block_key(block)])["strictAffinity"] is False
        assert added != ip_address("192.168.130.7")
        for address in before:
            assert await host.ipam.release(address)
        assert [each.address for each in host.ipam.assignments()] == [added]


def _pool_of(values: dict[str, bytes], block: Network) -> tuple[Network, ...]:
    pools = (json.loads(value)["spec"]["cidr"] for key, value in values.items() if "/ippools/" in key)
    return tuple(pool for pool in map(ip_network, pools) if block.network_address in pool)
