"""``node status`` shows this host's ways to the others, and every node's blocks; ``node delete`` ends a dead one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from ipaddress import ip_interface
from typing import Any

import click

from calico_libnetwork.cli import deletion
from calico_libnetwork.cli.consent import require_consent
from calico_libnetwork.cli.deletion import Holdings
from calico_libnetwork.cli.session import SOCKET, Session, pass_session
from calico_libnetwork.cli.status import ask, is_well, read
from calico_libnetwork.cli.tables import boxed, first, share
from calico_libnetwork.docker.labels import CONTAINER_NAME
from calico_libnetwork.errors import Conflict, InvalidResource, NotFound
from calico_libnetwork.model import ipam_usage, kinds
from calico_libnetwork.model.ipam_usage import NodeUsage
from calico_libnetwork.model.kinds import KINDS
from calico_libnetwork.model.resources import Node
from calico_libnetwork.routing.cluster import FAMILIES, ROUTES_ANNOTATION

_NODES = KINDS["Node"].prefix
_SHOWN = 5  # names or routes on one line


@click.group()
def node() -> None:
    """Look at the hosts of the cluster, and remove one that is gone."""


@node.command()
@click.option("--blocks", "with_blocks", is_flag=True, help="List every block of every node.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Everything as JSON.")
@pass_session
def status(session: Session, *, with_blocks: bool, output: str | None) -> None:
    """Show this host's BGP peers and routes, and the pools and blocks of all nodes.

    Exit code 1 if no calico-libnetwork runs here or it is not ready; what the datastore holds is shown all the same.
    """
    try:
        answer = ask(session.config.run_directory / SOCKET, "/status")
    except NotFound as error:
        answer = None
        click.echo(f"calico-libnetwork is not running: {error}", err=True)
    values = session.run(read(session, (*ipam_usage.PREFIXES, _NODES)))
    nodes, usage = _nodes(values), ipam_usage.by_node(values)
    if output == "json":
        click.echo(json.dumps(_as_json(answer, nodes, usage), indent=2))
    else:
        lines = [*_here(answer, nodes)] if answer is not None else []
        click.echo("\n".join([*lines, *_cluster(nodes, usage, with_blocks=with_blocks)]))
    sys.exit(0 if answer is not None and is_well(answer) else 1)


@node.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also this host while it runs, or one that still speaks BGP.")
@pass_session
def delete(session: Session, *, name: str, yes: bool, force: bool) -> None:
    """Delete a node that is gone, and release everything it held.

    That is: its workload endpoints, addresses and blocks, tunnel addresses, node.NAME configurations, host endpoints,
    BGP peers and the Node itself. Containers that run there after all lose their network.
    """
    if not force:
        _require_gone(session, name)
    found = session.run(_holdings(session, name))
    if found.nothing:
        raise NotFound(f"Node({name}) does not exist, and nothing is held in its name")
    click.echo("\n".join(_told(found)))
    if not yes:
        require_consent(f"Release all of it and delete node {name}?")
    session.run(_delete(session, name))
    click.echo(f"Successfully deleted node {name}")


async def _holdings(session: Session, name: str) -> Holdings:
    async with session.datastore() as datastore:
        return await deletion.holdings(datastore, name)


async def _delete(session: Session, name: str) -> None:
    async with session.datastore() as datastore:
        await deletion.delete_node(datastore, name)


def _require_gone(session: Session, name: str) -> None:
    """As far as this host can know."""
    try:
        answer = ask(session.config.run_directory / SOCKET, "/status")
    except NotFound:
        return
    if answer["node"] == name:
        raise Conflict(f"node {name} is this host, and calico-libnetwork runs here: stop it first, or use --force")
    addresses = set(_addresses(session.run(read(session, [_NODES])), name))
    for peer in answer["routing"]["peers"]:
        if peer["address"] in addresses and peer["info"].startswith("Established"):
            raise Conflict(f"node {name} is not gone: it speaks BGP with this host; stop it first, or use --force")


def _addresses(values: Mapping[str, bytes], name: str) -> Iterator[str]:
    for found in _nodes(values):
        if found.name == name:
            yield from (str(ip_interface(text).ip) for text in _texts(found) if text)


def _told(found: Holdings) -> Iterator[str]:
    yield f"Node {found.node} holds:" if found.exists else f"Node({found.node}) does not exist, but there are of it:"
    containers = [_container(endpoint) for endpoint in found.endpoints]
    for what, names in (
        ("workload endpoints", containers),
        ("addresses", [str(address) for address in found.addresses]),
        ("blocks", [str(block) for block in found.blocks]),
        ("others that name it", [str(key) for key in found.others]),
    ):
        yield f"  {what}: {f'{len(names)} ({first(names, _SHOWN)})' if names else 'none'}"


def _container(endpoint: Mapping[str, Any]) -> str:
    metadata = endpoint["metadata"]
    name: str = (metadata.get("annotations") or {}).get(CONTAINER_NAME) or metadata["name"]
    return name


def _nodes(values: Mapping[str, bytes]) -> list[Node]:
    found = []
    for key, value in values.items():
        if key.startswith(_NODES) and (resource := kinds.parse_path(key)) is not None:
            try:
                found.append(kinds.decode(resource, value))
            except InvalidResource as error:
                click.echo(f"Warning: {error}", err=True)
    return found


def _texts(found: Node) -> tuple[str, str]:
    bgp = found.spec.bgp
    return (bgp.ipv4_address, bgp.ipv6_address) if bgp is not None else ("", "")


def _here(answer: Mapping[str, Any], nodes: Sequence[Node]) -> Iterator[str]:
    routing = answer["routing"]
    yield f"calico-libnetwork {answer['version']} runs on node {answer['node']}."
    if answer["dataplane"] == "Felix":
        yield "The calico/node of this host carries the routes; calicoctl node status shows its peers."
        yield ""
        return
    yield f"Routes between hosts: {routing['mode']}, for {routing['reason']}."
    if routing["bird"]["problem"]:
        yield f"BIRD: {routing['bird']['problem']}"
    if routing["mode"] == "bird":
        for family in FAMILIES:
            yield from ["", f"IPv{family} BGP status", _peers(family, routing["peers"], nodes)]
    if routing["routes"]:
        rows = [["VIA", "INTERFACE", "NODE", "DESTINATIONS"], *_ways(routing["routes"], nodes)]
        yield from ["", "Routes to blocks", boxed(rows)]
    yield ""


def _peers(family: int, peers: Sequence[Mapping[str, Any]], nodes: Sequence[Node]) -> str:
    own = [peer for peer in peers if peer["ipVersion"] == family]
    if not own:
        return f"No IPv{family} peers found."
    names = _names(nodes)
    rows = [["PEER ADDRESS", "PEER TYPE", "NODE", "STATE", "SINCE", "INFO", "IN", "OUT"]]
    rows += [
        [
            *(peer["address"], peer["type"], names.get(peer["address"], ""), peer["state"], peer["since"]),
            *(peer["info"], str(peer["imported"]), str(peer["exported"])),
        ]
        for peer in own
    ]
    return boxed(rows)


def _ways(ways: Sequence[Mapping[str, Any]], nodes: Sequence[Node]) -> Iterator[list[str]]:
    names = _names(nodes)
    for way in ways:
        via = way["gateway"] or ("" if way["kind"] == "unicast" else way["kind"])
        yield [via, way["interface"], names.get(way["gateway"], ""), first(way["destinations"], _SHOWN)]


def _names(nodes: Sequence[Node]) -> dict[str, str]:
    """Node names by the addresses that peers and gateways have, tunnel addresses included."""
    names = {}
    for each in nodes:
        spec = each.spec
        for text in (*_texts(each), spec.ipv4_vxlan_tunnel_addr, spec.ipv6_vxlan_tunnel_addr):
            if text:
                names[text.partition("/")[0]] = each.name
    return names


def _cluster(nodes: Sequence[Node], usage: Sequence[NodeUsage], *, with_blocks: bool) -> Iterator[str]:
    rows = [["NODE", "IPV4", "IPV6", "ROUTES"]]
    rows += [[each.name, *_texts(each), each.annotations.get(ROUTES_ANNOTATION, "calico/node")] for each in nodes]
    yield from ["Nodes", boxed(rows), "", "Pools and blocks per node"]
    rows = [["NODE", "POOL", "BLOCKS", "ADDRESSES", "IN USE"]]
    known = {each.name for each in nodes}
    for each in usage:
        name = each.node if each.node in known else f"{each.node} (no Node)"
        blocks = ", ".join(map(str, each.blocks)) if with_blocks else str(len(each.blocks))
        rows.append([name, each.pool or "(no pool)", blocks, str(each.capacity), share(each.in_use, each.capacity)])
    yield boxed(rows) if usage else "No node has a block."


def _as_json(answer: Mapping[str, Any] | None, nodes: Sequence[Node], usage: Sequence[NodeUsage]) -> dict[str, Any]:
    held = [
        asdict(each) | {"blocks": [str(block) for block in each.blocks], "capacity": each.capacity} for each in usage
    ]
    return {
        "running": answer is not None,
        "node": answer["node"] if answer is not None else None,
        "routing": answer["routing"] if answer is not None else None,
        "nodes": [
            {
                "name": each.name,
                **dict(zip(("ipv4", "ipv6"), _texts(each), strict=True)),
                "routes": each.annotations.get(ROUTES_ANNOTATION),
            }
            for each in nodes
        ],
        "usage": held,
    }
