"""Export, import and lock, as a user calls them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from calico_libnetwork.cli.datastore import datastore
from calico_libnetwork.cli.resources import apply, get
from calico_libnetwork.cli.session import FILE, Session
from calico_libnetwork.config import Config

Command = Callable[..., Result]
POOL = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "IPPool",
    "metadata": {"name": "p"},
    "spec": {"cidr": "10.65.0.0/16"},
}


def session(directory: Path) -> Session:
    return Session(Config(datastore_type="embedded", state_directory=directory, run_directory=directory))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    directory = tmp_path / "old"
    CliRunner().invoke(apply, ["-f", "-"], input=yaml.safe_dump(POOL), obj=session(directory), catch_exceptions=False)
    return directory


def call(directory: Path, *words: str) -> Result:
    return CliRunner().invoke(datastore, words, obj=session(directory))


def pools(directory: Path) -> str:
    return CliRunner().invoke(get, ["pool", "-o", "yaml", "p"], obj=session(directory)).stdout


def test_a_cluster_moves_through_a_file(old: Path, tmp_path: Path) -> None:
    file, new = tmp_path / "export", tmp_path / "new"
    assert call(old, "export", "-o", str(file)).stdout.startswith("Exported 5 keys of embedded (")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert call(new, "import", "-f", str(file)).stdout.startswith("Imported 5 of 5 keys into embedded (")
    before, after = yaml.safe_load(pools(old)), yaml.safe_load(pools(new))
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"]
    assert call(old, "export").stdout_bytes == file.read_bytes()


def test_lock_and_unlock(old: Path) -> None:
    def ready() -> bool:
        result = CliRunner().invoke(get, ["clusterinfo", "default", "-o", "yaml"], obj=session(old))
        return bool(yaml.safe_load(result.stdout)["spec"]["datastoreReady"])

    assert call(old, "lock").stdout.startswith("Successfully locked embedded (")
    assert not ready()
    assert call(old, "unlock").stdout.startswith("Successfully unlocked embedded (")
    assert ready()


def test_there_is_nothing_to_lock_in_an_empty_datastore(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / FILE).touch()
    assert "there is no cluster in embedded" in str(call(tmp_path / "new", "lock").exception)


def test_files_that_cannot_be_used_are_named(old: Path, tmp_path: Path) -> None:
    assert "none cannot be read: No such file" in str(call(old, "import", "-f", str(tmp_path / "none")).exception)
    assert "cannot be written: No such file" in str(call(old, "export", "-o", str(tmp_path / "no" / "f")).exception)
