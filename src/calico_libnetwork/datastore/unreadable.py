"""Values that nobody can read: each is said once, whoever comes across it first, and counted while it is there."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from calico_libnetwork.datastore.protocol import KeyValue

_log = structlog.get_logger(__name__)


class UnreadableValues:
    def __init__(self) -> None:
        self._reasons: dict[str, tuple[int, str]] = {}  # key -> revision of the value, and why

    def __len__(self) -> int:
        return len(self._reasons)

    def note(self, item: KeyValue, reason: str) -> None:
        if self._reasons.get(item.key, (0, ""))[0] != item.mod_revision:
            _log.error("unreadable value in the datastore", key=item.key, reason=reason)
            self._reasons[item.key] = (item.mod_revision, reason)

    def forget(self, keys: Iterable[str]) -> None:
        """They have another value now, or none."""
        for key in keys:
            self._reasons.pop(key, None)

    def sentences(self) -> list[str]:
        """For ``status``, in key order."""
        return [f"{key}: {reason}" for key, (_, reason) in sorted(self._reasons.items())]
