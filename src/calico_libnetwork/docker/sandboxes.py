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
import structlog

_LIMIT = 254

_log = structlog.get_logger(__name__)
_decoder = msgspec.json.Decoder(dict[str, dict[str, int]])


class Sandboxes:
    """``exists`` tells whether an endpoint of an earlier time is still there."""

    def __init__(self, file: Path, *, exists: Callable[[str], bool]) -> None:
        self._file = file
        self._exists = exists
        self._sandboxes = _load(file)

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
            self._save()
        return places[endpoint_id]

    def leave(self, endpoint_id: str) -> None:
        sandboxes = {
            sandbox: {known: place for known, place in places.items() if known != endpoint_id}
            for sandbox, places in self._sandboxes.items()
        }
        sandboxes = {sandbox: places for sandbox, places in sandboxes.items() if places}
        if sandboxes != self._sandboxes:
            self._sandboxes = sandboxes
            self._save()

    def _save(self) -> None:
        """A few hundred bytes into a memory file system: quicker than handing it to a thread."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            new = self._file.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(self._sandboxes))
            new.replace(self._file)
        except OSError as error:
            _log.warning("the table of sandboxes cannot be saved", file=str(self._file), reason=error.strerror)


def _load(file: Path) -> dict[str, dict[str, int]]:
    try:
        return _decoder.decode(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        _log.warning("the table of sandboxes cannot be read, starting empty", file=str(file), reason=str(error))
        return {}
