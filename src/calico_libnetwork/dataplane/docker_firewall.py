"""The one rule of ours in a firewall that is not ours: it lets past what policy has accepted.

Docker makes DROP the policy of FORWARD when it was the one to switch forwarding on, and a packet must be accepted by
every base chain. Our forward chain, which comes first, therefore marks what policy accepts, and one rule accepts that
mark: in DOCKER-USER, whose content Docker keeps, or first in FORWARD where there is no DOCKER-USER. It is made only
where FORWARD drops by default, in whichever of the two backends that is, and stays when the process ends. While dockerd
starts, FORWARD does not lead to DOCKER-USER for a moment; a rule made in FORWARD then goes again, since it accepts
before an administrator's rules in DOCKER-USER are asked.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from calico_libnetwork.dataplane.nft import Nft
from calico_libnetwork.errors import DataplaneError

COMMENT = "calico-libnetwork"
DEFAULT_ACCEPT_MARK = 0x10000
_USER_CHAIN = "DOCKER-USER"
_LEGACY_DROP = re.compile(r"-P FORWARD DROP|-A FORWARD -j (DROP|REJECT)( --reject-with \S+)?")

Family = Literal["ip", "ip6"]
FAMILIES: tuple[Family, ...] = ("ip", "ip6")


@dataclass(frozen=True, slots=True)
class _Place:
    needed: bool
    chain: str
    present: bool
    stray: bool = False
    """Whether FORWARD has the rule too."""


class DockerFirewall:
    def __init__(self, nft: Nft, *, accept_mark: int = DEFAULT_ACCEPT_MARK) -> None:
        self._nft = nft
        self._mark = f"{accept_mark:#x}/{accept_mark:#x}"
        self._nft_match = f"meta mark & {accept_mark:#010x} == {accept_mark:#010x}"

    async def ensure(self) -> list[str]:
        """Where the rule had to be inserted just now, as ``ip filter DOCKER-USER``. Cheap enough for any event."""
        inserted = []
        for family in FAMILIES:
            place = await self._look(family)
            if place.needed and not place.present:
                rule = f'{self._nft_match} counter accept comment "{COMMENT}"'
                await self._nft.run(f"insert rule {family} filter {place.chain} {rule}\n")
                inserted.append(f"{family} filter {place.chain}")
            if place.stray:
                await self._delete(family, "FORWARD")
            legacy = await asyncio.to_thread(_legacy_look, family, self._mark)
            if legacy.needed and not legacy.present:
                await asyncio.to_thread(_legacy, family, "-I", legacy.chain, *_legacy_rule(self._mark))
                inserted.append(f"{family} filter {legacy.chain} (iptables-legacy)")
            if legacy.stray:
                await self._delete_legacy(family, "FORWARD")
        return inserted

    async def remove(self) -> None:
        """For uninstalling."""
        for family in FAMILIES:
            for chain in ("FORWARD", _USER_CHAIN):
                await self._delete(family, chain)
                await self._delete_legacy(family, chain)

    async def _delete(self, family: Family, chain: str) -> None:
        objects = await self._nft.list("chain", family, "filter", chain) or []
        for rule in filter(_is_ours, _rules(objects)):
            await self._nft.run(f"delete rule {family} filter {chain} handle {rule['handle']}\n")

    async def _delete_legacy(self, family: Family, chain: str) -> None:
        if await asyncio.to_thread(_legacy_has, family, chain, self._mark):
            await asyncio.to_thread(_legacy, family, "-D", chain, *_legacy_rule(self._mark))

    async def obstacles(self) -> list[str]:
        """Other firewalls that may drop what policy accepts, each with the command that opens them."""
        found = []
        if await self._nft.list("table", "inet", "firewalld") is not None:
            found.append(
                "firewalld drops forwarded packets of unknown interfaces: "
                "firewall-cmd --permanent --zone=trusted --add-interface=cali+ && firewall-cmd --reload"
            )
        if await self._nft.list("chain", "ip", "filter", "ufw-user-forward") is not None:
            found.append("ufw may drop forwarded packets: ufw route allow in on cali+ && ufw route allow out on cali+")
        return found

    async def dropping(self, family: Family) -> str | None:
        """The chain of nftables for rules that are to come before Docker's drop of what nobody accepts, if it drops."""
        place = await self._look(family)
        return place.chain if place.needed else None

    async def _look(self, family: Family) -> _Place:
        forward = await self._nft.list("chain", family, "filter", "FORWARD")
        if forward is None or not (_drops_by_policy(forward) or any(map(_drops_everything, _rules(forward)))):
            return _Place(needed=False, chain="", present=False)
        chain = _USER_CHAIN if any(_jumps_to(rule, _USER_CHAIN) for rule in _rules(forward)) else "FORWARD"
        in_forward = any(map(_is_ours, _rules(forward)))
        if chain == "FORWARD":
            return _Place(needed=True, chain=chain, present=in_forward)
        objects = await self._nft.list("chain", family, "filter", chain) or []
        return _Place(needed=True, chain=chain, present=any(map(_is_ours, _rules(objects))), stray=in_forward)


def _rules(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (entry["rule"] for entry in objects if "rule" in entry)


def _is_ours(rule: dict[str, Any]) -> bool:
    return rule.get("comment") == COMMENT


def _drops_by_policy(objects: list[dict[str, Any]]) -> bool:
    return any(entry["chain"].get("policy") == "drop" for entry in objects if "chain" in entry)


def _drops_everything(rule: dict[str, Any]) -> bool:
    verdicts = [expression for expression in rule["expr"] if "counter" not in expression]
    if len(verdicts) != 1:
        return False
    (kind, body), *_ = verdicts[0].items()
    return kind in ("drop", "reject") or (kind == "xt" and body.get("name") == "REJECT")


def _jumps_to(rule: dict[str, Any], chain: str) -> bool:
    return any(expression.get("jump", {}).get("target") == chain for expression in rule["expr"] if "jump" in expression)


def _legacy_look(family: Family, mark: str) -> _Place:
    nowhere = _Place(needed=False, chain="", present=False)
    if not _legacy_filter_exists(family):
        return nowhere
    forward = _legacy(family, "-S", "FORWARD").splitlines()
    if not any(_LEGACY_DROP.fullmatch(line) for line in forward):
        return nowhere
    chain = _USER_CHAIN if f"-A FORWARD -j {_USER_CHAIN}" in forward else "FORWARD"
    present = _legacy_has(family, chain, mark)
    stray = chain != "FORWARD" and _legacy_has(family, "FORWARD", mark)
    return _Place(needed=True, chain=chain, present=present, stray=stray)


def _legacy_filter_exists(family: Family) -> bool:
    """Asking iptables-legacy itself would make the table."""
    names = Path(f"/proc/thread-self/net/{family}_tables_names")
    return names.exists() and "filter" in names.read_text(encoding="ascii").split()


def _legacy_has(family: Family, chain: str, mark: str) -> bool:
    if not _legacy_filter_exists(family):
        return False
    return _run_legacy(family, "-C", chain, *_legacy_rule(mark)).returncode == 0


def _legacy_rule(mark: str) -> tuple[str, ...]:
    return ("-m", "mark", "--mark", mark, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT")


def _legacy(family: Family, *arguments: str) -> str:
    done = _run_legacy(family, *arguments)
    if done.returncode != 0:
        raise DataplaneError(f"iptables-legacy {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _run_legacy(family: Family, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = "iptables-legacy" if family == "ip" else "ip6tables-legacy"
    try:
        return subprocess.run([command, "-w", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DataplaneError(f"{command} is missing, but its tables drop packets; install iptables") from error
