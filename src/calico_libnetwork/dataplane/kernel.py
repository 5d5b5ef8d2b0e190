"""The asyncio side of netlink: one thread owns one socket, the event loop never waits for the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from calico_libnetwork.dataplane.netlink import ROUTE_PROTOCOL, Socket

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be written and stays to be done. ``interface`` is "" where no single workload is concerned."""

    interface: str
    reason: str


class Kernel:
    """Runs functions of a ``Socket`` in its thread, one at a time and in order.

    The thread works in the network namespace of the thread that entered the context.
    """

    def __init__(self, protocol: int = ROUTE_PROTOCOL, *, name: str = "netlink") -> None:
        self._protocol = protocol
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._socket: Socket | None = None

    @property
    def port(self) -> int:
        """The netlink port our changes come from: how the monitors know them from other people's."""
        return 0 if self._socket is None else self._socket.port

    async def __aenter__(self) -> Self:
        self._socket = await asyncio.get_running_loop().run_in_executor(self._executor, Socket, self._protocol)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opened, self._socket = self._socket, None
        if opened is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, opened.close)
        self._executor.shutdown(wait=True)

    async def run(self, function: Callable[Concatenate[Socket, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._socket is None:
            raise RuntimeError("the kernel is used outside its context")
        opened = self._socket
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(opened, *args, **kwargs))
