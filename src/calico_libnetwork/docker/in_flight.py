"""Addresses that Docker has requested and not yet used: for a moment they belong to no endpoint, and yet to somebody.

Kept in memory only. After a restart nothing is in flight; CreateEndpoint then looks for another holder itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from calico_libnetwork.model.ipam_keys import Address

PATIENCE = 60.0
"""Seconds after which a request that was never used or released counts as forgotten by a daemon that died."""


@dataclass(frozen=True, slots=True)
class Flight:
    requested: float
    container_name: str


class InFlight:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._flights: dict[Address, Flight] = {}

    def start(self, address: Address, container_name: str = "") -> None:
        """``container_name`` as Docker 29 gives it, "" before."""
        now = self._clock()
        self._flights = {known: flight for known, flight in self._flights.items() if now - flight.requested < PATIENCE}
        self._flights[address] = Flight(now, container_name)

    def end(self, address: Address) -> None:
        """The address has an endpoint, or is released."""
        self._flights.pop(address, None)

    def __contains__(self, address: Address) -> bool:
        flight = self._flights.get(address)
        return flight is not None and self._clock() - flight.requested < PATIENCE

    def first_landing(self) -> float | None:
        """Seconds until one of them counts as forgotten; None if there is none."""
        now = self._clock()
        left = (PATIENCE - (now - flight.requested) for flight in self._flights.values())
        return min((seconds for seconds in left if seconds > 0), default=None)

    def container_name(self, address: Address) -> str:
        flight = self._flights.get(address)
        return flight.container_name if flight is not None else ""
