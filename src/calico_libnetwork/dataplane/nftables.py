"""The writer of one nftables table: what differs between wanted and actual, in one transaction.

What is new and not yet referred to is made in a transaction before it, so that no packet finds it half made.

Every rule and set we make carries a comment, the hash of the text it was made from, so that a restarted process, or
one looking after somebody else's edit, recognises what is right and rewrites only the rest. A refused transaction
changes nothing; then the kernel is read and the difference tried once more, and then the whole table is replaced, in
one transaction too. There is never a moment with less than a complete table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import structlog

from calico_libnetwork.dataplane.nft import Nft, Program
from calico_libnetwork.dataplane.nft_elements import split
from calico_libnetwork.dataplane.nft_listing import TableListing, canonical, hook_text, parse_listing, set_mark
from calico_libnetwork.dataplane.nft_program import (
    Element,
    Plan,
    addition,
    difference,
    preparation,
    render,
    replacement,
)
from calico_libnetwork.dataplane.table import Chain, SetSpec, Table
from calico_libnetwork.errors import DataplaneError

_log = structlog.get_logger(__name__)


class TableWriter:
    """``stale`` asks the next ``apply`` to read first; a new writer knows nothing of the kernel."""

    def __init__(self, nft: Nft, table: Table) -> None:
        self._nft = nft
        self.table = table
        self.stale = True

    @property
    def _name(self) -> str:
        return f"{self.table.family} {self.table.name}"

    async def read(self) -> None:
        """Takes the kernel's content as actual, in the words of what is wanted where the two agree."""
        self.stale = False
        listing = parse_listing(await self._nft.list("table", self.table.family, self.table.name) or [])
        table = self.table
        table.sets.observe_exactly(dict(_read_sets(listing, table.sets.desired)))
        table.chains.observe_exactly(dict(_read_chains(listing, table.chains.desired)))
        table.elements.observe_exactly(dict(_read_elements(listing, table.elements.desired)))

    async def apply(self) -> bool:
        """Whether anything had to be written. Raises DataplaneError after three attempts; the old table stays."""
        if self.stale:
            await self.read()
        if self.table.in_sync:
            return False
        try:
            await self._write_difference()
        except DataplaneError as error:
            _log.warning("nft refused a change, reading the table back", table=self._name, error=str(error))
            await self._apply_after_refusal()
        return True

    async def ensure_closed(self) -> bool:
        """Adds what is missing of the skeleton that ``table`` holds now, and removes nothing.

        For the start, when the endpoints are not known yet: what an earlier process allowed stays allowed. Where the
        skeleton cannot be fitted into that process's table, the table stays as it is. The next ``apply`` reads again,
        since only what is wanted by then can be recognised.
        """
        await self.read()
        self.stale = True
        plan = addition(self.table)
        if not plan:
            return False
        try:
            await self._write(plan)
        except DataplaneError as error:
            if not self.table.chains.actual:
                raise
            _log.warning("keeping the table of an earlier process until in sync", table=self._name, error=str(error))
            return False
        return True

    async def delete(self) -> None:
        """For uninstalling: the table goes, if it is there."""
        await self._nft.run(f"add table {self._name}\ndelete table {self._name}\n")
        self.stale = True

    async def _apply_after_refusal(self) -> None:
        await self.read()
        try:
            await self._write_difference()
        except DataplaneError as error:
            _log.warning("nft refused again, replacing the table", table=self._name, error=str(error))
            await self._write(replacement(self.table))

    def take(self, plan: Plan) -> list[Program]:
        """The plan's transactions, with the table as it will be: who fails to run them has to ``read``."""
        messages, rest = split(self.table, plan)
        programs: list[Program] = [render(self.table, rest)] if rest else []
        if messages:
            programs.append(messages)
        plan.settle(self.table)
        return programs

    async def _write_difference(self) -> None:
        programs = [*self.take(preparation(self.table)), *self.take(difference(self.table))]
        try:
            await self._nft.run(*programs)
        except DataplaneError as error:
            raise DataplaneError(f"table {self._name}: {error}") from error

    async def _write(self, plan: Plan) -> None:
        if not plan:
            return
        try:
            await self._nft.run(render(self.table, plan))
        except DataplaneError as error:
            raise DataplaneError(f"table {self._name}: {error}") from error
        plan.settle(self.table)


async def apply_together(nft: Nft, writers: Sequence[TableWriter]) -> None:
    """``apply`` of each, in one visit to the kernel as long as nothing is refused."""
    for writer in writers:
        if writer.stale:
            await writer.read()
    prepared = [program for writer in writers for program in writer.take(preparation(writer.table))]
    changed = [program for writer in writers for program in writer.take(difference(writer.table))]
    try:
        await nft.run(*prepared, *_joined(changed))
    except DataplaneError as error:
        _log.warning("nft refused a change, taking the tables one by one", error=str(error))
        for writer in writers:
            await writer.read()
            await writer.apply()


def _joined(programs: Sequence[Program]) -> Iterator[Program]:
    """As few transactions as can be; of a table's own, the text comes before the elements."""
    text = "".join(program for program in programs if isinstance(program, str))
    messages = [message for program in programs if not isinstance(program, str) for message in program]
    yield from filter(None, (text, messages))


def _read_sets(listing: TableListing, desired: Mapping[str, SetSpec]) -> Iterator[tuple[str, SetSpec]]:
    for name, (kind, comment) in listing.sets.items():
        wanted = desired.get(name)
        yield name, wanted if wanted is not None and set_mark(wanted) == comment else SetSpec(kind, "")


def _read_chains(listing: TableListing, desired: Mapping[str, Chain]) -> Iterator[tuple[str, Chain]]:
    """A chain that differs in any rule is a chain of unknown rules, which equals none that is wanted."""
    for name, found in listing.chains.items():
        wanted = desired.get(name)
        if wanted is not None and found.holds(wanted):
            yield name, wanted
        else:
            yield name, Chain(("", *found.marks), hook_text(found.hook))


def _read_elements(listing: TableListing, desired: Mapping[Element, str]) -> Iterator[tuple[Element, str]]:
    wanted = {(name, canonical(text)): text for name, text in desired if listing.elements.get(name)}
    for name, elements in listing.elements.items():
        for text, verdict in elements.items():
            yield (name, wanted.get((name, text), text)), verdict
