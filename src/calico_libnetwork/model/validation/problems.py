"""What is wrong with a document: every problem, with the path of its field and a clause that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from calico_libnetwork.errors import InvalidResource

Report = Callable[[str, str], None]
"""Takes a path such as ``spec.ingress[0].action`` and a clause such as ``must be Allow, Deny, Log or Pass``."""


@dataclass(frozen=True, slots=True)
class Problem:
    path: str
    clause: str

    def __str__(self) -> str:
        return f"{self.path} {self.clause}"


class InvalidDocument(InvalidResource):
    """All ``problems`` of the object called ``subject``, one a line."""

    def __init__(self, subject: str, problems: Sequence[Problem]) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(f"{subject}: {self.problems[0]}")
        else:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            super().__init__(f"{subject} has {len(self.problems)} problems:{lines}")


def one_of(values: Sequence[object]) -> str:
    """``Allow, Deny or Log``."""
    names = [str(value) for value in values]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
