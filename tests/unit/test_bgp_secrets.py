"""BGP passwords from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_libnetwork.routing import secrets


def test_a_key_is_a_file_and_its_last_newline_is_not_the_password(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "k").write_text("secret\n")
    assert secrets.read([("s", "k"), ("s", "other"), ("t", "k")], tmp_path) == {("s", "k"): "secret"}


@pytest.mark.parametrize("reference", [("..", "k"), (".", "k"), ("s/..", "k"), ("s", "../k"), ("", "k"), ("s", "")])
def test_a_reference_cannot_lead_out_of_the_directory(tmp_path: Path, reference: tuple[str, str]) -> None:
    (tmp_path / "k").write_text("outside")
    (tmp_path / "inside" / "s").mkdir(parents=True)
    (tmp_path / "inside" / "k").write_text("beside")
    assert secrets.read([reference], tmp_path / "inside") == {}
