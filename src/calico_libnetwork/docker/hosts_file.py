"""A container's ``/etc/hosts`` with names of other hosts' containers in it: whose, and in which words. Pure.

Docker answers for the containers of its own host, and looks into nobody's file but writes this one; so what is added
never takes the place of what Docker says: neither a name in a line of Docker's (or of the container's own), nor one
of a container that this host's Docker knows. Every added line ends in a mark, by which it is found and removed again.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from calico_libnetwork.docker.cluster_records import Member
from calico_libnetwork.docker.endpoints import Endpoint
from calico_libnetwork.model.ipam_keys import Address

MARK = "# calico-libnetwork"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
"""As Docker has it for containers; anything else cannot stand in the file."""


@dataclass(frozen=True, slots=True)
class Entry:
    address: str
    names: tuple[str, ...]


def entries_by_container(
    endpoints: Iterable[Endpoint],
    member_of: Callable[[Endpoint], Member | None],
    *,
    node: str,
    is_local_name: Callable[[str, str], bool],
) -> dict[str, list[Entry]]:
    """What has to be in the file of each container of ``node`` that is in a network of the cluster, by container id.

    ``is_local_name``: whether this host's Docker finds a container by the name outside of the network with that id.
    """
    own: list[tuple[Endpoint, Member]] = []
    others: dict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        member = member_of(endpoint)
        if member is None:
            continue
        if endpoint.node != node:
            others[member.uid].append(endpoint)
        elif endpoint.container_id:
            own.append((endpoint, member))
    here: dict[str, list[Endpoint]] = defaultdict(list)
    for endpoint, member in own:
        here[member.uid].append(endpoint)

    @cache
    def entries(uid: str, network: str, network_id: str, version: int) -> list[Entry]:
        named = _named(here[uid], others[uid])
        return _entries(named, network, version, lambda name: is_local_name(name, network_id))

    found: dict[str, list[Entry]] = defaultdict(list)
    for endpoint, member in sorted(own, key=lambda each: (each[1].name, each[0].endpoint_id)):
        for version in sorted({address.version for address in endpoint.addresses}):
            found[endpoint.container_id] += entries(member.uid, member.name, endpoint.network_id, version)
    return dict(found)


def _named(own: Sequence[Endpoint], others: Sequence[Endpoint]) -> list[tuple[Endpoint, tuple[str, ...]]]:
    """Names that Docker does not know here: of the others all but this host's, and aliases that both have of both.

    A line of the file hides what Docker would answer, so an alias of containers here and elsewhere is written for all.
    """
    local_names = {name for endpoint in own for name in (endpoint.container_name, endpoint.short_id)}
    shared = {alias for endpoint in own for alias in endpoint.aliases} & {
        name for other in others for name in (other.container_name, *other.aliases)
    }
    found = []
    for other in others:
        by_docker = (other.container_name, other.short_id)
        found.append((other, tuple(name for name in by_docker if name not in local_names)))
        found += [(other, (alias,)) for alias in sorted(other.aliases - local_names - {*by_docker})]
    found += [(endpoint, (alias,)) for endpoint in own for alias in sorted((shared & endpoint.aliases) - local_names)]
    return found


def _entries(
    named: Iterable[tuple[Endpoint, Sequence[str]]], network: str, version: int, is_local_name: Callable[[str], bool]
) -> list[Entry]:
    """Of one family: a container has a use for those that it has itself in the network."""
    found: list[tuple[tuple[str, ...], Address]] = []
    for endpoint, given in named:
        if endpoint.held or not endpoint.container_name:
            continue
        names: list[str] = []
        for name in filter(NAME.fullmatch, given):
            names += [f"{name}.{network}"] if NAME.fullmatch(network) else []
            names += [] if is_local_name(name) else [name]
        found += [(tuple(names), address) for address in endpoint.addresses if address.version == version and names]
    return [Entry(str(address), names) for names, address in sorted(found)]


def revised(content: str, entries: Sequence[Entry]) -> str:
    """``content`` with these entries: the same text where they are there already, an extension of it if it can be."""
    lines = content.splitlines(keepends=True)
    theirs = [line for line in lines if not line.rstrip().endswith(MARK)]
    taken = {name for line in theirs for name in line.partition("#")[0].split()[1:]}
    wanted = dict.fromkeys(filter(None, (_line(entry, taken) for entry in entries)))
    present = {line for line in lines if line.rstrip().endswith(MARK)}
    if present <= wanted.keys():
        missing = [line for line in wanted if line not in present]
        return _ended(content) + "".join(missing) if missing else content
    return _ended("".join(theirs)) + "".join(wanted)


def _line(entry: Entry, taken: set[str]) -> str:
    names = [name for name in entry.names if name not in taken]
    return f"{entry.address}\t{' '.join(names)}\t{MARK}\n" if names else ""


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def has_marks(content: str) -> bool:
    return MARK in content
