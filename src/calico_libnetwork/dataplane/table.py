"""An nftables table as values: what the rules module wants and what the nftables module writes. Pure.

Everything is text in nft's own syntax, names restricted to ``[A-Za-z0-9_]``, so that two equal objects have equal
text and a difference is a difference of strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from calico_libnetwork.dataplane.delta import Delta


@dataclass(frozen=True, slots=True)
class Chain:
    """``hook`` is a base chain's declaration, ``type filter hook forward priority -1; policy accept;``.

    ``rules`` carry no comment: the nftables module adds one with a hash of the rule, by which it recognises after a
    restart, or after somebody's edit, which rules are ours and unchanged.
    """

    rules: tuple[str, ...]
    hook: str = ""


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A named set or map; ``declaration`` as nft reads it: ``type ipv4_addr; flags interval;``."""

    kind: Literal["set", "map"]
    declaration: str


@dataclass(slots=True)
class Table:
    """Desired and actual content of one table.

    ``elements``: (set name, element text) to the verdict or value in a map (``goto sig_ab12``,
    ``10.0.0.1 . 80``), to ``""`` in a set.
    """

    family: Literal["inet", "arp"]
    name: str
    chains: Delta[str, Chain] = field(default_factory=Delta)
    sets: Delta[str, SetSpec] = field(default_factory=Delta)
    elements: Delta[tuple[str, str], str] = field(default_factory=Delta)

    @property
    def in_sync(self) -> bool:
        return self.chains.in_sync and self.sets.in_sync and self.elements.in_sync
