"""Names across hosts: the hosts files of this host's containers, kept equal to what the cluster's networks hold.

Docker's own name server knows the containers of its host and nobody else's, and cannot be taught. What a container
looks up first is its hosts file, which Docker keeps in its data directory and rewrites when the container starts; the
names of containers of other hosts are added there, in place, since the container has that very file mounted. Level-
triggered: a round compares every file with what the workload endpoints of all hosts say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Event
from calico_libnetwork.docker.aliases import AliasDocker, Aliases
from calico_libnetwork.docker.cluster_members import ClusterMembers
from calico_libnetwork.docker.cluster_records import HOSTS
from calico_libnetwork.docker.containers import ContainerTable
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex
from calico_libnetwork.docker.hosts_file import Entry, entries_by_container, has_marks, revised
from calico_libnetwork.errors import DockerUnavailable
from calico_libnetwork.model.kinds import KINDS

PERIOD = 30.0
"""Seconds between two rounds without an event."""
_SPACING = 0.1
"""Seconds in which further events become one round."""
_LIMIT = 4 << 20
_MISSING = "names of other hosts' containers are missing"
_ID = re.compile(r"[0-9a-f]{64}")
_ENDPOINTS = KINDS["WorkloadEndpoint"].prefix

_log = structlog.get_logger(__name__)


class HostDocker(AliasDocker, Protocol):
    async def info(self) -> Mapping[str, Any]:
        """Raises ``DockerUnavailable``."""
        ...


class OwnNames(Protocol):
    async def follow_names(self, aliases_of: Callable[[Endpoint], frozenset[str] | None]) -> None:
        """This host's endpoints have the current names of their containers; aliases may be unknown."""
        ...


class HostNames:
    def __init__(
        self,
        cache: Cache,
        *,
        node: str,
        docker: HostDocker,
        table: ContainerTable,
        endpoints: EndpointIndex,
        members: ClusterMembers,
        own_names: OwnNames,
    ) -> None:
        self._node = node
        self._docker = docker
        self._table = table
        self._endpoints = endpoints
        self._members = members
        self._own_names = own_names
        self._wake = asyncio.Event()
        self._aliases = Aliases(docker, changed=self._wake.set)
        self._directory: Path | None = None  # Docker's, of all containers
        self._written: set[str] = set()  # ids of containers whose file holds names of ours
        self.problem = ""
        self._aliases.daemon_listed(table.ids())
        cache.subscribe(self._on_events)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._aliases.run(), name="aliases")
            await self._keep()

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            started = time.monotonic()
            try:
                await self.round()
            except DockerUnavailable as error:
                _log.debug("names not compared", reason=str(error))
            await asyncio.sleep(max(_SPACING, time.monotonic() - started))  # under churn, half of the time is others'
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD):
                    await self._wake.wait()

    def docker_wrote(self, container_id: str = "") -> None:
        """The container was started, connected or disconnected: Docker has written hosts files."""
        if container_id:
            self._aliases.container_changed(container_id)
        self._wake.set()

    def daemon_listed(self) -> None:
        """The daemon may be another one."""
        self._directory = None
        self._aliases.daemon_listed(self._table.ids())
        self._wake.set()

    @property
    def count(self) -> int:
        """Containers whose file holds names of other hosts' containers."""
        return len(self._written)

    async def round(self) -> None:
        """Raises ``DockerUnavailable``."""
        candidates = self._written
        if self._directory is None:
            root = (await self._docker.info()).get("DockerRootDir") or "/var/lib/docker"
            self._directory = Path(root) / "containers"
            candidates = candidates | self._table.ids()  # an earlier life may have left names anywhere
        await self._aliases.settled()
        await self._own_names.follow_names(self._aliases_of)
        written, problem = await asyncio.to_thread(
            self._revise_all, self._directory, candidates, self._endpoints.all(), self._aliases.by_network()
        )
        self._written = written
        if problem and problem != self.problem:
            _log.warning("cluster network", problem=problem)
        self.problem = problem

    def _aliases_of(self, endpoint: Endpoint) -> frozenset[str] | None:
        if self._members.of_endpoint(endpoint) is None:
            return None  # nobody would read them
        return self._aliases.of(endpoint.container_id, endpoint.network_id)

    def _revise_all(
        self, directory: Path, candidates: set[str], endpoints: Sequence[Endpoint], aliases: Mapping[str, set[str]]
    ) -> tuple[set[str], str]:
        """In a thread of its own: a large network is many lines in many files."""

        def is_local(name: str, network_id: str) -> bool:
            outside = any(name in names for other, names in aliases.items() if other != network_id)
            return outside or self._table.by_name(name) is not None

        wanted = entries_by_container(
            endpoints,
            self._members.of_endpoint,
            node=self._node,
            is_local_name=is_local,
        )
        files = {each: directory / each / "hosts" for each in candidates | wanted.keys() if _ID.fullmatch(each)}
        return _revise(files, wanted)

    def _on_events(self, events: Sequence[Event]) -> None:
        if any(event.key.startswith((_ENDPOINTS, HOSTS)) for event in events):
            self._wake.set()


def _revise(files: Mapping[str, Path], wanted: Mapping[str, Sequence[Entry]]) -> tuple[set[str], str]:
    """The containers whose file now holds names of ours, and why a file could not be written."""
    holding, problem = set(), ""
    for container_id, file in files.items():
        try:
            if revise(file, wanted.get(container_id, ())):
                holding.add(container_id)
        except FileNotFoundError:
            if container_id in wanted and not file.parent.parent.is_dir():
                problem = f"{_MISSING}: {file.parent.parent} is not there; mount it where the plugin runs"
        except OSError as error:
            problem = f"{_MISSING}: {file} cannot be written ({error.strerror})"
    return holding, problem


def revise(file: Path, entries: Sequence[Entry]) -> bool:
    """Whether the file holds names of ours now. It stays the same file, as it is mounted in the container.

    Docker appends lines and its containers may write too: what only adds is appended, which loses nothing of theirs.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        before = os.read(descriptor, _LIMIT)
        text = before.decode(errors="surrogateescape")
        after = revised(text, entries)
        value = after.encode(errors="surrogateescape")
        if len(before) == _LIMIT or value == before:
            return has_marks(text)
        if value.startswith(before):
            os.lseek(descriptor, 0, os.SEEK_END)
            os.write(descriptor, value[len(before) :])
        else:
            os.pwrite(descriptor, value, 0)
            os.ftruncate(descriptor, len(value))
    finally:
        os.close(descriptor)
    return has_marks(after)
