"""What the pages say of settings, metrics, commands and files is what the code has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from calico_libnetwork import config
from calico_libnetwork.agent.metrics import AgentMetrics
from calico_libnetwork.cli.main import cli
from calico_libnetwork.config import Config, parse_duration
from calico_libnetwork.docker.metrics import CallMetrics

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
CONFIGURATION = (REPOSITORY / "docs/configuration.md").read_text()
METRICS = (REPOSITORY / "docs/metrics.md").read_text()
_LINK = re.compile(r"\]\(([^)#]+)?(#[^)]*)?\)")
_COMMAND = re.compile(r"calico-libnetwork ([a-z]+)\b(?: ([a-z]+)\b)?")


def rows(page: str, columns: int) -> list[list[str]]:
    """Of tables with that many columns, without titles."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    return [cells for cells in lines if len(cells) == columns and cells[0].startswith("`")]


def test_every_setting_is_on_the_page_as_it_is_in_the_code() -> None:
    told = [(row[0].strip("`"), *row[1:4]) for row in rows(CONFIGURATION, 5)]
    assert told == [
        (name, ", ".join(f"`{variable}`" for variable in variables), allowed, told[position][3])
        for position, name in enumerate(config.setting_names())
        for variables, allowed in [config.describe(name)]
    ]


def test_every_default_is_on_the_page_as_it_is_in_the_code() -> None:
    told = {row[0].strip("`"): row[3].strip("`") for row in rows(CONFIGURATION, 5)}
    for entry in fields(Config):
        text, default = told[entry.name], entry.default
        if isinstance(default, bool):
            assert text == ("" if entry.name == "debug" else str(default).lower()), entry.name
        elif isinstance(default, float):
            assert parse_duration(text) == default, entry.name
        else:
            assert text == ("" if default in (None, ()) else str(default)), entry.name


def test_every_metric_is_on_the_page() -> None:
    registry = CollectorRegistry()
    AgentMetrics(registry)
    CallMetrics(registry)
    known = {metric.name + ("_total" if metric.type == "counter" else ""): metric.type for metric in registry.collect()}
    told = {row[0].strip("`").partition("{")[0]: row[1] for row in rows(METRICS, 3)}
    assert told == known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor[1:] in _anchors(path.read_text()), f"{page.name} links to {target}{anchor}"


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_exist(page: Path) -> None:
    context = cli.make_context("calico-libnetwork", ["-h"], resilient_parsing=True)
    for name, below in _COMMAND.findall(
        "\n".join(re.findall(r"`[^`]+`|^ {4}.*$|^\$ .*$", page.read_text(), re.MULTILINE))
    ):
        command = cli.get_command(context, name)
        assert command is not None, f"{page.name}: calico-libnetwork {name}"
        if below and hasattr(command, "commands"):
            assert below in command.commands, f"{page.name}: calico-libnetwork {name} {below}"
