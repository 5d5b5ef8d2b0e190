"""Calico's own connection file is read as strictly as calicoctl reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_libnetwork.calicoctl_file import parse, read
from calico_libnetwork.config import setting_names
from calico_libnetwork.errors import ConfigError

GOOD = """
apiVersion: projectcalico.org/v3
kind: CalicoAPIConfig
metadata: {}
spec: {datastoreType: etcdv3, etcdEndpoints: "https://10.0.0.1:2379,https://10.0.0.2:2379",
       etcdCACertFile: /etc/calico/ca.pem, etcdCertFile: /etc/calico/cert.pem, etcdKeyFile: /etc/calico/key.pem,
       kubeconfig: /root/.kube/config, etcdUsername: ""}
"""


def spec(text: str) -> str:
    return f"apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec: {text}\n"


def test_settings_come_under_this_projects_names() -> None:
    settings = parse(GOOD, "f")
    assert settings == {
        "datastore_type": "etcdv3",
        "etcd_endpoints": "https://10.0.0.1:2379,https://10.0.0.2:2379",
        "etcd_ca_cert_file": "/etc/calico/ca.pem",
        "etcd_cert_file": "/etc/calico/cert.pem",
        "etcd_key_file": "/etc/calico/key.pem",
    }
    assert settings.keys() <= set(setting_names())


def test_file_without_a_spec_says_nothing() -> None:
    assert parse(spec(""), "f") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "f is not YAML"),
        ("text", "f must be a mapping"),
        (GOOD.replace("projectcalico.org/v3", "v1"), "f: apiVersion must be projectcalico.org/v3, not v1"),
        (GOOD.replace("CalicoAPIConfig", "IPPool"), "f: kind must be CalicoAPIConfig, not IPPool"),
        (GOOD + "status: {}\n", "f: unknown field status"),
        (spec("{etcdEndpoint: x}"), "f: unknown field spec.etcdEndpoint; known are datastoreType, etcdEndpoints"),
        (spec("[a]"), "f: spec must be a mapping"),
        (spec("{etcdUsername: 5}"), "f: spec.etcdUsername must be text"),
        (spec("{etcdDiscoverySrv: example.com}"), "spec.etcdDiscoverySrv is not supported: list the endpoints"),
        (spec("{etcdKey: PEM}"), "spec.etcdKey is not supported: put the key into a file"),
    ],
)
def test_what_is_wrong_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(text, "f")


def test_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "calicoctl.cfg"
    assert read(path) is None
    path.write_text(GOOD)
    assert (read(path) or {})["datastore_type"] == "etcdv3"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"calicoctl\.cfg cannot be read"):
        read(path)
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        read(tmp_path)
