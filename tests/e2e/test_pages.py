"""The sessions of README and tutorial, typed as they stand, show what the pages say they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.e2e.conftest import MakeHost
from tests.e2e.lab import COMMAND, REPOSITORY, Host, dockers

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.yaml)\n")
_VARIABLE = re.compile(r"\w+=")


@dataclass
class Line:
    """A command and the lines of its output that the page shows, ``...`` standing for anything."""

    command: str
    shown: list[str] = field(default_factory=list)


def session(page: str) -> Iterator[tuple[str, str] | Line]:
    """Files to write and commands to type, in the order of the page."""
    for language, text in _BLOCK.findall(page):
        if language == "yaml" and (named := _FILE.match(text)):
            yield named[1], text
        elif language == "console":
            yield from typed(text)


def typed(text: str) -> Iterator[Line]:
    line: Line | None = None
    for part in text.splitlines():
        if part.startswith("$ "):
            if line is not None:
                yield line
            line = Line(part[2:].partition("  # ")[0].rstrip())
        elif line is not None and part.strip():
            line.shown.append(part.strip())
    if line is not None:
        yield line


def run(host: Host, page: str) -> None:
    directory = host.machine.directory / "page"
    directory.mkdir()
    variables: list[str] = []
    for item in session(page):
        if not isinstance(item, Line):
            name, text = item
            (directory / name).write_text(text)
        elif item.command.startswith("sudo make "):
            continue
        elif _VARIABLE.match(item.command):
            variables.append(item.command)
        else:
            check(host, item, [f"cd {directory}", f"PATH={COMMAND.parent}:$PATH", *variables])


def check(host: Host, line: Line, before: list[str]) -> None:
    result = host.machine.try_run("sh", "-c", "; ".join([*before, line.command]))
    output = result.stdout + result.stderr
    assert line.shown or result.returncode == 0, f"{line.command}: {output}"
    for shown in line.shown:
        pattern = ".*".join(map(re.escape, shown.split("...")))
        assert re.search(pattern, output), f"{line.command} does not show {shown!r}: {output}"


@pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/troubleshooting.md"])
def test_what_the_page_shows_is_what_happens(make_host: MakeHost, page: str) -> None:
    host = make_host(CALICO_LIBNETWORK_LABEL_ENDPOINTS="true")
    run(host, (REPOSITORY / page).read_text())
