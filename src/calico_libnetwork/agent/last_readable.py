"""The last readable version of what became unreadable, on disk: a restart has to enforce what was enforced before it.

Written when a value that had been read is replaced by one that cannot be, which no Calico tool does; empty otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from calico_libnetwork.state_file import StateFile

_decode = msgspec.json.Decoder(dict[str, str]).decode


class LastReadable:
    """By datastore key."""

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file, lambda: msgspec.json.encode(self._values))
        self._values: dict[str, str] = {}

    def load(self) -> None:
        content = self._file.read()
        if content is not None:
            try:
                self._values = _decode(content)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._file.discard(str(error))

    def get(self, key: str) -> bytes | None:
        value = self._values.get(key)
        return None if value is None else value.encode()

    def put(self, key: str, value: bytes) -> None:
        """``value`` is JSON that has been read, so it is UTF-8."""
        self._values[key] = value.decode()
        self._file.save_soon()

    def keep_only(self, keys: Iterable[str]) -> None:
        self.drop(*self._values.keys() - keys)

    def drop(self, *keys: str) -> None:
        gone = self._values.keys() & keys
        for key in gone:
            del self._values[key]
        if gone:
            self._file.save_soon()

    async def close(self) -> None:
        """Returns when everything is written."""
        await self._file.close()
