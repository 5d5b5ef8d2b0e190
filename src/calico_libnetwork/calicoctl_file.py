"""``/etc/calico/calicoctl.cfg``: how Calico's own tools are told where etcd is.

Where it can be read, calicoctl takes the connection from it alone. It is read as strictly as calicoctl reads it:
a field that is not known is an error, not a setting that silently does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from calico_libnetwork.errors import ConfigError

FILE = Path("/etc/calico/calicoctl.cfg")
_API_VERSION = "projectcalico.org/v3"
_KIND = "CalicoAPIConfig"
# field -> this project's setting
_SETTINGS = {
    "datastoreType": "datastore_type",
    "etcdEndpoints": "etcd_endpoints",
    "etcdUsername": "etcd_username",
    "etcdPassword": "etcd_password",
    "etcdCACertFile": "etcd_ca_cert_file",
    "etcdCertFile": "etcd_cert_file",
    "etcdKeyFile": "etcd_key_file",
}
# Fields that mean something to calicoctl and cannot be used here, with the remedy
_UNSUPPORTED = {
    "etcdDiscoverySrv": "list the endpoints in etcdEndpoints",
    "etcdCACert": "put the certificate into a file and name it in etcdCACertFile",
    "etcdCert": "put the certificate into a file and name it in etcdCertFile",
    "etcdKey": "put the key into a file and name it in etcdKeyFile",
}
# Fields for Kubernetes, which may stand there and say nothing here
_KUBERNETES = {
    "kubeconfig",
    "kubeconfigInline",
    "k8sAPIEndpoint",
    "k8sKeyFile",
    "k8sCertFile",
    "k8sCAFile",
    "k8sAPIToken",
    "k8sInsecureSkipTLSVerify",
    "k8sDisableNodePoll",
    "k8sUsePodCIDR",
    "k8sClientQPS",
    "k8sCurrentContext",
}


def read(path: Path = FILE) -> dict[str, str] | None:
    """Setting names to their text; None where there is no file. Raises ``ConfigError`` naming the field."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read ({reason}); make it readable or remove it") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> dict[str, str]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{name} must be a mapping with apiVersion, kind, metadata and spec")
    _check_envelope(document, name)
    spec = document.get("spec") or {}
    if not isinstance(spec, dict):
        raise ConfigError(f"{name}: spec must be a mapping")
    return dict(setting for field, value in spec.items() if (setting := _setting(str(field), value, name)) is not None)


def _check_envelope(document: dict[str, Any], name: str) -> None:
    for field in document:
        if field not in ("apiVersion", "kind", "metadata", "spec"):
            raise ConfigError(f"{name}: unknown field {field}; known are apiVersion, kind, metadata and spec")
    for field, wanted in (("apiVersion", _API_VERSION), ("kind", _KIND)):
        if document.get(field) != wanted:
            raise ConfigError(f"{name}: {field} must be {wanted}, not {document.get(field)}")


def _setting(field: str, value: object, name: str) -> tuple[str, str] | None:
    if field not in {*_SETTINGS, *_UNSUPPORTED, *_KUBERNETES}:
        raise ConfigError(f"{name}: unknown field spec.{field}; known are {', '.join([*_SETTINGS, *_UNSUPPORTED])}")
    if value in (None, "") or field in _KUBERNETES:
        return None
    if field in _UNSUPPORTED:
        raise ConfigError(f"{name}: spec.{field} is not supported: {_UNSUPPORTED[field]}")
    if not isinstance(value, str):
        raise ConfigError(f"{name}: spec.{field} must be text")
    return _SETTINGS[field], value
