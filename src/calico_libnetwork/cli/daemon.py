"""What runs behind the sockets, built here and nowhere else: datastore, cache, IPAM, drivers, agent."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import CollectorRegistry

from calico_libnetwork.agent.dataplane import Dataplane
from calico_libnetwork.agent.last_readable import LastReadable
from calico_libnetwork.agent.loop import Agent
from calico_libnetwork.agent.metrics import AgentMetrics
from calico_libnetwork.agent.own_node import OwnNode, detect, wishes_of_host
from calico_libnetwork.agent.programmed import ProgrammedEndpoints
from calico_libnetwork.cli.session import FILE, SOCKET, open_etcd
from calico_libnetwork.config import Config
from calico_libnetwork.dataplane import mtu, sysctl
from calico_libnetwork.dataplane.addresses import IPAddress, IPInterface, of_uplinks
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import Links
from calico_libnetwork.dataplane.veth import VethPairs
from calico_libnetwork.datastore import embedded, serve
from calico_libnetwork.datastore.cache import PAUSE, Cache
from calico_libnetwork.datastore.initialise import FirstStart, Started, initialise
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.datastore.resources import Resources
from calico_libnetwork.docker import assembly, cluster, daemon, scope
from calico_libnetwork.docker.containers import ContainerTable
from calico_libnetwork.docker.metrics import CallMetrics
from calico_libnetwork.docker.network_driver import EndpointParts
from calico_libnetwork.docker.plugin import Plugin
from calico_libnetwork.docker.settings import DockerSettings
from calico_libnetwork.docker.unconnected import unconnected
from calico_libnetwork.docker.watcher import Watcher
from calico_libnetwork.errors import DatastoreUnavailable
from calico_libnetwork.health import Health, Report
from calico_libnetwork.ipam import Ipam
from calico_libnetwork.ipam.view import CLUSTER_KEY
from calico_libnetwork.model.documents import Document
from calico_libnetwork.routing import describe
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.cluster import Family
from calico_libnetwork.routing.node import desired_node, new_node
from calico_libnetwork.routing.router import Router, Routing

if TYPE_CHECKING:
    from calico_libnetwork.datastore.etcd import EtcdDatastore

PREFIXES = ("/calico/resources/v3/projectcalico.org/", "/calico/ipam/v2/", "/calico-libnetwork/v1/")
CONTAINERS_FILE = "containers.json"
LAST_READABLE_FILE = "last-readable.json"
RESTART_SECONDS = 1.0
_TOOLS = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"

Work = Callable[[], Coroutine[Any, Any, None]]

_log = structlog.get_logger(__name__)


class Daemon:
    def __init__(
        self,
        config: Config,
        settings: DockerSettings,
        plugin: Plugin,
        announced: scope.AnnouncedScope,
        *,
        plugin_only: bool,
    ) -> None:
        self._config = config
        self._settings = replace(settings, veth_mtu=self._veth_mtu)
        self._plugin = plugin
        self._registry = CollectorRegistry()
        plugin.on_call = CallMetrics(self._registry).observe
        self._health = Health(self._registry, node=config.nodename)
        self._programmed = ProgrammedEndpoints()
        self._router = Router(
            node=config.nodename,
            setting=config.routes,  # type: ignore[arg-type]  # one of the four, as config.py has checked
            bird_installed=shutil.which("bird", path=_TOOLS) is not None,
        )
        self._kernel = Kernel()
        self._bird = Bird(
            config.run_directory / "bird", self._kernel, command=(shutil.which("bird", path=_TOOLS) or "bird",)
        )
        self._veths = VethPairs(self._kernel)
        self._docker = daemon.Daemon(settings.docker_host)
        self._announced = announced
        self._containers = ContainerTable()
        self._watcher = Watcher(self._docker, self._containers, announced, config.state_directory / CONTAINERS_FILE)
        self._plugin_only = plugin_only
        self._links: Links | None = None
        self._own_node: OwnNode | None = None
        self._dataplane: Dataplane | None = None
        self._etcd: EtcdDatastore | None = None
        self._addresses: set[IPAddress] = set()

    async def run(self, stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._kernel)
            await stack.enter_async_context(self._veths)
            await stack.enter_async_context(self._bird)
            datastore = await self._open_datastore(stack)
            cache = Cache(datastore, PREFIXES)
            report = self._health.report("agent")
            agent = self._agent(cache, report)
            self._links = agent.host.links
            await stack.enter_async_context(agent.host)
            dataplane = Dataplane(
                agent,
                self._bird,
                setting="felix" if self._plugin_only else self._config.dataplane,  # type: ignore[arg-type]  # one of three
                programmed=self._programmed,
                report=report,
            )
            self._dataplane = dataplane
            await dataplane.close()
            self._add_parts(cache, agent, dataplane)
            await self._work(
                stop,
                {
                    "cache": cache.run,
                    "dataplane": dataplane.run,
                    "docker events": self._watcher.run,
                    "first start": lambda: self._become_ready(datastore, cache, agent.host.links, dataplane),
                },
            )

    def _add_parts(self, cache: Cache, agent: Agent, dataplane: Dataplane) -> None:
        """Of ``/status``."""
        self._health.add_part("datastore", lambda: _describe(cache))
        self._health.add_part("unreadable", cache.unreadable.sentences)
        self._health.add_part("docker", self._describe_docker)
        self._health.add_part("dataplane", lambda: "Felix" if dataplane.passive else "built-in")
        self._health.add_part("agent", agent.status)
        self._health.add_part("obstacles", dataplane.obstacles)
        self._health.add_part("routing", lambda: describe.describe(self._router.desired(), self._bird))

    def _describe_docker(self) -> dict[str, Any]:
        return {
            "where": self._config.docker_host,
            "answers": self._docker.serving,
            "findings": self._announced.findings,
        }

    async def _work(self, stop: asyncio.Event, works: Mapping[str, Work]) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(_supervised(name, work), name=name) for name, work in works.items()]
            await stop.wait()
            await self._plugin.stop()
            for task in running:
                task.cancel()

    async def _open_datastore(self, stack: AsyncExitStack) -> Datastore:
        config, also = self._config, self._health.routes()
        socket = config.run_directory / SOCKET
        if config.datastore_type == "etcdv3":
            self._etcd = open_etcd(config, patient=False)
            stack.push_async_callback(self._etcd.close)
            await stack.enter_async_context(serve.serving(self._etcd, socket, also=also))
            return self._etcd
        return await stack.enter_async_context(embedded.owned(config.state_directory / FILE, socket, also=also))

    def _agent(self, cache: Cache, report: Report) -> Agent:
        return Agent(
            cache,
            self._kernel,
            node=self._config.nodename,
            router=self._router,
            bird=self._bird,
            on_routing=self._on_routing,
            on_addresses=self._on_addresses,
            programmed=self._programmed,
            report=report,
            metrics=AgentMetrics(self._registry),
            last_readable=LastReadable(self._config.state_directory / LAST_READABLE_FILE),
        )

    def _on_routing(self, routing: Routing) -> None:
        if self._own_node is not None:
            self._own_node.want(routing)

    def _on_addresses(self) -> None:
        links = self._links
        held = of_uplinks(links.by_name.values(), links.addresses) if links is not None else set()
        if self._etcd is not None and not self._addresses <= held:
            self._etcd.renew()
        self._addresses = held
        if self._own_node is not None:
            self._own_node.addresses_changed()

    def _veth_mtu(self) -> int:
        """As set, else what fits through the uplink and the encapsulations in use."""
        if self._config.veth_mtu is not None:
            return self._config.veth_mtu
        if self._felix_has_the_host() and (size := mtu.published()) is not None:
            return size
        links = self._links.by_name.values() if self._links is not None else ()
        return self._router.desired().workload_mtu or mtu.host_mtu(links)

    def _felix_has_the_host(self) -> bool:
        return self._dataplane is not None and self._dataplane.passive

    async def _become_ready(self, datastore: Datastore, cache: Cache, links: Links, dataplane: Dataplane) -> None:
        """Once: what the first start makes, then the drivers, then whatever waits for them."""
        detected = await detect(links, _detection_methods(self._config))
        first = first_start(self._config, links, detected, node_is_ours=not dataplane.passive)
        started = await self._initialise(datastore, first)
        await cache.in_sync.wait()
        await cache.refresh(started.written)  # it may have listed before, and the first call would not find them
        ipam = Ipam(cache, node=self._config.nodename)
        self._own_node = OwnNode(
            Resources(cache),
            ipam,
            node=self._config.nodename,
            links=links,
            settings=_address_settings(self._config),
            methods=_detection_methods(self._config),
            is_ours=lambda: not self._felix_has_the_host(),
        )
        built = assembly.assemble(
            self._settings,
            cache=cache,
            ipam=ipam,
            veths=self._veths,
            status=dataplane,
            daemon=self._docker,
            table=self._containers,
            interfaces=lambda: links.by_name,
        )
        self._plugin.attach(built.drivers)
        self._health.add_part("unrecorded", lambda: built.recording.findings)
        self._health.add_part("unconnected", lambda: unconnected(self._containers, built.parts.networks.own()))
        _log.info("ready", datastore=datastore.description)
        await self._watcher.attach(built.listener)
        works = {
            "reconciler": built.reconciler.run,
            "own node": self._own_node.run,
            **self._cluster_works(cache, built.parts),
        }
        if not started.ready:
            works["first start, once unlocked"] = lambda: self._finish_first_start(datastore, cache, first)
        await self._veths.sweep()
        self._own_node.want(self._router.desired())
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in works.items():
                    tasks.create_task(_supervised(name, work), name=name)
        finally:
            await built.close()

    def _cluster_works(self, cache: Cache, parts: EndpointParts) -> dict[str, Work]:
        """What a host does because others share its datastore."""
        node = self._config.nodename
        if self._config.datastore_type != "etcdv3":
            return {}
        if not self._config.cluster_networks:
            return {"cluster networks": lambda: cluster.leave(cache, node=node)}
        shared = cluster.Cluster(cache, self._docker, node=node, table=self._containers, parts=parts)
        self._watcher.observe(shared)
        self._health.add_part("cluster networks", shared.describe)
        return {"cluster networks": shared.networks.run, "names of other hosts": shared.names.run}

    async def _finish_first_start(self, datastore: Datastore, cache: Cache, first: FirstStart) -> None:
        """What a locked datastore did not let us write, as soon as it is unlocked."""
        changed = asyncio.Event()
        unsubscribe = cache.subscribe(
            lambda events: changed.set() if any(event.key == CLUSTER_KEY for event in events) else None
        )
        try:
            while not (await self._initialise(datastore, first)).ready:
                await changed.wait()
                changed.clear()
        finally:
            unsubscribe()

    async def _initialise(self, datastore: Datastore, first: FirstStart) -> Started:
        """Once the datastore answers."""
        waiting = False
        while True:
            try:
                started = await initialise(datastore, first)
            except DatastoreUnavailable as error:
                self._plugin.explain(str(error))
                if not waiting:
                    _log.warning("waiting for the datastore", datastore=datastore.description, reason=str(error))
                waiting = True
                await asyncio.sleep(PAUSE)
                continue
            if started.remark:
                _log.warning("first start", remark=started.remark)
            return started


def first_start(
    config: Config, links: Links, detected: Mapping[Family, IPInterface], *, node_is_ours: bool
) -> FirstStart:
    """Of this host as it is now; a calico/node that runs here makes its own Node."""
    routes = "direct" if config.routes == "auto" else config.routes
    wishes = replace(wishes_of_host(config.nodename, links, _address_settings(config), detected), routes=routes)

    def node_document(stored: Document | None) -> Document:
        if stored is not None:
            return desired_node(stored, wishes)
        return new_node(wishes, uid=str(uuid.uuid4()), created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))

    return FirstStart(
        node=config.nodename,
        node_document=node_document if node_is_ours else None,
        ipv4_pool=config.ipv4pool_cidr,
        ipv6_pool=config.ipv6pool_cidr,
        no_default_pools=config.no_default_pools,
        ipv6=sysctl.ipv6_available(),
        host_networks=[
            ip_network((info.address, info.prefix_length), strict=False)
            for info in links.addresses
            if not info.address.is_loopback
        ],
    )


def _address_settings(config: Config) -> dict[Family, str]:
    return {4: config.ip, 6: config.ip6}


def _detection_methods(config: Config) -> dict[Family, str]:
    return {4: config.ip_autodetection_method, 6: config.ip6_autodetection_method}


async def _supervised(name: str, work: Work) -> None:
    """One failing task is restarted and does not take the others with it."""
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - whatever it is, the rest of the process serves on
            if (task := asyncio.current_task()) is not None and task.cancelling():
                return  # a failure on the way out
            _log.exception("task failed, starting it again", task=name)
            await asyncio.sleep(RESTART_SECONDS)
        else:
            return


def _describe(cache: Cache) -> dict[str, Any]:
    return {"where": cache.description, "state": cache.outage or "connected", "revision": cache.revision}
