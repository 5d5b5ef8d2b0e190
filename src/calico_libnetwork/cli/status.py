"""``status``: what the running process says of itself and what the datastore holds, on one screen."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from calico_libnetwork.cli.session import SOCKET, Session, pass_session
from calico_libnetwork.cli.tables import counted, share
from calico_libnetwork.docker.labels import CONTAINER_NAME
from calico_libnetwork.docker.networks import PREFIX as NETWORKS
from calico_libnetwork.docker.networks import NetworkRecord
from calico_libnetwork.docker.profiles import NETWORK_ID
from calico_libnetwork.docker.published_ports import listed, read_ports
from calico_libnetwork.errors import CalicoError, InvalidResource, NotFound
from calico_libnetwork.model import ipam_usage, kinds
from calico_libnetwork.model.documents import UNDECODABLE
from calico_libnetwork.model.ipam_usage import Usage
from calico_libnetwork.model.kinds import KINDS
from calico_libnetwork.model.resources import WorkloadEndpoint

_DEADLINE = 10.0
_LINES = 8  # of one subject; more are counted
_COUNTABLE = 1 << 32
_ENDPOINTS = KINDS["WorkloadEndpoint"].prefix


@dataclass(frozen=True, slots=True)
class Network:
    """All Docker networks of one name; ``endpoints`` and ``nodes`` of the whole cluster."""

    name: str
    endpoints: int
    nodes: int


@click.command()
@click.option("-o", "--output", type=click.Choice(["json"]), help="Everything, of any length, as JSON.")
@pass_session
def status(session: Session, *, output: str | None) -> None:
    """Show whether plugin and agent work; exits with 1 if not, or if datastore or Docker do not answer."""
    answer = ask(session.config.run_directory / SOCKET, "/status")
    values: Mapping[str, bytes] = {}
    if _connected(answer):
        try:
            values = session.run(read(session, (*ipam_usage.PREFIXES, NETWORKS, _ENDPOINTS)))
        except CalicoError as error:
            answer["datastore"]["state"] = str(error)
    pools, networks = [*ipam_usage.usage(values, with_blocks=False)], networks_of(values)
    ports = [] if answer["dataplane"] == "Felix" else ports_of(values, answer["node"])
    if output == "json":
        answer["pools"] = [asdict(pool) | {"network": str(pool.network), "capacity": pool.capacity} for pool in pools]
        answer["networks"] = [asdict(network) for network in networks]
        answer["ports"] = ports
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo("\n".join(_screen(answer, pools, networks, ports)))
    sys.exit(0 if is_well(answer) else 1)


async def read(session: Session, prefixes: Sequence[str]) -> dict[str, bytes]:
    async with session.datastore() as datastore:
        return {item.key: item.value for item in (await datastore.list(prefixes)).items}


def ask(path: Path, target: str) -> Any:
    """What the running process answers on its control socket. Raises ``NotFound`` if there is none."""
    connection = http.client.HTTPConnection("control", timeout=_DEADLINE)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(_DEADLINE)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", target)
        return json.loads(connection.getresponse().read())
    except OSError as error:
        raise NotFound(
            f"no calico-libnetwork answers on {path} ({error}); start it with calico-libnetwork run"
        ) from error
    finally:
        connection.close()


def is_well(answer: Mapping[str, Any]) -> bool:
    return bool(answer["ready"] and answer["live"] and _connected(answer) and answer["docker"]["answers"])


def _connected(answer: Mapping[str, Any]) -> bool:
    return bool(answer["datastore"]["state"] == "connected")


def networks_of(values: Mapping[str, bytes]) -> list[Network]:
    """By name; the records of networks that nobody has used yet count as well."""
    names: dict[str, str] = {}
    for key, value in values.items():
        if key.startswith(NETWORKS):
            try:
                names[key.removeprefix(NETWORKS)] = msgspec.json.decode(value, type=NetworkRecord).name
            except UNDECODABLE:
                continue
    endpoints: dict[str, list[str]] = {name or network_id[:12]: [] for network_id, name in names.items()}
    for endpoint in _workload_endpoints(values):
        network_id = endpoint.annotations.get(NETWORK_ID, "")
        if network_id:
            endpoints.setdefault(names.get(network_id) or network_id[:12], []).append(endpoint.spec.node)
    return [Network(name, len(nodes), len(set(nodes))) for name, nodes in sorted(endpoints.items())]


def ports_of(values: Mapping[str, bytes], node: str) -> list[str]:
    """What is published on the node, by container."""
    return sorted(
        f"{endpoint.annotations.get(CONTAINER_NAME) or endpoint.spec.endpoint[:12]}  {listed(ports)}"
        for endpoint in _workload_endpoints(values)
        if endpoint.spec.node == node and (ports := read_ports(endpoint.spec.ports))
    )


def _workload_endpoints(values: Mapping[str, bytes]) -> Iterator[WorkloadEndpoint]:
    for key, value in values.items():
        resource = kinds.parse_path(key) if key.startswith(_ENDPOINTS) else None
        if resource is not None:
            with contextlib.suppress(InvalidResource):
                yield kinds.decode(resource, value)


def _screen(
    answer: Mapping[str, Any], pools: Sequence[Usage], networks: Sequence[Network], ports: Sequence[str]
) -> Iterator[str]:
    yield from _head(answer)
    yield from _part("routing", [*_routing(answer)])
    yield from _part("pools", [_pool(pool) for pool in pools])
    yield from _part("networks", [_network(network) for network in networks])
    if ports:
        yield from _part("ports", ports)
    shared = answer.get("cluster networks")
    if shared is not None:
        yield from _part("cluster", [f"networks are {shared['state']}", *shared["problems"]])
    yield from _part("refused", answer["agent"]["failures"])
    yield from _part("obstacles", answer["obstacles"])
    yield from _part("unreadable", answer.get("unreadable", ()))  # not of a process that an upgrade has yet to restart
    yield from _part("findings", [*_findings(answer)])


def _findings(answer: Mapping[str, Any]) -> Iterator[str]:
    yield from answer["agent"]["findings"]
    yield from answer["docker"].get("findings", ())
    for part in ("unrecorded", "unconnected"):
        yield from answer.get(part, ())
    yield from answer.get("cluster networks", {}).get("problems", ())


def _head(answer: Mapping[str, Any]) -> Iterator[str]:
    state = "ready" if answer["ready"] and answer["live"] else "NOT READY"
    yield f"{state:<12} node {answer['node']}, version {answer['version']}, {answer['dataplane']} dataplane"
    for name, task in answer["tasks"].items():
        yield f"{name:<12} {'' if task['ready'] and task['live'] else 'NOT READY: '}{task['detail']}"
    datastore, docker = answer["datastore"], answer["docker"]
    yield f"{'datastore':<12} {'' if _connected(answer) else 'NOT '}connected: {datastore['where']}"
    if not _connected(answer):
        yield f"{'':<12} {datastore['state']}"
    yield f"{'docker':<12} {'answers' if docker['answers'] else 'DOES NOT ANSWER'}: {docker['where']}"


def _routing(answer: Mapping[str, Any]) -> Iterator[str]:
    routing = answer["routing"]
    if answer["dataplane"] == "Felix":
        yield "by the calico/node of this host"
        return
    yield f"{routing['mode']}, for {routing['reason']}"
    if routing["mode"] == "bird":
        peers = routing["peers"]
        established = sum(peer["info"].startswith("Established") for peer in peers)
        yield f"{established} of {len(peers)} BGP peers established"
    if routing["bird"]["problem"]:
        yield routing["bird"]["problem"]
    routes = sum(len(way["destinations"]) for way in routing["routes"] if way["interface"])
    if routes:
        yield f"{counted(routes, 'route')} to other hosts; calico-libnetwork node status shows them"


def _pool(pool: Usage) -> str:
    if pool.capacity > _COUNTABLE:
        return f"{pool.name}  {pool.network}  {pool.in_use} in use"
    return f"{pool.name}  {pool.network}  {share(pool.in_use, pool.capacity)} of {pool.capacity} in use"


def _network(network: Network) -> str:
    return f"{network.name}  {counted(network.endpoints, 'endpoint')} on {counted(network.nodes, 'node')}"


def _part(title: str, lines: Sequence[str]) -> Iterator[str]:
    shown = [*lines[:_LINES]] or ["none"]
    if len(lines) > _LINES:
        shown.append(f"and {len(lines) - _LINES} more, with -o json")
    for position, line in enumerate(shown):
        yield f"{title if position == 0 else '':<12} {line}"
