"""State files: bursts are one write, closing waits for it, and trouble with the disk is only told."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from calico_libnetwork.state_file import StateFile


async def test_a_burst_of_changes_is_one_write_of_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(StateFile, "_write", lambda _, content: written.append(content))
    state = b""
    file = StateFile(tmp_path / "state", lambda: state)
    for number in range(10):
        state = b"%d" % number
        file.save_soon()
    await file.close()
    assert written == [b"9"]


async def test_what_was_saved_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "new" / "state.json", lambda: b"content")
    assert file.read() is None
    file.save_soon()
    await file.close()
    assert file.read() == b"content"
    assert names(tmp_path / "new") == ["state.json"]
    await file.close()


async def test_a_disk_that_refuses_is_only_told(tmp_path: Path) -> None:
    occupy(tmp_path / "state")
    file = StateFile(tmp_path / "state" / "file", lambda: b"")
    file.save_soon()
    with capture_logs() as logs:
        await file.close()
        assert file.read() is None
    assert [entry["event"] for entry in logs] == ["state cannot be saved", "state cannot be read, starting empty"]


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def occupy(path: Path) -> None:
    path.write_bytes(b"a file where a directory should be")
