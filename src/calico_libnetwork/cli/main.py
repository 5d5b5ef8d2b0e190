"""The command table. Commands load their modules when called, so ``-v`` and ``--help`` answer at once."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from calico_libnetwork import __version__
from calico_libnetwork.errors import CalicoError

# command name: (module, attribute, one line for --help)
_RESOURCES = "calico_libnetwork.cli.resources"
_COMMANDS = {
    "apply": (_RESOURCES, "apply", "Create or update resources from files."),
    "create": (_RESOURCES, "create", "Create resources from files."),
    "datastore": ("calico_libnetwork.cli.datastore", "datastore", "Move a cluster to another datastore."),
    "delete": (_RESOURCES, "delete", "Delete resources by name or from files."),
    "explain": ("calico_libnetwork.cli.explain", "explain", "Say whether one end reaches another, and why."),
    "get": (_RESOURCES, "get", "Show resources as a table, YAML or JSON."),
    "ipam": ("calico_libnetwork.cli.ipam", "ipam", "Look at and repair the assignment of addresses."),
    "node": ("calico_libnetwork.cli.node", "node", "Look at the hosts, and remove one that is gone."),
    "replace": (_RESOURCES, "replace", "Replace existing resources from files."),
    "validate": (_RESOURCES, "validate", "Check files of resources without writing anything."),
    "status": ("calico_libnetwork.cli.status", "status", "Show whether everything works, on one screen."),
    "uninstall": ("calico_libnetwork.cli.uninstall", "uninstall", "Remove what the agent made on this host."),
    "run": ("calico_libnetwork.cli.run", "run", "Run the plugin and the agent in the foreground."),
}


class _CommandTable(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.group(cls=_CommandTable, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-v", "--version", message="%(version)s")
def cli() -> None:
    """Calico networking and policy for plain Docker."""


def main() -> None:
    """Entry point: our errors become one sentence on stderr and exit code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CalicoError as error:
        _say(f"Error: {error}")
        sys.exit(1)


def _say(text: Any) -> None:
    click.echo(text, err=True)
