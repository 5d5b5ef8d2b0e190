"""Addresses that go back to IPAM: which assignment ends with Docker's word, and which has ended already.

Docker deletes an endpoint and then releases its addresses, call by call, and a release names nothing but the address.
All of it is one transaction here, made with the first call; by the time of the release that follows, the address may
belong to the next container. So it is written down, before anything is released, which assignment the next release of
an address will mean, in a file that outlives this process: a killed plugin's successor gets calls that were under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex
from calico_libnetwork.ipam import Assignment, Ipam
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import is_address_handle
from calico_libnetwork.state_file import StateFile

_log = structlog.get_logger(__name__)

PATIENCE = 120.0
"""Seconds after which no release is to be expected any more: Docker repeats a call for 30."""


class _Meant(msgspec.Struct, frozen=True, kw_only=True):
    """What the next release of ``address`` means; the plugin of old assigned without a handle."""

    address: str
    handle: str | None
    noted: float


_decoder = msgspec.json.Decoder(list[_Meant])


class Returns:
    """``clock`` gives seconds since 1970."""

    def __init__(
        self,
        *,
        node: str,
        ipam: Ipam,
        endpoints: EndpointIndex,
        file: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._ipam = ipam
        self._endpoints = endpoints
        self._clock = clock
        self._file = StateFile(file, lambda: msgspec.json.encode(self._meant))
        self._meant = _load(self._file)  # oldest first

    async def with_endpoint(self, key: ResourceKey, endpoint: Endpoint) -> None:
        """Deletes the endpoint and releases its addresses. Raises ``DatastoreError``, ``InvalidResource``."""
        owed = [each for each in (self._owed(address, endpoint) for address in endpoint.addresses) if each is not None]
        for assignment in owed:
            self._note(assignment)
        await self._file.save()
        await self._ipam.release_with(key.path, owed)

    async def begin(self, address: Address) -> bool:
        """Whether Docker's release of ``address`` has something to do; ``end`` it, whatever becomes of it."""
        assignment = self._ipam.assignment(address)
        meant = self._next(address)
        if meant is not None:
            return assignment is not None and assignment.handle == meant.handle
        if assignment is not None:
            self._note(assignment)
            await self._file.save()
        return True

    def end(self, address: Address) -> None:
        meant = self._next(address)
        if meant is not None:
            self._meant.remove(meant)
            self._file.save_soon()

    async def release(self, address: Address) -> None:
        """What is not assigned, not ours, or in no pool is released already."""
        owed = self._owed(address, None)
        if owed is not None:
            await self._ipam.release(address, handle=owed.handle, sequence=owed.sequence)

    async def close(self) -> None:
        await self._file.close()

    def _next(self, address: Address) -> _Meant | None:
        found = (each for each in self._meant if each.address == str(address) and not self._is_over(each))
        return next(found, None)

    def _note(self, assignment: Assignment) -> None:
        """Once for each, however often Docker repeats its call."""
        address, handle = str(assignment.address), assignment.handle
        self._meant = [each for each in self._meant if not self._is_over(each)]
        if not any((each.address, each.handle) == (address, handle) for each in self._meant):
            self._meant.append(_Meant(address=address, handle=handle, noted=self._clock()))

    def _is_over(self, meant: _Meant) -> bool:
        return self._clock() - meant.noted > PATIENCE

    def _owed(self, address: Address, leaving: Endpoint | None) -> Assignment | None:
        """What ends once ``leaving`` is gone."""
        others = [holder for holder in self._endpoints.holders(address) if holder != leaving]
        if others:
            _log.warning("released address is in use by another, kept", address=str(address), owner=others[0].owner)
            return None
        assignment = self._ipam.assignment(address)
        # the plugin that this one replaces assigned without a handle
        if assignment is None or not assignment.handle or is_address_handle(assignment.handle, self._node):
            return assignment
        _log.warning("released address is assigned to another, kept", address=str(address), handle=assignment.handle)
        return None


def _load(file: StateFile) -> list[_Meant]:
    content = file.read()
    if content is None:
        return []
    try:
        return _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        file.discard(str(error))
        return []
