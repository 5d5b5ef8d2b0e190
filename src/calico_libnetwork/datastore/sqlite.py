"""The embedded datastore: one SQLite file, owned by one process, for one host.

What is read comes from memory; what is written is decided in the event loop, against memory and what is under way,
and answered when it is on disk (WAL, ``synchronous=FULL``). All that waits goes into one SQL transaction and so one
fsync (group commit). Nothing is shown to a reader or a watch before it is durable.

The file holds the present, not the history: its owner lists after every start, so a watch from before it is told
``Compacted``. One thread has the connection; an exclusive lock on the file keeps a second process out.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from calico_libnetwork.datastore.ledger import FIRST_REVISION, HISTORY, Ledger, Plan, plan
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Event, KeyValue, Outcome, Transaction
from calico_libnetwork.errors import DatastoreUnavailable

_FORMAT = 2
_READABLE = 1  # where the revision is written with every change
_SCHEMA = """
CREATE TABLE item (
    key TEXT PRIMARY KEY, value BLOB NOT NULL,
    create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL, version INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE latest (revision INTEGER NOT NULL);
"""
_PUT = "INSERT OR REPLACE INTO item (key, value, create_revision, mod_revision, version) VALUES (?, ?, ?, ?, ?)"
_ANOTHER = ", (?, ?, ?, ?, ?)"
_TOGETHER = 8
"""Puts that one statement makes; each number of them has a statement of its own."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    plan: Plan
    answer: asyncio.Future[Outcome]


class SqliteDatastore(MemoryDatastore):
    """Made by ``open``."""

    def __init__(self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._path = path
        self._connection = connection
        self._thread = thread
        self._revision = ledger.revision  # that of the last transaction decided; the ledger's is the last durable one
        self._decided: dict[str, KeyValue | None] = {}  # decided and not durable yet
        self._queue: list[_Waiting] = []
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def open(cls, path: Path, *, history: int = HISTORY) -> SqliteDatastore:
        """Opens or creates the file. Raises ``DatastoreUnavailable`` if another process owns it or it is unreadable."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        loop = asyncio.get_running_loop()
        try:
            connection, items, revision = await loop.run_in_executor(thread, _open, path)
        except (sqlite3.Error, OSError) as error:
            thread.shutdown(wait=False)
            raise DatastoreUnavailable(_explain(path, error)) from error
        except DatastoreUnavailable:
            thread.shutdown(wait=False)
            raise
        return cls(path, connection, thread, Ledger(items, revision=revision, history=history))

    @property
    def description(self) -> str:
        return f"embedded ({self._path})"

    async def commit(self, transaction: Transaction) -> Outcome:
        self._require_open()
        made = plan(transaction, self._revision, self._read)
        if not made.events and not self._decided:
            return made.outcome
        self._revision = made.outcome.revision
        self._decided.update((event.key, event.current) for event in made.events)
        # an answer that rests on what is not durable yet waits for it, even where it writes nothing itself
        waiting = _Waiting(made, self._loop.create_future())
        self._queue.append(waiting)
        if self._idle.is_set():
            self._idle.clear()
            self._loop.call_soon(self._write)  # with what else comes in this turn of the loop
        return await waiting.answer

    async def close(self) -> None:
        if self._closed:
            return
        await super().close()
        await self._idle.wait()
        await self._loop.run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    def _read(self, key: str) -> KeyValue | None:
        return self._decided[key] if key in self._decided else self._ledger.read(key)

    def _write(self) -> None:
        """Gives what waits to the thread; what arrives meanwhile is the next group."""
        group, self._queue = self._queue, []
        changes = {event.key: event for waiting in group for event in waiting.plan.events}
        self._thread.submit(self._store, group, changes)

    def _store(self, group: list[_Waiting], changes: dict[str, Event]) -> None:
        """In the thread. The loop is told directly: an executor's own future would cost as much again."""
        failure = None
        try:
            _store(self._connection, changes.values(), group[-1].plan.outcome.revision)
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait have to hear of it
            failure = error
        self._loop.call_soon_threadsafe(self._stored, group, changes, failure)

    def _stored(self, group: list[_Waiting], changes: dict[str, Event], failure: Exception | None) -> None:
        if failure is None:
            self._publish(group, changes)
        else:
            self._fail([*group, *self._queue], _explain(self._path, failure))
        if self._queue:
            self._write()
        else:
            self._idle.set()

    def _publish(self, group: list[_Waiting], changes: dict[str, Event]) -> None:
        for waiting in group:
            if waiting.plan.events:
                self._ledger.apply(waiting.plan.events)
        for key, event in changes.items():
            if self._decided[key] is event.current:
                del self._decided[key]
        for waiting in group:
            if not waiting.answer.done():
                waiting.answer.set_result(waiting.plan.outcome)
        self._wake_watches()  # last: to most of them it is the echo of what was just answered

    def _fail(self, group: list[_Waiting], sentence: str) -> None:
        """Nothing of the group is on disk, so nothing that was decided on top of it holds."""
        self._queue = []
        self._decided.clear()
        self._revision = self._ledger.revision
        for waiting in group:
            if not waiting.answer.done():
                waiting.answer.set_exception(DatastoreUnavailable(sentence))


def _open(path: Path) -> tuple[sqlite3.Connection, list[KeyValue], int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(0o600)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        _require_format(path, connection)
        connection.execute("COMMIT")
        rows = connection.execute("SELECT key, value, create_revision, mod_revision, version FROM item ORDER BY key")
        items = [KeyValue(*row) for row in rows]
        (revision,) = connection.execute("SELECT revision FROM latest").fetchone()
        revision = max(revision, *(item.mod_revision for item in items)) if items else revision
    except BaseException:
        connection.close()
        raise
    return connection, items, revision


def _require_format(path: Path, connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found == _FORMAT:
        return
    if found == _READABLE:
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
        return
    if found or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise DatastoreUnavailable(f"{path} is no datastore of this version (format {found}); move it away")
    for statement in _SCHEMA.strip().split(";")[:-1]:
        connection.execute(statement)
    connection.execute("INSERT INTO latest VALUES (?)", (FIRST_REVISION,))
    connection.execute(f"PRAGMA user_version = {_FORMAT}")


def _store(connection: sqlite3.Connection, events: Iterable[Event], revision: int) -> None:
    """One statement, where it can be: the event loop and this thread change places within each of them.

    The latest revision is that of the latest put; only if nothing that is put has it, it is written down.
    """
    puts = [
        (item.key, item.value, item.create_revision, item.mod_revision, item.version)
        for event in events
        if (item := event.current) is not None
    ]
    deletes = [(event.key,) for event in events if event.current is None]
    if not deletes and len(puts) <= _TOGETHER:
        if puts:
            connection.execute(_PUT + _ANOTHER * (len(puts) - 1), [*chain.from_iterable(puts)])
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(_PUT, puts)
        connection.executemany("DELETE FROM item WHERE key = ?", deletes)
        if not any(mod_revision == revision for _, _, _, mod_revision, _ in puts):
            connection.execute("UPDATE latest SET revision = ?", (revision,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return f"the datastore {path} is in use by another process; is calico-libnetwork running already?"
    return f"the datastore {path} cannot be used: {error}"
