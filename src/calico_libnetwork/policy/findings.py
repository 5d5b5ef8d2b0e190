"""What could not be enforced as written: said aloud, and enforced on the closed side.

A finding belongs to one resource. Who holds findings shows them: the log once per change, the status, a gauge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calico_libnetwork.model.kinds import ResourceKey

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """``feature`` is a short word to count by (``http``, ``selector``); ``field`` a path, ``spec.ingress[0].http``."""

    key: ResourceKey
    severity: Severity
    feature: str
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.key} {self.field}: {self.text}" if self.field else f"{self.key}: {self.text}"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in one field that cannot be enforced; the object it is in decides what that means."""

    feature: str
    field: str
    text: str
