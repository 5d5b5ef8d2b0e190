"""The reconcile loop: what the datastore says, made so in the kernel and kept so.

Level-triggered: events only say where to look, and whatever the order of events, the end is a function of the current
state. Nothing but the closed skeleton is written before the datastore's first listing is complete; after that every
round computes the difference and applies it. An endpoint is reported as programmed when its rules, routes and
neighbours have been written.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from calico_libnetwork.agent.host import Host
from calico_libnetwork.agent.intake import Intake
from calico_libnetwork.agent.last_readable import LastReadable
from calico_libnetwork.agent.metrics import AgentMetrics
from calico_libnetwork.agent.programmed import ProgrammedEndpoints
from calico_libnetwork.dataplane.kernel import Failure, Kernel
from calico_libnetwork.dataplane.rtnetlink import IPNetwork
from calico_libnetwork.dataplane.rules import endpoints as rules_endpoints
from calico_libnetwork.dataplane.rules.ruleset import Ruleset
from calico_libnetwork.dataplane.workloads import LocalEndpoint
from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Event
from calico_libnetwork.health import Report
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.policy.findings import Finding
from calico_libnetwork.policy.settings import RulesSettings
from calico_libnetwork.routing import cluster
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.host_routing import HostRouting
from calico_libnetwork.routing.router import Router, Routing

RESYNC_SECONDS = 90.0
RETRY_SECONDS = 10.0
_JITTER = 0.1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Shortcoming:
    """A finding of policy or routing, as the log, the status and the gauge show it."""

    kind: str
    sentence: str
    severity: str
    feature: str


class Agent:
    def __init__(
        self,
        cache: Cache,
        kernel: Kernel,
        *,
        node: str,
        router: Router,
        bird: Bird,
        on_routing: Callable[[Routing], None],
        on_addresses: Callable[[], None],
        programmed: ProgrammedEndpoints,
        report: Report,
        metrics: AgentMetrics,
        last_readable: LastReadable,
    ) -> None:
        self._cache = cache
        self._router = router
        self._on_routing = on_routing
        self._routing_told: Routing | None = None
        self._programmed = programmed
        self._report = report
        self._metrics = metrics
        metrics.unreadable.set_function(lambda: len(cache.unreadable))
        self._wake = asyncio.Event()
        settings = RulesSettings()
        self._ruleset = Ruleset(node=node, settings=settings)
        self.host = Host(kernel, accept_mark=settings.accept_mark, wake=self._wake.set, on_addresses=on_addresses)
        self._routing = HostRouting(router, kernel, links=self.host.links, bird=bird)
        self._last_readable = last_readable
        self._intake = Intake(
            [self._ruleset, router],
            [router],
            node=node,
            note=cache.unreadable.note,
            last_readable=last_readable,
        )
        self._keys: dict[str, ResourceKey] = {}  # of the endpoint that holds each interface
        self._blocks: tuple[IPNetwork, ...] = ()
        self._failures: frozenset[Failure] = frozenset()
        self._findings: frozenset[Shortcoming] = frozenset()

    async def close(self) -> None:
        """The closed skeleton; to be called inside the host's context, before a workload can exist."""
        self._ruleset.render(self.host.filter, self.host.arp)
        await self.host.close()

    async def run(self) -> None:
        """Inside the host's context, for ever."""
        self._report.say("waiting for the datastore", ready=False)
        await self._cache.in_sync.wait()
        unsubscribe = self._cache.subscribe(self._on_events)
        try:
            await self._load()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._resync(), name="resync")
                await self._reconcile()
        finally:
            unsubscribe()
            await self._last_readable.close()

    def status(self) -> dict[str, Any]:
        """For ``/status``."""
        return {
            "endpoints": len(self._keys),
            "programmed": len(self._programmed),
            "failures": sorted(str(failure) for failure in self._failures),
            "findings": [finding.sentence for finding in sorted(self._findings)],
        }

    async def _load(self) -> None:
        """The first round, over everything there is, and none of it garbage: what it makes lives as long as we do."""
        gc.disable()
        try:
            self._last_readable.load()
            self._intake.take_all(self._cache.under("/calico/"))
            self.host.distrust()
            self._wake.clear()
            await self._apply()
            gc.freeze()
        finally:
            gc.enable()

    async def _reconcile(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._apply()

    async def _apply(self) -> None:
        started = time.perf_counter()
        self._take_endpoints(self._ruleset.render(self.host.filter, self.host.arp))
        blocks = self._router.local_blocks()
        if blocks != self._blocks:
            self._blocks = blocks
            self.host.workloads.set_blocks(blocks)
        routing, failures = await self._routing.prepare()
        self.host.want_routes(routing.routes)
        failures += await self.host.apply()
        await self._routing.conclude(routing)
        if routing is not self._routing_told:
            self._routing_told = routing
            self._on_routing(routing)
        self._metrics.apply_time.observe(time.perf_counter() - started)
        self._tell_programmed(tables_written=self.host.filter.in_sync and self.host.arp.in_sync)
        if self.host.filter.in_sync:
            failures += await self.host.forget_datagrams(self._ruleset.take_datagram_ports())
        self._tell_failures(failures)
        self._tell_findings([*map(_finding, self._ruleset.findings), *map(_routing_finding, routing.findings)])

    def _take_endpoints(self, interfaces: frozenset[str]) -> None:
        """Of each interface the endpoint that holds it now, if any."""
        for interface in interfaces:
            endpoint = self._ruleset.local_endpoints.get(interface)
            before = self._keys.pop(interface, None)
            if before is not None and (endpoint is None or endpoint.key != before):
                self.host.workloads.remove(str(before))
                self._programmed.discard(before)
            if endpoint is not None:
                self._keys[interface] = endpoint.key
                self.host.workloads.update(_for_kernel(endpoint, self._ruleset.has_siblings(interface)))

    def _tell_programmed(self, *, tables_written: bool) -> None:
        if not tables_written:
            return
        for endpoint in self.host.workloads.take_finished():
            self._programmed.add(self._keys[endpoint.interface])
        self._metrics.endpoints.set(len(self._programmed))

    def _tell_failures(self, failures: list[Failure]) -> None:
        current = frozenset(failures)
        for failure in current - self._failures:
            _log.error("the kernel refused a change", interface=failure.interface, reason=failure.reason)
        if self._failures and not current:
            _log.info("the kernel holds everything again")
        self._failures = current
        self._metrics.failures.inc(len(failures))
        if failures:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._wake.set)
            self._report.say(f"{len(failures)} kernel changes refused", ready=False)
        else:
            self._report.say(self._in_force(), ready=True)

    def _in_force(self) -> str:
        others = len(self._keys) - len(self._programmed)
        but = f", {others} not: without their interface, or with another's address" if others else ""
        return f"{len(self._programmed)} endpoints in force{but}"

    def _tell_findings(self, found: Sequence[Shortcoming]) -> None:
        current = frozenset(found)
        if current == self._findings:
            return
        for finding in sorted(current - self._findings):
            if finding.feature != "unreadable":  # which is said already, whoever comes across it
                _log.warning("not enforced as written", finding=finding.sentence, severity=finding.severity)
        self._findings = current
        self._metrics.findings.clear()
        for finding in current:
            self._metrics.findings.labels(finding.kind, finding.feature).inc()

    async def _resync(self) -> None:
        """Notifications can be lost and other programs are many: every so often everything is read anew."""
        while True:
            await asyncio.sleep(RESYNC_SECONDS * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - jitter
            self.host.distrust()
            self._routing.distrust()
            await self.host.links.relist()
            self._wake.set()

    def _on_events(self, events: Sequence[Event]) -> None:
        if self._intake.take(events):
            self._wake.set()


def _finding(finding: Finding) -> Shortcoming:
    return Shortcoming(finding.key.kind, str(finding), finding.severity, finding.feature)


def _routing_finding(finding: cluster.Finding) -> Shortcoming:
    kind = finding.subject.partition("(")[0]
    return Shortcoming(kind, f"{finding.subject}: {finding.text}", finding.severity, finding.feature)


def _for_kernel(endpoint: rules_endpoints.LocalEndpoint, siblings: bool) -> LocalEndpoint:
    return LocalEndpoint(
        key=str(endpoint.key),
        interface=endpoint.interface,
        addresses=endpoint.addresses,
        mac=endpoint.mac,
        may_spoof=bool(endpoint.spoofable),
        siblings=siblings,
    )
