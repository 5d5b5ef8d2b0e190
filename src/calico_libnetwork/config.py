"""Every setting once: its key, its variables, what it may be and its default.

Sources in rising order: ``/etc/calico-libnetwork/config.toml``, the environment, flags. Where none of them names an
etcd, Calico's own ``/etc/calico/calicoctl.cfg`` says where the datastore is, as a whole or not at all. A wrong value
stops the start with one sentence that names the key, the value and what is allowed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from calico_libnetwork import calicoctl_file as calicoctl
from calico_libnetwork.errors import ConfigError

CONFIG_FILE = Path("/etc/calico-libnetwork/config.toml")
NODENAME_FILE = Path("/var/lib/calico/nodename")

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_INTERFACE_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,12}")
_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Read = Callable[[str], Any]


def _one_of(*values: str) -> tuple[Read, str]:
    def read(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return read, f"one of {', '.join(values)}"


def _boolean(text: str) -> bool:
    """Go's ``ParseBool``, in any case, with yes and no."""
    lowered = text.lower()
    if lowered in {"1", "t", "true", "yes"}:
        return True
    if lowered in {"0", "f", "false", "no"}:
        return False
    raise ValueError


def parse_duration(text: str) -> float:
    """Seconds of a Go duration: ``5s``, ``1m30s``, ``100ms``, ``0``."""
    if text == "0":
        return 0.0
    total, position = 0.0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            raise ValueError
        total, position = total + float(part[1]) * _SECONDS[part[2]], part.end()
    if position != len(text) or not text:
        raise ValueError
    return total


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _urls(text: str) -> tuple[str, ...]:
    urls = _list(text)
    if not all(re.fullmatch(r"https?://[^/\s]+/?", url) for url in urls):
        raise ValueError
    return tuple(url.rstrip("/") for url in urls)


def _network(version: int) -> tuple[Read, str]:
    return (
        (lambda text: ipaddress.IPv4Network(text) if version == 4 else ipaddress.IPv6Network(text)),
        f"an IPv{version} CIDR without host bits",
    )


def _node_address(version: int) -> tuple[Read, str]:
    def read(text: str) -> str:
        if text not in {"autodetect", "none", ""}:
            interface = ipaddress.IPv4Interface(text) if version == 4 else ipaddress.IPv6Interface(text)
            return str(interface) if "/" in text else text
        return "" if text == "autodetect" else text

    return read, f"an IPv{version} address, with or without prefix length, autodetect or none"


def _autodetection(version: int) -> tuple[Read, str]:
    """As calico/node has them."""

    def read(text: str) -> str:
        kind, _, listed = text.partition("=")
        values = [value.strip() for value in listed.split(",")]
        allowed = text == "first-found" or (
            kind == "cidr" and all(ipaddress.ip_network(value, strict=False).version == version for value in values)
        )
        allowed |= kind in {"interface", "skip-interface"} and all(map(_is_expression, values))
        if not allowed and not (kind == "can-reach" and re.fullmatch(r"\S+", listed)):
            raise ValueError
        return text

    return read, "first-found, can-reach=HOST, interface=REGEX,…, skip-interface=REGEX,… or cidr=CIDR,…"


def _is_expression(text: str) -> bool:
    try:
        return bool(text and re.compile(text))
    except re.error:
        return False


def _matching(pattern: re.Pattern[str]) -> Read:
    def read(text: str) -> str:
        if pattern.fullmatch(text) is None:
            raise ValueError
        return text

    return read


def _mtu(text: str) -> int:
    value = int(text)
    if not 68 <= value <= 65535:
        raise ValueError
    return value


def _node_name(text: str) -> str:
    name = text.strip()
    if len(name) > 166 or _NODE_NAME.fullmatch(name) is None:
        raise ValueError
    return name


@dataclass(frozen=True)
class _Setting:
    """Metadata of a field; the first variable that is set wins."""

    variables: tuple[str, ...]
    read: Read
    allowed: str


def _setting(default: Any, variables: str, read: Read, allowed: str) -> Any:
    return field(default=default, metadata={"setting": _Setting(tuple(variables.split()), read, allowed)})


def _etcd(name: str, read: Read = str, allowed: str = "a path", default: Any = "") -> Any:
    return _setting(default, f"CALICO_ETCD_{name} ETCD_{name}", read, allowed)


def _own(default: Any, name: str, read: Read, allowed: str) -> Any:
    return _setting(default, f"CALICO_LIBNETWORK_{name}", read, allowed)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A key is the field's name in the file, with dashes as a flag, and one of its variables in the environment."""

    datastore_type: str = _setting("", "CALICO_DATASTORE_TYPE DATASTORE_TYPE", *_one_of("embedded", "etcdv3"))
    etcd_endpoints: tuple[str, ...] = _etcd("ENDPOINTS", _urls, "a comma list of http:// or https:// URLs", ())
    etcd_ca_cert_file: str = _etcd("CA_CERT_FILE")
    etcd_cert_file: str = _etcd("CERT_FILE")
    etcd_key_file: str = _etcd("KEY_FILE")
    etcd_username: str = _etcd("USERNAME", allowed="a user name")
    etcd_password: str = _etcd("PASSWORD", allowed="a password")
    etcd_authority: str = _etcd("AUTHORITY", _matching(re.compile(r"[^/\s]+:\d+")), "host:port")
    etcd_scheme: str = _etcd("SCHEME", *_one_of("http", "https"), default="http")
    nodename: str = _setting("", "NODENAME", _node_name, "a lower-case DNS name of at most 166 characters")
    ip: str = _setting("", "IP", *_node_address(4))
    ip6: str = _setting("", "IP6", *_node_address(6))
    ip_autodetection_method: str = _setting("first-found", "IP_AUTODETECTION_METHOD", *_autodetection(4))
    ip6_autodetection_method: str = _setting("first-found", "IP6_AUTODETECTION_METHOD", *_autodetection(6))
    ipv4pool_cidr: ipaddress.IPv4Network | None = _setting(None, "CALICO_IPV4POOL_CIDR", *_network(4))
    ipv6pool_cidr: ipaddress.IPv6Network | None = _setting(None, "CALICO_IPV6POOL_CIDR", *_network(6))
    no_default_pools: bool = _setting(False, "NO_DEFAULT_POOLS", _boolean, "true or false")
    interface_prefix: str = _own("cali", "IFPREFIX", _matching(_INTERFACE_PREFIX), "1 to 12 letters, digits, - or _")
    create_profiles: bool = _own(True, "CREATE_PROFILES", _boolean, "true or false")
    label_endpoints: bool = _own(False, "LABEL_ENDPOINTS", _boolean, "true or false")
    label_poll_timeout: float = _own(5.0, "LABEL_POLL_TIMEOUT", parse_duration, "a duration such as 5s or 1m30s")
    veth_mtu: int | None = _own(None, "VETH_MTU", _mtu, "a number from 68 to 65535")
    scope: str = _own("auto", "SCOPE", *_one_of("auto", "global", "local"))
    dataplane: str = _own("auto", "DATAPLANE", *_one_of("auto", "builtin", "felix"))
    routes: str = _own("auto", "ROUTES", *_one_of("auto", "direct", "bird", "none"))
    cluster_networks: bool = _own(True, "CLUSTER_NETWORKS", _boolean, "true or false")
    docker_host: str = _setting(
        "unix:///var/run/docker.sock", "DOCKER_HOST", _matching(re.compile(r"unix:///.+")), "unix:///path"
    )
    debug: bool = _setting(False, "CALICO_DEBUG", bool, "any text")
    plugin_directory: Path = _own(Path("/run/docker/plugins"), "PLUGIN_DIRECTORY", Path, "a directory")
    state_directory: Path = _own(Path("/var/lib/calico-libnetwork"), "STATE_DIRECTORY", Path, "a directory")
    run_directory: Path = _own(Path("/run/calico-libnetwork"), "RUN_DIRECTORY", Path, "a directory")


def load(
    *,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path = CONFIG_FILE,
    calicoctl_file: Path = calicoctl.FILE,
    nodename_file: Path = NODENAME_FILE,
    hostname: str | None = None,
) -> Config:
    """The configuration, complete: node name and datastore type decided. Raises ``ConfigError``."""
    environment = os.environ if environment is None else environment
    values = _from_file(file) | _from_environment(environment) | _from_flags(flags or {})
    if values.get("datastore_type") != "embedded" and not any(name.startswith("etcd_") for name in values):
        values = _from_calicoctl_file(calicoctl_file, overridden=values) | values
    config = Config(**values)
    if not config.etcd_endpoints and config.etcd_authority:
        values["etcd_endpoints"] = (f"{config.etcd_scheme}://{config.etcd_authority}",)
    if not config.datastore_type:
        values["datastore_type"] = "etcdv3" if values.get("etcd_endpoints") else "embedded"
    if values["datastore_type"] == "etcdv3" and not values.get("etcd_endpoints"):
        values["etcd_endpoints"] = ("http://127.0.0.1:2379",)
    if not config.nodename:
        values["nodename"] = _default_node_name(environment, nodename_file, hostname or os.uname().nodename)
    return Config(**values)


def deprecation(config: Config, environment: Mapping[str, str] | None = None) -> str:
    """What is set in a way of old, and what to set in its place; "" if nothing is."""
    environment = os.environ if environment is None else environment
    names = []
    for name in ("etcd_authority", "etcd_scheme"):
        set_there = [variable for variable in _settings()[name].variables if environment.get(variable)]
        if set_there or getattr(config, name) != getattr(Config, name):
            names.append((set_there or [name])[0])
    if not names:
        return ""
    endpoint = f"{config.etcd_scheme}://{config.etcd_authority}"
    said = " and ".join(names) + (" is" if len(names) == 1 else " are")
    if config.etcd_endpoints == (endpoint,):
        return f"{said} deprecated; set ETCD_ENDPOINTS={endpoint} instead"
    return f"{said} deprecated and of no effect here; remove it"


def setting_names() -> list[str]:
    return [entry.name for entry in fields(Config)]


def describe(name: str) -> tuple[tuple[str, ...], str]:
    """The variables of a setting and what it may be, for ``--help``."""
    setting = _settings()[name]
    return setting.variables, setting.allowed


def _settings() -> dict[str, _Setting]:
    return {entry.name: cast("_Setting", entry.metadata["setting"]) for entry in fields(Config)}


def _read(source: str, name: str, text: str) -> Any:
    setting = _settings()[name]
    if name == "datastore_type" and text == "kubernetes":
        raise ConfigError(
            f'{source} is "kubernetes", which needs a Kubernetes API: this is Calico without Kubernetes;'
            f" set DATASTORE_TYPE to {setting.allowed}"
        )
    try:
        return setting.read(text)
    except ValueError as error:
        shown = "(not shown)" if "password" in name else f'"{text}"'
        raise ConfigError(f"{source} is {shown}; allowed: {setting.allowed}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name, setting in _settings().items():
        for variable in setting.variables:
            if environment.get(variable, "") != "":
                values[name] = _read(variable, name, environment[variable])
                break
    return values


def _from_flags(flags: Mapping[str, str]) -> dict[str, Any]:
    return {name: _read(f"--{name.replace('_', '-')}", name, text) for name, text in flags.items()}


def _from_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); make it readable or remove it") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    values = {}
    for name, value in table.items():
        if name not in _settings():
            raise ConfigError(f"{file}: unknown key {name}; known are {', '.join(setting_names())}")
        values[name] = _read(f"{file}: {name}", name, _as_text(value))
    return values


def _from_calicoctl_file(file: Path, *, overridden: Mapping[str, Any]) -> dict[str, Any]:
    """What ``overridden`` says already is not even looked at: calicoctl may well be set up for Kubernetes."""
    found = calicoctl.read(file) or {}
    return {name: _read(f"{file}: {name}", name, text) for name, text in found.items() if name not in overridden}


def _as_text(value: object) -> str:
    """TOML's types as the text the readers take."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return str(value)


def _default_node_name(environment: Mapping[str, str], nodename_file: Path, hostname: str) -> str:
    candidates = [
        ("HOSTNAME", environment.get("HOSTNAME", "").lower()),
        ("the host name", hostname.lower()),
    ]
    with contextlib.suppress(OSError):  # absent where no calico/node has ever run
        candidates.insert(0, (str(nodename_file), nodename_file.read_text()))
    source, text = next(((source, text) for source, text in candidates if text.strip()), ("the host name", ""))
    try:
        return _node_name(text)
    except ValueError as error:
        raise ConfigError(
            f'{source} is "{text.strip()}", which is no Calico node name; set NODENAME to'
            f" {_settings()['nodename'].allowed}"
        ) from error
