"""The question before what cannot be taken back."""

from __future__ import annotations

import click


def require_consent(question: str) -> None:
    """Raises ``Abort`` for a no, ``ClickException`` where nobody can answer."""
    try:
        click.confirm(question, abort=True)
    except click.Abort as abort:
        if isinstance(abort.__context__, EOFError):
            click.echo()
            raise click.ClickException("nobody is there to answer: add --yes to go on without asking") from abort
        raise
