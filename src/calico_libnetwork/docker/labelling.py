"""Brings what Docker knows of a container to its workload endpoint, as early as each version of Docker allows.

Where container labels decide about traffic, an endpoint whose container is not known yet is held: it has an interface
and no addresses for Calico, so nothing passes. It is opened with its labels in Join or at Docker's next word; if that
does not come within the poll timeout it is opened without them, and the log says so. A starting daemon can give no
word, so that time runs from its start. Where labels are not copied the container's name and id are added when they
come, for people to read, and nothing waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Put, Transaction, unchanged
from calico_libnetwork.docker.containers import Container
from calico_libnetwork.docker.endpoints import ALIASES, Endpoint, EndpointIndex, endpoint_key, identified
from calico_libnetwork.docker.identity import Identities
from calico_libnetwork.docker.labels import NOTHING_KNOWN, Facts, facts_of
from calico_libnetwork.docker.settings import DockerSettings
from calico_libnetwork.errors import CalicoError, Conflict
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import ResourceKey

_ATTEMPTS = 5

_log = structlog.get_logger(__name__)


class Labelling:
    def __init__(
        self, settings: DockerSettings, *, cache: Cache, endpoints: EndpointIndex, identities: Identities
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._endpoints = endpoints
        self._identities = identities
        self._timers: dict[str, asyncio.Task[None]] = {}  # by endpoint id

    async def facts(self, container_name: str) -> Facts | None:
        """For a new endpoint; None when it cannot be said yet whose it is."""
        if not container_name:
            return None
        if self._settings.label_endpoints:
            container = await self._identities.named(container_name)
        else:
            container = self._identities.known(container_name)
        return self._facts(container) if container is not None else None

    def facts_with_id(self, container_id: str) -> Facts | None:
        """For an endpoint that has lost its record; None for a container of which Docker has not told yet."""
        container = self._identities.with_id(container_id) if container_id else None
        return self._facts(container) if container is not None else None

    def must_hold(self, facts: Facts | None) -> bool:
        return self._settings.label_endpoints and facts is None

    def expect(self, endpoint_id: str) -> None:
        """A held endpoint exists: its time runs."""
        if endpoint_id not in self._timers:
            self._timers[endpoint_id] = asyncio.create_task(self._give_up(endpoint_id), name="wait for labels")

    def forget(self, endpoint_id: str) -> None:
        timer = self._timers.pop(endpoint_id, None)
        if timer is not None:
            timer.cancel()

    async def open_joining(self, endpoint: Endpoint, sandbox: str) -> bool:
        """Whether the endpoint is open, after one attempt to learn whose it is."""
        if not endpoint.held:
            return True
        container = await self._identities.of_endpoint(endpoint.network_id, endpoint.endpoint_id)
        if container is None:
            container = await self._identities.in_sandbox(sandbox)
        return container is not None and await self._identify(endpoint, container)

    async def container_connected(self, network_id: str, container_id: str) -> None:
        waiting = (each for each in self._endpoints.of_node() if each.network_id == network_id)
        if not any(_is_unidentified(each) for each in waiting):
            return
        endpoint_id = await self._identities.endpoint_of(network_id, container_id)
        container = self._identities.with_id(container_id)
        if endpoint_id is None or container is None:
            return
        endpoint = self._endpoints.get(endpoint_key(self._settings.node, endpoint_id))
        if endpoint is not None and _is_unidentified(endpoint):
            await self._identify(endpoint, container)

    async def daemon_listed(self) -> None:
        for endpoint in (each for each in self._endpoints.of_node() if _is_unidentified(each) and each.network_id):
            container = await self._identities.of_endpoint(endpoint.network_id, endpoint.endpoint_id)
            if container is not None:
                await self._identify(endpoint, container)

    async def follow_names(self, aliases_of: Callable[[Endpoint], frozenset[str] | None] = lambda _: None) -> None:
        """An endpoint has its container's current name and aliases, None for unknown ones, for others to find it by."""
        for endpoint in self._endpoints.of_node():
            container = self._identities.with_id(endpoint.container_id) if endpoint.container_id else None
            if container is None:
                continue
            known = aliases_of(endpoint)
            aliases = endpoint.aliases if known is None else known - {container.name, endpoint.short_id}
            if (container.name, aliases) != (endpoint.container_name, endpoint.aliases):
                await self._identify(endpoint, container, aliases=aliases)

    def resume(self) -> None:
        """What an earlier process left held."""
        for endpoint in self._endpoints.of_node():
            if endpoint.held:
                self.expect(endpoint.endpoint_id)

    async def close(self) -> None:
        timers = [*self._timers.values()]
        self._timers.clear()
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)

    async def _identify(
        self, endpoint: Endpoint, container: Container, *, aliases: frozenset[str] | None = None
    ) -> bool:
        """An error is told and no more: it must fail no Join, and the timer of a held endpoint goes on."""
        facts = self._facts(container)
        if aliases is not None and aliases != endpoint.aliases:
            facts = replace(facts, annotations={**facts.annotations, ALIASES: ",".join(sorted(aliases))})
        try:
            await self._update(endpoint.key, facts)
        except CalicoError as error:
            _log.warning("endpoint could not be identified", endpoint=endpoint.endpoint_id[:12], reason=str(error))
            return False
        self.forget(endpoint.endpoint_id)
        return True

    async def _give_up(self, endpoint_id: str) -> None:
        await self._identities.daemon_started()
        await asyncio.sleep(self._settings.label_poll_timeout)
        self._timers.pop(endpoint_id, None)
        _log.warning(
            "the container's labels are still unknown: its endpoint is opened without them, so that only policies"
            " which select it without a label of its own apply",
            endpoint=endpoint_id[:12],
            waited=self._settings.label_poll_timeout,
        )
        try:
            await self._update(endpoint_key(self._settings.node, endpoint_id), NOTHING_KNOWN)
        except CalicoError as error:
            _log.warning("endpoint could not be opened", endpoint=endpoint_id[:12], reason=str(error))

    async def _update(self, key: ResourceKey, facts: Facts) -> None:
        for _ in range(_ATTEMPTS):
            stored = self._cache.get(key.path)
            if stored is None:
                return
            before = documents.decode(stored.value)
            after = identified(before, facts, opened=True)
            if after == before:
                return
            write = Transaction([unchanged(stored)], [Put(key.path, documents.encode(after))])
            if (await self._cache.commit(write)).succeeded:
                return
        raise Conflict(f"{key} kept being changed by others; its container's labels are missing")

    def _facts(self, container: Container) -> Facts:
        facts = facts_of(container, copy_labels=self._settings.label_endpoints)
        for label, reason in facts.skipped.items():
            _log.warning("container label is not copied", label=label, container=container.name, reason=reason)
        return facts


def _is_unidentified(endpoint: Endpoint) -> bool:
    return endpoint.held or not endpoint.container_id
