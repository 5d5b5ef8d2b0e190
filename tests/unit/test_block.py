"""A block keeps Calico's order, numbers and spelling through every change."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model.block import Block, Owner
from calico_libnetwork.model.ipam_keys import parse_affinity_key, parse_block_key, parse_handle_key
from calico_libnetwork.model.ipam_records import Handle, IpamConfig, affinity_state, encode_affinity

CALICO = Path(__file__).parents[1] / "data" / "calico"
NOW = 1_795_480_141_763_700_699  # 2026-11-24T00:29:01Z, beyond 2**53
SECOND = 1_000_000_000
A, B = Owner("a", {"node": "n1"}), Owner("b", {"node": "n1"})


def fresh(cidr: str = "10.5.0.32/29") -> Block:
    return blocks.fresh(ip_network(cidr), node="n1", now=NOW)


def stored_values() -> list[tuple[str, bytes]]:
    values = []
    for name in ("ipam-1.jsonl", "ipam-2.jsonl"):
        for line in (CALICO / name).read_text().splitlines()[1:]:
            values += json.loads(line)["changed"].items()
    for name in ("go-plugin.jsonl", "calico-node.jsonl"):
        rows = map(json.loads, (CALICO / name).read_text().splitlines())
        values += [(row["key"], row["value"]) for row in rows if "key" in row]
    return [(key, value.encode()) for key, value in values if key.startswith("/calico/ipam/v2/") and value]


def test_every_recorded_block_is_encoded_to_the_bytes_it_was_decoded_from() -> None:
    recorded = [value for key, value in stored_values() if parse_block_key(key)]
    assert len(recorded) > 200
    assert [blocks.encode(blocks.decode(value)) for value in recorded] == recorded


def test_every_recorded_handle_and_affinity_is_encoded_to_the_bytes_it_was_decoded_from() -> None:
    for key, value in stored_values():
        if parse_handle_key(key):
            assert Handle.decode(value).encode() == value
        elif parse_affinity_key(key):
            assert encode_affinity(affinity_state(value), value) == value


def test_first_address_of_a_new_block_is_stored_as_calico_stores_it() -> None:
    owner = Owner("h1", {"node": "host-a", "n": "1"})
    block = blocks.fresh(ip_network("10.6.0.16/30"), node="host-a", now=NOW)
    assert blocks.encode(blocks.advanced(blocks.assign(block, [0], owner))) == (
        b'{"cidr":"10.6.0.16/30","affinity":"host:host-a","affinity_claim_time":"2026-11-24T00:29:01Z",'
        b'"allocations":[0,null,null,null],"unallocated":[1,2,3],'
        b'"attributes":[{"handle_id":"h1","secondary":{"n":"1","node":"host-a"}}],'
        b'"sequenceNumber":1795480141763700700,"sequenceNumberForAllocation":{"0":1795480141763700699},"deleted":false}'
    )


def test_equal_owners_share_one_entry_and_the_last_address_takes_it_along() -> None:
    block = blocks.assign(blocks.assign(blocks.assign(fresh(), [0], A), [1], B), [2], A)
    assert block.allocations[:3] == (0, 1, 0)
    block = blocks.release(block, [0], now=NOW, cooldown=0)
    assert (block.allocations[:3], len(block.attributes)) == ((None, 1, 0), 2)
    block = blocks.release(block, [2], now=NOW, cooldown=0)
    assert (block.allocations[:3], [entry["handle_id"] for entry in block.attributes]) == ((None, 0, None), ["b"])
    assert block.unallocated == (3, 4, 5, 6, 7, 0, 2)


def test_unknown_fields_keep_their_place_and_value() -> None:
    value = blocks.encode(fresh("10.5.0.32/31")).replace(b'"allocations"', b'"alternate":{"x":[1]},"allocations"')
    changed = blocks.encode(blocks.advanced(blocks.assign(blocks.decode(value), [0], A)))
    assert list(json.loads(changed))[2:5] == ["affinity_claim_time", "alternate", "allocations"]
    assert json.loads(changed)["alternate"] == {"x": [1]}


@pytest.mark.parametrize(
    "spelling",
    [
        '{"cidr":"10.0.0.0/31","affinity":"host:n1","allocations":[null,null],"unallocated":[0,1],"attributes":null}',
        '{"cidr":"10.0.0.0/31","hostAffinity":"n1","allocations":[null,null],"unallocated":[0,1],"attributes":[]}',
        '{"cidr":"10.0.0.0/31","affinity":"host:n1","strictAffinity":false,"allocations":[null,null],"unallocated":[0,1]}',
        '{"cidr":"10.0.0.0/31","affinity":"host:n1","allocations":[null,null],"unallocated":[0,1],"sequenceNumber":0}',
    ],
)
def test_nulls_and_absent_fields_are_read_and_kept(spelling: str) -> None:
    block = blocks.decode(spelling.encode())
    assert (block.node, block.sequence, block.attributes, block.is_empty) == ("n1", 0, (), True)
    assert blocks.encode(block) == spelling.encode()
    after = blocks.decode(blocks.encode(blocks.advanced(blocks.assign(block, [0], A))))
    assert (after.node, after.sequence, after.sequences, after.allocations) == ("n1", 1, {"0": 0}, (0, None))


def test_address_without_handle_or_attributes_is_released() -> None:
    spelling = (
        b'{"cidr":"10.0.0.0/31","affinity":"host:n1","strictAffinity":false,"allocations":[0,null],"unallocated":[1],'
        b'"attributes":[{"handle_id":null,"secondary":null}]}'
    )
    allocation = blocks.decode(spelling).allocation(ip_address("10.0.0.0"))
    assert allocation is not None
    assert (allocation.owner.handle, allocation.node, allocation.sequence) == (None, None, None)
    after = blocks.release(blocks.decode(spelling), [0], now=NOW, cooldown=0)
    assert (after.allocations, after.unallocated, after.attributes) == ((None, None), (1, 0), ())


def test_an_entry_without_owner_is_shared_however_it_is_spelled() -> None:
    spelling = (
        b'{"cidr":"10.0.0.0/31","allocations":[0,null],"unallocated":[1],'
        b'"attributes":[{"handle_id":null,"secondary":{"node":"n1"}}]}'
    )
    assert blocks.assign(blocks.decode(spelling), [1], Owner(None, {"node": "n1"})).allocations == (0, 0)


def test_released_address_cools_down_before_it_is_free() -> None:
    block = blocks.advanced(blocks.assign(fresh(), [0, 1], A))
    cooling = blocks.advanced(blocks.release(block, [1], now=NOW + 5 * SECOND, cooldown=30))
    assert json.loads(blocks.encode(cooling))["attributes"][1] == {"releasedAt": "2026-11-24T00:29:06Z"}
    assert cooling.sequences == {"0": NOW, "1": NOW + 1}
    assert 1 not in cooling.unallocated
    assert not cooling.is_empty
    assert blocks.without_cooled(cooling, now=NOW + 34 * SECOND, cooldown=30) is cooling
    free = blocks.without_cooled(cooling, now=NOW + 36 * SECOND, cooldown=30)
    assert (free.unallocated, free.allocations[:2], len(free.attributes)) == ((2, 3, 4, 5, 6, 7, 1), (0, None), 1)
    assert free.sequences == {"0": NOW}


def test_cooled_addresses_come_back_in_ascending_order() -> None:
    block = blocks.assign(fresh(), range(8), A)
    block = blocks.release(block, [5, 2], now=NOW, cooldown=30)
    assert blocks.without_cooled(block, now=NOW + 60 * SECOND, cooldown=30).unallocated == (2, 5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2026-11-24T00:29:01Z", 0), ("2026-11-24T01:29:01.25+01:00", 0.25), ("2026-11-24T00:29:01.123456789Z", 0.123456)],
)
def test_release_times_of_any_writer_are_read(text: str, seconds: float) -> None:
    assert blocks.nanoseconds(text) == NOW // SECOND * SECOND + round(seconds * SECOND)
    assert blocks.nanoseconds("yesterday") is None


def test_block_of_windows_addresses_alone_counts_as_empty() -> None:
    block = blocks.assign(fresh(), [0, 1], Owner("windows-reserved-ipam-handle", {"note": "windows host rsvd"}))
    assert block.is_empty
    assert not blocks.assign(block, [2], A).is_empty


def test_handles_are_compared_up_to_a_carriage_return() -> None:
    block = blocks.assign(blocks.assign(fresh(), [0], Owner("a\r")), [1], Owner("ab"))
    assert block.held_by("a") == (0,)


def test_what_a_damaged_block_lists_as_free_and_taken_is_not_free() -> None:
    spelling = b'{"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[0,2,3],"attributes":[{}]}'
    assert list(blocks.decode(spelling).free()) == [2, 3]


def test_orphaned_block_has_neither_affinity_nor_claim_time() -> None:
    document = json.loads(blocks.encode(blocks.orphaned(fresh())))
    assert document["affinity"] is None
    assert "affinity_claim_time" not in document


@pytest.mark.parametrize(
    "spelling",
    [
        b"",
        b"[]",
        b'{"cidr":"10.0.0.1/31"}',
        b'{"cidr":"10.0.0.0/31","allocations":[null]}',
        b'{"cidr":"10.0.0.0/31","allocations":[3,null],"unallocated":[1]}',
        b'{"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":[0,7]}',
        b'{"cidr":"10.0.0.0/31","allocations":[null,"x"]}',
    ],
)
def test_what_cannot_be_a_block_is_refused(spelling: bytes) -> None:
    with pytest.raises(InvalidResource, match="block"):
        blocks.decode(spelling)


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.sampled_from([0, 30]))))
def test_every_ordinal_is_either_allocated_or_free_once(steps: list[tuple[int, bool, int]]) -> None:
    block, now = fresh(), NOW
    for ordinal, first_owner, cooldown in steps:
        now += 20 * SECOND
        block = blocks.without_cooled(block, now=now, cooldown=cooldown)
        allocation = block.allocation(block.network[ordinal])
        if allocation is None:
            block = blocks.assign(block, [ordinal], A if first_owner else B)
        elif allocation.released is None:
            block = blocks.release(block, [ordinal], now=now, cooldown=cooldown)
        block = blocks.decode(blocks.encode(blocks.advanced(block)))
        taken = {ordinal for ordinal, index in enumerate(block.allocations) if index is not None}
        assert sorted([*taken, *block.unallocated]) == list(range(8))
        assert {index for index in block.allocations if index is not None} == set(range(len(block.attributes)))
        assert {int(ordinal) for ordinal in block.sequences} == taken
        assert all(number < block.sequence for number in block.sequences.values())
    assert block.sequence == NOW + len(steps)


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (b"", "confirmed"),
        (b"{}", "confirmed"),
        (b'{"state":""}', "confirmed"),
        (b'{"state":null}', "confirmed"),
        (b'{"state":"pending","deleted":false}', "pending"),
        (b'{"state":"pendingDeletion"}', "pendingDeletion"),
    ],
)
def test_affinity_of_any_generation_has_a_state(value: bytes, state: str) -> None:
    assert affinity_state(value) == state
    assert json.loads(encode_affinity("confirmed", value))["state"] == "confirmed"


def test_new_affinity_and_handle_are_stored_as_calico_stores_them() -> None:
    assert encode_affinity("confirmed") == b'{"state":"confirmed","deleted":false}'
    handle = Handle.empty().counted("10.6.0.16/30", 1).counted("10.5.0.0/29", 2)
    assert handle.encode() == b'{"block":{"10.5.0.0/29":2,"10.6.0.16/30":1},"deleted":false}'
    assert handle.without("10.5.0.0/29").counts == {"10.6.0.16/30": 1}
    assert Handle.decode(b'{"block":null}').counts == {}


def test_absent_configuration_differs_from_a_partial_one() -> None:
    assert IpamConfig.decode(None) == IpamConfig(False, True, 0, 0)
    assert IpamConfig.decode(b'{"strict_affinity":true}') == IpamConfig(True, False, 0, 0)
    full = b'{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":4,"x":1,"ipCooldownSeconds":30}'
    assert IpamConfig.decode(full) == IpamConfig(True, True, 4, 30)
    assert IpamConfig(True, True, 0, 30).encode(full) == full.replace(b'"maxBlocksPerHost":4,', b"")


@pytest.mark.parametrize("config", [IpamConfig(False, False), IpamConfig(False, True, 3), IpamConfig(True, True, -1)])
def test_configuration_calico_refuses_is_refused(config: IpamConfig) -> None:
    with pytest.raises(InvalidResource):
        config.encode()
