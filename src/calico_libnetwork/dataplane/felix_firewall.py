"""Felix's rules and Docker's, where they are in a container's way.

Beside Felix nothing of a firewall is ours to change, and where Felix has ended its rules are not ours to remove: what
is wrong is said, with the command that puts it right.
"""

from __future__ import annotations

from typing import Any

from calico_libnetwork.dataplane.docker_firewall import FAMILIES, DockerFirewall, Family
from calico_libnetwork.dataplane.nft import Nft

_IPTABLES: dict[Family, str] = {"ip": "iptables", "ip6": "ip6tables"}
_DIRECTIONS = {"iifname": "-i", "oifname": "-o"}


async def leftovers(nft: Nft) -> list[str]:
    """Rules of a Felix that ended: they are frozen, and drop what an interface sends that they do not know."""
    found = []
    for family in FAMILIES:
        if await _in_tables(nft, family):
            found.append(_remains(f"table {family} calico", f"nft delete table {family} calico"))
        if await nft.list("chain", family, "filter", "cali-FORWARD") is not None:
            command = _IPTABLES[family]
            found.append(_remains(f"chains of {command}", f"{command}-save | grep -v 'cali[-:]' | {command}-restore"))
    return found


async def unaccepted(nft: Nft, firewall: DockerFirewall) -> list[str]:
    """Docker's FORWARD where it drops what a Felix in nftables mode accepts: each base chain must accept a packet.

    In iptables mode Felix is in FORWARD itself and comes first.
    """
    found = []
    for family in FAMILIES:
        if not await _in_tables(nft, family) or (chain := await firewall.dropping(family)) is None:
            continue
        rules = await nft.list("chain", family, "filter", chain) or []
        missing = [option for key, option in _DIRECTIONS.items() if not any(_accepts(entry, key) for entry in rules)]
        if missing:
            commands = (f"{_IPTABLES[family]} -I {chain} {option} cali+ -j ACCEPT" for option in missing)
            found.append(f"Docker's firewall drops what Felix accepts in nftables mode: {' && '.join(commands)}")
    return found


async def _in_tables(nft: Nft, family: Family) -> bool:
    return await nft.list("chain", family, "calico", "filter-FORWARD") is not None


def _remains(what: str, command: str) -> str:
    return (
        f"{what} of a Felix that does not run drop what new containers send: start calico/node again,"
        f" or remove them: {command}"
    )


def _accepts(entry: dict[str, Any], key: str) -> bool:
    expressions = [each for each in entry.get("rule", {}).get("expr", []) if "counter" not in each]
    return len(expressions) == 2 and _matches(expressions[0], key) and "accept" in expressions[1]


def _matches(expression: dict[str, Any], key: str) -> bool:
    match: dict[str, object] = expression.get("match", {})
    return match.get("left") == {"meta": {"key": key}} and match.get("right") == "cali*"
