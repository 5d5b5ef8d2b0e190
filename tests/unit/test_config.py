"""Where settings come from, what they may be, and the sentence a wrong one gets."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from calico_libnetwork.config import Config, deprecation, load, parse_duration
from calico_libnetwork.errors import ConfigError

Loader = Callable[..., Config]


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    def call(environment: dict[str, str] | None = None, toml: str = "", **keywords: object) -> Config:
        file = tmp_path / "config.toml"
        if toml:
            file.write_text(toml)
        keywords.setdefault("hostname", "Docker-1")
        keywords.setdefault("nodename_file", tmp_path / "nodename")
        keywords.setdefault("calicoctl_file", tmp_path / "calicoctl.cfg")
        return load(environment=environment or {}, file=file, **keywords)  # type: ignore[arg-type]

    return call


def test_without_any_setting_one_host_works(loader: Loader) -> None:
    config = loader()
    assert (config.datastore_type, config.nodename, config.create_profiles) == ("embedded", "docker-1", True)


def test_an_etcd_endpoint_selects_etcd(loader: Loader) -> None:
    config = loader({"ETCD_ENDPOINTS": "http://a:2379, https://b:2379/"})
    assert (config.datastore_type, config.etcd_endpoints) == ("etcdv3", ("http://a:2379", "https://b:2379"))


def test_the_calico_prefix_wins(loader: Loader) -> None:
    config = loader({"ETCD_ENDPOINTS": "http://a:2379", "CALICO_ETCD_ENDPOINTS": "http://b:2379"})
    assert config.etcd_endpoints == ("http://b:2379",)


def test_legacy_authority_becomes_an_endpoint(loader: Loader) -> None:
    config = loader({"ETCD_AUTHORITY": "etcd:2379", "ETCD_SCHEME": "https"})
    assert (config.datastore_type, config.etcd_endpoints) == ("etcdv3", ("https://etcd:2379",))


@pytest.mark.parametrize(
    ("environment", "remark"),
    [
        ({"ETCD_ENDPOINTS": "http://10.0.0.1:2379"}, ""),
        (
            {"ETCD_AUTHORITY": "10.0.0.1:2379"},
            "ETCD_AUTHORITY is deprecated; set ETCD_ENDPOINTS=http://10.0.0.1:2379 instead",
        ),
        (
            {"CALICO_ETCD_AUTHORITY": "10.0.0.1:2379", "ETCD_SCHEME": "https"},
            "CALICO_ETCD_AUTHORITY and ETCD_SCHEME are deprecated; set ETCD_ENDPOINTS=https://10.0.0.1:2379 instead",
        ),
        (
            {"ETCD_AUTHORITY": "10.0.0.1:2379", "ETCD_ENDPOINTS": "http://10.0.0.2:2379"},
            "ETCD_AUTHORITY is deprecated and of no effect here; remove it",
        ),
    ],
    ids=["today's", "authority", "authority and scheme", "both ways"],
)
def test_the_variables_of_old_are_named_with_their_replacement(
    loader: Loader, environment: dict[str, str], remark: str
) -> None:
    assert deprecation(loader(environment), environment) == remark


def test_the_settings_of_old_are_named_where_the_file_has_them(loader: Loader) -> None:
    config = loader(toml='etcd_authority = "10.0.0.1:2379"')
    assert deprecation(config, {}) == "etcd_authority is deprecated; set ETCD_ENDPOINTS=http://10.0.0.1:2379 instead"


def test_etcd_without_an_endpoint_is_on_this_host(loader: Loader) -> None:
    assert loader({"DATASTORE_TYPE": "etcdv3"}).etcd_endpoints == ("http://127.0.0.1:2379",)


@pytest.fixture
def calicoctl_file(tmp_path: Path) -> Path:
    file = tmp_path / "calicoctl.cfg"
    file.write_text(
        "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata: {}\n"
        'spec: {datastoreType: etcdv3, etcdEndpoints: "https://c:2379", etcdCACertFile: /ca}\n'
    )
    return file


def test_calicoctls_own_file_says_where_etcd_is(loader: Loader, calicoctl_file: Path) -> None:
    for environment in ({}, {"DATASTORE_TYPE": "etcdv3"}):
        config = loader(environment)
        assert (config.datastore_type, config.etcd_endpoints) == ("etcdv3", ("https://c:2379",))
        assert config.etcd_ca_cert_file == "/ca"


@pytest.mark.parametrize(
    ("environment", "toml"),
    [
        ({"ETCD_ENDPOINTS": "http://a:2379"}, ""),
        ({"CALICO_ETCD_AUTHORITY": "a:2379"}, ""),
        ({}, 'etcd_endpoints = ["http://a:2379"]\n'),
    ],
)
def test_any_etcd_setting_keeps_calicoctls_file_out(
    loader: Loader, calicoctl_file: Path, environment: dict[str, str], toml: str
) -> None:
    config = loader(environment, toml)
    assert (config.etcd_endpoints, config.etcd_ca_cert_file) == (("http://a:2379",), "")


def test_the_embedded_datastore_needs_no_calicoctl_file(loader: Loader, calicoctl_file: Path) -> None:
    calicoctl_file.write_text("not even YAML: {")
    assert loader({"DATASTORE_TYPE": "embedded"}).etcd_endpoints == ()
    with pytest.raises(ConfigError, match=r"calicoctl\.cfg is not YAML"):
        loader()


def test_a_calicoctl_file_for_kubernetes_asks_for_datastore_type(loader: Loader, calicoctl_file: Path) -> None:
    calicoctl_file.write_text(calicoctl_file.read_text().replace("etcdv3", "kubernetes"))
    with pytest.raises(ConfigError, match=r'calicoctl\.cfg: .* is "kubernetes".*set DATASTORE_TYPE to one of embedded'):
        loader()
    assert loader({"DATASTORE_TYPE": "etcdv3"}).etcd_endpoints == ("https://c:2379",)


def test_flags_beat_the_environment_which_beats_the_file(loader: Loader) -> None:
    toml = 'veth_mtu = 1400\ninterface_prefix = "eth"\nscope = "local"\n'
    config = loader(
        {"CALICO_LIBNETWORK_VETH_MTU": "1410", "CALICO_LIBNETWORK_IFPREFIX": "net"}, toml, flags={"veth_mtu": "1420"}
    )
    assert (config.veth_mtu, config.interface_prefix, config.scope) == (1420, "net", "local")


def test_file_takes_tomls_own_types(loader: Loader) -> None:
    config = loader(toml='create_profiles = false\netcd_endpoints = ["http://a:2379"]\nipv4pool_cidr = "10.0.0.0/16"\n')
    assert (config.create_profiles, config.etcd_endpoints) == (False, ("http://a:2379",))
    assert config.ipv4pool_cidr == IPv4Network("10.0.0.0/16")


def test_node_name_order(loader: Loader, tmp_path: Path) -> None:
    assert loader({"HOSTNAME": "From-Env"}).nodename == "from-env"
    (tmp_path / "nodename").write_text("from-file\n")
    assert loader({"HOSTNAME": "from-env"}).nodename == "from-file"
    assert loader({"HOSTNAME": "from-env", "NODENAME": " given "}).nodename == "given"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"CALICO_LIBNETWORK_VETH_MTU": "9"},
            'CALICO_LIBNETWORK_VETH_MTU is "9"; allowed: a number from 68 to 65535',
        ),
        (
            {"CALICO_LIBNETWORK_CREATE_PROFILES": "maybe"},
            'CALICO_LIBNETWORK_CREATE_PROFILES is "maybe"; allowed: true or false',
        ),
        (
            {"CALICO_LIBNETWORK_SCOPE": "swarm"},
            'CALICO_LIBNETWORK_SCOPE is "swarm"; allowed: one of auto, global, local',
        ),
        ({"DATASTORE_TYPE": "kubernetes"}, 'DATASTORE_TYPE is "kubernetes", which needs a Kubernetes API: this is'),
        ({"NODENAME": "My_Node"}, 'NODENAME is "My_Node"; allowed: a lower-case DNS name of at most 166 characters'),
        ({"CALICO_IPV4POOL_CIDR": "10.0.0.1/16"}, 'CALICO_IPV4POOL_CIDR is "10.0.0.1/16"; allowed: an IPv4 CIDR'),
        ({"ETCD_ENDPOINTS": "a:2379"}, 'ETCD_ENDPOINTS is "a:2379"; allowed: a comma list of http:// or https:// URLs'),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    loader: Loader, environment: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loader(environment)
    assert str(caught.value).startswith(sentence)


def test_an_unknown_key_in_the_file_is_named(loader: Loader) -> None:
    with pytest.raises(ConfigError, match="unknown key veth_mut"):
        loader(toml="veth_mut = 1\n")


def test_an_unusable_host_name_asks_for_nodename(loader: Loader) -> None:
    with pytest.raises(ConfigError, match='the host name is "my_host", which is no Calico node name; set NODENAME'):
        loader(hostname="my_host")


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("1m30s", 90), ("100ms", 0.1), ("0", 0), ("1.5h", 5400), ("2µs", 2e-6)]
)
def test_go_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "5x", "1m 3s", "-1s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)
