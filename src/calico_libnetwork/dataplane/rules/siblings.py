"""Containers with several interfaces: each may carry the addresses of all, under the policy of the one they belong to.

A container sends what it answers by its own default route, so a packet that came in through one of its interfaces may
be answered through another. The check of source addresses lets just that pass, and what is not an answer meets the
egress policy of the endpoint whose address it bears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from calico_libnetwork.dataplane.rules import names, skeleton
from calico_libnetwork.dataplane.rules.endpoints import LocalEndpoint
from calico_libnetwork.dataplane.table import Table

_Elements = dict[tuple[str, str], str]


@dataclass(slots=True)
class Siblings:
    """``put``, ``remove`` and ``refresh`` take note, ``settle`` does the work."""

    table: Table
    _containers: dict[str, dict[str, LocalEndpoint]] = field(default_factory=dict)
    _places: dict[str, str] = field(default_factory=dict)
    _written: dict[str, _Elements] = field(default_factory=dict)
    _stale: set[str] = field(default_factory=set)

    def put(self, interface: str, endpoint: LocalEndpoint) -> None:
        self.remove(interface)
        if endpoint.container:
            self._places[interface] = endpoint.container
            self._containers.setdefault(endpoint.container, {})[interface] = endpoint
            self._stale.add(endpoint.container)

    def remove(self, interface: str) -> None:
        container = self._places.pop(interface, "")
        if container:
            endpoints = self._containers[container]
            del endpoints[interface]
            if not endpoints:
                del self._containers[container]
            self._stale.add(container)

    def refresh(self, interface: str) -> None:
        """The chains of its endpoint are others now."""
        if interface in self._places:
            self._stale.add(self._places[interface])

    def have(self, interface: str) -> bool:
        """Whether the container of this interface has another one."""
        return len(self._containers.get(self._places.get(interface, ""), ())) > 1

    def settle(self, egress_chain: Callable[[str], str]) -> frozenset[str]:
        """``egress_chain`` names that of an interface. Answers which interfaces may have got or lost a sibling."""
        touched: set[str] = set()
        for container in self._stale:
            endpoints = self._containers.get(container, {})
            before, wanted = self._written.pop(container, {}), dict(_elements(endpoints, egress_chain))
            for element, verdict in wanted.items():
                self.table.elements.want(element, verdict)
            for element in before.keys() - wanted.keys():
                self.table.elements.unwant(element)
            if wanted:
                self._written[container] = wanted
            if before.keys() != wanted.keys():
                touched |= endpoints.keys()
        self._stale.clear()
        return frozenset(touched)


def _elements(
    endpoints: dict[str, LocalEndpoint], egress_chain: Callable[[str], str]
) -> Iterator[tuple[tuple[str, str], str]]:
    for interface, endpoint in endpoints.items():
        for other, sibling in endpoints.items():
            if other == interface:
                continue
            for address in sibling.addresses:
                if address in endpoint.addresses:
                    continue
                sources, verdicts = skeleton.SIBLINGS[address.version]
                element = f'"{interface}" . {names.address_text(address)}'
                yield (sources, element), ""
                yield (verdicts, element), f"goto {egress_chain(other)}"
