"""The scope this driver announces: ``global`` wherever the daemon takes it, else ``local``.

A daemon before 24 without a cluster store, and one in swarm mode, refuse a network of a global socket plugin. dockerd
asks once per life, at times while its own API does not answer yet, and believes the answer until it ends; so what its
API said last is saved, and asking costs a moment at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog

from calico_libnetwork.docker.settings import Scope

PATIENCE = 0.5
"""Seconds that GetCapabilities waits for a daemon that has never been asked before."""
_FIRST_WITH_LOCAL_GLOBAL = 24

_log = structlog.get_logger(__name__)


class DaemonKind(msgspec.Struct, frozen=True, kw_only=True):
    """``major`` is the daemon's version, 0 if it cannot be read."""

    major: int
    swarm: bool
    cluster_store: bool

    @property
    def scope(self) -> Scope:
        if self.swarm:
            return "local"
        return "global" if self.cluster_store or self.major == 0 or self.major >= _FIRST_WITH_LOCAL_GLOBAL else "local"


def kind_of(info: Mapping[str, Any]) -> DaemonKind:
    """From ``GET /info``."""
    version = re.match(r"\d+", str(info.get("ServerVersion") or ""))
    return DaemonKind(
        major=int(version[0]) if version else 0,
        swarm=(info.get("Swarm") or {}).get("LocalNodeState") in {"active", "pending", "locked", "error"},
        cluster_store=bool(info.get("ClusterStore")),
    )


_decoder = msgspec.json.Decoder(DaemonKind)


class AnnouncedScope:
    def __init__(self, configured: Literal["auto", "global", "local"], file: Path) -> None:
        self._configured = configured
        self._file = file
        self._kind = _load(file)
        self._learnt = asyncio.Event()

    async def scope(self, *, host_header: str) -> Scope:
        if self._configured != "auto":
            return self._configured
        if self._kind is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._learnt.wait()
        if self._kind is not None:
            return self._kind.scope
        # daemons too old for a global scope leave it empty; only 23.0.7 and its successors do not
        return "global" if host_header else "local"

    def learn(self, kind: DaemonKind) -> None:
        """Blocks on a small file, and only when something is new."""
        if kind == self._kind:
            return
        if self._configured == "auto" and self._kind is not None and kind.scope != self._kind.scope:
            _log.warning(
                "Docker now needs another driver scope, and takes it when it is restarted",
                before=self._kind.scope,
                now=kind.scope,
            )
        self._kind = kind
        self._learnt.set()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_bytes(msgspec.json.encode(kind))
        except OSError as error:
            _log.warning("what Docker is cannot be saved", file=str(self._file), reason=error.strerror)


def _load(file: Path) -> DaemonKind | None:
    try:
        return _decoder.decode(file.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
