"""What Docker has told to go, and what of it is still there because the datastore was out of reach.

Docker does not repeat itself: it goes on, and takes endpoint, address and network for gone. The reconciler finishes
this as soon as the datastore answers; where this process ended before that, it finds what is left by comparing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from calico_libnetwork.model.ipam_keys import Address

MEMORY = 600.0
"""Seconds for which an endpoint that went is remembered; a listing that still has it is younger."""


class Departures:
    """``news`` is set with every one that is added."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self.endpoints: set[str] = set()
        self.addresses: set[Address] = set()
        self.networks: set[str] = set()
        self.news = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self.endpoints or self.addresses or self.networks)

    def tell(self, endpoint_id: str) -> None:
        """It goes now, and will never come back under that id."""
        now = self._clock()
        if self._told and now - next(iter(self._told.values())) > MEMORY:
            self._told = {known: when for known, when in self._told.items() if now - when <= MEMORY}
        self._told.setdefault(endpoint_id, now)

    def was_told(self, endpoint_id: str) -> bool:
        told = self._told.get(endpoint_id)
        return told is not None and self._clock() - told <= MEMORY

    def add_endpoint(self, endpoint_id: str) -> None:
        self.endpoints.add(endpoint_id)
        self.news.set()

    def add_address(self, address: Address) -> None:
        self.addresses.add(address)
        self.news.set()

    def add_network(self, network_id: str) -> None:
        self.networks.add(network_id)
        self.news.set()

    def keep(self, *, endpoints: Collection[str], addresses: Collection[Address], networks: Collection[str]) -> None:
        """What is not among these is settled."""
        self.endpoints.intersection_update(endpoints)
        self.addresses.intersection_update(addresses)
        self.networks.intersection_update(networks)
