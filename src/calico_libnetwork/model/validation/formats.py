"""The texts and numbers in Calico's fields: names, addresses, ports, durations, selectors."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import selector
from calico_libnetwork.model.names import is_label_key, is_label_value, is_resource_name
from calico_libnetwork.model.validation.fields import Checked, Text, TextMap
from calico_libnetwork.model.validation.problems import Report

Network = IPv4Network | IPv6Network

NAME_RULE = "a lower-case DNS name: letters, digits, - and ., at most 253 characters"
NAME = Text(NAME_RULE, is_resource_name)


def matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


INTERFACE = Text("an interface name of 1 to 15 letters, digits, _, . or -, or *", matches(r"\*|[a-zA-Z0-9_.-]{1,15}"))
INTERFACE_PATTERN = Text(
    "an interface name of 1 to 15 characters, in which * stands for any text", matches(r"[a-zA-Z0-9_.*-]{1,15}")
)
INTERFACE_FILTER = Text(
    "an interface name of 1 to 15 characters, + at its end for any ending", matches(r"[a-zA-Z0-9:._+-]{1,15}")
)
CONTAINER_ID = Text("letters, digits and -", matches(r"[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?"))
MAC = Text(
    "a MAC address such as ee:ee:ee:ee:ee:ee",
    matches(r"(?i)[0-9a-f]{2}([:-])[0-9a-f]{2}(\1[0-9a-f]{2}){4}((\1[0-9a-f]{2}){2})?|([0-9a-f]{4}\.){2}[0-9a-f]{4}"),
)
COMMUNITY = Text(
    "a BGP community, number:number of 16 bits each or number:number:number of 32 bits each",
    lambda text: is_community(text),
)


def is_community(text: str) -> bool:
    parts = text.split(":")
    limit = {2: 0xFFFF, 3: 0xFFFFFFFF}.get(len(parts), -1)
    return all(part.isascii() and part.isdecimal() and int(part) <= limit for part in parts)


def is_port_name(text: str) -> bool:
    """Kubernetes' rule: at most 15 of a-z, 0-9 and single dashes inside, one letter at least."""
    return len(text) <= 15 and re.fullmatch(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*", text) is not None


PORT_NAME = Text("a port name: at most 15 of a-z, 0-9 and -, with a letter in it", is_port_name)


def network(text: str, *, strict: bool = True) -> Network | None:
    """A CIDR, or an address as a network of one; None if it is neither, or has host bits and ``strict``."""
    try:
        return ipaddress.ip_network(text, strict=strict)
    except ValueError:
        return None


def is_address(text: str, version: int | None = None) -> bool:
    try:
        return version in (None, ipaddress.ip_address(text).version)
    except ValueError:
        return False


def _network_text(version: int | None, *, strict: bool) -> Text:
    family = f"IPv{version} " if version else ""
    article = "an" if family else "a"
    example = "fd00::/64" if version == 6 else "10.0.0.0/24"

    def check(text: str) -> bool:
        found = network(text, strict=strict)
        return found is not None and version in (None, found.version)

    bits = " without host bits" if strict else ""
    return Text(f"{article} {family}address or CIDR{bits}, such as {example}", check)


NETWORK = _network_text(None, strict=True)
NETWORK_4 = _network_text(4, strict=True)
NETWORK_6 = _network_text(6, strict=True)
CIDR = _network_text(None, strict=False)
CIDR_OR_NOTHING = Text(CIDR.allowed, lambda text: not text or CIDR.check(text))
CIDR_4 = _network_text(4, strict=False)
CIDR_6 = _network_text(6, strict=False)
RULE_NETWORK = Text(
    "a CIDR without host bits, such as 10.0.0.0/24", lambda text: "/" in text and network(text) is not None
)
ADDRESS = Text("an IP address", is_address)
ADDRESS_4 = Text("an IPv4 address", lambda text: is_address(text, 4))
ADDRESS_6 = Text("an IPv6 address", lambda text: is_address(text, 6))


def split_peer_address(text: str) -> tuple[str, int | None] | None:
    """Address and port of ``192.0.2.1``, ``192.0.2.1:1790``, ``fd00::1`` or ``[fd00::1]:1790``; None for all else."""
    match = re.fullmatch(r"\[([^]]*)]:([0-9]+)|([0-9.]+):([0-9]+)", text)
    if match is None:
        return (text, None) if is_address(text) else None
    address, port = match[1] or match[3], int(match[2] or match[4])
    version = 6 if match[1] else 4
    return (address, port) if is_address(address, version) and 0 < port < 65536 else None


PEER_ADDRESS = Text(
    "an IP address, with a port as 192.0.2.1:179 or [fd00::1]:179",
    lambda text: split_peer_address(text) is not None,
)


def _selector(text: str, *, allow_global: bool = False) -> None:
    try:
        parsed = selector.parse(text)
    except InvalidResource as error:
        raise ValueError(str(error).removeprefix(f"selector {text!r} ")) from error
    if parsed.mentions_global and not (allow_global and parsed.is_global):
        raise ValueError("may not use global(): it stands alone, and only in a rule's namespaceSelector")


SELECTOR = Checked(_selector)
RULE_NAMESPACE_SELECTOR = Checked(lambda text: _selector(text, allow_global=True))


def _expression(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error


REGULAR_EXPRESSION = Checked(_expression)


def label_key_problem(key: str) -> str | None:
    if is_label_key(key):
        return None
    return (
        "is no label key: a name of at most 63 letters, digits, -, _ and ., with a DNS name and / before it if wanted"
    )


def label_value_problem(value: str) -> str | None:
    if is_label_value(value):
        return None
    return f"must be at most 63 letters, digits, -, _ and ., a letter or digit at both ends, not {value!r}"


LABELS = TextMap(label_key_problem, label_value_problem)
ANNOTATIONS = TextMap(lambda key: label_key_problem(key.lower()))


@dataclass(frozen=True)
class Port:
    """A number, a range ``"80:90"`` or the name of an endpoint's port."""

    named: bool = True

    @property
    def expected(self) -> str:
        return "a port from 1 to 65535, a range such as 80:90" + " or a port's name" * self.named

    def accepts(self, value: object) -> bool:
        return isinstance(value, int | str) and not isinstance(value, bool)

    def read(self, value: int | str, path: str, report: Report) -> int | str:
        bounds = re.fullmatch(r"([0-9]+)(?::([0-9]+))?", str(value))
        if bounds is None:
            if not (self.named and is_port_name(str(value))):
                report(path, f"must be {self.expected}, not {value!r}")
            return value
        low, high = int(bounds[1]), int(bounds[2] or bounds[1])
        if not 1 <= low <= high <= 65535:
            report(path, f"must be {self.expected}, the smaller number first, not {value!r}")
        return low if low == high else f"{low}:{high}"


PROTOCOLS = ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")
PROTOCOLS_WITH_PORTS = ("TCP", "UDP", "SCTP", 6, 17, 132)


@dataclass(frozen=True)
class ProtocolOf:
    allowed: tuple[str, ...] = PROTOCOLS

    @property
    def expected(self) -> str:
        return f"a protocol number from 1 to 255, or {', '.join(self.allowed[:-1])} or {self.allowed[-1]}"

    def accepts(self, value: object) -> bool:
        return isinstance(value, int | str) and not isinstance(value, bool)

    def read(self, value: int | str, path: str, report: Report) -> int | str:
        number = int(value) if str(value).isascii() and str(value).isdecimal() else value
        if not (0 < number < 256 if isinstance(number, int) else number in self.allowed):
            report(path, f"must be {self.expected}, not {value!r}")
        return value


PROTOCOL = ProtocolOf()


@dataclass(frozen=True)
class ASNumber:
    expected: str = "an AS number from 0 to 4294967295, or two of 16 bits as 64512.1"

    def accepts(self, value: object) -> bool:
        return isinstance(value, int | str) and not isinstance(value, bool)

    def read(self, value: int | str, path: str, report: Report) -> int | str:
        parts = str(value).split(".")
        numbers = [int(part) for part in parts if part.isascii() and part.isdecimal()]
        limit = {1: 0xFFFFFFFF, 2: 0xFFFF}.get(len(parts), -1)
        if len(numbers) != len(parts) or any(number > limit for number in numbers):
            report(path, f"must be {self.expected}, not {value!r}")
            return value
        return numbers[0] if len(numbers) == 1 else numbers[0] << 16 | numbers[1]


_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str) -> int | None:
    """Nanoseconds of a Go duration such as ``1m30s``; None if it is none."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, position = 0, 0
    while position < len(rest) and (part := _DURATION.match(rest, position)):
        whole, _, fraction = part[1].partition(".")
        unit = _UNITS[part[2]]
        total += int(whole or 0) * unit
        total += int(fraction or 0) * unit // 10 ** len(fraction)
        position = part.end()
    return sign * total if rest and position == len(rest) else None


def format_duration(nanoseconds: int) -> str:
    """As Go prints it: ``1m30s``, ``1.5s``, ``100ms``, ``0s``."""
    sign, rest = "-" * (nanoseconds < 0), abs(nanoseconds)
    if rest == 0:
        return "0s"
    for unit in ("ns", "µs", "ms"):
        if rest < _UNITS[unit] * 1000:
            return f"{sign}{_decimal(rest, _UNITS[unit])}{unit}"
    minutes, rest = divmod(rest, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" * (hours > 0) + f"{minutes}m" * (hours > 0 or minutes > 0)
    return f"{sign}{text}{_decimal(rest, _UNITS['s'])}s"


def _decimal(value: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    digits = str(fraction).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


DURATION = Text(
    "a duration such as 90s or 1m30s",
    lambda text: parse_duration(text) is not None,
    stored=lambda text: format_duration(parse_duration(text) or 0),
)
