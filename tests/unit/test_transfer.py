"""A datastore moves as it is: values, order and unreadable bytes; the ready flag comes last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calico_libnetwork.datastore import transfer
from calico_libnetwork.datastore.initialise import FirstStart, initialise
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Outcome, Put, Transaction
from calico_libnetwork.datastore.transfer import Entry, Snapshot, dump, export, import_into, load
from calico_libnetwork.errors import AlreadyExists, Conflict, InvalidResource
from calico_libnetwork.model.kinds import ResourceKey
from tests.unit.first_start import plain_node

CALICO = Path(__file__).parents[1] / "data" / "calico"
CLUSTER = ResourceKey("ClusterInformation", "default").path


async def filled(count: int = 300) -> MemoryDatastore:
    store = MemoryDatastore()
    await initialise(store, FirstStart(node="n", node_document=plain_node("n")))
    for number in range(count):
        await store.commit(Transaction([], [Put(f"/calico/ipam/v2/handle/{number % 7}{number}", b'{"block":{}}')]))
    await store.commit(Transaction([], [Put("/calico/resources/v3/projectcalico.org/profiles/bad", b"\xff\x00")]))
    await store.commit(Transaction([], [Put("/calico-libnetwork/v1/networks/x", b"{}"), Put("/registry/y", b"no")]))
    return store


async def test_everything_arrives_as_it_was_and_in_its_order() -> None:
    source, target = await filled(), MemoryDatastore()
    snapshot = load(dump(await export(source)))
    assert await import_into(target, snapshot) == len(snapshot.entries)
    moved = {item.key: item for item in (await target.list(["/"])).items}
    original = {item.key: item for item in (await source.list(list(transfer.PREFIXES))).items}
    assert {key: item.value for key, item in moved.items()} == {key: item.value for key, item in original.items()}
    ordered = sorted((key for key in original if key != CLUSTER), key=lambda key: original[key].create_revision)
    revisions = [moved[key].create_revision for key in ordered]
    assert revisions == sorted(revisions)
    assert moved[CLUSTER].create_revision > revisions[-1]


async def test_recorded_values_survive_the_file() -> None:
    lines = [json.loads(line) for line in (CALICO / "go-plugin.jsonl").read_text().splitlines()]
    entries = tuple({line["key"]: Entry(line["key"], line["value"].encode()) for line in lines}.values())
    assert load(dump(Snapshot("etcd", 5, entries))) == Snapshot("etcd", 5, entries)


async def test_second_import_writes_nothing() -> None:
    target = MemoryDatastore()
    snapshot = await export(await filled(5))
    await import_into(target, snapshot)
    before = await target.list(["/"])
    assert await import_into(target, snapshot) == 0
    assert await target.list(["/"]) == before


class CutOff(MemoryDatastore):
    commits = 2

    async def commit(self, transaction: Transaction) -> Outcome:
        self.commits -= 1
        return await super().commit(transaction) if self.commits >= 0 else Outcome(False, 1)


async def test_import_that_was_cut_short_is_done_again() -> None:
    target = CutOff()
    snapshot = await export(await filled())
    with pytest.raises(Conflict, match="memory is being written to"):
        await import_into(target, snapshot)
    assert not (await target.get([CLUSTER])).items
    target.commits = 100
    assert await import_into(target, snapshot) == len(snapshot.entries) - 128


async def test_datastore_with_contents_is_refused_unless_told() -> None:
    target = MemoryDatastore()
    await initialise(target, FirstStart(node="other", node_document=plain_node("other")))
    snapshot = await export(await filled(5))
    with pytest.raises(AlreadyExists, match=r"memory is not empty: it has 11 keys of its own, such as /calico/"):
        await import_into(target, snapshot)
    await import_into(target, snapshot, overwrite=True)
    keys = {item.key for item in (await target.list(["/"])).items}
    assert ResourceKey("Node", "other").path in keys
    assert {item.key: item.value for item in (await target.get([CLUSTER])).items}[CLUSTER] == next(
        entry.value for entry in snapshot.entries if entry.key == CLUSTER
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "this is no export of a datastore"),
        (b"nonsense", "this is no export of a datastore"),
        (b"[]\n", "this is no export of a datastore"),
        (b'{"format":"other"}\n', "the export has the format 'other'"),
        (dump(Snapshot("s", 1, (Entry("/a", b"1"), Entry("/b", b"2")))).rpartition(b"{")[0], "has 1 of 2 entries"),
    ],
)
def test_what_is_no_whole_export_is_refused(content: bytes, sentence: str) -> None:
    with pytest.raises(InvalidResource, match=sentence):
        load(content)


async def test_large_values_are_parted() -> None:
    source, target = MemoryDatastore(), MemoryDatastore()
    for number in range(10):
        await source.commit(Transaction([], [Put(f"/calico/{number}", bytes(200_000))]))
    await import_into(target, await export(source))
    listing = await target.list(["/"])
    assert len(listing.items) == 10
    assert len({item.create_revision for item in listing.items}) == 5
