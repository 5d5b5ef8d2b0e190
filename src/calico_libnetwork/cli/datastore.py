"""``datastore export``, ``import``, ``lock`` and ``unlock``: moving a cluster from one datastore to another."""

from __future__ import annotations

import os
from pathlib import Path

import click

from calico_libnetwork.cli.session import Session, pass_session
from calico_libnetwork.datastore import transfer
from calico_libnetwork.datastore.initialise import set_ready
from calico_libnetwork.errors import ConfigError


@click.group()
def datastore() -> None:
    """Move a cluster from one datastore to another; running containers keep their network."""


@datastore.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file; default: standard output.")
@pass_session
def export(session: Session, *, output: Path | None) -> None:
    """Write everything in the datastore to a file."""

    async def read() -> transfer.Snapshot:
        async with session.datastore() as found:
            return await transfer.export(found)

    snapshot = session.run(read())
    content = transfer.dump(snapshot)
    if output is None:
        click.echo(content, nl=False)
        return
    _write_privately(output, content)
    click.echo(f"Exported {len(snapshot.entries)} keys of {snapshot.source} to {output}")


@datastore.command("import")
@click.option("-f", "--filename", type=click.Path(path_type=Path), required=True, help="What export has written.")
@click.option("--overwrite", is_flag=True, help="Also into a datastore with contents: replace what has the same key.")
@pass_session
def import_(session: Session, *, filename: Path, overwrite: bool) -> None:
    """Write what export has read into the datastore."""
    try:
        content = filename.read_bytes()
    except OSError as error:
        raise ConfigError(f"{filename} cannot be read: {error.strerror}") from error
    snapshot = transfer.load(content)

    async def write() -> tuple[int, str]:
        async with session.datastore(may_make=True) as found:
            return await transfer.import_into(found, snapshot, overwrite=overwrite), found.description

    count, description = session.run(write())
    click.echo(f"Imported {count} of {len(snapshot.entries)} keys into {description}")


@datastore.command()
@pass_session
def lock(session: Session) -> None:
    """Let nobody assign addresses any more, while the datastore is moved."""
    click.echo(session.run(_set_ready(session, ready=False)))


@datastore.command()
@pass_session
def unlock(session: Session) -> None:
    """The reverse of lock."""
    click.echo(session.run(_set_ready(session, ready=True)))


async def _set_ready(session: Session, *, ready: bool) -> str:
    async with session.datastore() as found:
        await set_ready(found, ready=ready)
        return f"Successfully {'unlocked' if ready else 'locked'} {found.description}"


def _write_privately(path: Path, content: bytes) -> None:
    """An export holds what etcd guards with certificates, BGP passwords' names included."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
