"""The small IPAM objects beside the block: affinity, handle, configuration.

Each decodes what any generation of Calico wrote (empty values, nulls, missing fields) and changes the stored document
in place of building one, so what others added stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import documents
from calico_libnetwork.model.documents import Document

AffinityState = Literal["confirmed", "pending", "pendingDeletion"]
DEFAULT_BLOCK_LIMIT = 20
"""Blocks per host where nobody set a limit."""


class _Affinity(msgspec.Struct):
    state: str | None = None


class _Handle(msgspec.Struct):
    block: dict[str, int] | None = None


class _Config(msgspec.Struct):
    strict_affinity: bool = False
    auto_allocate_blocks: bool = False
    max_blocks_per_host: int = msgspec.field(name="maxBlocksPerHost", default=0)
    cooldown: int = msgspec.field(name="ipCooldownSeconds", default=0)


_affinity = msgspec.json.Decoder(_Affinity)
_handle = msgspec.json.Decoder(_Handle)
_config = msgspec.json.Decoder(_Config)


def affinity_state(value: bytes) -> AffinityState:
    """Old data has no state, or no value at all, and means confirmed; so does a state nobody knows yet."""
    if not value.strip():
        return "confirmed"
    try:
        state = _affinity.decode(value).state
    except documents.UNDECODABLE as error:
        raise InvalidResource(f"a block affinity is not readable: {error}") from error
    if state == "pending":
        return "pending"
    return "pendingDeletion" if state == "pendingDeletion" else "confirmed"


def encode_affinity(state: AffinityState, stored: bytes = b"") -> bytes:
    document: Document = documents.decode(stored) if stored.strip() else {"state": "", "deleted": False}
    return documents.encode(document | {"state": state})


class Handle(msgspec.Struct, frozen=True):
    """How many addresses each block (CIDR as text) holds under this handle."""

    counts: Mapping[str, int]
    document: Document

    @classmethod
    def empty(cls) -> Handle:
        return cls({}, {"block": {}, "deleted": False})

    @classmethod
    def decode(cls, value: bytes) -> Handle:
        try:
            return cls(_handle.decode(value).block or {}, documents.decode(value))
        except (*documents.UNDECODABLE, InvalidResource) as error:
            raise InvalidResource(f"an IPAM handle is not readable: {error}") from error

    def encode(self) -> bytes:
        counts = self.counts if len(self.counts) == 1 else dict(sorted(self.counts.items()))
        return documents.encode(self.document | {"block": counts})

    def counted(self, cidr: str, count: int) -> Handle:
        return Handle({**self.counts, cidr: count}, self.document)

    def without(self, cidr: str) -> Handle:
        return Handle({block: count for block, count in self.counts.items() if block != cidr}, self.document)


@dataclass(frozen=True, slots=True)
class IpamConfig:
    """``cooldown`` in seconds; ``max_blocks_per_host`` 0 means the default limit."""

    strict_affinity: bool = False
    auto_allocate_blocks: bool = True
    max_blocks_per_host: int = 0
    cooldown: int = 0

    @property
    def block_limit(self) -> int:
        return self.max_blocks_per_host or DEFAULT_BLOCK_LIMIT

    @classmethod
    def decode(cls, value: bytes | None) -> IpamConfig:
        """Of an absent key, the defaults; of a present one, what is missing is false or 0, ``autoAllocate`` too."""
        if value is None:
            return cls()
        try:
            stored = _config.decode(value)
        except documents.UNDECODABLE as error:
            raise InvalidResource(f"the IPAM configuration is not readable: {error}") from error
        return cls(
            stored.strict_affinity,
            stored.auto_allocate_blocks,
            max(stored.max_blocks_per_host, 0),
            max(stored.cooldown, 0),
        )

    def encode(self, stored: bytes | None = None) -> bytes:
        """Raises ``InvalidResource`` for a combination Calico refuses. False and 0 are left out, as Go does."""
        if not self.strict_affinity and not self.auto_allocate_blocks:
            raise InvalidResource("IPAM configuration: strict affinity off needs automatic block allocation on")
        if self.max_blocks_per_host > 0 and not self.strict_affinity:
            raise InvalidResource("IPAM configuration: a limit of blocks per host needs strict affinity on")
        if self.max_blocks_per_host < 0 or self.cooldown < 0:
            raise InvalidResource("IPAM configuration: the block limit and the cooldown cannot be negative")
        fields = {
            "strict_affinity": self.strict_affinity,
            "auto_allocate_blocks": self.auto_allocate_blocks,
            "maxBlocksPerHost": self.max_blocks_per_host,
            "ipCooldownSeconds": self.cooldown,
        }
        document: Document = documents.decode(stored) if stored else {}
        for name, setting in fields.items():
            if setting:
                document[name] = setting
            else:
                document.pop(name, None)
        return documents.encode(document)
