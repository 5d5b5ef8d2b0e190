"""One writer per process: whatever waits is applied to one draft and committed as one transaction.

Invariants: a request is answered only by a transaction that succeeded (or by the error that kept it from being
written). What was assigned for somebody who no longer waits, or by a transaction whose fate is unknown, is given back,
guarded by handle and sequence number so that no later assignment is touched.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.errors import AddressInUse, CalicoError, Conflict
from calico_libnetwork.ipam.assigning import Assigned
from calico_libnetwork.ipam.draft import Draft
from calico_libnetwork.ipam.releasing import Release
from calico_libnetwork.ipam.view import View

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ATTEMPTS = 100
"""Lost races after which a request fails; every one of them is somebody else's success."""

_log = structlog.get_logger()


class Request(Protocol[T_co]):
    def apply(self, draft: Draft) -> T_co:
        """Changes ``draft`` and returns the answer. Raises ``CalicoError`` without having changed anything."""
        ...


@dataclass(eq=False)
class _Waiting(Generic[T]):
    """``answer`` is that of the latest draft, not valid before its commit."""

    request: Request[T]
    future: asyncio.Future[T]
    attempts: int = 0
    answer: T | CalicoError | None = field(default=None, repr=False)

    def apply(self, draft: Draft) -> None:
        self.attempts += 1
        self.answer = None
        try:
            self.answer = self.request.apply(draft)
        except CalicoError as error:
            self.answer = error


class Writer:
    def __init__(self, cache: Cache, view: View, *, node: str, clock: Callable[[], int]) -> None:
        self._cache = cache
        self._view = view
        self._node = node
        self._clock = clock
        self._waiting: deque[_Waiting[Any]] = deque()
        self._doubtful: list[Release] = []
        self._task: asyncio.Task[None] | None = None

    async def submit(self, request: Request[T]) -> T:
        waiting: _Waiting[T] = _Waiting(request, asyncio.get_running_loop().create_future())
        if self._doubtful:
            doubtful, self._doubtful = self._doubtful, []
            for release in doubtful:
                self._give_back(release)
        self._add(waiting)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if waiting.future.done() and not waiting.future.cancelled() and waiting.future.exception() is None:
                self._unwanted(waiting.future.result())
            raise

    async def idle(self) -> None:
        """Waits until nothing is left to write."""
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    def _add(self, waiting: _Waiting[Any]) -> None:
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="ipam writer")

    async def _run(self) -> None:
        while self._waiting:
            batch: list[_Waiting[Any]] = []
            try:
                await self._cache.synced()
                await self._write(batch)
            except Exception as error:  # noqa: BLE001  whatever it is, those it hit must not wait for ever
                self._doubtful += [_undo(each.answer) for each in batch if isinstance(each.answer, Assigned)]
                self._fail(batch or self._take_all(), error)

    async def _write(self, batch: list[_Waiting[Any]]) -> None:
        """Fills ``batch`` with as many of the waiting requests as one transaction takes, and commits it."""
        draft = Draft(self._view, node=self._node, now=self._clock())
        while self._waiting and draft.room > 0:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                batch.append(waiting)
                waiting.apply(draft)
        transaction = draft.transaction()
        if not transaction.compares:
            self._settle(batch)
            return
        outcome = await self._cache.commit(transaction)
        if outcome.succeeded:
            draft.remember(outcome.revision)
            self._settle(batch)
            return
        exhausted = [each for each in batch if each.attempts >= ATTEMPTS]
        self._fail(exhausted, Conflict(f"other hosts kept changing the same IPAM blocks, {ATTEMPTS} times in a row"))
        self._waiting.extendleft(reversed([each for each in batch if each.attempts < ATTEMPTS]))

    def _take_all(self) -> list[_Waiting[Any]]:
        waiting, self._waiting = [*self._waiting], deque()
        return waiting

    def _settle(self, batch: list[_Waiting[Any]]) -> None:
        for each in batch:
            if each.future.cancelled():
                self._unwanted(each.answer)
            elif isinstance(each.answer, CalicoError):
                each.future.set_exception(each.answer)
            else:
                each.future.set_result(each.answer)

    def _fail(self, batch: list[_Waiting[Any]], error: Exception) -> None:
        for each in batch:
            if not each.future.done():
                each.future.set_exception(error)

    def _unwanted(self, answer: object) -> None:
        if isinstance(answer, Assigned):
            self._give_back(_undo(answer))

    def _give_back(self, release: Release) -> None:
        """Releases what nobody waits for; if that fails too, it is tried again with the next request."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: self._gave_back(release, done))
        self._add(_Waiting(release, future))

    def _gave_back(self, release: Release, done: asyncio.Future[bool]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None and done.result():
            _log.info("gave back an address nobody waited for", address=str(release.address))
        elif error is not None and not isinstance(error, AddressInUse):
            self._doubtful.append(release)


def _undo(assigned: Assigned) -> Release:
    return Release(assigned.address, assigned.owner.handle, assigned.sequence)
