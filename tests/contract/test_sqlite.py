"""What only the embedded datastore promises: what was answered is on disk, and one process owns the file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calico_libnetwork.datastore.protocol import Delete, Operation, Put, Transaction, absent
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.errors import DatastoreUnavailable

_WRITER = """
import asyncio, sys
from pathlib import Path
from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.datastore.sqlite import SqliteDatastore

async def main():
    store = await SqliteDatastore.open(Path(sys.argv[1]))
    async def write(worker):
        number = 0
        while True:
            operations = [Put(f"/{worker}/{half}", str(number).encode()) for half in ("left", "right")]
            outcome = await store.commit(Transaction((), operations))
            print(worker, number, outcome.revision, flush=True)
            number += 1
    await asyncio.gather(*(write(worker) for worker in range(8)))

asyncio.run(main())
"""


def _write_until_killed(path: Path) -> list[str]:
    """What a process was answered before it was killed in the midst of writing."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        answered = [writer.stdout.readline() for _ in range(300)]
        writer.kill()
        answered += writer.stdout.readlines()
    return [line for line in answered if line.endswith("\n")]


async def test_killed_process_loses_nothing_it_was_answered_and_tears_no_transaction(tmp_path: Path) -> None:
    path = tmp_path / "calico.db"
    for _ in range(3):
        answered = await asyncio.to_thread(_write_until_killed, path)
        last = dict.fromkeys(range(8), -1)
        latest_revision = 0
        for worker, number, revision in (map(int, line.split()) for line in answered):
            last[worker] = max(last[worker], number)
            latest_revision = max(latest_revision, revision)
        store = await SqliteDatastore.open(path)
        listing = await store.list(["/"])
        await store.close()
        assert listing.revision >= latest_revision
        assert max(item.mod_revision for item in listing.items) == listing.revision
        values = {item.key: int(item.value) for item in listing.items}
        for worker, number in last.items():
            assert values[f"/{worker}/left"] == values[f"/{worker}/right"] >= number


async def test_revision_goes_on_where_it_was(tmp_path: Path) -> None:
    puts: list[Operation] = [Put(f"/{number}", b"") for number in range(20)]
    transactions: tuple[list[Operation], ...] = (
        puts[:1],
        puts[:8],
        puts,
        [Delete("/19")],
        [Put("/18", b"1"), Delete("/17")],
        [Delete("/18")],
    )
    for number, operations in enumerate(transactions, start=2):
        store = await SqliteDatastore.open(tmp_path / "calico.db")
        assert (await store.list(["/"])).revision == number - 1
        assert (await store.commit(Transaction((), operations))).revision == number
        await store.close()
    store = await SqliteDatastore.open(tmp_path / "calico.db")
    listing = await store.list(["/"])
    await store.close()
    assert (listing.revision, len(listing.items)) == (7, 17)


async def test_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calico.db"
    store = await SqliteDatastore.open(path)
    await store.commit(Transaction((), [Put("/a", b"1")]))
    await store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE latest SET revision = 9")
        connection.execute("PRAGMA user_version = 1")
    store = await SqliteDatastore.open(path)
    listing = await store.list(["/"])
    await store.close()
    assert (listing.revision, [item.key for item in listing.items]) == (9, ["/a"])


async def test_second_owner_is_refused_with_a_sentence(tmp_path: Path) -> None:
    store = await SqliteDatastore.open(tmp_path / "calico.db")
    with pytest.raises(DatastoreUnavailable, match=r"calico\.db is in use by another process"):
        await SqliteDatastore.open(tmp_path / "calico.db")
    await store.close()
    await (await SqliteDatastore.open(tmp_path / "calico.db")).close()


async def test_ten_thousand_keys_open_fast(tmp_path: Path) -> None:
    path = tmp_path / "calico.db"
    store = await SqliteDatastore.open(path)
    for first in range(0, 10_000, 100):
        keys = [f"/calico/{number:05}" for number in range(first, first + 100)]
        await store.commit(Transaction((), [Put(key, b"x" * 500) for key in keys]))
    await store.close()
    started = time.perf_counter()
    store = await SqliteDatastore.open(path)
    elapsed = time.perf_counter() - started
    assert len((await store.list(["/calico/"])).items) == 10_000
    await store.close()
    assert elapsed < 0.5


async def test_file_is_for_its_owner_only_and_its_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "calico.db"
    await (await SqliteDatastore.open(path)).close()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_commits_that_wait_share_one_write(tmp_path: Path) -> None:
    store = await SqliteDatastore.open(tmp_path / "calico.db")
    statements: list[str] = []
    store._connection.set_trace_callback(statements.append)
    await asyncio.gather(*(store.commit(Transaction((), [Put(f"/{number}", b"")])) for number in range(100)))
    assert statements.count("COMMIT") == 1
    store._connection.set_trace_callback(None)
    await store.close()


async def test_full_disk_fails_the_writes_that_wait_and_nothing_else(tmp_path: Path) -> None:
    store = await SqliteDatastore.open(tmp_path / "calico.db")
    before = await store.commit(Transaction((), [Put("/kept", b"1")]))
    store._connection.execute("PRAGMA max_page_count = 1")
    big = store.commit(Transaction((), [Put("/big", b"x" * 100_000)]))
    on_top = store.commit(Transaction([absent("/other")], [Put("/other", b"")]))
    results = await asyncio.gather(big, on_top, return_exceptions=True)
    assert all(isinstance(result, DatastoreUnavailable) and "is full" in str(result) for result in results)
    listing = await store.list(["/"])
    assert (listing.revision, [item.key for item in listing.items]) == (before.revision, ["/kept"])
    store._connection.execute("PRAGMA max_page_count = 100000")
    after = await store.commit(Transaction([absent("/big")], [Put("/big", b"1")]))
    assert (after.succeeded, after.revision) == (True, before.revision + 1)
    await store.close()


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to look like a file" * 50, b"SQLite format 3\0"]
)
async def test_file_that_is_no_database_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calico.db"
    path.write_bytes(content)
    with pytest.raises(DatastoreUnavailable, match=r"calico\.db"):
        await SqliteDatastore.open(path)


async def test_foreign_or_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calico.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(DatastoreUnavailable, match="no datastore of this version"):
        await SqliteDatastore.open(path)


async def test_history_is_bounded(tmp_path: Path) -> None:
    store = await SqliteDatastore.open(tmp_path / "calico.db", history=10)
    for number in range(30):
        await store.commit(Transaction((), [Put("/a", str(number).encode())]))
    assert store._ledger.compacted == store._ledger.revision - 9
    await store.close()
