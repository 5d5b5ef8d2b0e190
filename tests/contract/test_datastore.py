"""What every datastore does, whichever it is. Revisions are relative: the store may have a past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from calico_libnetwork.datastore.protocol import (
    TRANSACTION_LIMIT,
    Batch,
    Compare,
    Datastore,
    Delete,
    Event,
    KeyValue,
    Operation,
    Outcome,
    Put,
    Transaction,
    absent,
    unchanged,
)
from calico_libnetwork.errors import Compacted, DatastoreError


async def write(store: Datastore, *operations: Operation) -> Outcome:
    outcome = await store.commit(Transaction((), operations))
    assert outcome.succeeded
    return outcome


async def take(batches: AsyncGenerator[Batch, None], count: int) -> list[Event]:
    """The next ``count`` events, however they are batched."""
    events: list[Event] = []
    async with asyncio.timeout(10):
        while len(events) < count:
            events.extend((await anext(batches)).events)
    return events


async def test_put_creates_and_then_replaces(store: Datastore, root: str) -> None:
    first = await write(store, Put(f"{root}a", b"1"))
    second = await write(store, Put(f"{root}a", b"2"))
    assert second.revision == first.revision + 1
    created = KeyValue(f"{root}a", b"1", first.revision, first.revision, 1)
    replaced = KeyValue(f"{root}a", b"2", first.revision, second.revision, 2)
    assert first.current == {f"{root}a": created}
    assert second.current == {f"{root}a": replaced}
    assert (await store.get([f"{root}a"])).items == (replaced,)


async def test_key_created_anew_starts_at_version_1(store: Datastore, root: str) -> None:
    await write(store, Put(f"{root}a", b"1"))
    await write(store, Put(f"{root}a", b"2"))
    gone = await write(store, Delete(f"{root}a"))
    assert gone.current == {f"{root}a": None}
    outcome = await write(store, Put(f"{root}a", b"3"))
    assert outcome.current == {f"{root}a": KeyValue(f"{root}a", b"3", outcome.revision, outcome.revision, 1)}


async def test_transaction_has_one_revision(store: Datastore, root: str) -> None:
    await write(store, Put(f"{root}old", b""))
    outcome = await write(store, Put(f"{root}a", b"1"), Put(f"{root}b", b"2"), Delete(f"{root}old"))
    listing = await store.list([root])
    assert listing.revision == outcome.revision
    assert [(item.key, item.mod_revision) for item in listing.items] == [
        (f"{root}a", outcome.revision),
        (f"{root}b", outcome.revision),
    ]


async def test_deletion_of_missing_key_makes_no_revision(store: Datastore, root: str) -> None:
    before = (await store.list([root])).revision
    outcome = await write(store, Delete(f"{root}none"))
    assert outcome == Outcome(True, before, {f"{root}none": None})
    assert (await store.list([root])).revision == before


async def test_transaction_without_operations_only_compares(store: Datastore, root: str) -> None:
    before = (await store.list([root])).revision
    assert await store.commit(Transaction([absent(f"{root}a")], ())) == Outcome(True, before)


async def test_failed_transaction_writes_nothing_and_shows_what_it_compared(store: Datastore, root: str) -> None:
    outcome = await write(store, Put(f"{root}a", b"1"))
    a = outcome.current[f"{root}a"]
    assert a is not None
    refused = await store.commit(
        Transaction([unchanged(a), absent(f"{root}a"), absent(f"{root}b")], [Put(f"{root}b", b"2"), Delete(f"{root}a")])
    )
    assert refused == Outcome(False, outcome.revision, {f"{root}a": a, f"{root}b": None})
    assert (await store.list([root])).items == (a,)


@pytest.mark.parametrize(
    ("target", "operand", "holds"),
    [
        ("version", 2, True), ("version", 1, False), ("value", b"2", True), ("value", b"1", False),
        ("mod", 0, False), ("create", 0, False), ("version", 0, False), ("value", b"", False),
    ],
)  # fmt: skip
async def test_compare_of_present_key(
    store: Datastore, root: str, target: str, operand: int | bytes, holds: bool
) -> None:
    await write(store, Put(f"{root}a", b"1"))
    await write(store, Put(f"{root}a", b"2"))
    outcome = await store.commit(Transaction([Compare(f"{root}a", target, operand)], ()))  # type: ignore[arg-type]
    assert outcome.succeeded is holds


@pytest.mark.parametrize(
    ("target", "operand", "holds"),
    [("mod", 0, True), ("create", 0, True), ("version", 0, True), ("value", b"", False), ("mod", 1, False)],
)
async def test_compare_of_absent_key(
    store: Datastore, root: str, target: str, operand: int | bytes, holds: bool
) -> None:
    outcome = await store.commit(Transaction([Compare(f"{root}a", target, operand)], ()))  # type: ignore[arg-type]
    assert outcome.succeeded is holds


async def test_compare_of_revisions(store: Datastore, root: str) -> None:
    created = await write(store, Put(f"{root}a", b"1"))
    changed = await write(store, Put(f"{root}a", b"2"))
    right = [Compare(f"{root}a", "create", created.revision), Compare(f"{root}a", "mod", changed.revision)]
    assert (await store.commit(Transaction(right, ()))).succeeded
    assert not (await store.commit(Transaction([Compare(f"{root}a", "mod", created.revision)], ()))).succeeded


def test_transaction_writes_a_key_once() -> None:
    with pytest.raises(ValueError, match="once"):
        Transaction((), [Put("/a", b""), Delete("/a")])


async def test_largest_transaction_is_accepted(store: Datastore, root: str) -> None:
    keys = [f"{root}{number:03}" for number in range(TRANSACTION_LIMIT)]
    outcome = await store.commit(Transaction([absent(key) for key in keys], [Put(key, b"") for key in keys]))
    assert outcome.succeeded
    assert len((await store.list([root])).items) == TRANSACTION_LIMIT
    with pytest.raises(ValueError, match="128"):
        Transaction((), [Put(key, b"") for key in [*keys, f"{root}more"]])


async def test_get_of_many_keys_is_one_reading(store: Datastore, root: str) -> None:
    keys = [f"{root}{number:03}" for number in range(300)]
    for first in range(0, 300, 100):
        await write(store, *(Put(key, b"") for key in keys[first : first + 100]))
    listing = await store.get([*reversed(keys), f"{root}none", keys[0]])
    assert [item.key for item in listing.items] == keys
    assert await store.get([]) == type(listing)(listing.revision, ())


async def test_list_is_in_key_order_and_keeps_to_its_prefixes(store: Datastore, root: str) -> None:
    names = ("b/2", "a/ü", "a/z", "a/b", "ab", "b/1", "c/1", "a")
    for name in names:
        await write(store, Put(f"{root}{name}", name.encode()))
    listing = await store.list([f"{root}b/", f"{root}a/"])
    assert [item.key.removeprefix(root) for item in listing.items] == ["a/b", "a/z", "a/ü", "b/1", "b/2"]


async def test_any_bytes_are_kept(store: Datastore, root: str) -> None:
    value = bytes(range(256)) * 1000
    await write(store, Put(f"{root}a", value), Put(f"{root}empty", b""))
    assert [item.value for item in (await store.list([root])).items] == [value, b""]


async def test_watch_delivers_the_past_from_its_start_and_then_the_present(store: Datastore, root: str) -> None:
    await write(store, Put(f"{root}a", b"0"))
    start = await write(store, Put(f"{root}a", b"1"))
    async with aclosing(store.watch([root], start.revision)) as batches:
        assert await take(batches, 1) == [Event(f"{root}a", start.current[f"{root}a"], start.revision)]
        gone = await write(store, Delete(f"{root}a"))
        assert await take(batches, 1) == [Event(f"{root}a", None, gone.revision)]


async def test_watch_keeps_to_its_prefixes(store: Datastore, root: str) -> None:
    start = (await store.list([root])).revision + 1
    async with aclosing(store.watch([f"{root}a/", f"{root}c/"], start)) as batches:
        for name in ("a/1", "b/1", "ab", "c/1", "a/2"):
            await write(store, Put(f"{root}{name}", b""))
        events = await take(batches, 3)
        assert sorted(event.key.removeprefix(root) for event in events) == ["a/1", "a/2", "c/1"]


async def test_watch_delivers_every_change_once_and_in_order(store: Datastore, root: str) -> None:
    start = (await store.list([root])).revision + 1
    async with aclosing(store.watch([root], start)) as batches:
        reader = asyncio.create_task(take(batches, 400))
        await asyncio.gather(
            *(write(store, Put(f"{root}{number}", b"x"), Put(f"{root}+{number}", b"y")) for number in range(200))
        )
        events = await reader
    revisions = [event.revision for event in events]
    assert revisions == sorted(revisions)
    assert len({event.key for event in events}) == 400
    assert len(set(revisions)) == 200


async def test_watch_from_a_compacted_revision_is_refused(store: Datastore, root: str) -> None:
    first = await write(store, Put(f"{root}a", b"1"))
    last = await write(store, Put(f"{root}a", b"2"))
    await store.compact(last.revision)
    async with aclosing(store.watch([root], first.revision)) as batches:
        with pytest.raises(Compacted) as raised:
            await take(batches, 1)
    assert raised.value.revision == last.revision
    assert [item.value for item in (await store.list([root])).items] == [b"2"]


async def test_watch_from_the_next_revision_outlives_compaction(store: Datastore, root: str) -> None:
    last = await write(store, Put(f"{root}a", b"1"))
    async with aclosing(store.watch([root], last.revision + 1)) as batches:
        reader = asyncio.create_task(take(batches, 1))
        await asyncio.sleep(0.1)
        await store.compact(last.revision)
        after = await write(store, Put(f"{root}a", b"2"))
        assert [event.revision for event in await reader] == [after.revision]


async def test_compaction_twice_is_no_error_and_of_the_future_is_one(store: Datastore, root: str) -> None:
    last = await write(store, Put(f"{root}a", b"1"))
    await store.compact(last.revision)
    await store.compact(last.revision)
    await store.compact(last.revision - 1)
    with pytest.raises(DatastoreError, match="not reached"):
        await store.compact(last.revision + 1000)


async def test_concurrent_compare_and_swaps_lose_no_update(store: Datastore, root: str) -> None:
    key = f"{root}counter"
    await write(store, Put(key, b"0"))

    async def increment() -> None:
        (item,) = (await store.get([key])).items
        while True:
            outcome = await store.commit(Transaction([unchanged(item)], [Put(key, str(int(item.value) + 1).encode())]))
            if outcome.succeeded:
                return
            current = outcome.current[key]
            assert current is not None
            item = current

    await asyncio.gather(*(increment() for _ in range(25)))
    assert (await store.get([key])).items[0].value == b"25"


async def test_cancelled_commit_leaves_the_store_usable(store: Datastore, root: str) -> None:
    task = asyncio.create_task(write(store, Put(f"{root}a", b"1")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await write(store, Put(f"{root}b", b"2"))
    assert f"{root}b" in [item.key for item in (await store.list([root])).items]


async def test_closed_store_ends_its_watches_and_refuses(store: Datastore, root: str) -> None:
    start = (await store.list([root])).revision + 1
    async with aclosing(store.watch([root], start)) as batches:
        reader = asyncio.create_task(take(batches, 1))
        await asyncio.sleep(0.1)
        await store.close()
        with pytest.raises(DatastoreError, match="closed"):
            await reader
    with pytest.raises(DatastoreError, match="closed"):
        await store.list([root])
    with pytest.raises(DatastoreError, match="closed"):
        await write(store, Put(f"{root}a", b""))
