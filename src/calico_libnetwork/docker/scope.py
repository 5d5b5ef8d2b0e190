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


class _Saved(DaemonKind, frozen=True, kw_only=True):
    """``announced`` is what dockerd was last told, "" if nothing."""

    announced: Literal["global", "local", ""] = ""


_decoder = msgspec.json.Decoder(_Saved)


class AnnouncedScope:
    def __init__(self, configured: Literal["auto", "global", "local"], file: Path) -> None:
        self._configured = configured
        self._file = file
        self._kind, self._announced = _load(file)
        self._learnt = asyncio.Event()

    @property
    def findings(self) -> list[str]:
        """For people."""
        kind = self._kind
        if self._configured != "auto" or kind is None or self._announced in ("", kind.scope):
            return []
        was = self._announced
        return [f"Docker took the Calico driver's scope as {was}, and needs {kind.scope} now: restart Docker"]

    async def scope(self, *, host_header: str) -> Scope:
        """What dockerd is told now."""
        scope = await self._scope(host_header)
        if scope != self._announced:
            self._announced = scope
            self._save()
        return scope

    async def _scope(self, host_header: str) -> Scope:
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
        before = self.findings
        self._kind = kind
        self._learnt.set()
        for finding in self.findings:
            if finding not in before:
                _log.warning("scope of the driver", finding=finding)
        self._save()

    def _save(self) -> None:
        if self._kind is None:
            return
        saved = _Saved(**msgspec.structs.asdict(self._kind), announced=self._announced)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_bytes(msgspec.json.encode(saved))
        except OSError as error:
            _log.warning("what Docker is cannot be saved", file=str(self._file), reason=error.strerror)


def _load(file: Path) -> tuple[DaemonKind | None, Scope | Literal[""]]:
    try:
        saved = _decoder.decode(file.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None, ""
    kind = DaemonKind(major=saved.major, swarm=saved.swarm, cluster_store=saved.cluster_store)
    return kind, saved.announced
