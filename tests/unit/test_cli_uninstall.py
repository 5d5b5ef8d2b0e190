"""``uninstall`` where it refuses; what it removes is tried on real hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from calico_libnetwork.cli.session import Session
from calico_libnetwork.cli.uninstall import uninstall
from calico_libnetwork.config import Config
from calico_libnetwork.datastore.memory import MemoryDatastore
from tests.unit.running_process import running_process

Command = Callable[..., Result]


@pytest.fixture
def calico(tmp_path: Path) -> Command:
    config = Config(
        datastore_type="embedded",
        nodename="host-a",
        state_directory=tmp_path / "state",
        run_directory=tmp_path,
        plugin_directory=tmp_path,
        docker_host=f"unix://{tmp_path}/docker.sock",
    )

    def call(*words: str, answer: str = "") -> Result:
        return CliRunner().invoke(uninstall, words, input=answer, obj=Session(config))

    return call


def test_a_running_process_is_not_undermined(calico: Command, tmp_path: Path) -> None:
    with running_process(tmp_path, MemoryDatastore()):
        answer = calico("--yes", "--force")
    assert str(answer.exception) == f"calico-libnetwork runs here ({tmp_path}/control.sock answers): stop it first"


def test_silence_of_docker_is_no_word_that_there_are_no_networks(calico: Command) -> None:
    answer = calico("--yes")
    assert str(answer.exception).startswith("Docker does not say whether Calico networks exist")


def test_a_no_removes_nothing(calico: Command, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    answer = calico("--force", answer="n\n")
    assert answer.exit_code == 1
    assert "--yes" not in answer.output
    assert f"  {tmp_path}/state with everything in it\n" in answer.output
    assert (tmp_path / "state").exists()


def test_where_nobody_can_answer_the_way_on_is_said_and_nothing_removed(calico: Command, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    answer = calico("--force")
    assert answer.exit_code == 1
    assert answer.stderr == "Error: nobody is there to answer: add --yes to go on without asking\n"
    assert (tmp_path / "state").exists()
