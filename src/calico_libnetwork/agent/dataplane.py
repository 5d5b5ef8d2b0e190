"""Who programs this host: our agent, or the Felix of a calico/node that runs here.

With Felix present nothing of the kernel, BIRD or the Node resource is ours to touch. When it appears while our agent
works, BIRD ends at once as for a restart: calico/node's own has started with it, finds BGP's port held by ours, and
does not try again. Routes stay, here and with the peers, until that one takes them over. The agent goes on until Felix
has every local endpoint in force; only then do our tables go, so that no moment is open. Once passive, this process
stays so: what Felix left behind when it ends still holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

import structlog

from calico_libnetwork.agent.loop import Agent
from calico_libnetwork.agent.programmed import ProgrammedEndpoints
from calico_libnetwork.dataplane.felix import FelixEndpoints, find_felix
from calico_libnetwork.health import Report
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.routing.bird import Bird

CHECK_SECONDS = 2.0
HANDOVER_SECONDS = 60.0
_WORKS = "Felix programs this host"
_ENDED = "Felix does not run: what it has written holds, and what is new is closed until it is back"

_log = structlog.get_logger(__name__)


class Dataplane:
    """``close`` first, inside the host's context, then ``run`` for ever; ``wait`` is the plugin's question."""

    def __init__(
        self,
        agent: Agent,
        bird: Bird,
        *,
        setting: Literal["auto", "builtin", "felix"],
        programmed: ProgrammedEndpoints,
        report: Report,
        felix: FelixEndpoints | None = None,
        find: Callable[[], int | None] = find_felix,
        patience: float = HANDOVER_SECONDS,
    ) -> None:
        self._agent = agent
        self._bird = bird
        self._setting = setting
        self._programmed = programmed
        self._report = report
        self._felix = felix or FelixEndpoints()
        self._find = find
        self._patience = patience
        self.passive = setting == "felix"

    async def close(self) -> None:
        """Decides who works here; where it is us, unknown workloads are closed when this returns."""
        if self._setting == "auto":
            self.passive = await asyncio.to_thread(self._find) is not None
        if not self.passive:
            await self._agent.close()
            self._felix.disbelieve()

    async def run(self) -> None:
        if not self.passive:
            await self._work_until_felix()
            self.passive = True
            await self._hand_over()
        await self._tell_obstacles()
        await self._watch_felix()

    async def obstacles(self) -> list[str]:
        """Firewalls of others that may drop what policy accepts, each with what opens them."""
        return await self._agent.host.obstacles(felix=self.passive)

    async def _tell_obstacles(self) -> None:
        for obstacle in await self.obstacles():
            _log.warning("a firewall is in the way", obstacle=obstacle)

    @property
    def needs_carrier(self) -> bool:
        """Felix takes an interface without a carrier for one that is down, and reports nothing of it."""
        return self.passive

    @property
    def publishes_ports(self) -> bool:
        """Felix lets no port of the host lead to a workload."""
        return not self.passive

    async def wait(self, key: ResourceKey, timeout: float) -> bool:  # noqa: ASYNC109 - an answer, not an error
        """Whether the endpoint was in force within ``timeout`` seconds."""
        return await (self._felix if self.passive else self._programmed).wait(key, timeout)

    async def _work_until_felix(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            agent = tasks.create_task(self._agent.run())
            routing = tasks.create_task(self._bird.run())
            await self._tell_obstacles()
            await self._felix_appears()
            _log.info("Felix has appeared; BIRD ends, for calico/node brings its own")
            routing.cancel()
            await self._bird.leave()
            await self._felix_is_ready()
            agent.cancel()

    async def _watch_felix(self) -> None:
        """Says so when it ends. One that was never seen may run where this process sees no other processes."""
        self._report.say(_WORKS, ready=True)
        seen, works = False, True
        while True:
            running = await asyncio.to_thread(self._find) is not None
            seen = seen or running
            if seen and running is not works:
                works = running
                self._report.say(_WORKS if works else _ENDED, ready=works)
                _log.warning("Felix runs again" if works else _ENDED)
            await asyncio.sleep(CHECK_SECONDS)

    async def _felix_appears(self) -> None:
        """Never, where the setting says that our agent works whatever else runs."""
        if self._setting != "auto":
            await asyncio.Event().wait()
        while await asyncio.to_thread(self._find) is None:  # noqa: ASYNC110 - processes announce themselves to nobody
            await asyncio.sleep(CHECK_SECONDS)

    async def _felix_is_ready(self) -> None:
        """Until Felix has the endpoints of this node in force, or for a minute: then it is told in the log."""
        endpoints = self._programmed.keys()
        _log.info("waiting until Felix has this host's endpoints in force", endpoints=len(endpoints))
        try:
            async with asyncio.timeout(self._patience):
                if endpoints:
                    await self._felix.reporting()
                await asyncio.gather(*(self._felix.wait(key, self._patience) for key in endpoints))
        except TimeoutError:
            _log.warning("Felix does not report every endpoint as being in force; leaving the host to it all the same")

    async def _hand_over(self) -> None:
        await self._agent.host.remove()
        _log.info("Felix programs this host from now on")
