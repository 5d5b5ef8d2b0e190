"""Which endpoints share a container's network namespace, and so must not share a next hop.

The first Calico network of a container has 169.254.1.1 as its gateway. Docker adds the route to a gateway once more
for every network, and the kernel refuses the same one twice; so the second gets 169.254.1.2, and so on. Kept in a
file of the run directory, since a running container may be connected to another network after a restart of ours;
losing it costs a refused ``docker network connect`` at worst.
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

    def enter(self, sandbox: str, endpoint_id: str) -> int:
        """The endpoint's place in its sandbox, from 1; again for the same one gives the same place."""
        places = {
            known: place
            for known, place in self._sandboxes.get(sandbox, {}).items()
            if known == endpoint_id or self._exists(known)
        }
        if endpoint_id not in places:
            taken = set(places.values())
            places[endpoint_id] = next(place for place in range(1, _LIMIT + 1) if place not in taken)
        if self._sandboxes.get(sandbox) != places:
            self._sandboxes[sandbox] = places
            self._file.save_soon()
        return places[endpoint_id]

    def leave(self, endpoint_id: str) -> None:
        sandboxes = {
            sandbox: {known: place for known, place in places.items() if known != endpoint_id}
            for sandbox, places in self._sandboxes.items()
        }
        sandboxes = {sandbox: places for sandbox, places in sandboxes.items() if places}
        if sandboxes != self._sandboxes:
            self._sandboxes = sandboxes
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
