"""``calico-libnetwork status``: everything the running process says of itself, on one screen."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from pathlib import Path
from typing import Any

import click

from calico_libnetwork import config
from calico_libnetwork.cli.session import SOCKET
from calico_libnetwork.errors import NotFound

_DEADLINE = 5.0


@click.command()
@click.option("-o", "--output", type=click.Choice(["json"]), help="Print what the process answered as it is.")
def status(output: str | None) -> None:
    """Show whether the plugin and the agent work; exits with 1 if not everything is ready."""
    answer = ask(config.load().run_directory / SOCKET, "/status")
    click.echo(json.dumps(answer, indent=2) if output == "json" else _screen(answer))
    sys.exit(0 if answer["ready"] and answer["live"] else 1)


def ask(path: Path, target: str) -> Any:
    """What the running process answers on its control socket. Raises ``NotFound`` if there is none."""
    connection = http.client.HTTPConnection("control", timeout=_DEADLINE)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(_DEADLINE)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", target)
        return json.loads(connection.getresponse().read())
    except OSError as error:
        raise NotFound(
            f"no calico-libnetwork answers on {path} ({error}); start it with calico-libnetwork run"
        ) from error
    finally:
        connection.close()


def _screen(answer: dict[str, Any]) -> str:
    state = "ready" if answer["ready"] else "NOT READY"
    lines = [f"{state}   node {answer.get('node', '?')}   version {answer.get('version', '?')}", ""]
    for name, task in answer["tasks"].items():
        lines.append(f"{'ok ' if task['ready'] and task['live'] else 'NOT'}  {name:<12} {task['detail']}")
    for title, part in answer.items():
        if isinstance(part, dict) and title != "tasks":
            lines += ["", f"{title}:", *_part(part)]
    return "\n".join(lines)


def _part(part: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in part.items():
        if isinstance(value, list):
            lines.append(f"  {name}: {len(value) or 'none'}")
            lines += [f"    {entry}" for entry in value]
        else:
            lines.append(f"  {name}: {value}")
    return lines
