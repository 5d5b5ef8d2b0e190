"""Which endpoints share a container's network namespace: they are of one container, and must not share a next hop.

The first Calico network of a container has 169.254.1.1 as its gateway. Docker adds the route to a gateway once more
for every network, and the kernel refuses the same one twice; so the second gets 169.254.1.2, and so on. Kept in a
file of the run directory, since a running container may be connected to another network after a restart of ours;
losing it costs a refused ``docker network connect`` at worst. An endpoint that has left has place 0 until
it is deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from calico_libnetwork.state_file import StateFile

_LIMIT = 254

_decoder = msgspec.json.Decoder(dict[str, dict[str, int]])


class Sandboxes:
    """``exists`` tells whether an endpoint of an earlier time is still there."""

    def __init__(self, path: Path, *, exists: Callable[[str], bool]) -> None:
        self._exists = exists
        self._file = StateFile(path, lambda: msgspec.json.encode(self._sandboxes))
        self._sandboxes = _load(self._file)
        self._homes = {known: sandbox for sandbox, places in self._sandboxes.items() for known in places}

    def of(self, endpoint_id: str) -> str:
        """The sandbox; "" if unknown."""
        return self._homes.get(endpoint_id, "")

    def members(self, sandbox: str) -> list[str]:
        """Ids of its endpoints, which need not be there any more."""
        return [*self._sandboxes.get(sandbox, ())]

    def enter(self, sandbox: str, endpoint_id: str) -> int:
        """The endpoint's place in its sandbox, from 1; again for the same one gives the same place."""
        if self.of(endpoint_id) != sandbox:
            self.forget(endpoint_id)
        places = self._sandboxes.setdefault(sandbox, {})
        before = dict(places)
        for known in before:
            if known != endpoint_id and not self._exists(known):
                del places[known], self._homes[known]
        if not places.get(endpoint_id):
            taken = set(places.values())
            places[endpoint_id] = next(place for place in range(1, _LIMIT + 1) if place not in taken)
            self._homes[endpoint_id] = sandbox
        if places != before:
            self._file.save_soon()
        return places[endpoint_id]

    def leave(self, endpoint_id: str) -> None:
        """Its next hop is free."""
        places = self._sandboxes.get(self.of(endpoint_id), {})
        if places.get(endpoint_id):
            places[endpoint_id] = 0
            self._file.save_soon()

    def forget(self, endpoint_id: str) -> None:
        sandbox = self._homes.pop(endpoint_id, None)
        if sandbox is not None:
            del self._sandboxes[sandbox][endpoint_id]
            if not self._sandboxes[sandbox]:
                del self._sandboxes[sandbox]
            self._file.save_soon()

    async def close(self) -> None:
        await self._file.close()


def _load(file: StateFile) -> dict[str, dict[str, int]]:
    content = file.read()
    if content is None:
        return {}
    try:
        return _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        file.discard(str(error))
        return {}
