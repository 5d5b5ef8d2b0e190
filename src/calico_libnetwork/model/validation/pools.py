"""What one pool may not do beside others, and not change once it exists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.validation import formats


def pools_in_the_way(
    pool: Document, stored: Document | None, others: Iterable[tuple[str, str]], blocks: Iterable[str]
) -> Iterator[str]:
    """Why a valid ``pool`` cannot be stored: clauses, none if it can.

    ``stored`` is what it replaces, ``others`` are name and CIDR of the other pools, ``blocks`` the CIDRs of all blocks.
    """
    spec, old = pool["spec"], (stored or {}).get("spec") or {}
    cidr = formats.network(spec["cidr"])
    if cidr is None:
        return
    if stored is not None:
        size = old.get("blockSize") or (26 if cidr.version == 4 else 122)
        if formats.network(str(old.get("cidr"))) != cidr:
            yield f"spec.cidr cannot change, it is {old.get('cidr')}: create another pool"
        if size != spec["blockSize"]:
            yield f"spec.blockSize cannot change, it is {size}: create another pool"
        return
    for name, text in others:
        other = formats.network(text)
        if other is not None and other.version == cidr.version and cidr.overlaps(other):
            yield f"spec.cidr {cidr} overlaps {other} of IPPool({name})"
    sizes = {size for text in blocks if (size := _foreign_size(text, cidr, spec["blockSize"])) is not None}
    for size in sorted(sizes):
        yield f"spec.blockSize must be {size}, for blocks of that size are in use inside {cidr}"


def _foreign_size(text: str, pool: formats.Network, wanted: int) -> int | None:
    block = formats.network(text)
    if block is None or block.version != pool.version or block.prefixlen == wanted:
        return None
    return block.prefixlen if pool.overlaps(block) else None
