"""Tables in a box, as calicoctl prints states, and numbers for them."""

from __future__ import annotations

from collections.abc import Sequence


def boxed(rows: Sequence[Sequence[str]]) -> str:
    """The first row holds the titles."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def share(count: int, capacity: int) -> str:
    return f"{count} ({100 * count / capacity:.0f}%)"


def size(count: int) -> str:
    """IPv6 pools are beyond counting."""
    return str(count) if count < 10**12 else f"{count:.4e}"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def first(items: Sequence[str], limit: int) -> str:
    """Some of them on one line, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
