"""``get``, ``create``, ``apply``, ``replace``, ``delete`` and ``validate``, in calicoctl's forms.

Every document of a command is validated before the first is written, and all their problems are shown together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import click

from calico_libnetwork.cli.deletion import delete as delete_resource
from calico_libnetwork.cli.files import read_documents
from calico_libnetwork.cli.printers import DEFAULT_AS_NUMBER, OUTPUTS, render
from calico_libnetwork.cli.session import Session, pass_session
from calico_libnetwork.datastore.editing import Editor
from calico_libnetwork.datastore.initialise import ensure_cluster
from calico_libnetwork.errors import AlreadyExists, CalicoError, InvalidResource, NotFound
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.kinds import KINDS, Kind, ResourceKey, find_kind
from calico_libnetwork.model.validation import InvalidDocument, Valid
from calico_libnetwork.model.validation import validate as validate_document

DEFAULT_NAMESPACE = "default"

F = TypeVar("F", bound=Callable[..., Any])
Edit = Callable[[Editor, Valid, int | None], Awaitable[object]]


def _file_options(command: F) -> F:
    for option in (
        click.option("-n", "--namespace", default="", help="For namespaced resources; default: default."),
        click.option("-R", "--recursive", is_flag=True, help="Take directories below the one given, too."),
        click.option(
            "-f", "--filename", "sources", multiple=True, help="A file, a directory, or - for standard input."
        ),
    ):
        command = option(command)
    return command


@click.command()
@_file_options
@click.option("--skip-exists", is_flag=True, help="Pass over what exists already.")
@pass_session
def create(session: Session, *, sources: tuple[str, ...], recursive: bool, namespace: str, skip_exists: bool) -> None:
    """Create resources from files."""
    documents = _valid_documents(sources, recursive=recursive, namespace=namespace)
    for valid, document in documents:
        _require_new(valid, document)
    skipped = AlreadyExists if skip_exists else None
    session.run(_write_all(session, documents, lambda editor, valid, _: editor.create(valid), "created", skipped))


@click.command()
@_file_options
@pass_session
def apply(session: Session, *, sources: tuple[str, ...], recursive: bool, namespace: str) -> None:
    """Create resources from files, or replace them where they exist."""
    documents = _valid_documents(sources, recursive=recursive, namespace=namespace)
    session.run(
        _write_all(session, documents, lambda editor, valid, at: editor.apply(valid, revision=at), "applied", None)
    )


@click.command()
@_file_options
@pass_session
def replace(session: Session, *, sources: tuple[str, ...], recursive: bool, namespace: str) -> None:
    """Replace existing resources by those in files."""
    documents = _valid_documents(sources, recursive=recursive, namespace=namespace)
    session.run(
        _write_all(session, documents, lambda editor, valid, at: editor.replace(valid, revision=at), "replaced", None)
    )


@click.command()
@_file_options
def validate(*, sources: tuple[str, ...], recursive: bool, namespace: str) -> None:
    """Check files without a datastore: every problem of every document."""
    documents = _valid_documents(sources, recursive=recursive, namespace=namespace)
    _warn(documents)
    _say_done("validated", [valid.key.kind for valid, _ in documents])


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@_file_options
@click.option("--skip-not-exists", is_flag=True, help="Pass over what does not exist.")
@pass_session
def delete(
    session: Session,
    *,
    kind: str | None,
    names: tuple[str, ...],
    sources: tuple[str, ...],
    recursive: bool,
    namespace: str,
    skip_not_exists: bool,
) -> None:
    """Delete resources: KIND NAME..., or those in files."""
    if kind is not None:
        _require_names(kind, names)
        keys = [_key(find_kind(kind), name, namespace) for name in names]
    else:
        keys = [_named_key(document, namespace) for document in _documents(sources, recursive=recursive)]
    session.run(_delete_all(session, keys, NotFound if skip_not_exists else None))


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@_file_options
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="ps", help="Default: a table (ps).")
@click.option("--export", is_flag=True, help="Leave out what belongs to this cluster: uid, time, revision.")
@pass_session
def get(
    session: Session,
    *,
    kind: str | None,
    names: tuple[str, ...],
    sources: tuple[str, ...],
    recursive: bool,
    namespace: str,
    all_namespaces: bool,
    output: str,
    export: bool,
) -> None:
    """Show resources: KIND [NAME...], or those named in files."""
    wanted: list[tuple[Kind, list[ResourceKey]]]
    if kind is not None:
        found = find_kind(kind)
        if all_namespaces and not found.namespaced:
            raise InvalidResource(f"{found.name} resources belong to no namespace: leave out -A")
        wanted = [(found, [_key(found, name, namespace) for name in names])]
    else:
        keys = [_named_key(document, namespace) for document in _documents(sources, recursive=recursive)]
        wanted = [(KINDS[key.kind], [key]) for key in keys]
    scope = "" if all_namespaces else (namespace or DEFAULT_NAMESPACE)
    for one, keys in wanted:
        session.run(_show(session, one, keys, scope=scope, output=output, export=export))


def _documents(sources: tuple[str, ...], *, recursive: bool) -> list[Any]:
    if not sources:
        raise click.UsageError("Give a file with -f, or - for standard input.")
    return read_documents(sources, recursive=recursive)


def _valid_documents(sources: tuple[str, ...], *, recursive: bool, namespace: str) -> list[tuple[Valid, Document]]:
    """Each document of the files in its stored form, beside itself. Raises with the problems of all of them."""
    found, wrong = [], []
    for document in _documents(sources, recursive=recursive):
        try:
            found.append((validate_document(_placed(document, namespace)), document))
        except InvalidDocument as error:
            wrong.append(str(error))
    if wrong:
        raise InvalidResource("\n".join(wrong))
    return found


def _placed(document: Any, namespace: str) -> Any:
    """With ``namespace`` where a namespaced document names none."""
    if not namespace or not isinstance(document, dict):
        return document
    kind, metadata = KINDS.get(str(document.get("kind"))), document.get("metadata")
    if kind is None or not kind.namespaced or not isinstance(metadata, dict) or metadata.get("namespace"):
        return document
    return document | {"metadata": metadata | {"namespace": namespace}}


def _require_new(valid: Valid, document: Document) -> None:
    """An object that already has an identity is not one to create."""
    for name in ("resourceVersion", "uid", "creationTimestamp"):
        if document["metadata"].get(name):
            raise InvalidResource(f"{valid.key}: metadata.{name} must be left out to create it; or use apply")


def _revision(valid: Valid, document: Document) -> int | None:
    text = str(document["metadata"].get("resourceVersion") or "")
    if text and not text.isdecimal():
        raise InvalidResource(f"{valid.key}: metadata.resourceVersion must be a number, not {text!r}: leave it out")
    return int(text) if text else None


def _key(kind: Kind, name: str, namespace: str) -> ResourceKey:
    return ResourceKey(kind.name, name, (namespace or DEFAULT_NAMESPACE) if kind.namespaced else "")


def _named_key(document: Any, namespace: str) -> ResourceKey:
    """Of a document that need not be valid: kind and name are enough to show or delete it."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(metadata, dict) or not metadata.get("name") or "kind" not in document:
        raise InvalidResource("a document needs kind and metadata.name")
    return _key(find_kind(str(document["kind"])), str(metadata["name"]), metadata.get("namespace") or namespace)


def _require_names(kind: str, names: tuple[str, ...]) -> None:
    find_kind(kind)
    if not names:
        raise click.UsageError(f"Name what to delete: delete {kind} NAME...")


async def _write_all(
    session: Session,
    documents: Sequence[tuple[Valid, Document]],
    edit: Edit,
    done: str,
    skipped: type[CalicoError] | None,
) -> None:
    _warn(documents)
    revisions = [_revision(valid, document) for valid, document in documents]
    async with session.datastore(may_make=True) as datastore:
        await ensure_cluster(datastore)
        editor = Editor(datastore)
        await _each(
            [valid.key for valid, _ in documents],
            lambda position: edit(editor, documents[position][0], revisions[position]),
            done,
            skipped,
        )


async def _delete_all(session: Session, keys: Sequence[ResourceKey], skipped: type[CalicoError] | None) -> None:
    async with session.datastore() as datastore:
        await _each(keys, lambda position: delete_resource(datastore, keys[position]), "deleted", skipped)


async def _each(
    keys: Sequence[ResourceKey],
    act: Callable[[int], Awaitable[object]],
    done: str,
    skipped: type[CalicoError] | None,
) -> None:
    """One after the other; says how far it came when one fails."""
    handled: list[str] = []
    for position, key in enumerate(keys):
        try:
            await act(position)
        except CalicoError as error:
            if skipped is not None and isinstance(error, skipped):
                click.echo(f"Skipped {key}: {error}")
                continue
            if handled:
                click.echo(f"Partial success: {done} the first {len(handled)} out of {len(keys)} resources", err=True)
            raise
        handled.append(key.kind)
    _say_done(done, handled)


def _say_done(done: str, kinds: Sequence[str]) -> None:
    counts = Counter(kinds)
    what = f" '{next(iter(counts))}'" if len(counts) == 1 else ""
    click.echo(f"Successfully {done} {len(kinds)}{what} resource(s)")


def _warn(documents: Sequence[tuple[Valid, Document]]) -> None:
    for valid, _ in documents:
        for warning in valid.warnings:
            click.echo(f"Warning: {warning}", err=True)


async def _show(
    session: Session, kind: Kind, keys: Sequence[ResourceKey], *, scope: str, output: str, export: bool
) -> None:
    """Those that exist are shown even where another one does not."""
    missing: list[str] = []
    async with session.datastore() as datastore:
        editor = Editor(datastore)
        revision: int | None = None
        if keys:
            found = await _named(editor, keys, missing)
        else:
            listed = await editor.list_kind(kind.name, namespace=scope if kind.namespaced else "")
            found, revision = list(listed.documents), listed.revision
            for path in listed.unreadable:
                click.echo(f"Warning: the value under {path} is not readable", err=True)
        if kind.name == "Node" and output == "wide":
            found = await _with_default_as_number(editor, found)
    if export and keys:  # calicoctl ignores it where nobody is named
        found = [_exported(document) for document in found]
    if found or not keys:
        click.echo(render(kind, found, output=output, revision=revision, all_namespaces=not scope), nl=False)
    if missing:
        raise NotFound("\n".join(missing))


async def _named(editor: Editor, keys: Sequence[ResourceKey], missing: list[str]) -> list[Document]:
    found = []
    for key in keys:
        try:
            found.append(await editor.get(key))
        except NotFound as error:
            missing.append(str(error))
    return found


async def _with_default_as_number(editor: Editor, nodes: list[Document]) -> list[Document]:
    try:
        settings = await editor.get(ResourceKey("BGPConfiguration", "default"))
    except (NotFound, InvalidResource):
        return nodes
    spec = settings.get("spec")
    number = spec.get("asNumber") if isinstance(spec, dict) else None
    return [node | {DEFAULT_AS_NUMBER: number} if number else node for node in nodes]


def _exported(document: Document) -> Document:
    of_this_cluster = ("uid", "creationTimestamp", "resourceVersion")
    metadata = {name: value for name, value in document["metadata"].items() if name not in of_this_cluster}
    return document | {"metadata": metadata}
