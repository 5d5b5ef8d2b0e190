"""Every store against a model that keeps the whole state of each revision, under any sequence of operations."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from calico_libnetwork.datastore.etcd import EtcdDatastore
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import (
    Compare,
    Datastore,
    Delete,
    Event,
    KeyValue,
    Operation,
    Outcome,
    Put,
    Transaction,
)
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.errors import Compacted
from tests.etcd_server import EtcdServer

T = TypeVar("T")
State = dict[str, KeyValue]
PREFIXES = ("/a/", "/b/")
KEYS = ("/a/1", "/a/2", "/b/1", "/b/2", "/c")
keys = st.sampled_from(KEYS)
values = st.binary(max_size=3)
operations = st.lists(
    st.one_of(st.builds(Put, keys, values), st.builds(Delete, keys)), max_size=4, unique_by=lambda o: o.key
)
guesses = st.tuples(keys, st.sampled_from(["mod", "create", "version", "value"]), st.booleans())


class Model:
    """``states[i]`` is everything as of revision ``base + i``."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.states: list[State] = [{}]
        self.oldest = base + 1  # the first revision a watch may start at

    @property
    def revision(self) -> int:
        return self.base + len(self.states) - 1

    def commit(self, transaction: Transaction) -> Outcome:
        state = self.states[-1]
        if not all(self._holds(compare, state.get(compare.key)) for compare in transaction.compares):
            return Outcome(False, self.revision, {c.key: state.get(c.key) for c in transaction.compares})
        after, revision = dict(state), self.revision + 1
        for operation in transaction.operations:
            before = after.pop(operation.key, None)
            if isinstance(operation, Put):
                created, version = (before.create_revision, before.version + 1) if before else (revision, 1)
                after[operation.key] = KeyValue(operation.key, operation.value, created, revision, version)
        if after != state:
            self.states.append(after)
        return Outcome(True, self.revision, {o.key: after.get(o.key) for o in transaction.operations})

    @staticmethod
    def _holds(compare: Compare, item: KeyValue | None) -> bool:
        match compare.target:
            case "mod":
                return compare.operand == (item.mod_revision if item else 0)
            case "create":
                return compare.operand == (item.create_revision if item else 0)
            case "version":
                return compare.operand == (item.version if item else 0)
            case "value":
                return item is not None and compare.operand == item.value

    def compare(self, guess: tuple[str, Any, bool]) -> Compare:
        """A compare that holds, or one that very likely does not."""
        key, target, right = guess
        item = self.states[-1].get(key)
        if target == "value":
            return Compare(key, target, item.value if item and right else b"other")
        actual = {"mod": 0, "create": 0, "version": 0}
        if item:
            actual = {"mod": item.mod_revision, "create": item.create_revision, "version": item.version}
        return Compare(key, target, actual[target] if right else actual[target] + 1)

    def events(self, start: int, prefixes: Sequence[str]) -> list[Event]:
        events = []
        for revision in range(max(start, self.base + 1), self.revision + 1):
            before, after = self.states[revision - self.base - 1], self.states[revision - self.base]
            changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            events += [Event(key, after.get(key), revision) for key in changed if key.startswith(tuple(prefixes))]
        return events


class StoreMachine(RuleBasedStateMachine):
    """``open`` says which store; it has none of the machine's keys."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = self.run(self.open())
        self.model = Model(self.run(self.store.list(PREFIXES)).revision)

    async def open(self) -> Datastore:
        raise NotImplementedError

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()

    def transaction(self, guesses: list[tuple[str, Any, bool]], operations: list[Operation]) -> Transaction:
        return Transaction([self.model.compare(guess) for guess in guesses], operations)

    @rule(guesses=st.lists(guesses, max_size=3), operations=operations)
    def commit(self, guesses: list[tuple[str, Any, bool]], operations: list[Operation]) -> None:
        transaction = self.transaction(guesses, operations)
        assert self.run(self.store.commit(transaction)) == self.model.commit(transaction)

    @rule(asked=st.lists(keys, max_size=4))
    def get(self, asked: list[str]) -> None:
        state = self.model.states[-1]
        listing = self.run(self.store.get(asked))
        assert listing.items == tuple(state[key] for key in sorted(set(asked)) if key in state)
        assert listing.revision == self.model.revision

    @rule(back=st.integers(0, 12))
    def watch(self, back: int) -> None:
        start = max(self.model.base + 1, self.model.revision - back)
        if start < self.model.oldest:
            with pytest.raises(Compacted) as raised:
                self.run(self._watched(start, 1))
            assert raised.value.revision == self.model.oldest
            return
        expected = self.model.events(start, PREFIXES)
        events = self.run(self._watched(start, len(expected)))
        assert sorted(events, key=_order) == sorted(expected, key=_order)
        for prefix in PREFIXES:
            revisions = [event.revision for event in events if event.key.startswith(prefix)]
            assert revisions == sorted(revisions)

    async def _watched(self, start: int, count: int) -> list[Event]:
        events: list[Event] = []
        async with aclosing(self.store.watch(PREFIXES, start)) as batches:
            while len(events) < count:
                events += (await anext(batches)).events
        return events

    @rule(back=st.integers(0, 5))
    def compact(self, back: int) -> None:
        revision = self.model.revision - back
        if revision >= self.model.base + 1:
            self.run(self.store.compact(revision))
            self.model.oldest = max(self.model.oldest, revision)

    @invariant()
    def lists_the_present(self) -> None:
        state = self.model.states[-1]
        listing = self.run(self.store.list(PREFIXES))
        assert listing.items == tuple(state[key] for key in sorted(state) if key.startswith(PREFIXES))
        assert listing.revision == self.model.revision


def _order(event: Event) -> tuple[int, str]:
    return event.revision, event.key


class EmbeddedMachine(StoreMachine):
    @rule(batch=st.lists(st.tuples(st.lists(guesses, max_size=2), operations), max_size=5))
    def commit_together(self, batch: list[tuple[list[tuple[str, Any, bool]], list[Operation]]]) -> None:
        """Commits under way at once are decided in the order in which they came, each on top of those before."""
        transactions = [self.transaction(*parts) for parts in batch]

        async def together() -> list[Outcome]:
            return await asyncio.gather(*(self.store.commit(transaction) for transaction in transactions))

        assert self.run(together()) == [self.model.commit(transaction) for transaction in transactions]


class MemoryMachine(EmbeddedMachine):
    async def open(self) -> Datastore:
        return MemoryDatastore()


class SqliteMachine(EmbeddedMachine):
    async def open(self) -> Datastore:
        self.directory = Path(tempfile.mkdtemp())
        return await SqliteDatastore.open(self.directory / "calico.db")

    @precondition(lambda self: self.model.revision > self.model.base)
    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.run(SqliteDatastore.open(self.directory / "calico.db"))
        self.model.oldest = self.model.revision + 1

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)


class EtcdMachine(StoreMachine):
    """All examples use one server, whose revisions go on; each begins with none of the machine's keys."""

    server: EtcdServer

    async def open(self) -> Datastore:
        store = EtcdDatastore(self.server.settings())
        left = (await store.get(KEYS)).items  # other tests use this server, too
        await store.commit(Transaction((), [Delete(item.key) for item in left]))
        return store


_settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
MemoryMachine.TestCase.settings = _settings
SqliteMachine.TestCase.settings = _settings
EtcdMachine.TestCase.settings = settings(_settings, max_examples=20)


class TestMemory(MemoryMachine.TestCase):  # type: ignore[misc,valid-type]
    pass


class TestSqlite(SqliteMachine.TestCase):  # type: ignore[misc,valid-type]
    pass


class TestEtcd(EtcdMachine.TestCase):  # type: ignore[misc,valid-type]
    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _server(etcd: EtcdServer) -> None:
        EtcdMachine.server = etcd
