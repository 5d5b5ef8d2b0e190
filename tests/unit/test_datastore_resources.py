from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Delete, Outcome, Put, Transaction, absent
from calico_libnetwork.datastore.resources import Resources
from calico_libnetwork.errors import AlreadyExists, Conflict, InvalidResource, NotFound
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.kinds import ResourceKey, parse_path

RECORDED = Path(__file__).parent.parent / "data" / "calico" / "resources.jsonl"
WEB = ResourceKey("Profile", "web")
CREATED = datetime(2026, 8, 22, 15, 33, 21, 999, timezone(timedelta(hours=2)))


class Contested(MemoryDatastore):
    """Each commit comes just after one by a rival, while there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.rivals: deque[Put] = deque()

    async def commit(self, transaction: Transaction) -> Outcome:
        if self.rivals:
            await super().commit(Transaction((), [self.rivals.popleft()]))
        return await super().commit(transaction)


class World:
    def __init__(self) -> None:
        self.store = Contested()
        self.cache = Cache(self.store, ["/calico/"], pause=0.01)
        self.resources = Resources(self.cache, clock=lambda: CREATED, new_uid=lambda: "uid-1")

    async def put(self, key: ResourceKey, value: bytes) -> None:
        """Another process writes."""
        await self.store.commit(Transaction((), [Put(key.path, value)]))
        await self.cache.refresh([key.path])

    def stored(self, key: ResourceKey) -> Document:
        item = self.cache.get(key.path)
        assert item is not None
        document: Document = json.loads(item.value)
        return document


@pytest.fixture
async def world() -> AsyncIterator[World]:
    each = World()
    task = asyncio.create_task(each.cache.run())
    await each.cache.synced()
    yield each
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_created_resource_has_uid_and_creation_time_as_calico_writes_them(world: World) -> None:
    endpoint = ResourceKey("WorkloadEndpoint", "host-libnetwork-libnetwork-ab", "libnetwork")
    created = await world.resources.create(endpoint, {"node": "host"}, labels={"a": "b"}, annotations={"x/y": "z"})
    assert world.resources.get(endpoint) == created
    assert world.stored(endpoint) == {
        "kind": "WorkloadEndpoint",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {
            "name": endpoint.name,
            "namespace": "libnetwork",
            "uid": "uid-1",
            "creationTimestamp": "2026-08-22T13:33:21Z",
            "labels": {"a": "b"},
            "annotations": {"x/y": "z"},
        },
        "spec": {"node": "host"},
    }


async def test_creation_of_what_exists_is_refused_by_name(world: World) -> None:
    await world.resources.create(WEB, {})
    with pytest.raises(AlreadyExists, match=r"Profile\(web\) exists already"):
        await world.resources.create(WEB, {})


async def test_creation_carries_other_writes_with_it_or_none(world: World) -> None:
    await world.resources.create(WEB, {}, also=[absent("/calico/x"), Put("/calico/x", b"1")])
    assert world.cache.get("/calico/x") is not None
    other = ResourceKey("Profile", "other")
    with pytest.raises(Conflict, match=r"Profile\(other\)"):
        await world.resources.create(other, {}, also=[absent("/calico/x"), Delete("/calico/x")])
    assert world.resources.get(other) is None


async def test_nothing_unreadable_is_ever_written(world: World) -> None:
    with pytest.raises(InvalidResource, match="labelsToApply"):
        await world.resources.create(WEB, {"labelsToApply": 5})
    await world.resources.create(WEB, {})
    with pytest.raises(InvalidResource, match="labelsToApply"):
        await world.resources.update(WEB, lambda document: document | {"spec": {"labelsToApply": 5}})
    assert world.stored(WEB)["spec"] == {}


async def test_update_keeps_what_it_does_not_know_and_what_must_not_change(world: World) -> None:
    before = {
        "kind": "Profile", "apiVersion": "projectcalico.org/v3", "future": {"a": [1, None]},
        "metadata": {"name": "web", "uid": "u", "creationTimestamp": "2020-01-01T00:00:00Z", "generation": 7},
        "spec": {"unknown": 12345678901234567890, "labelsToApply": {"a": ""}},
    }  # fmt: skip
    await world.put(WEB, json.dumps(before).encode())

    def change(document: Document) -> Document:
        document["spec"]["labelsToApply"]["b"] = ""
        document["metadata"] |= {"uid": "forged", "creationTimestamp": None, "resourceVersion": "12"}
        return document

    updated = await world.resources.update(WEB, change)
    assert updated.spec.labels_to_apply == {"a": "", "b": ""}
    before["spec"]["labelsToApply"]["b"] = ""  # type: ignore[index]
    assert world.stored(WEB) == before


async def test_update_gives_old_objects_the_uid_and_time_that_calicoctl_needs(world: World) -> None:
    await world.put(WEB, b'{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"web","creationTimestamp":null},"spec":{}}')  # fmt: skip  # noqa: E501
    await world.resources.update(WEB, lambda document: document | {"spec": {"labelsToApply": {"a": ""}}})
    assert world.stored(WEB)["metadata"] == {
        "name": "web", "uid": "uid-1", "creationTimestamp": "2026-08-22T13:33:21Z",
    }  # fmt: skip


async def test_update_without_a_difference_writes_nothing(world: World) -> None:
    await world.resources.create(WEB, {})
    revision = world.cache.revision
    await world.resources.update(WEB, lambda document: document)
    await world.resources.update(WEB, lambda _: None)
    assert (await world.store.list(["/"])).revision == revision


async def test_update_starts_afresh_when_another_was_faster(world: World) -> None:
    await world.resources.create(WEB, {"labelsToApply": {}})
    theirs = world.stored(WEB)
    theirs["spec"]["labelsToApply"]["theirs"] = ""
    world.store.rivals.append(Put(WEB.path, json.dumps(theirs).encode()))
    trees: list[set[str]] = []

    def change(document: Document) -> Document:
        trees.append(set(document["spec"]["labelsToApply"]))
        document["spec"]["labelsToApply"]["ours"] = ""
        return document

    await world.resources.update(WEB, change)
    assert trees == [set(), {"theirs"}]
    assert world.stored(WEB)["spec"]["labelsToApply"].keys() == {"theirs", "ours"}


async def test_update_gives_up_when_others_keep_being_faster(world: World) -> None:
    await world.resources.create(WEB, {})
    world.store.rivals += [Put(WEB.path, json.dumps(world.stored(WEB)).encode()) for _ in range(12)]
    with pytest.raises(Conflict, match=r"Profile\(web\) was changed by others 10 times"):
        await world.resources.update(WEB, lambda document: document | {"more": 1})
    assert len(world.store.rivals) == 2


async def test_update_of_what_is_not_there_or_not_readable_says_so(world: World) -> None:
    with pytest.raises(NotFound, match=r"Profile\(web\) does not exist"):
        await world.resources.update(WEB, lambda document: document)
    await world.put(WEB, b"{")
    with pytest.raises(InvalidResource, match=r"Profile\(web\)"):
        await world.resources.update(WEB, lambda document: document)


async def test_delete_says_whether_it_was_there(world: World) -> None:
    await world.resources.create(WEB, {})
    assert await world.resources.delete(WEB)
    assert not await world.resources.delete(WEB)
    await world.store.commit(Transaction((), [Put(WEB.path, b"{}")]))
    assert await world.resources.delete(WEB)
    assert (await world.store.list(["/"])).items == ()


async def test_unreadable_value_is_logged_once_with_its_key_and_stops_nobody(world: World) -> None:
    await world.resources.create(WEB, {})
    bad = ResourceKey("Profile", "bad")
    with structlog.testing.capture_logs() as logs:
        for value in (b"\xff\xfe", b'{"kind":"Profile"}'):
            await world.put(bad, value)
            assert world.resources.get(bad) is None
            assert [profile.name for profile in world.resources.list("Profile")] == ["web"]
    assert [entry["key"] for entry in logs] == [bad.path, bad.path]


async def test_list_is_in_key_order_and_can_keep_to_a_namespace(world: World) -> None:
    for namespace, name in (("b", "x"), ("a", "z"), ("a", "y")):
        await world.resources.create(ResourceKey("NetworkSet", name, namespace), {})
    await world.put(ResourceKey("NetworkSet", "stray/key", "a"), b"{}")
    assert [(each.metadata.namespace, each.name) for each in world.resources.list("NetworkSet")] == [
        ("a", "y"), ("a", "z"), ("b", "x"),
    ]  # fmt: skip
    assert [each.name for each in world.resources.list("NetworkSet", namespace="a")] == ["y", "z"]


async def test_value_is_decoded_once_per_write_of_it(world: World) -> None:
    await world.resources.create(WEB, {})
    first = world.resources.get(WEB)
    assert first is not None
    assert world.resources.get(WEB) is first
    assert world.resources.list("Profile")[0] is first
    await world.resources.update(WEB, lambda document: document | {"more": 1})
    assert world.resources.get(WEB) is not first
    await world.resources.delete(WEB)
    assert world.resources._decoded == {}


async def test_everything_the_real_tools_stored_is_readable_and_survives_an_update(world: World) -> None:
    count = 0
    for line in RECORDED.read_text().splitlines():
        record = json.loads(line)
        if "key" not in record or (key := parse_path(record["key"])) is None:
            continue
        count += 1
        await world.put(key, record["value"].encode())
        assert world.resources.get(key) is not None
        before = world.stored(key)
        await world.resources.update(key, lambda document: document | {"touched": True})
        assert world.stored(key) == before | {"touched": True}
    assert count > 20
