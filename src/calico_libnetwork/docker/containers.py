"""Containers and networks as Docker last told them: by id and by name, kept by events, saved to disk. Pure.

Labels of a container never change, so what is known of an id stays right for as long as the container exists; only
names change hands. Docker's events carry labels, name and image as flat keys of one map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

_NOT_LABELS = frozenset({"name", "image"})
COMPOSE_PROJECT = "com.docker.compose.project"
COMPOSE_SERVICE = "com.docker.compose.service"


class Container(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """``name`` has no slash. A label called ``name`` or ``image`` is hidden in an event by Docker's own.

    ``lost_network``: what it was started on, as the user named it, while it runs and is on no network at all.
    """

    id: str
    name: str
    image: str = ""
    labels: dict[str, str] = {}
    lost_network: str = ""


class _Saved(msgspec.Struct, kw_only=True):
    containers: list[Container]
    networks: dict[str, str]


_decoder = msgspec.json.Decoder(_Saved)


class ContainerTable:
    def __init__(self) -> None:
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._networks: dict[str, str] = {}
        self._connected: set[str] = set()  # of those that were seen to start

    @property
    def is_empty(self) -> bool:
        """As long as no daemon has ever told of anything."""
        return not self._containers and not self._networks

    def by_id(self, container_id: str) -> Container | None:
        return self._containers.get(container_id)

    def by_name(self, name: str) -> Container | None:
        container_id = self._names.get(name)
        return self._containers.get(container_id) if container_id is not None else None

    def ids(self) -> set[str]:
        return set(self._containers)

    def was_connected(self, container_id: str) -> bool:
        """Whether an event said so since it began to start."""
        return container_id in self._connected

    def lost_networks(self) -> list[tuple[str, str]]:
        """The name of each container that has lost its network, and that network as the user named it."""
        return sorted((each.name, each.lost_network) for each in self._containers.values() if each.lost_network)

    def network_name(self, network_id: str) -> str | None:
        return self._networks.get(network_id)

    def put(self, container: Container) -> None:
        self._forget_name(container.id)
        self._containers[container.id] = container
        self._names[container.name] = container.id

    def remove(self, container_id: str) -> None:
        self._forget_name(container_id)
        self._containers.pop(container_id, None)

    def put_network(self, network_id: str, name: str) -> None:
        self._networks[network_id] = name

    def replace(self, containers: Iterable[Container], networks: Mapping[str, str]) -> None:
        """By what Docker lists, which is the truth."""
        self._containers, self._names, self._networks, self._connected = {}, {}, dict(networks), set()
        for container in containers:
            self.put(container)

    def apply(self, event: Mapping[str, Any]) -> bool:
        """Follows one event of Docker's; returns whether anything changed."""
        actor = event.get("Actor") or {}
        identity, attributes = actor.get("ID") or "", actor.get("Attributes") or {}
        match event.get("Type"), event.get("Action"):
            case "container", "create":
                self.put(_of_event(identity, attributes))
            case "container", "rename":
                return self._rename(identity, attributes.get("name", ""))
            case "container", "destroy":
                self._connected.discard(identity)
                self.remove(identity)
            case "container", "die":
                self._connected.discard(identity)
                return self._find_network(identity)
            case "network", "connect":
                self._connected.add(attributes.get("container", ""))
                return self._find_network(attributes.get("container", ""))
            case "network", "create":
                self.put_network(identity, attributes.get("name", ""))
            case "network", "destroy" | "remove":
                self._networks.pop(identity, None)
            case _:
                return False
        return True

    def encode(self) -> bytes:
        return msgspec.json.encode(_Saved(containers=[*self._containers.values()], networks=self._networks))

    def restore(self, saved: bytes) -> None:
        """Raises ``ValueError`` for what is no table."""
        try:
            decoded = _decoder.decode(saved)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error
        self.replace(decoded.containers, decoded.networks)

    def _rename(self, container_id: str, name: str) -> bool:
        known = self._containers.get(container_id)
        if known is None or not name:
            return False
        self.put(msgspec.structs.replace(known, name=name.removeprefix("/")))
        return True

    def _find_network(self, container_id: str) -> bool:
        known = self._containers.get(container_id)
        if known is None or not known.lost_network:
            return False
        self.put(msgspec.structs.replace(known, lost_network=""))
        return True

    def _forget_name(self, container_id: str) -> None:
        known = self._containers.get(container_id)
        if known is not None and self._names.get(known.name) == container_id:
            del self._names[known.name]


def of_listing(entry: Mapping[str, Any]) -> Container:
    """One entry of ``GET /containers/json``; its names include those of links, which have a second slash."""
    names = [name.removeprefix("/") for name in entry.get("Names") or ()]
    own = [name for name in names if "/" not in name]
    return Container(
        id=entry["Id"],
        name=(own or names or [""])[0],
        image=entry.get("Image") or "",
        labels=dict(entry.get("Labels") or {}),
        lost_network=_lost_network(entry),
    )


def _lost_network(entry: Mapping[str, Any]) -> str:
    if entry.get("State") != "running" or (entry.get("NetworkSettings") or {}).get("Networks"):
        return ""
    return (entry.get("HostConfig") or {}).get("NetworkMode") or ""


def _of_event(container_id: str, attributes: Mapping[str, str]) -> Container:
    return Container(
        id=container_id,
        name=attributes.get("name", "").removeprefix("/"),
        image=attributes.get("image", ""),
        labels={key: value for key, value in attributes.items() if key not in _NOT_LABELS},
    )
