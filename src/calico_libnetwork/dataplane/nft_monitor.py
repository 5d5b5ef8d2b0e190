"""Who else changes nftables: other programs' commits, by the tables they touched.

The kernel announces every object of a commit and then the commit's generation number; ``Nft`` knows which numbers
were its own. Judged only when no command of ours is running, since its number is not known before it returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from calico_libnetwork.dataplane.netlink import NETFILTER_PROTOCOL, Message, Subscription, attributes
from calico_libnetwork.dataplane.nft import GENERATION_ID, MESSAGE_NEW_GENERATION, Nft

_GROUP_NFTABLES = 7
_TABLE_NAME = 1
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_DATAGRAMS_PER_TURN = 64


@dataclass(frozen=True, slots=True)
class ForeignChange:
    """``tables``: family and name. ``lost``: notifications were dropped, any table may have changed."""

    tables: frozenset[tuple[str, str]]
    lost: bool = False

    def touches(self, family: str, name: str) -> bool:
        return self.lost or (family, name) in self.tables


class NftMonitor:
    """Calls ``on_change`` in the event loop."""

    def __init__(self, nft: Nft, on_change: Callable[[ForeignChange], None], *, receive_bytes: int = 8 << 20) -> None:
        self._nft = nft
        self._on_change = on_change
        self._receive_bytes = receive_bytes
        self._subscription: Subscription | None = None
        self._touched: set[tuple[str, str]] = set()
        self._commits: list[tuple[int, frozenset[tuple[str, str]]]] = []
        self._lost = False

    async def __aenter__(self) -> Self:
        self._subscription = Subscription(NETFILTER_PROTOCOL, (_GROUP_NFTABLES,), receive_bytes=self._receive_bytes)
        asyncio.get_running_loop().add_reader(self._subscription.fileno(), self._read)
        self._nft.on_idle.append(self._judge)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._nft.on_idle.remove(self._judge)
        if self._subscription is not None:
            asyncio.get_running_loop().remove_reader(self._subscription.fileno())
            self._subscription.close()
            self._subscription = None

    def _read(self) -> None:
        if self._subscription is None:
            return
        messages, lost = self._subscription.read(_DATAGRAMS_PER_TURN)
        self._lost |= lost
        for message in messages:
            self._take(message)
        self._judge()

    def _take(self, message: Message) -> None:
        attrs = attributes(message.body, 4)
        if message.kind == MESSAGE_NEW_GENERATION:
            self._commits.append((int.from_bytes(attrs[GENERATION_ID], "big"), frozenset(self._touched)))
            self._touched.clear()
        else:
            name = attrs.get(_TABLE_NAME, b"").rstrip(b"\0").decode(errors="replace")
            self._touched.add((_FAMILIES.get(message.body[0], ""), name))

    def _judge(self) -> None:
        if self._nft.running:
            return
        foreign = [tables for generation, tables in self._commits if not self._nft.is_own(generation)]
        self._commits.clear()
        lost, self._lost = self._lost, False
        if lost or any(foreign):
            self._on_change(ForeignChange(frozenset().union(*foreign), lost=lost))
