"""BIRD's control socket: one command, its reply; and ``show`` replies as values.

A reply is lines of ``code-text`` and a last one of ``code text``; a line that begins with a blank goes on with the
code of the one before. Codes from 8000 on are errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from calico_libnetwork.errors import DataplaneError

REPLY_SECONDS = 2.0
_LINE = re.compile(r"(\d{4})([- ])(.*)")
_ROUTES = re.compile(r"(\d+) imported(?:, \d+ filtered)?, (\d+) exported")
_ERROR_CODE = 8000


@dataclass(frozen=True, slots=True)
class ReplyLine:
    code: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A row of ``show protocols``; ``info`` begins with a BGP session's state: Established, Active, Connect, Idle…

    ``imported``, ``exported``: routes of the session, None while it has no channel up.
    """

    name: str
    kind: str
    table: str
    state: str
    since: str
    info: str
    imported: int | None = None
    exported: int | None = None

    @property
    def is_session(self) -> bool:
        return self.kind == "BGP"

    @property
    def established(self) -> bool:
        return self.info.split(" ", 1)[0] == "Established"


@dataclass(frozen=True, slots=True, kw_only=True)
class BirdStatus:
    """``recovering``: a graceful restart goes on, the kernel's routes are those from before it."""

    version: str
    router_id: str
    started: str
    recovering: bool
    protocols: tuple[Protocol, ...]

    @property
    def sessions(self) -> tuple[Protocol, ...]:
        return tuple(protocol for protocol in self.protocols if protocol.is_session)


class BirdControl:
    """A connection to a running BIRD. Raises ``DataplaneError`` for what goes wrong, an error reply included."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self._path)
            await self._reply()
        except (OSError, TimeoutError) as error:
            await self._close()
            raise DataplaneError(f"BIRD does not answer on {self._path}: {str(error) or 'no greeting'}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def ask(self, command: str) -> list[ReplyLine]:
        if self._writer is None:
            raise RuntimeError("the control socket is used outside its context")
        try:
            self._writer.write(command.encode() + b"\n")
            await self._writer.drain()
            lines = await self._reply()
        except (OSError, TimeoutError) as error:
            raise DataplaneError(f"BIRD does not answer to {command!r}: {str(error) or 'too late'}") from error
        if lines and lines[-1].code >= _ERROR_CODE:
            raise DataplaneError(f"BIRD refuses {command!r}: {lines[-1].text}")
        return lines

    async def wait_closed(self) -> None:
        """Until BIRD ends the connection, which it does when it ends itself."""
        if self._reader is not None:
            await self._reader.read()

    async def status(self) -> BirdStatus:
        return parse_status(await self.ask("show status"), await self.ask("show protocols all"))

    async def _reply(self) -> list[ReplyLine]:
        async with asyncio.timeout(REPLY_SECONDS):
            lines: list[ReplyLine] = []
            while True:
                raw = await self._readline()
                match = _LINE.fullmatch(raw)
                code = int(match[1]) if match is not None else lines[-1].code if lines else 0
                lines.append(ReplyLine(code, match[3] if match is not None else raw[1:]))
                if match is not None and match[2] == " ":
                    return lines

    async def _readline(self) -> str:
        line = await self._reader.readline() if self._reader is not None else b""
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the connection was closed")
        return line[:-1].decode(errors="replace")

    async def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._writer = self._reader = None


def parse_status(status: Iterable[ReplyLine], protocols: Iterable[ReplyLine]) -> BirdStatus:
    texts = [(line.code, line.text) for line in status]
    return BirdStatus(
        version=next((text.removeprefix("BIRD ") for code, text in texts if code == 1000), ""),
        router_id=_after(texts, "Router ID is "),
        started=_after(texts, "Last reboot on "),
        recovering=any(code == 24 for code, _ in texts),
        protocols=tuple(_protocols(protocols)),
    )


def _after(texts: Iterable[tuple[int, str]], words: str) -> str:
    return next((text.removeprefix(words) for _, text in texts if text.startswith(words)), "")


def _protocols(lines: Iterable[ReplyLine]) -> Iterator[Protocol]:
    """Rows carry code 1002, a row's details follow with code 1006; names may run into the next column."""
    row: Protocol | None = None
    for line in lines:
        if line.code == 1002 and line.text.strip():
            if row is not None:
                yield row
            row = _row(line.text)
        elif row is not None and (routes := _ROUTES.search(line.text)) is not None:
            row = _with_routes(row, int(routes[1]), int(routes[2]))
    if row is not None:
        yield row


def _row(text: str) -> Protocol | None:
    cells = text.split(None, 5)
    if len(cells) < 5:
        return None
    name, kind, table, state, since, *info = cells
    return Protocol(name=name, kind=kind, table=table, state=state, since=since, info=info[0].strip() if info else "")


def _with_routes(row: Protocol, imported: int, exported: int) -> Protocol:
    return Protocol(
        name=row.name,
        kind=row.kind,
        table=row.table,
        state=row.state,
        since=row.since,
        info=row.info,
        imported=(row.imported or 0) + imported,
        exported=(row.exported or 0) + exported,
    )
