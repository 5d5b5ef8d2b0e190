"""What Calico's own library did, operation by operation, is what this IPAM does inside every block.

Two things are ours: which new block a host claims (the recorded one is offered as the only free block), and the count
in a handle, where Calico's counts what was asked for of a block and not what it gave.
"""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.errors import CalicoError
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import ipam_keys
from calico_libnetwork.model.ipam_records import Handle
from tests.unit.ipam_cluster import Cluster, Host, a_cluster

CALICO = Path(__file__).parents[1] / "data" / "calico"
Row = dict[str, Any]
_VERSIONS: tuple[ipam_keys.Version, ...] = (4, 6)


@pytest.mark.parametrize("recording", ["ipam-1.jsonl", "ipam-2.jsonl"])
async def test_recorded_operations_have_the_recorded_effect(recording: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, *steps = map(json.loads, (CALICO / recording).read_text().splitlines())
    state: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        after = {**state, **step["changed"]}
        after = {key: value for key, value in after.items() if key not in step["deleted"]}
        async with a_cluster() as cluster:
            await _prepare(cluster, setup["setup"], state)
            claimed = {key: value for key, value in after.items() if _is_block(key) and key not in state}
            monkeypatch.setattr("calico_libnetwork.model.pools.free_block", _Choice(claimed))
            await _play(cluster, step)
            _compare(f"step {number} {step}", _as_claimed(await cluster.values(), claimed), after)
        state = after


class _Choice:
    """Offers the blocks the recording claims, in turn of their pools."""

    def __init__(self, claimed: dict[str, str]) -> None:
        found = [blocks.decode(value.encode()) for value in claimed.values()]
        self._claims = [block.network for block in sorted(found, key=lambda block: block.sequence)]

    def __call__(self, pool: Any, node: str, *, existing: Any, reserved: Any) -> ipam_keys.Network | None:
        return next((each for each in self._claims if pool.holds(each) and each not in existing), None)


async def _prepare(cluster: Cluster, setup: list[Row], state: dict[str, str]) -> None:
    for document in setup:
        labels = document["metadata"].get("labels", {})
        await cluster.resource(document["kind"], document["metadata"]["name"], document["spec"], labels=labels)
    await cluster.put({key: value.encode() for key, value in state.items()})


async def _play(cluster: Cluster, step: Row) -> None:
    request, answer = step["request"], step["answer"]
    host = await cluster.host(request.get("host", "host-a"))
    if request["op"] == "auto":
        await _play_auto(host, request, answer)
    elif request["op"] == "assign":
        await _same_failure(host.assign(ip_address(request["ip"]), request["handle"]), answer)
    elif request["op"] == "release":
        for text in request["ips"]:
            released = await _same_failure(
                host.ipam.release(ip_address(text), handle=request.get("handle")), answer, default=True
            )
            assert released == (text not in (answer["unallocated"] or ()))
    else:
        await host.ipam.release_handle(request["handle"])


async def _play_auto(host: Host, request: Row, answer: Row) -> None:
    requests = [
        host.ipam.auto_assign(version, handle=request["handle"], attributes=request["attrs"], pools=pools)
        for version, pools in (
            (version, tuple(map(ip_network, request.get(f"pools{version}", ())))) for version in _VERSIONS
        )
        for _ in range(request[f"num{version}"])
    ]
    found = await asyncio.gather(*requests)
    recorded = [*(answer["ipv4"] or ()), *(answer["ipv6"] or ())]
    assert [str(address) for address in found] == [str(ip_interface(each).ip) for each in recorded]


async def _same_failure(call: Any, answer: Row, *, default: Any = None) -> Any:
    if "error" not in answer:
        return await call
    with pytest.raises(CalicoError):
        await call
    return default


def _is_block(key: str) -> bool:
    return ipam_keys.parse_block_key(key) is not None


def _as_claimed(found: dict[str, str], claimed: dict[str, str]) -> dict[str, str]:
    """``found``, its new blocks moved to the recorded moment: claim time, and the numbers counted from it."""
    moved = dict(found)
    for key in found.keys() & claimed.keys():
        block, recorded = (json.loads(values[key]) for values in (found, claimed))
        shift = recorded["sequenceNumber"] - block["sequenceNumber"]
        block["sequenceNumber"] += shift
        numbers = block["sequenceNumberForAllocation"]
        block["sequenceNumberForAllocation"] = {ordinal: number + shift for ordinal, number in numbers.items()}
        block["affinity_claim_time"] = recorded["affinity_claim_time"]
        moved[key] = json.dumps(block, separators=(",", ":"))
    return moved


def _compare(step: str, found: dict[str, str], recorded: dict[str, str]) -> None:
    held = {key: _held(key, value, recorded) for key, value in recorded.items() if ipam_keys.parse_handle_key(key)}
    assert found.keys() - held.keys() == recorded.keys() - held.keys(), step
    for key, value in found.items():
        if value != recorded[key]:
            assert key in held, (step, key, value, recorded[key])
            counts = Handle.decode(value.encode()).counts
            asked = Handle.decode(recorded[key].encode()).counts
            assert counts.keys() == held[key].keys(), step
            assert all(count in (held[key][cidr], asked[cidr]) for cidr, count in counts.items()), step
    assert not any(held[key] for key in held.keys() - found.keys()), step


def _held(key: str, value: str, recorded: dict[str, str]) -> dict[str, int]:
    """The addresses a recorded handle really has."""
    handle = ipam_keys.parse_handle_key(key) or ""
    found = {}
    for cidr in Handle.decode(value.encode()).counts:
        block = blocks.decode(recorded[ipam_keys.block_key(ip_network(cidr))].encode())
        found[cidr] = len(block.held_by(handle))
    return {cidr: count for cidr, count in found.items() if count}
