"""Unreadable values: said once, handed on with the version before them, and nobody else's problem."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import structlog

from calico_libnetwork.agent.intake import Intake
from calico_libnetwork.agent.last_readable import LastReadable
from calico_libnetwork.datastore.protocol import Event, KeyValue
from calico_libnetwork.datastore.unreadable import UnreadableValues
from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model.ipam_keys import affinity_key
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import AnyResource

POLICY = ResourceKey("GlobalNetworkPolicy", "a")
POOL = ResourceKey("IPPool", "pool")
ENDPOINT = ResourceKey("WorkloadEndpoint", "n1-libnetwork-libnetwork-1", "libnetwork")
ELSEWHERE = ResourceKey("WorkloadEndpoint", "n2-libnetwork-libnetwork-1", "libnetwork")


def item(key: ResourceKey, value: bytes, revision: int = 1, version: int = 1) -> KeyValue:
    return KeyValue(key.path, value, revision, revision, version)


def document(key: ResourceKey, **spec: Any) -> bytes:
    made = {"kind": key.kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": key.name}, "spec": spec}
    return json.dumps(made).encode()


GOOD = document(POLICY, selector="all()", order=7)


class Told:
    """A consumer that keeps what it hears, a word per update."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def update(self, key: ResourceKey, resource: AnyResource | Unreadable | None) -> None:
        word = "gone" if resource is None else "readable"
        if isinstance(resource, Unreadable):
            word = "unreadable, the first" if resource.first else "unreadable"
        self.heard.append(f"{key.name} {word}")


class ToldOfBlocks:
    def __init__(self) -> None:
        self.heard: list[bytes | None] = []

    def update_block(self, _key: str, value: bytes | None) -> None:
        self.heard.append(value)


class Process:
    """One life of the agent, as far as it concerns the intake."""

    def __init__(self, directory: Path) -> None:
        self.last_readable = LastReadable(directory / "last-readable.json")
        self.last_readable.load()
        self.unreadable = UnreadableValues()
        self.consumers, self.blocks = (Told(), Told()), ToldOfBlocks()
        self.intake = Intake(
            self.consumers, [self.blocks], node="n1", note=self.unreadable.note, last_readable=self.last_readable
        )

    def hear(self, key: ResourceKey, value: bytes | None, revision: int = 1, version: int = 1) -> None:
        self.unreadable.forget([key.path])
        current = None if value is None else item(key, value, revision, version)
        self.intake.take([Event(key.path, current, revision)])

    def heard(self) -> list[str]:
        first, second = (consumer.heard for consumer in self.consumers)
        assert first == second
        words = [*first]
        first.clear()
        second.clear()
        return words

    async def end(self) -> None:
        await self.last_readable.close()


@pytest.mark.parametrize("value", [b"{", b"\xff", document(POLICY, selector="a =="), document(POLICY, order="x")])
async def test_an_unreadable_value_is_logged_once_and_the_rest_goes_on(tmp_path: Path, value: bytes) -> None:
    process = Process(tmp_path)
    with structlog.testing.capture_logs() as logs:
        process.intake.take_all([item(POLICY, value), item(POOL, document(POOL, cidr="10.0.0.0/8"))])
        process.unreadable.note(item(POLICY, value), "as another consumer sees it")
    assert process.heard() == ["a unreadable, the first", "pool readable"]
    assert [line["key"] for line in logs] == [POLICY.path]
    assert [line.partition(": ")[0] for line in process.unreadable.sentences()] == [POLICY.path]
    process.hear(POLICY, GOOD, 2, 2)
    assert len(process.unreadable) == 0


async def test_a_restart_hears_the_last_readable_version_first(tmp_path: Path) -> None:
    first = Process(tmp_path)
    first.intake.take_all([item(POLICY, GOOD)])
    first.hear(POLICY, b"{", 2, 2)
    first.hear(POLICY, b"[", 3, 3)
    assert first.heard() == ["a readable", "a unreadable", "a readable", "a unreadable"]
    await first.end()

    for _ in range(2):
        process = Process(tmp_path)
        process.intake.take_all([item(POLICY, b"[", 3, 3)])
        assert process.heard() == ["a readable", "a unreadable"]
        assert process.last_readable.get(POLICY.path) == GOOD
        await process.end()


@pytest.mark.parametrize("after", [document(POLICY, selector="has(x)"), None], ids=["another version", "deleted"])
async def test_a_last_readable_version_is_forgotten_with_the_unreadable_one(
    tmp_path: Path, after: bytes | None
) -> None:
    first = Process(tmp_path)
    first.intake.take_all([item(POLICY, GOOD)])
    first.hear(POLICY, b"{", 2, 2)
    await first.end()

    aware = Process(tmp_path)
    aware.intake.take_all([item(POLICY, b"{", 2, 2)])
    aware.hear(POLICY, after, 3, 3)
    assert aware.last_readable.get(POLICY.path) is None
    await aware.end()
    assert await asyncio.to_thread((tmp_path / "last-readable.json").read_bytes) == b"{}"

    away = Process(tmp_path)
    away.intake.take_all([item(POLICY, GOOD)])
    away.hear(POLICY, b"{", 2, 2)
    await away.end()
    late = Process(tmp_path)  # which learns from the listing alone what happened
    late.intake.take_all([item(POLICY, after, 3, 3)] if after is not None else [])
    assert late.last_readable.get(POLICY.path) is None
    await late.end()


async def test_what_was_unreadable_from_the_start_has_no_version_before(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.intake.take_all([item(POLICY, b"{", 5, 1)])
    process.hear(POLICY, b"[", 6, 2)
    assert process.heard() == ["a unreadable, the first", "a unreadable"]
    await process.end()
    assert list(await asyncio.to_thread(lambda: [*tmp_path.iterdir()])) == []


async def test_a_broken_state_file_costs_nothing_but_what_it_held(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "last-readable.json").write_bytes, b"\xff{")
    with structlog.testing.capture_logs() as logs:
        process = Process(tmp_path)
    assert len(logs) == 1
    process.intake.take_all([item(POLICY, b"{", 5, 3)])
    assert process.heard() == ["a unreadable"]


async def test_a_stored_version_that_can_no_longer_be_read_is_dropped(tmp_path: Path) -> None:
    content = json.dumps({POLICY.path: "{"}).encode()
    await asyncio.to_thread((tmp_path / "last-readable.json").write_bytes, content)
    process = Process(tmp_path)
    process.intake.take_all([item(POLICY, b"[", 5, 3)])
    assert process.heard() == ["a unreadable"]
    assert process.last_readable.get(POLICY.path) is None
    await process.end()


async def test_a_claim_of_a_block_stays_when_it_becomes_unreadable(tmp_path: Path) -> None:
    process = Process(tmp_path)
    path = affinity_key("n2", ip_network("10.0.0.0/26"))
    with structlog.testing.capture_logs() as logs:
        for revision, value in enumerate((b'{"state": "confirmed"}', b"{", b"", None), start=1):
            current = None if value is None else KeyValue(path, value, 1, revision, revision)
            assert process.intake.take([Event(path, current, revision)])
    assert process.blocks.heard == [b'{"state": "confirmed"}', b"", None]
    assert [line["key"] for line in logs] == [path]


async def test_of_endpoints_only_this_nodes_own_come_back_after_a_restart(tmp_path: Path) -> None:
    process = Process(tmp_path)
    for key in (ENDPOINT, ELSEWHERE):
        process.hear(key, document(key))
        process.hear(key, b"{", 2, 2)
        assert process.heard() == [f"{key.name} readable", f"{key.name} unreadable"]
    assert process.last_readable.get(ENDPOINT.path) == document(ENDPOINT)
    assert process.last_readable.get(ELSEWHERE.path) is None
    await process.end()
